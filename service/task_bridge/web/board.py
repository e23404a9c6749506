"""The board's HTML, complete without scripts and outside assets.

Templates write it. The environment puts every expression on one line and escapes it; text written by others is
isolated (`bdi`) besides. A page is made of sections that are sent again when they change. In a section that is
sent, times are left to the script, so that a section that shows the same is the same text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..domain.board import MAX_ENDINGS, PAGE_ROWS, RowFilter, WatchBoard
from ..domain.durations import parse_time, rfc3339
from ..domain.text import to_one_line
from .health import BridgeHealth, VCenterHealth

_LINKS = (
    ("/readyz", "readiness as JSON"),
    ("/livez", "liveness"),
    ("/metrics", "metrics for Prometheus"),
    ("/asyncapi.json", "subjects and messages as AsyncAPI"),
)
_SECTIONS = {
    "state": "State",
    "vcenters": "vCenters",
    "follows": "Follows",
    "watches": "Active watches",
    "endings": "Latest endings",
    "nats": "NATS",
}
_REFRESH_S = 10
_CACHED_WATCHES, _CACHED_ENDINGS = 4096, 1024


class BoardView(NamedTuple):
    """Everything that a page shows, at the moment `now` (Unix seconds).

    `board` is None until it has been read; `trouble` says why it isn't up to date.
    """

    health: BridgeHealth
    board: WatchBoard | None
    trouble: str | None
    row_filter: RowFilter
    now: float


class BoardSection(NamedTuple):
    """A part of the page: the id of its element, its label and its content."""

    name: str
    label: str
    html: str


class BoardRenderer:
    """Renders the board. It compiles the templates once, and caches the rows of watches and endings."""

    def __init__(self) -> None:
        environment = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters.update(duration=format_duration, number="{:,}".format, one_line=to_one_line)
        environment.filters["rfc3339"] = lambda at: rfc3339(int(at))
        environment.filters["unix"] = parse_time
        environment.globals.update(max_endings=MAX_ENDINGS, page_rows=PAGE_ROWS)
        macros = vars(environment.get_template("rows.html").module)
        # Of ten thousand watches few change within a second, and several viewers see the same ones.
        self._render_watch_row = lru_cache(_CACHED_WATCHES)(macros["watch_row"])
        self._render_ending_row = lru_cache(_CACHED_ENDINGS)(macros["ending_row"])
        self._page = environment.get_template("page.html")
        self._sections = {name: environment.get_template(f"{name}.html") for name in _SECTIONS}

    def render_page(self, view: BoardView) -> str:
        """Return the whole page."""
        sections = [
            BoardSection(name, _SECTIONS[name], fill_ages(html, view.now))
            for name, html in self.render_sections(view).items()
        ]
        return self._page.render(
            version=__version__,
            now=rfc3339(view.now),
            refresh_s=_REFRESH_S,
            row_filter=view.row_filter,
            vcenter_names=sorted(
                {vcenter.name for vcenter, _ in list_vcenters(view)} | {view.row_filter.vcenter} - {""}
            ),
            sections=sections,
            links=_LINKS,
        )

    def render_sections(self, view: BoardView) -> dict[str, str]:
        """Return the HTML of each section by the id of its element, with empty `<time>` elements."""
        page = view.board.select_page(view.row_filter) if view.board else None
        here = view.health.instance
        variables = {
            "view": view,
            "page": page,
            "vcenters": list_vcenters(view),
            "watch_rows": "".join(self._render_watch_row(row, here) for row in page.rows) if page else "",
            "ending_rows": "".join(self._render_ending_row(row) for row in page.endings) if page else "",
        }
        return {name: template.render(variables) for name, template in self._sections.items()}


def list_vcenters(view: BoardView) -> list[tuple[VCenterHealth, int | None]]:
    """Return every vCenter that is configured or has watches, with the number of its watches (None: not read yet)."""
    counts = None if view.board is None else view.board.count_by_vcenter()
    vcenters = {vcenter.name: vcenter for vcenter in view.health.vcenters}
    for name in counts or ():
        vcenters.setdefault(name, VCenterHealth(name, "unconfigured", "not in this replica's settings"))
    return [(vcenters[name], None if counts is None else counts[name]) for name in sorted(vcenters)]


def fill_ages(html: str, now: float) -> str:
    """Write into every empty `<time>` element how long ago it is, as the script does."""

    def fill(time: re.Match[str]) -> str:
        return f"{time[1]}{format_duration(now - (parse_time(time[2]) or now))}</time>"

    return re.sub('(<time datetime="([^"]*)">)</time>', fill, html)


def format_duration(seconds: float) -> str:
    """Format a duration the way `board.js` does, like `5 min` or `2 d 3 h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"


def _finalize(value: object) -> object:
    """Put the value of an expression on one line. Autoescape comes after this; HTML stays as it is."""
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else to_one_line(value)
