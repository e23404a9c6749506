"""The page for people: complete without scripts and outside assets, in dark and light. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from .. import __version__
from .health import Check, Health, VCenterHealth

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
small { font-weight: normal; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid GrayText; }
td { overflow-wrap: anywhere; }
.bad { font-weight: bold; }
"""

STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""What the content security policy names, so that no other style is taken."""

_LINKS = (
    ("/readyz", "readiness as JSON"),
    ("/livez", "liveness"),
    ("/metrics", "metrics for Prometheus"),
    ("/asyncapi.json", "subjects and messages as AsyncAPI"),
)
_REFRESH_S = 5


def page(health: Health) -> str:
    """The whole page. Every text in it is escaped."""
    parts = [
        f"<h1>vcenter-task-bridge <small>{escape(__version__)}</small></h1>",
        f"<p>Status: {_word(health.status, health.status == 'ok')}. {_counts(health)}</p>",
        _section("NATS", ("Part", "State", "Reason"), _nats(health)),
        _section(
            "vCenters", ("Name", "State", "Last good look", "Watches", "Reason"), map(_vcenter, health.vcenters)
        ),
        "<h2>More</h2>",
        "<ul>" + "".join(f'<li><a href="{href}">{href}</a> {text}</li>' for href, text in _LINKS) + "</ul>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vcenter-task-bridge</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{_REFRESH_S}"><style>{_STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _counts(health: Health) -> str:
    waiting = "" if health.waiting is None else f", {health.waiting} waiting for a replica"
    return f"{health.held} of at most {health.capacity} watches held here{waiting}."


def _section(title: str, columns: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{head}</tr>\n{chr(10).join(rows)}\n</table>"


def _nats(health: Health) -> Iterable[str]:
    word = _word("connected" if health.nats.connected else "away", health.nats.connected)
    yield _row("connection", word, _text(health.nats.reason))
    yield from (_check("stream", check) for check in health.streams)
    yield from (_check("consumer", check) for check in health.consumers)


def _check(kind: str, check: Check) -> str:
    return _row(escape(f"{kind} {check.name}"), _word("ok" if check.ok else "bad", check.ok), _text(check.reason))


def _vcenter(vcenter: VCenterHealth) -> str:
    age_s = vcenter.last_good_look_age_s
    age = "" if age_s is None else f"{age_s:.0f} s ago"
    state = _word(vcenter.state, vcenter.state in ("ok", "unknown"))
    return _row(_text(vcenter.name), state, age, str(vcenter.watches), _text(vcenter.reason))


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _word(word: str, good: bool) -> str:
    return escape(word) if good else f'<span class="bad">✗ {escape(word)}</span>'


def _text(text: str | None) -> str:
    return escape(text or "")
