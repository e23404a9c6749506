"""A Dockerfile as its instructions, and a folder in which they are carried out without Docker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PREFIX = "/opt/task-bridge"


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """Its instructions in order, with continued lines joined and comments gone."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(None, 1)) for line in joined.splitlines()]


def _python() -> Path:
    """A Python that anybody may run: the one that runs this may lie in somebody's home."""
    for python in (Path(sys.base_prefix) / "bin" / "python3", Path("/usr/bin/python3")):
        if all(folder.stat().st_mode & 0o001 for folder in python.resolve().parents):
            return python
    raise FileNotFoundError("There is no Python here that others may run; install the system's python3-venv.")


class Image:
    """What the Dockerfile builds, under `directory` instead of `/`: its files, and how its process is started.

    `port` takes the place of 8080, and loopback of all addresses.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self.port = port
        self._workdir = Path("/")
        self.environment = {"PATH": f"{directory}/bin:/usr/bin:/bin"}
        self.user, self.group = 0, 0
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []

    @property
    def workdir(self) -> Path:
        return self._in(str(self._workdir))

    @property
    def tree(self) -> Path:
        return self._in(PREFIX)

    def build(self) -> None:
        (self._directory / "bin").mkdir()
        (self._directory / "bin" / "python").symlink_to(_python())
        does = {
            "WORKDIR": self._enter,
            "COPY": self._copy,
            "RUN": self._run,
            "ENV": self._env,
            "USER": self._as,
            "HEALTHCHECK": self._healthcheck,
            "ENTRYPOINT": self._entrypoint,
            "CMD": self._cmd,
        }
        for word, rest in instructions(DOCKERFILE.read_text()):
            if word not in ("ARG", "FROM", "EXPOSE"):
                does[word](rest)
        for path in (self.tree, *self.tree.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)

    def _in(self, path: str) -> Path:
        return self._directory / path.lstrip("/")

    def _here(self, text: str) -> str:
        text = text.replace(PREFIX, str(self.tree)).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - it is replaced
        return text.replace("8080", str(self.port))

    def _enter(self, path: str) -> None:
        self._workdir = Path(path)
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if sources[0].startswith("--from"):
            assert sources[1:] == [target], "one tree serves for both stages"
            return
        found = [path for source in sources for path in ROOT.glob(source)]
        assert found, f"{rest}: there is nothing to copy"
        for path in found:
            shutil.copy(path, self.workdir)

    def _run(self, rest: str) -> None:
        command = ["sh", "-ec", self._here(rest)]
        subprocess.run(command, cwd=self.workdir, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, value = pair.split("=", 1)
            self.environment[name] = self._here(value).replace("$PATH", self.environment["PATH"])

    def _as(self, rest: str) -> None:
        self.user, self.group = map(int, rest.split(":"))

    def _healthcheck(self, rest: str) -> None:
        self.health = json.loads(self._here(rest.partition("CMD")[2]))

    def _entrypoint(self, rest: str) -> None:
        self.entrypoint = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)
