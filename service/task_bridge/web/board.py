"""The board's HTML, complete without scripts and outside assets.

Templates write it. The environment puts every expression on one line and escapes it; text written by others is
isolated (`bdi`) besides. A page is made of sections that are sent again when they change. In a section that is
sent, times are left to the script, so that a section that shows the same is the same text.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache, lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..domain.board import MAX_ENDINGS, PAGE_ROWS, BoardPage, RowFilter, WatchBoard, rank_attention
from ..domain.durations import parse_time, rfc3339
from ..domain.text import to_one_line
from .health import BridgeHealth, VCenterHealth

LINKS = (
    ("/readyz", "readiness as JSON"),
    ("/livez", "liveness"),
    ("/metrics", "metrics for Prometheus"),
    ("/asyncapi.json", "subjects and messages as AsyncAPI"),
)
_SECTIONS = {
    "state": "State",
    "vcenters": "vCenters",
    "follows": "Follows",
    "deliveries": "Deliveries",
    "watches": "Active watches",
    "endings": "Latest endings",
    "nats": "NATS",
}
REFRESH_S = 10
_ORDERS = {
    "": "what needs attention first",
    "since": "oldest first",
    "-since": "newest first",
    "-changed": "last changed first",
    "target": "by target",
    "task": "by task id",
}
_MAX_CHIPS = 12
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

    @property
    def stale_reason(self) -> str | None:
        """The reason why the rows show how it was, not how it is. None if they are up to date."""
        nats = self.health.nats
        return self.trouble if nats.connected else f"NATS is away: {nats.reason}"


class BoardSection(NamedTuple):
    """A part of the page: the id of its element, its label and its content."""

    name: str
    label: str
    html: str


class BoardRenderer:
    """Renders the board. It compiles the templates once, and caches the rows of watches and endings."""

    def __init__(self) -> None:
        environment = build_environment()
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
            refresh_s=REFRESH_S,
            row_filter=view.row_filter,
            orders=list_orders(view.row_filter.sort),
            vcenter_names=sorted(
                {vcenter.name for vcenter, _ in list_vcenters(view)} | {view.row_filter.vcenter} - {""}
            ),
            sections=sections,
            links=LINKS,
        )

    def render_sections(self, view: BoardView) -> dict[str, str]:
        """Return the HTML of each section by the id of its element, with empty `<time>` elements."""
        page = view.board.select_page(view.row_filter) if view.board else None
        here, is_stale = view.health.instance, view.stale_reason is not None
        states = {vcenter.name: vcenter.state for vcenter in view.health.vcenters}
        rows = page.rows if page else ()
        variables = {
            "view": view,
            "page": page,
            "vcenters": list_vcenters(view),
            "part_troubles": list_part_troubles(view.health),
            "attention": list_attention(page, view.row_filter) if page else [],
            "statuses": list_chips(page.statuses, view.row_filter.status) if page else [],
            "outcomes": list_chips(page.outcomes, view.row_filter.outcome) if page else [],
            "watch_rows": "".join(
                self._render_watch_row(row, here, is_stale, states.get(row.vcenter, "")) for row in rows
            ),
            "ending_rows": "".join(self._render_ending_row(row, is_stale) for row in page.endings) if page else "",
        }
        return {name: template.render(variables) for name, template in self._sections.items()}


@cache
def build_environment() -> Environment:
    """Return the environment of all templates, which are compiled once."""
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
    environment.globals.update(max_endings=MAX_ENDINGS, page_rows=PAGE_ROWS, link=build_link, task_link=build_task_link)
    return environment


def build_link(row_filter: RowFilter, **changes: Any) -> str:
    """Return the link to the board with this filter and `changes` to it."""
    changed = row_filter._replace(**changes)
    chosen = {name: value for name in ("status", "outcome", "sort") if (value := getattr(changed, name))}
    return "/?" + urlencode({"q": changed.words, "vcenter": changed.vcenter, **chosen, "page": changed.page})


def build_task_link(vcenter: str, task: str) -> str:
    """Return the path of the page of a task."""
    return f"/task/{quote(vcenter, safe='')}/{quote(task, safe=':')}"


def list_orders(sort: str) -> list[tuple[str, str]]:
    """Return the orders to choose from, with the one that a heading of a table chose."""
    if sort in _ORDERS:
        return list(_ORDERS.items())
    by = f"by {sort.removeprefix('-')}"
    return [*_ORDERS.items(), (sort, f"{by}, reversed" if sort.startswith("-") else by)]


def list_chips(counts: Counter[str], chosen: str) -> list[tuple[str, int]]:
    """Return the commonest states with their numbers, those that need attention first, and the chosen one."""
    shown = dict(counts.most_common(_MAX_CHIPS))
    if chosen:
        shown[chosen] = counts[chosen]
    return sorted(shown.items(), key=lambda chip: (rank_attention([chip[0]]), -chip[1], chip[0]))


def list_attention(page: BoardPage, row_filter: RowFilter) -> list[tuple[int, str, str]]:
    """Return what needs attention: how many tasks, their state, and the link to them."""
    failed = build_link(row_filter, page=1, outcome="failed", status="") + "#endings"
    found = [(page.outcomes["failed"], "failed", failed)]
    for state in ("blocked", "stalled"):
        link = build_link(row_filter, page=1, status=state, outcome="") + "#watches"
        found.append((page.statuses[state], state, link))
    return [one for one in found if one[0]]


def list_part_troubles(health: BridgeHealth) -> list[tuple[str, str | None]]:
    """Return which streams and consumers the bridge can't work with, and why: once for all that have one reason.

    While NATS is away nothing is known of them.
    """
    names: dict[str | None, list[str]] = {}
    for part in (*health.streams, *health.consumers):
        if health.nats.connected and not part.ok:
            names.setdefault(part.reason, []).append(part.name)
    return [
        (first if not others else f"{first} and {len(others)} more", reason)
        for reason, (first, *others) in names.items()
    ]


def list_vcenters(view: BoardView) -> list[tuple[VCenterHealth, int | None]]:
    """Return every vCenter that is configured or has watches, with the number of its watches (None: not read yet)."""
    counts = None if view.board is None else view.board.count_by_vcenter()
    vcenters = {vcenter.name: vcenter for vcenter in view.health.vcenters}
    for name in counts or ():
        vcenters.setdefault(name, VCenterHealth(name, "unconfigured", "not in this replica's settings"))
    return [(vcenters[name], None if counts is None else counts[name]) for name in sorted(vcenters)]


def fill_ages(html: str, now: float) -> str:
    """Write into every empty `<time>` element how long ago it is, and when as its title, as the script does."""

    def fill(time: re.Match[str]) -> str:
        at = time[1]
        title = f"{at[:19].replace('T', ' ')} UTC"
        return f'<time datetime="{at}" title="{title}">{format_duration(now - (parse_time(at) or now))}</time>'

    return re.sub('<time datetime="([^"]*)"></time>', fill, html)


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
