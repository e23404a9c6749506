"""What `make release` writes: the version at each place, the date in the changelog; or nothing, with the reason."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.release import ROOT, VERSIONED, NotReadyError, date_changelog, prepare, set_version

CHANGES = "# Changelog\n\n## 9.9.0 - Unreleased\n\n- Something changes.\n\n## 9.8.0 - 2026-01-01\n\n- Old.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that have the version in them, as they are here."""
    for name in VERSIONED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    return tmp_path


def test_the_version_and_the_date_are_written_to_every_file(checkout: Path) -> None:
    prepare(checkout, "9.9.0", "2026-12-24")
    for name in VERSIONED:
        before, after = (ROOT / name).read_text().splitlines(), (checkout / name).read_text().splitlines()
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert changed
        assert all("9.9.0" in line for line in changed)
    assert (checkout / "CHANGELOG.md").read_text() == CHANGES.replace("Unreleased", "2026-12-24")


@pytest.mark.parametrize("version", ["9.9", "v9.9.0", "9.9.0rc1", "next", ""])
def test_what_is_no_version_is_refused_and_nothing_is_written(checkout: Path, version: str) -> None:
    with pytest.raises(NotReadyError):
        prepare(checkout, version, "2026-12-24")
    assert all((ROOT / name).read_text() == (checkout / name).read_text() for name in VERSIONED)


@pytest.mark.parametrize(
    "text",
    [CHANGES.replace("9.9.0 - ", ""), CHANGES.replace("Unreleased", "2026-02-02"), CHANGES.replace("- Something", "")],
    ids=["no section", "released", "empty"],
)
def test_a_changelog_without_changes_is_refused_and_nothing_is_written(checkout: Path, text: str) -> None:
    (checkout / "CHANGELOG.md").write_text(text)
    with pytest.raises(NotReadyError, match="CHANGELOG"):
        prepare(checkout, "9.9.0", "2026-12-24")
    assert all((ROOT / name).read_text() == (checkout / name).read_text() for name in VERSIONED)


@pytest.mark.parametrize("version", ["", "9.9", "1.0.0"], ids=["none", "no version", "released"])
def test_what_can_not_be_released_is_refused_before_the_tests_which_take_long(version: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    command = [make, "--old-file=setup", f"BIN={Path(sys.executable).parent}", "MAKE=false", "release"]
    done = subprocess.run([*command, f"VERSION={version}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Can't release: " in done.stderr
    assert "false check" not in done.stdout


def test_a_place_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotReadyError):
        set_version("nothing", r"(?<=version: ).*", "9.9.0")


def test_the_changelog_has_each_version_once_newest_first() -> None:
    headings = re.findall(
        r"^## (\d+)\.(\d+)\.(\d+) - (?:Unreleased|20\d\d-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert headings == sorted(headings, key=lambda parts: tuple(map(int, parts)), reverse=True)
    assert {("1", "0", "0"), ("1", "1", "0")} <= set(headings)
    assert date_changelog(CHANGES, "9.9.0", "2026-12-24").count("Unreleased") == 0
