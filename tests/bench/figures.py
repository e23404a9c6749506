"""docs/figures.md: the measured figures, each part with the date, the machine and the command that measured it.

`docs/figures.json` holds them. `record` replaces the rows of one part and keeps every other part and all notes;
`render` writes the page.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import msgspec

DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = """\
# Figures

What the bridge costs. `make bench` writes this page: it replaces the rows of the parts that it measures and keeps the
rest. `make bench ONLY="looks memory"` measures two parts. To change a note, edit [figures.json](figures.json) and run
`make schemas`.

nats-server, the simulated vCenter, the bridge and the client run on the same machine and share its cores. A range means
several runs. Figures from your own environment are better.
"""


class Figure(msgspec.Struct):
    """One measured row. An empty `goal` means none."""

    what: str
    measured: str
    goal: str = ""


class Part(msgspec.Struct):
    """What one part of the bench measured. `notes` explain it; nobody but an author changes them."""

    title: str
    date: str
    machine: str
    command: str
    rows: list[Figure]
    notes: list[str] = []


Parts = dict[str, Part]


def record(parts: Parts, name: str, rows: Iterable[Figure], *, on: date, machine: str, command: str) -> Parts:
    """Return `parts` with the rows of part `name` replaced. A new part comes last, titled by its name."""
    old = parts.get(name)
    title, notes = (old.title, old.notes) if old else (name.capitalize(), [])
    return parts | {name: Part(title, on.isoformat(), machine, command, list(rows), notes)}


def render(parts: Parts) -> str:
    """Return the page as Markdown."""
    return "\n".join([INTRODUCTION, *map(_render_part, parts.values())])


def load(folder: Path = DOCS) -> Parts:
    return msgspec.json.decode((folder / "figures.json").read_bytes(), type=Parts)


def save(parts: Parts, folder: Path = DOCS) -> None:
    """Write the JSON and the page."""
    (folder / "figures.json").write_bytes(msgspec.json.format(msgspec.json.encode(parts), indent=1) + b"\n")
    (folder / "figures.md").write_text(render(parts))


def describe_machine() -> str:
    """Return the processor, the number of cores, and the versions of Python and nats-server."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    server = shutil.which("nats-server", path=path) or "nats-server"
    nats = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    python = ".".join(platform.python_version_tuple()[:2])
    return f"{os.cpu_count()} cores ({model}), Python {python}, nats-server {nats.lstrip('v')}"


def _render_part(part: Part) -> str:
    rows = "".join(f"| {_cell(row.what)} | {_cell(row.measured)} | {_cell(row.goal)} |\n" for row in part.rows)
    notes = "".join(f"* {note}\n" for note in part.notes)
    return (
        f"## {part.title}\n\n{part.date}, {part.command}. {part.machine}.\n\n"
        f"| measured | result | goal |\n|---|---|---|\n{rows}" + (f"\n{notes}" if notes else "")
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    save(load())
