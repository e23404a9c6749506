"""The board's HTML: complete without scripts and outside assets. Pure.

Everything in it is escaped and on one line, and what strangers wrote is isolated (`bdi`), so that it can't turn
around what stands beside it. A page is made of parts that are sent again when they change; there times are left
to the script, so that a part which says the same is the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from typing import NamedTuple
from urllib.parse import urlencode

from .. import __version__
from ..domain.board import MAX_ENDINGS, PAGE_ROWS, BoardPage, RowFilter, WatchBoard, WatchRow
from ..domain.durations import parse_time, rfc3339
from ..domain.text import to_one_line
from .health import BridgeHealth, ResourceHealth, VCenterHealth

_LINKS = (
    ("/readyz", "readiness as JSON"),
    ("/livez", "liveness"),
    ("/metrics", "metrics for Prometheus"),
    ("/asyncapi.json", "subjects and messages as AsyncAPI"),
)
_REFRESH_S = 10


class BoardView(NamedTuple):
    """What there is to show. `overview` is None until it was read; `trouble` says why it isn't up to date.

    `now` in Unix seconds.
    """

    health: BridgeHealth
    board: WatchBoard | None
    trouble: str | None
    asked: RowFilter
    now: float


def page(view: BoardView) -> str:
    """The whole page."""
    now = rfc3339(view.now)
    body = "\n".join(
        f'<section id="{name}" aria-label="{_LABELS[name]}">{_aged(html, view.now)}</section>'
        for name, html in parts(view).items()
    )
    places = "".join(f'<a href="#{name}">{label}</a>' for name, label in _LABELS.items() if name != "state")
    links = "".join(f'<li><a href="{href}">{href}</a> {text}</li>' for href, text in _LINKS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vcenter-task-bridge</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/static/board.svg"><link rel="stylesheet" href="/static/board.css">'
        '<script src="/static/board.js" defer></script>'
        f'<noscript><meta http-equiv="refresh" content="{_REFRESH_S}"></noscript></head>\n'
        f"<body>\n<header><h1>vcenter-task-bridge <small>{escape(__version__)}</small></h1>"
        f'<p id="live" role="status" data-now="{now}"><noscript>As of {now[11:19]} UTC; '
        f"comes again every {_REFRESH_S} seconds.</noscript></p></header>\n"
        f'<nav aria-label="On this page">{places}</nav>\n<main>\n{_form(view)}\n{body}\n</main>\n'
        f"<footer><ul>{links}</ul></footer>\n</body></html>\n"
    )


_LABELS = {
    "state": "State",
    "vcenters": "vCenters",
    "watches": "Active watches",
    "endings": "Latest endings",
    "nats": "NATS",
}


def parts(view: BoardView) -> dict[str, str]:
    """The parts of the page by the id of their section."""
    overview = view.board
    found = overview.select_page(view.asked) if overview else None
    return {
        "state": _state(view),
        "vcenters": _vcenters(view),
        "watches": _watches(view, found),
        "endings": _endings(view, found),
        "nats": _nats(view.health),
    }


def _state(view: BoardView) -> str:
    health = view.health
    waiting = "" if health.waiting is None else f", {_number(health.waiting)} waiting for a replica"
    who = f" This replica is {_owner(health.instance)}." if health.instance else ""
    said = (
        f"<p>Status: {_word(health.status, health.status == 'ok')}. {_number(health.held)} of at most "
        f"{_number(health.capacity)} watches held here{waiting}.{who}</p>"
    )
    if not health.nats.connected:
        said += f'<p class="note">NATS is away: {_text(health.nats.reason)}.</p>'
    elif view.trouble:
        said += f'<p class="note">What is shown isn\'t up to date: {_text(view.trouble)}</p>'
    if health.capacity_reason:
        said += f'<p class="note">This replica is full: {_text(health.capacity_reason)}.</p>'
    if health.loop_lag_reason:
        said += f'<p class="note">The event loop lags: {_text(health.loop_lag_reason)}.</p>'
    return said


def _form(view: BoardView) -> str:
    asked, counts = view.asked, view.board.count_by_vcenter() if view.board else {}
    names = sorted({*counts, *(vcenter.name for vcenter in view.health.vcenters)} | {asked.vcenter} - {""})
    options = "".join(
        f'<option value="{_text(name)}"{" selected" if name == asked.vcenter else ""}>{_text(name)}</option>'
        for name in names
    )
    return (
        '<form id="filter" method="get" action="/" role="search">'
        f'<label>Filter <input type="search" name="q" value="{_text(asked.words)}" maxlength="200" '
        'placeholder="id, status, label, message" autocomplete="off" spellcheck="false"></label> '
        f'<label>vCenter <select name="vcenter"><option value="">all</option>{options}</select></label> '
        '<button type="submit">Filter</button></form>'
    )


# The watches


def _watches(view: BoardView, found: BoardPage | None) -> str:
    if found is None or view.board is None:
        return f"<h2>Active watches</h2><p>{'Not read yet.' if view.trouble else 'Being read…'}</p>"
    total = view.board.count_by_vcenter().total()
    shown = f"{_number(found.match_count)} of {_number(total)}" if view.asked.words or view.asked.vcenter else ""
    title = f"<h2>Active watches <small>{shown or _number(total)}</small></h2>"
    if not found.rows:
        return title + f"<p>{'Nothing is watched.' if not total else 'No watch matches.'}</p>"
    columns = ("Task", "vCenter", "Status", "Progress", "Watched for", "Changed", "Owner")
    rows = (_row(row, view.health.instance) for row in found.rows)
    beyond = view.board.unlisted.total()
    note = f"<p>{_number(beyond)} more aren't listed here; a vCenter's own are by `task-bridge list`.</p>"
    return title + _table("Active watches", columns, rows) + _pager(view, found) + (note if beyond else "")


@lru_cache(4096)  # of ten thousand watches few change within a second, and several people look
def _row(row: WatchRow, here: str) -> str:
    unknown = '<span class="dim">not seen yet</span>' if row.is_loaded else '<span class="dim">being read…</span>'
    stalled = ' <span class="warn">stalled</span>' if row.kind == "stalled" else ""
    return _cells(
        f"{row.vcenter}/{row.watch_id}",
        ("Task", _task(row)),
        ("vCenter", _text(row.vcenter)),
        ("Status", (_text(row.status) if row.status else unknown) + stalled),
        ("Progress", f"{_bar(row.percent)}{_stranger(row.message)}"),
        ("Watched for", _age(row.since)),
        ("Changed", _age(row.last_event_at)),
        ("Owner", _owner(row.owner) + (" (here)" if row.owner and row.owner == here else "")),
    )


def _bar(percent: float | None) -> str:
    if percent is None:
        return ""
    word = f"{percent:.0f} %"
    return f'<progress max="100" value="{percent:.1f}">{word}</progress> <span class="percent">{word}</span> '


def _task(row: WatchRow) -> str:
    beside = " ".join(_stranger(text) for text in (row.operation, row.labels) if text)
    task = _stranger(row.task).replace(":", ":<wbr>", 1)  # between what tells tasks apart and what they do
    return f"<code>{task}</code>" + (f'<br><span class="dim">{beside}</span>' if beside else "")


def _pager(view: BoardView, found: BoardPage) -> str:
    if found.page_count == 1:
        return ""
    asked, last = view.asked, found.first_number + len(found.rows) - 1

    def link(page: int, word: str, rel: str) -> str:
        if not 1 <= page <= found.page_count:
            return f'<span class="dim">{word}</span>'
        query = urlencode({"q": asked.words, "vcenter": asked.vcenter, "page": page})
        return f'<a href="/?{escape(query)}" rel="{rel}">{word}</a>'

    where = f"{_number(found.first_number)} to {_number(last)} of {_number(found.match_count)}, oldest first"
    both = f"{link(found.page - 1, 'Earlier', 'prev')} {link(found.page + 1, 'Later', 'next')}"
    return f'<nav aria-label="Pages of {PAGE_ROWS} watches"><p>{where}. {both}</p></nav>'


# The endings


def _endings(view: BoardView, found: BoardPage | None) -> str:
    title = "<h2>Latest endings</h2>"
    if found is None:
        return title
    if not found.endings:
        told = "None that matches, or none at all that the stream keeps."
        return title + f"<p>{told if view.board and view.board.complete else 'Being read…'}</p>"
    columns = ("Task", "vCenter", "Outcome", "Why", "Took", "Ended")
    return title + _table(f"The latest {MAX_ENDINGS} endings", columns, map(_ending, found.endings))


@lru_cache(1024)
def _ending(row: WatchRow) -> str:
    kind, _, outcome = row.kind.partition(".")
    css = "good" if outcome == "succeeded" else "bad" if outcome == "failed" else "warn"
    mark = {"good": "✓", "bad": "✗", "warn": "!"}[css]
    word = outcome.replace("_", " ") if kind == "completed" else f"{kind}: {outcome.replace('_', ' ')}"
    return _cells(
        row.watch_id,
        ("Task", _task(row)),
        ("vCenter", _text(row.vcenter)),
        ("Outcome", f'<span class="{css}">{mark} {_text(word)}</span>'),
        ("Why", _stranger(row.message)),
        ("Took", "" if row.duration_s is None else _span(row.duration_s)),
        ("Ended", _age(row.last_event_at)),
    )


# vCenters and NATS


def _vcenters(view: BoardView) -> str:
    health, counts = view.health, view.board.count_by_vcenter() if view.board else None
    known = {vcenter.name: vcenter for vcenter in health.vcenters}
    for name in counts or ():
        known.setdefault(name, VCenterHealth(name, "unconfigured", "not in this replica's settings"))
    columns = ("Name", "State", "Watches", "Held here", "Last good look", "Reason")
    rows = (_vcenter(known[name], None if counts is None else counts[name], view) for name in sorted(known))
    return f"<h2>vCenters</h2>{_table('vCenters', columns, rows)}"


def _vcenter(vcenter: VCenterHealth, watches: int | None, view: BoardView) -> str:
    age_s = vcenter.last_good_poll_age_s
    looked_at = None if age_s is None else view.now - age_s
    return _cells(
        vcenter.name,
        ("Name", _text(vcenter.name)),
        ("State", _word(vcenter.state, vcenter.state in ("ok", "unknown"))),
        ("Watches", "" if watches is None else _number(watches)),
        ("Held here", _number(vcenter.watches)),
        ("Last good look", _age(looked_at)),
        ("Reason", _stranger(vcenter.reason)),
    )


def _nats(health: BridgeHealth) -> str:
    columns = ("Part", "State", "Reason")
    return f"<h2>NATS</h2>{_table('NATS, its streams and consumers', columns, _nats_parts(health))}"


def _nats_parts(health: BridgeHealth) -> Iterable[str]:
    connected = health.nats.connected
    yield _part("connection", "connected" if connected else "away", connected, health.nats.reason)
    yield _part("JetStream", "ok" if health.jetstream.ok else "bad", health.jetstream.ok, health.jetstream.reason)
    yield from (_check("stream", check) for check in health.streams)
    yield from (_check("consumer", check) for check in health.consumers)


def _check(kind: str, check: ResourceHealth) -> str:
    return _part(f"{kind} {check.name}", "ok" if check.ok else "bad", check.ok, check.reason)


def _part(name: str, word: str, good: bool, reason: str | None) -> str:
    return _cells(name, ("Part", _text(name)), ("State", _word(word, good)), ("Reason", _stranger(reason)))


# Bricks. Roles are given because a table that is laid out as cards (on a phone) loses them.


def _table(caption: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th role="columnheader" scope="col">{escape(column)}</th>' for column in columns)
    return (
        f'<table role="table"><caption>{escape(caption)}</caption><thead role="rowgroup"><tr role="row">{head}</tr>'
        f'</thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _cells(key: str, *cells: tuple[str, str]) -> str:
    inside = "".join(
        f'<td role="cell" data-label="{label}">{html and f"<div>{html}</div>"}</td>' for label, html in cells
    )
    return f'<tr role="row" data-key="{_text(key)}">{inside}</tr>'


def _word(word: str, good: bool) -> str:
    return f'<span class="good">{escape(word)}</span>' if good else f'<span class="bad">✗ {escape(word)}</span>'


def _text(text: str | None) -> str:
    return escape(to_one_line(text or ""))


def _stranger(text: str | None) -> str:
    return f"<bdi>{_text(text)}</bdi>" if text else ""


def _owner(instance: str) -> str:
    return f"<code>{_text(instance[:8])}</code>" if instance else ""


def _number(number: int) -> str:
    return f"{number:,}"


def _age(at: float | None) -> str:
    """Since when; how long that is, is written by `_aged` or by the script."""
    return "" if at is None else f'<time datetime="{rfc3339(int(at))}"></time>'


def _aged(html: str, now: float) -> str:
    def aged(time: re.Match[str]) -> str:
        return f"{time[1]}{_span(now - (parse_time(time[2]) or now))}</time>"

    return re.sub('(<time datetime="([^"]*)">)</time>', aged, html)


def _span(seconds: float) -> str:
    """Like `board.js` writes it."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"
