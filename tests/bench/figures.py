"""Write docs/figures.md, the one place with measured costs: a run replaces the sections that it measured."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from bench.stage import Row

FILE = Path(__file__).parents[2] / "docs" / "figures.md"
_SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.M | re.S)


def update(text: str, part: str, rows: Iterable[Row], measured_on: str, order: Iterable[str]) -> str:
    """Return the page with the section of `part` replaced by these rows, its sections in `order`."""
    head, sections = split(text)
    sections[part] = render(rows, measured_on)
    known = [name for name in order if name in sections]
    rest = [name for name in sections if name not in known]
    return head + "".join(f"## {name}\n{sections[name].rstrip()}\n\n" for name in [*known, *rest]).rstrip() + "\n"


def split(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first section, and the sections by name."""
    sections = {match[1]: match[2] for match in _SECTION.finditer(text)}
    return text.partition("\n## ")[0].rstrip() + "\n\n", sections


def render(rows: Iterable[Row], measured_on: str) -> str:
    lines = [f"| {_cell(row.what)} | {_cell(row.measured)} | {_cell(row.goal)} |" for row in rows]
    return "\n".join(["", f"{measured_on}", "", "| measured | result | goal |", "|---|---|---|", *lines, ""])


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def describe_machine(nats_version: str) -> str:
    """Return the date, the processor, and the versions that a figure depends on."""
    today = datetime.now(UTC).date().isoformat()
    return f"{today}, {_processor()}, Python {platform.python_version()}, nats-server {nats_version}."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} cores ({models[0]})" if models else platform.machine()
