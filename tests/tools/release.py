"""`make release VERSION=1.2.3`: set the version, date the changelog, and build what is published in `dist`.

`python -m tools.release VERSION ENVIRONMENT [--dry-run | --check]`: `ENVIRONMENT` has the locked dependencies and a
wheel, as `make check-wheel` leaves it. A dry run works on a copy of the checkout, so it changes nothing but the
environment. `--check` only says whether the checkout is ready: before the tests, which take long.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "Unreleased"
VERSIONED = {
    "service/task_bridge/__init__.py": r'(?<=__version__ = ").*(?=")',
    "deploy/kubernetes/production/kustomization.yaml": r"(?<=newTag: ).*",
    "deploy/helm/Chart.yaml": r"(?<=ersion: )\d.*",
}
"""Where the version is written, by the file: the chart has two, of itself and of the bridge."""
REQUIREMENTS = ("requirements.txt", "requirements-client.txt")


class NotReadyError(Exception):
    """The checkout isn't ready; the message says why and what to do."""


def date_changelog(text: str, version: str, date: str) -> str:
    """Return the changelog with the date of this version. Raises NotReadyError if it has nothing to say of it."""
    heading = f"## {version} - {UNRELEASED}\n"
    changes = text.partition(heading)[2].partition("\n## ")[0]
    if not re.search(r"^- \S", changes, re.M):
        raise NotReadyError(f'CHANGELOG.md: needs a section "{heading.strip()}" with what changes for its readers')
    return text.replace(heading, f"## {version} - {date}\n")


def set_version(text: str, pattern: str, version: str) -> str:
    """Return the text with the version at each place that the pattern finds. Raises NotReadyError if there is none."""
    changed, count = re.subn(pattern, version, text)
    if count == 0:
        raise NotReadyError(f"there is no {pattern!r}")
    return changed


def prepare(root: Path, version: str, date: str) -> None:
    """Write the version and the date into the files. Raises NotReadyError, and changes nothing then."""
    for file, text in plan(root, version, date).items():
        file.write_text(text)


def plan(root: Path, version: str, date: str) -> dict[Path, str]:
    """Return the files with the version and the date in them. Raises NotReadyError."""
    if not VERSION.fullmatch(version):
        raise NotReadyError(f"{version!r} isn't a version like 1.2.3")
    changed = {root / name: set_version((root / name).read_text(), at, version) for name, at in VERSIONED.items()}
    changelog = root / "CHANGELOG.md"
    changed[changelog] = date_changelog(changelog.read_text(), version, date)
    return changed


def build(root: Path, version: str, environment: Path) -> list[Path]:
    """Build the wheel, the sdist, the SBOM and their checksums into `dist`, and return them."""
    dist = root / "dist" / version
    shutil.rmtree(dist, ignore_errors=True)
    subprocess.run([BIN / "hatchling", "build", "-d", dist], cwd=root, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = dist.glob(f"*-{version}-*.whl")
    write_sbom(root, wheel, version, environment, dist / f"vcenter-task-bridge-{version}.cdx.json")
    for name in REQUIREMENTS:
        shutil.copy(root / "deploy" / name, dist)
    files = sorted(file for file in dist.iterdir() if file.name != ".gitignore")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (dist / "SHA256SUMS").write_text("".join(lines))
    return [*files, dist / "SHA256SUMS"]


def write_sbom(root: Path, wheel: Path, version: str, environment: Path, file: Path) -> None:
    """Write the CycloneDX SBOM of the wheel and its locked dependencies, as they are installed in the environment."""
    pip: list[str | Path] = [BIN / "pip", "--quiet", "--python", environment]
    subprocess.run([*pip, "install", "--no-deps", "--force-reinstall", wheel], check=True)
    subprocess.run([*pip, "uninstall", "--yes", "pip", "setuptools"], check=True, stderr=subprocess.DEVNULL)
    python = environment / "bin" / "python"
    options: list[str | Path] = [
        "--pyproject",
        root / "pyproject.toml",
        "--output-reproducible",
        "--of",
        "JSON",
        "-o",
        file,
    ]
    subprocess.run([BIN / "cyclonedx-py", "environment", *options, python], check=True)
    bom = json.loads(file.read_text())
    purl = f"pkg:pypi/vcenter-task-bridge@{version}"
    bom["metadata"]["component"] |= {"version": version, "purl": purl}  # pyproject.toml says that it is dynamic
    file.write_text(json.dumps(bom, indent=2, sort_keys=True) + "\n")


def copy_checkout(target: Path) -> None:
    """Copy what git tracks or would track, as it is now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def check_checkout() -> None:
    """Raise NotReadyError unless everything is committed."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    if status.stdout.strip():
        raise NotReadyError(f"commit or remove these first:\n{status.stdout.rstrip()}")


def run(version: str, environment: Path, date: str, *, dry: bool) -> None:
    """Prepare and build the release, in a copy that is deleted if `dry`."""
    with tempfile.TemporaryDirectory(prefix="release-") as directory:
        root = Path(directory) if dry else ROOT
        if dry:
            copy_checkout(root)
        prepare(root, version, date)
        for file in build(root, version, environment):
            print(f"{file.stat().st_size:>9,} {file.name}")
    print("Nothing was changed." if dry else f"Commit this as {version}, tag it, and publish dist/{version}.")


def main() -> None:
    parser = ArgumentParser(prog="make release")
    parser.add_argument("version")
    parser.add_argument("environment", type=Path)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--dry-run", action="store_true")
    modes.add_argument("--check", action="store_true")
    given = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        plan(ROOT, given.version, date)
        if not given.dry_run:
            check_checkout()
        if not given.check:
            run(given.version, given.environment.absolute(), date, dry=given.dry_run)
    except NotReadyError as error:
        raise SystemExit(f"Can't release: {error}") from None


if __name__ == "__main__":
    main()
