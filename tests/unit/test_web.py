"""The pages: what probes, Prometheus and people see."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any

import httpx
import msgspec
import pytest
from lxml import etree
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from task_bridge import __version__
from task_bridge.domain.board import RowFilter, WatchBoard
from task_bridge.domain.deliveries import DeliveryReport
from task_bridge.domain.durations import rfc3339
from task_bridge.domain.errors import CannotStart, NatsUnavailable
from task_bridge.domain.events import Event, EventData, WatchRef
from task_bridge.domain.follows.event import FollowReport
from task_bridge.domain.task import Progress, Target, TaskError
from task_bridge.domain.timeline import TaskTimeline
from task_bridge.domain.watch import Watch
from task_bridge.metrics import Metrics
from task_bridge.settings import Listen
from task_bridge.web.board import BoardRenderer, BoardView, build_task_link
from task_bridge.web.health import (
    BridgeHealth,
    JetStreamHealth,
    NatsHealth,
    ResourceHealth,
    VCenterApiHealth,
    VCenterHealth,
)
from task_bridge.web.routes import build_web
from task_bridge.web.server import WebServer

PATHS = [
    "/",
    "/live",
    "/view.json",
    "/view.csv",
    "/task/lab/task-1",
    "/static/board.css",
    "/static/board.js",
    "/static/nothing",
    "/livez",
    "/readyz",
    "/metrics",
    "/asyncapi.json",
    "/nowhere",
    "/readyz/",
]
ANY_PORT = Listen("127.0.0.1", 0)

HEALTHY = BridgeHealth(
    nats=NatsHealth(connected=True),
    jetstream=JetStreamHealth(ok=True),
    streams=(ResourceHealth("VCENTER_TASKS_EVENTS", ok=True),),
    consumers=(ResourceHealth("bridge", ok=True),),
    vcenters=(
        VCenterHealth(
            "lab",
            "ok",
            last_good_poll_age_s=1.26,
            watches=3,
            apis=(
                VCenterApiHealth("cis", "ok", None, 1.26, 3),
                VCenterApiHealth("vim", "unknown", is_in_use=False),
            ),
        ),
    ),
    follows=(FollowReport("lab", "all", "following", None, "2026-11-24T20:00:00.000Z", None, 12, 0, 0.31),),
    own_follows=frozenset({("lab", "all")}),
    held=3,
    waiting=1,
    capacity=50_000,
    loop_lag_s=0.00149,
)
AWAY = VCenterHealth("old", "degraded", "no answer within 10 s", 61.0, 2)


def event(
    number: str,
    *,
    kind: str,
    outcome: str | None = None,
    percent: float | None = None,
    message: str = "",
    labels: dict[str, str] | None = None,
    task: str = "",
    target: Target | None = None,
) -> Event:
    """An event of the watch `number` of a task, which began that many seconds after a moment."""
    since = rfc3339(1_700_000_000 + int(number, 36))
    error = TaskError("ERROR", message) if outcome == "failed" else None
    data = EventData(
        vcenter="lab",
        api="cis",
        task=task or f"task-{number}",
        watch=WatchRef(f"w-{number}", since, None, labels or {}),
        kind=kind,
        outcome=outcome,
        final=kind == "completed",
        sequence=2,
        status="RUNNING",
        progress=Progress(1, 2, percent, message),
        error=error,
        target=target,
    )
    return Event("https://lab", 1_700_000_000 + int(number, 36), data)


class FakeFeed:
    """Somebody who has read what the test put there, and counts who looks."""

    def __init__(self) -> None:
        self.timeline: TaskTimeline | None = None
        self.board: WatchBoard | None = WatchBoard()
        self.board.complete = True
        self.trouble: str | None = None
        self.looks = 0
        self.looking = 0
        self.left = asyncio.Event()

    @contextmanager
    def keep_current(self) -> Iterator[None]:
        self.looks += 1
        self.looking += 1
        try:
            yield
        finally:
            self.looking -= 1
            self.left.set()

    async def read_timeline(self, vcenter: str, task: str) -> TaskTimeline:
        if self.timeline is None:
            raise NatsUnavailable("no answer.")
        return self.timeline


class FakeState:
    def __init__(self) -> None:
        self.now = HEALTHY
        self.document = b'{"asyncapi":"3.0.0"}'
        self.counted = Metrics()

    def health(self) -> BridgeHealth:
        return self.now

    def server_time(self) -> float:
        return time.time()

    def metrics(self) -> CollectorRegistry:
        self.counted.nats_connected.set(self.now.nats.connected)
        return self.counted.registry

    def asyncapi(self) -> bytes:
        return self.document


@pytest.fixture
def state() -> FakeState:
    return FakeState()


@pytest.fixture
def feed() -> FakeFeed:
    return FakeFeed()


@pytest.fixture
async def web(state: FakeState, feed: FakeFeed) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_web(state, feed))
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        yield client


async def test_the_process_is_alive_while_it_answers(web: httpx.AsyncClient) -> None:
    answer = await web.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_readiness_tells_everything_it_rests_on(web: httpx.AsyncClient) -> None:
    answer = await web.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "version": __version__,
        "stopping": False,
        "nats": {"connected": True, "reason": None},
        "jetstream": {"ok": True, "reason": None},
        "streams": [{"name": "VCENTER_TASKS_EVENTS", "ok": True, "reason": None}],
        "consumers": [{"name": "bridge", "ok": True, "reason": None}],
        "vcenters": [
            {
                "name": "lab",
                "state": "ok",
                "reason": None,
                "last_good_look_age_seconds": 1.3,
                "watches": 3,
                "apis": {
                    "cis": {
                        "state": "ok",
                        "reason": None,
                        "last_good_look_age_seconds": 1.3,
                        "watches": 3,
                        "held_back": 0,
                        "in_use": True,
                    },
                    "vim": {
                        "state": "unknown",
                        "reason": None,
                        "last_good_look_age_seconds": None,
                        "watches": 0,
                        "held_back": 0,
                        "in_use": False,
                    },
                },
            }
        ],
        "follows": [
            {
                "vcenter": "lab",
                "name": "all",
                "state": "following",
                "reason": None,
                "here": True,
                "since": "2026-11-24T20:00:00.000Z",
                "last_task_at": None,
                "last_read_age_seconds": 0.3,
                "started_watches": 12,
                "gaps": 0,
            }
        ],
        "follows_reason": None,
        "deliveries": [],
        "held": 3,
        "waiting": 1,
        "capacity": 50_000,
        "capacity_reason": None,
        "clock_difference_seconds": None,
        "clock_reason": None,
        "event_loop_lag_seconds": 0.001,
        "event_loop_lag_reason": None,
    }


@pytest.mark.parametrize("path", ["/readyz", "/"])
async def test_a_full_replica_and_a_late_event_loop_have_their_reasons_and_stop_nothing(
    web: httpx.AsyncClient, state: FakeState, path: str
) -> None:
    state.now = replace(HEALTHY, held=50_000, loop_lag_s=1.26)
    answer = await web.get(path)
    assert answer.status_code == 200
    assert "held 50000 of 50000: new watches wait for another replica" in answer.text
    assert "up to 1.3 s late within the last minute" in answer.text


@pytest.mark.parametrize(
    ("change", "code", "status"),
    [
        ({"vcenters": (AWAY, *HEALTHY.vcenters)}, 200, "degraded"),
        ({"vcenters": (VCenterHealth("new", "unknown"),)}, 200, "ok"),
        ({"vcenters": (VCenterHealth("gone", "unconfigured", watches=1),)}, 200, "ok"),
        ({"vcenters": ()}, 200, "ok"),
        ({"follows": (FollowReport("lab", "all", "starting"),)}, 200, "ok"),
        ({"follows": (FollowReport("lab", "all", "following", gaps=2),)}, 200, "ok"),
        ({"follows": (FollowReport("lab", "all", "slowed"),)}, 200, "degraded"),
        ({"follows": (FollowReport("lab", "all", "waiting", "no answer"),)}, 200, "degraded"),
        ({"follows": (FollowReport("lab", "all", "unconfigured"),)}, 200, "degraded"),
        ({"follows": (FollowReport("lab", "another replica's", "waiting"),)}, 200, "ok"),
        ({"unheld_follows": 1}, 200, "ok"),
        ({"nats": NatsHealth(connected=False, reason="no connection")}, 503, "unready"),
        ({"streams": (ResourceHealth("EVENTS", ok=False, reason="differs"),)}, 503, "unready"),
        ({"streams": ()}, 503, "unready"),  # not looked for yet
        ({"consumers": (ResourceHealth("a", ok=True), ResourceHealth("b", ok=False))}, 503, "unready"),
        ({"stopping": True}, 503, "unready"),
    ],
)
async def test_only_what_stops_the_service_makes_it_unready(
    web: httpx.AsyncClient, state: FakeState, change: dict[str, Any], code: int, status: str
) -> None:
    state.now = replace(HEALTHY, **change)
    answer = await web.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (code, status)
    state_section = (await web.get("/")).text.partition('<section id="state"')[2].partition("</section>")[0]
    assert ('<p class="note">' in state_section) == (status == "unready")


@pytest.mark.parametrize("path", ["/readyz", "/"])
async def test_a_follow_that_is_late_or_has_a_gap_has_its_reason(
    web: httpx.AsyncClient, state: FakeState, path: str
) -> None:
    waiting = FollowReport("lab", "clones", "waiting", "vCenter lab refuses to show its history", gaps=2)
    slowed = FollowReport("lab", "all", "slowed", None, "2026-11-24T20:00:00.000Z", gaps=1)
    state.now = replace(HEALTHY, follows=(waiting, slowed), unheld_follows=1)
    answer = await web.get(path)
    assert answer.status_code == 200
    text = unescape(answer.text)
    assert "waits until vCenter can be read: vCenter lab refuses to show its history; 2 gaps, in which" in text
    assert "finds more tasks than BRIDGE_FOLLOW_MAX_RATE lets it watch at once" in text
    assert "1 gap, in which tasks may be missing: see `task-bridge follows --events`" in text
    assert "1 follow is stored and run by no replica" in text


async def test_the_board_says_of_each_follow_whether_it_is_complete(web: httpx.AsyncClient, state: FakeState) -> None:
    report = HEALTHY.follows[0]
    shown = []
    with_gap, unread = msgspec.structs.replace(report, gaps=1), FollowReport("lab", "all", "starting")
    waiting = msgspec.structs.replace(report, state="waiting")
    for follows in ((report,), (with_gap,), (unread,), (waiting,), ()):
        state.now = replace(HEALTHY, follows=follows)
        section = (await web.get("/")).text.partition('<section id="follows"')[2].partition("</section>")[0]
        shown.append(" ".join(re.sub(r"<[^>]+>", " ", section).split()))
    assert "yes, nothing is missing" in shown[0]
    assert "✗ 1 gap : tasks may be missing" in shown[1]
    assert "not read yet" in shown[2]
    assert "no gap so far" in shown[3]
    assert "Nothing is followed." in shown[4]


async def test_the_board_shows_each_delivery_and_what_keeps_it_from_sending(
    web: httpx.AsyncClient, state: FakeState
) -> None:
    assert "This replica delivers no events over HTTP" in (await web.get("/")).text
    fine = DeliveryReport("awx", "https://awx", "delivering", None, 1200, 3.0, "the target answered 202 Accepted")
    gone = DeliveryReport("gone", "https://gone", "paused", "the target answered 410 Gone")
    failing = DeliveryReport("slow", "https://slow", "failing", "<b>no answer", 2, 90.0)
    state.now = replace(HEALTHY, deliveries=(fine, gone, failing))
    section = (await web.get("/")).text.partition('<section id="deliveries"')[2].partition("</section>")[0]
    shown = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in section.split("<tr ")[2:]]
    assert [row.partition("> ")[2] for row in shown] == [
        "gone https://gone ✗ paused 0 the target answered 410 Gone",
        "slow https://slow ✗ failing 2 1 min &lt;b&gt;no answer",
        "awx https://awx delivering 1,200 3 s the target answered 202 Accepted",
    ]


async def test_metrics_are_those_of_the_moment_in_the_form_that_is_asked_for(
    web: httpx.AsyncClient, state: FakeState
) -> None:
    answer = await web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "task_bridge_nats_connected 1.0" in answer.text
    assert f'task_bridge_build_info{{version="{__version__}"}} 1.0' in answer.text
    state.now = replace(HEALTHY, nats=NatsHealth(connected=False))
    answer = await web.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "task_bridge_nats_connected 0.0" in answer.text


async def test_the_asyncapi_document_is_passed_on_as_it_is(web: httpx.AsyncClient, state: FakeState) -> None:
    answer = await web.get("/asyncapi.json")
    assert (answer.content, answer.headers["content-type"]) == (state.document, "application/json")


async def test_the_page_tells_what_readiness_tells(web: httpx.AsyncClient, state: FakeState) -> None:
    jetstream = JetStreamHealth(ok=False, reason="not enabled")
    state.now = replace(HEALTHY, jetstream=jetstream, vcenters=(AWAY, *HEALTHY.vcenters))
    answer = await web.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for text in (__version__, "degraded", "connected", "VCENTER_TASKS_EVENTS", "old", "1 min", "within 10 s"):
        assert text in answer.text
    assert "not enabled" in answer.text
    for path in ("/readyz", "/livez", "/metrics", "/asyncapi.json"):
        assert f'href="{path}"' in answer.text


async def test_every_row_of_a_table_has_a_cell_for_each_heading(web: httpx.AsyncClient) -> None:
    page = etree.HTML((await web.get("/")).text)
    tables = page.findall(".//table")
    assert tables
    for table in tables:
        headings = ["".join(map(str, heading.itertext())) for heading in table.iter("th")]
        rows = [[cell.get("data-label") for cell in row.iter("td")] for row in table.iter("tr")]
        assert all(row == headings for row in rows if row), headings


@pytest.mark.parametrize("path", ["/readyz", "/"])
async def test_a_clock_that_differs_from_nats_servers_is_reported_and_stops_nothing(
    web: httpx.AsyncClient, state: FakeState, path: str
) -> None:
    state.now = replace(HEALTHY, clock_difference_s=-4.9)
    assert "behind nats-server" not in (await web.get(path)).text
    state.now = replace(HEALTHY, clock_difference_s=-3_600.2)
    answer = await web.get(path)
    assert answer.status_code == 200
    assert "the clock of this host is 3600.2 s behind nats-server" in answer.text


def test_everything_on_the_page_is_escaped_and_cannot_turn_around_what_stands_beside_it() -> None:
    evil = "<script>alert('1')</script>\x1b[31m\u202e"
    overview = WatchBoard()
    target = Target(evil, evil, evil, evil)
    overview.apply_event(event("a", kind="progress", message=evil, labels={evil: evil}, task=evil, target=target), evil)
    overview.apply_event(
        event("b", kind="completed", outcome="failed", message=evil, task=evil + "2", target=target), evil
    )
    overview.complete = True
    health = BridgeHealth(
        nats=NatsHealth(connected=False, reason=evil),
        streams=(ResourceHealth(evil, ok=False, reason=evil),),
        vcenters=(VCenterHealth(evil, "degraded", evil),),
    )
    renderer = BoardRenderer()
    text = renderer.render_page(BoardView(health, overview, None, RowFilter(evil, evil), 0.0))
    whole = renderer.render_page(BoardView(health, overview, None, RowFilter(), 0.0))
    for html in (text, whole):
        assert html.count("<script") == 1  # its own
        assert html.count("&lt;script&gt;alert(&#39;1&#39;)") >= 5
        assert "\x1b" not in html
        assert "\u202e" not in html
    assert whole.count("&lt;script&gt;") > 12


NAMED = Target("VirtualMachine", "vm-7", "a%2fb", "/DC/vm/web/a%2fb")
TARGETS = {
    "named": (NAMED, "VirtualMachine vm-7", "<bdi>a%2fb</bdi>", "<bdi>/DC/vm/web/a%2fb</bdi>"),
    "unnamed": (Target("Folder", "group-v3"), "Folder group-v3", "<bdi>group-v3</bdi>", "<bdi>Folder group-v3</bdi>"),
    "without a type": (Target(None, "vm-7"), "vm-7", "<bdi>vm-7</bdi>", "<bdi>vm-7</bdi>"),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("final", [False, True])
def test_the_board_shows_the_name_and_path_of_a_target_and_finds_tasks_by_them(kind: str, final: bool) -> None:
    target, *shown = TARGETS[kind]
    board = WatchBoard()
    board.apply_event(event("1", kind="completed" if final else "status", target=target), "")
    page = BoardRenderer().render_page(BoardView(HEALTHY, board, None, RowFilter(), 0.0))
    assert all(text in page for text in shown), shown
    for word in filter(None, (target.type, target.id, target.name, target.path)):
        found = board.select_page(RowFilter(word))
        assert len(found.endings if final else found.rows) == 1


async def test_the_page_needs_nothing_from_outside_and_its_policy_allows_nothing_else(
    web: httpx.AsyncClient,
) -> None:
    answer = await web.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; style-src 'self'; script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|style=|<style|<script>| on[a-z]+=", answer.text)
    assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text)
    assert len(assets) == 3
    for asset in assets:
        found = await web.get(asset)
        assert found.status_code == 200
        outside = found.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\(|@import", outside)


async def test_the_page_shows_the_watches_oldest_first_how_they_stand_and_the_latest_endings(
    web: httpx.AsyncClient, feed: FakeFeed
) -> None:
    assert feed.board
    feed.board.apply_event(event("2", kind="progress", percent=42.0, message="Host 2 of 5"), "0123456789")
    feed.board.apply_event(event("1", kind="stalled", labels={"workflow": "patch-42"}), "fedcba987654")
    feed.board.apply_event(event("3", kind="completed", outcome="failed", message="No space left"), "0123456789")
    text = (await web.get("/")).text
    assert text.index("task-1") < text.index("task-2") < text.index("task-3")
    for told in ('value="42.0"', "Host 2 of 5", "workflow=patch-42", "stalled", "01234567", "✗ failed", "No space"):
        assert told in text
    assert '<time datetime="2023-11-14T22:13:22.000Z" ' in text
    assert re.search(r"\d+ d \d+ h</time>", text)


async def test_a_filter_is_a_link_that_can_be_shared_and_pages_are_links(
    web: httpx.AsyncClient, feed: FakeFeed
) -> None:
    assert feed.board
    for number in range(450):
        feed.board.apply_event(event(f"{number:04}", kind="progress"), "x")
    whole, second, one = [(await web.get(path)).text for path in ("/", "/?page=2", "/?q=TASK-0449+running")]
    assert (whole.count("<code>"), second.count("<code>"), one.count("<code><bdi>task-0449")) == (200 + 200, 400, 1)
    assert "1 to 200 of 450" in whole
    assert 'href="/?q=&amp;vcenter=&amp;page=3" rel="next"' in second
    assert "1 of 450" in one
    nothing = (await web.get("/?vcenter=other&page=no")).text
    assert "No watch matches." in nothing


@pytest.mark.parametrize("path", ["/?q=task-9000", "/?q=task-9000&status=stalled", "/?page=7"])
async def test_a_deep_link_never_says_none_while_rows_are_being_read(
    web: httpx.AsyncClient, feed: FakeFeed, path: str
) -> None:
    assert feed.board
    feed.board.finish_refresh([("lab", "task-1", WatchRef("w-1", rfc3339(1.0)))], Counter({"lab": 10_000}))
    text = (await web.get(path)).text
    assert "10,001 being read…" in text
    assert "No watch matches." not in text
    assert "more aren't listed" not in text
    feed.board.finish_refresh([("lab", "task-1", WatchRef("w-1", rfc3339(1.0)))], Counter())
    feed.board.all_listed = True
    (row,) = feed.board.rows_without_events()
    feed.board.mark_without_events(row)
    assert "being read" not in (await web.get(path)).text


@pytest.mark.parametrize("is_connected", [False, True])
async def test_a_board_that_was_never_read_says_so_in_each_table(
    web: httpx.AsyncClient, feed: FakeFeed, state: FakeState, is_connected: bool
) -> None:
    feed.board, feed.trouble = None, "no answer"
    state.now = replace(HEALTHY, nats=NatsHealth(connected=is_connected, reason="gone"), follows=(), streams=())
    text = (await web.get("/")).text
    assert text.count("Not read yet.") == 4  # follows, deliveries, watches, endings
    for path in ("/view.json", "/view.csv"):
        answer = await web.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.text == f"Being read: {'no answer' if is_connected else 'NATS is away: gone'}. Try again.\n"


async def test_every_row_says_that_it_is_stale(web: httpx.AsyncClient, feed: FakeFeed, state: FakeState) -> None:
    assert feed.board
    feed.board.all_listed = True
    for number in "123":
        feed.board.apply_event(event(number, kind="progress"), "x")
    feed.board.apply_event(event("4", kind="completed", outcome="succeeded"), "x")
    mark = '<span class="stale">stale</span>'
    assert mark not in (await web.get("/")).text
    feed.trouble = "no answer"
    assert (await web.get("/")).text.count(mark) == 6  # with the follow, and the number of the vCenter's watches
    feed.trouble, state.now = None, replace(HEALTHY, nats=NatsHealth(connected=False, reason="gone"))
    assert (await web.get("/")).text.count(mark) == 6
    assert "No watch matched when the streams were last read." in (await web.get("/?q=nothing-like-it")).text


async def test_what_is_away_is_said_once_and_what_was_read_is_not_unread(
    web: httpx.AsyncClient, feed: FakeFeed, state: FakeState
) -> None:
    parts = [ResourceHealth(name, ok=False, reason="nats: timeout") for name in ("EVENTS", "REQUESTS", "WATCHES")]
    other = ResourceHealth("WATCHES/bridge", ok=False, reason="is missing")
    bad = replace(HEALTHY, streams=tuple(parts), consumers=(other,), follows=())
    state.now = bad
    text = (await web.get("/")).text
    assert text.count('class="note"') == 2
    assert '<p class="note">EVENTS and 2 more: nats: timeout.</p>' in text
    assert '<p class="note">WATCHES/bridge: is missing.</p>' in text
    state.now = replace(bad, nats=NatsHealth(connected=False, reason="gone"))
    text = (await web.get("/")).text
    assert text.count('class="note"') == 1
    assert "Not read yet." not in text
    assert "This replica delivers no events over HTTP" in text
    assert "Nothing was followed when the streams were last read." in text
    assert "No final event was in the stream when it was last read." in text


async def test_follows_that_no_replica_has_reported_yet_are_not_shown_as_none(
    web: httpx.AsyncClient, state: FakeState
) -> None:
    state.now = replace(HEALTHY, follows=(), has_follows=True)
    text = (await web.get("/")).text
    assert "No replica has reported a follow so far." in text
    assert "Nothing is followed" not in text


async def test_a_table_waits_until_all_is_read_and_says_if_it_is_not(
    web: httpx.AsyncClient, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert feed.board
    feed.board.finish_refresh([("lab", "task-1", WatchRef("w-1", rfc3339(1.0)))], Counter())
    feed.board.all_listed = True
    monkeypatch.setattr("task_bridge.web.routes._FILE_READ_S", 0.1)
    refused = await web.get("/view.csv")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.text == "Being read: not all rows are read yet. Try again.\n"
    monkeypatch.undo()
    asking = asyncio.create_task(web.get("/view.csv"))
    (row,) = feed.board.rows_without_events()
    feed.board.mark_without_events(row)
    answer = await asking
    assert answer.content.startswith(b'"table"')  # without a byte order mark
    assert answer.text.count("task-1") == 1


async def test_the_absolute_time_is_there_without_a_script(web: httpx.AsyncClient, feed: FakeFeed) -> None:
    assert feed.board
    feed.board.apply_event(event("1", kind="progress"), "x")
    assert 'title="2023-11-14 22:13:21 UTC"' in (await web.get("/")).text


async def test_a_watch_of_a_vcenter_that_does_not_answer_says_so_in_its_row(
    web: httpx.AsyncClient, feed: FakeFeed, state: FakeState
) -> None:
    assert feed.board
    feed.board.apply_event(event("1", kind="progress"), "x")
    row = 'lab <span class="bad">✗ degraded</span>'
    assert row not in (await web.get("/")).text
    state.now = replace(HEALTHY, vcenters=(VCenterHealth("lab", "degraded", "no answer within 10 s"),))
    assert row in (await web.get("/")).text


async def test_what_needs_attention_is_counted_and_leads_to_its_rows(web: httpx.AsyncClient, feed: FakeFeed) -> None:
    assert feed.board
    assert "Needs attention" not in (await web.get("/")).text
    feed.board.apply_event(event("1", kind="stalled"), "x")
    feed.board.apply_event(event("2", kind="progress"), "x")
    feed.board.apply_event(event("3", kind="completed", outcome="failed"), "x")
    text = (await web.get("/")).text
    assert 'href="/?q=&amp;vcenter=&amp;outcome=failed&amp;page=1#endings">1 failed</a>' in text
    assert 'href="/?q=&amp;vcenter=&amp;status=stalled&amp;page=1#watches">1 stalled</a>' in text
    chosen = (await web.get("/?status=stalled&outcome=succeeded&sort=-task")).text
    watches = chosen.partition('<section id="watches"')[2].partition("</section>")[0]
    assert ("task-1" in watches, "task-2" in watches) == (True, False)
    assert watches.count('aria-current="true"') == 1
    assert 'aria-sort="descending"' in watches
    assert "None of the latest 1 endings matches." in chosen
    assert '<option value="-task" selected>by task, reversed</option>' in chosen


async def test_the_page_of_a_task_is_found_by_its_id_whatever_is_in_it(web: httpx.AsyncClient, feed: FakeFeed) -> None:
    asked: list[tuple[str, str]] = []

    async def read_timeline(vcenter: str, task: str) -> TaskTimeline:
        asked.append((vcenter, task))
        return TaskTimeline(Watch("w-1", vcenter, task, 1.0), ())

    feed.read_timeline = read_timeline  # type: ignore[method-assign]
    for task in ("task-1", "a/b", "52f9:com.vmware", "?a=b&c#d", "%2e", "ü (1) x", "x" * 1024):
        answer = await web.get(build_task_link("lab", task))
        assert (answer.status_code, asked.pop()) == (200, ("lab", task))
        assert f"{build_task_link('lab', task)}?format=json" in unescape(answer.text)
    for printed in ("Task:task-1", "Task-task-1", "'vim.Task:task-1'", " task-1"):
        await web.get(build_task_link("lab", printed))
        assert asked.pop() == ("lab", "task-1")
    for path in ("/task/lab/", "/task/*/task-1", "/task/LAB/x", "/task/lab", "/task/lab/" + "x" * 1025):
        assert (await web.get(path)).status_code == 404
    assert asked == []
    assert (await web.head("/task/lab/task-1")).status_code == 200
    assert asked == []


async def test_the_page_of_a_task_that_cannot_be_read_or_is_unknown_says_which(
    web: httpx.AsyncClient, feed: FakeFeed
) -> None:
    for query in ("", "?format=json"):
        answer = await web.get(f"/task/lab/task-1{query}")
        assert (answer.status_code, "no answer" in answer.text) == (503, True)
    assert answer.json()["events"] is None
    feed.timeline = TaskTimeline(None, ())
    assert (await web.get("/task/lab/task-1")).status_code == 404
    unknown = await web.get("/task/lab/task-1?format=json")
    assert (unknown.status_code, unknown.json()["events"], unknown.json()["trouble"]) == (404, [], None)
    assert (feed.looks, feed.looking) == (0, 0)  # the board isn't read for it


async def test_a_silent_stream_still_says_that_it_lives(
    state: FakeState, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_bridge.web.live.KEEPALIVE_S", 0.2)
    server = WebServer(build_web(state, feed), ANY_PORT)
    await server.start()
    viewer = await Viewer.of(server)
    await viewer.told()
    assert await viewer.told() == {}
    viewer.writer.close()
    await server.stop()


async def test_nothing_is_read_for_probes(web: httpx.AsyncClient, feed: FakeFeed) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        await web.get(path)
    await web.head("/")
    assert feed.looks == 0
    await web.get("/")
    assert (feed.looks, feed.looking) == (1, 0)


async def test_a_board_that_is_not_up_to_date_says_so(web: httpx.AsyncClient, feed: FakeFeed, state: FakeState) -> None:
    feed.trouble = "no answer"
    assert "isn't up to date: no answer" in (await web.get("/")).text
    state.now = replace(HEALTHY, nats=NatsHealth(connected=False, reason="connection lost"))
    assert "NATS is away: connection lost." in (await web.get("/")).text


class Viewer:
    """Reads `/live` of a server as a browser does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, server: WebServer, path: str = "/live") -> Viewer:
        assert server.address
        reader, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return cls(reader, writer)

    async def status(self) -> int:
        return int((await self._reader.readline()).split()[1])

    async def told(self) -> dict[str, str]:
        """The parts of the next message."""
        async with asyncio.timeout(10):
            while not (line := await self._reader.readline()).startswith(b"data: "):
                assert line
        return json.loads(line[6:])["parts"]  # type: ignore[no-any-return]

    async def ends(self) -> None:
        """It is told so, before anybody cuts it off."""
        async with asyncio.timeout(3):
            while await self._reader.readline() != b"0\r\n":
                assert not self._reader.at_eof()


async def test_what_changes_is_told_live_and_only_that(state: FakeState, feed: FakeFeed) -> None:
    assert feed.board
    server = WebServer(build_web(state, feed), ANY_PORT)
    await server.start()
    viewer = await Viewer.of(server)
    first = await viewer.told()
    feed.board.apply_event(event("1", kind="progress"), "x")
    second = await viewer.told()
    assert set(first) == {"state", "vcenters", "follows", "deliveries", "watches", "endings", "nats"}
    assert "task-1" in second["watches"]
    assert not {"nats", "endings", "state", "follows"} & set(second)
    assert feed.looking == 1
    viewer.writer.close()
    await asyncio.wait_for(feed.left.wait(), 5)
    await server.stop()


async def test_a_bridge_that_stops_ends_what_it_tells_live_at_once(
    state: FakeState, feed: FakeFeed, caplog: pytest.LogCaptureFixture
) -> None:
    server = WebServer(build_web(state, feed), ANY_PORT)
    await server.start()
    viewer = await Viewer.of(server)
    await viewer.told()
    state.now = replace(HEALTHY, stopping=True)
    await viewer.ends()
    viewer.writer.close()
    await asyncio.wait_for(server.stop(), 2)
    assert "Cancel" not in caplog.text


async def test_more_viewers_than_it_bears_are_asked_to_come_back(
    state: FakeState, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_bridge.web.live.MAX_VIEWERS", 2)
    server = WebServer(build_web(state, feed), ANY_PORT)
    await server.start()
    viewers = [await Viewer.of(server) for _ in range(2)]
    for viewer in viewers:
        await viewer.told()
    third = await Viewer.of(server)
    assert await third.status() == 503
    for viewer in [*viewers, third]:
        viewer.writer.close()
    await server.stop()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_every_answer_is_guarded_and_nothing_can_be_changed(
    web: httpx.AsyncClient, path: str, method: str
) -> None:
    if (path, method) == ("/live", "GET"):
        path = "/"  # it doesn't end
    answer = await web.request(method, path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    if method not in ("GET", "HEAD"):
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    elif path in ("/nowhere", "/readyz/", "/static/nothing"):
        assert answer.status_code == 404


async def test_a_page_that_fails_tells_nothing_about_why(state: FakeState) -> None:
    class Broken(FakeState):
        def health(self) -> BridgeHealth:
            raise RuntimeError("secret")

    transport = httpx.ASGITransport(build_web(Broken(), FakeFeed()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_it_serves_on_the_port_it_picked_and_stops(state: FakeState) -> None:
    server = WebServer(build_web(state, FakeFeed()), ANY_PORT)
    await server.start()
    assert server.address
    url = f"http://127.0.0.1:{server.address.port}/livez"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).json() == {"status": "ok"}
        answer = await client.head(url)
        assert (answer.status_code, answer.content, answer.headers.get("server")) == (200, b"", None)
        await server.stop()  # with a connection that is kept alive
        assert server.address is None
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_name_and_an_ipv6_address_can_be_listened_on(state: FakeState) -> None:
    for host, found in (("localhost", "127.0.0.1"), ("::1", "::1")):
        server = WebServer(build_web(state, FakeFeed()), Listen(host, 0))
        await server.start()
        assert server.address
        assert server.address.host == found
        await server.stop()


async def test_signals_stay_with_the_process(state: FakeState) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    server = WebServer(build_web(state, FakeFeed()), ANY_PORT)
    await server.start()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert server.address
        await client.get(f"http://127.0.0.1:{server.address.port}/livez")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    await server.stop()


async def test_every_answer_has_the_time(state: FakeState) -> None:
    server = WebServer(build_web(state, FakeFeed()), ANY_PORT)
    await server.start()
    assert server.address
    url = f"http://127.0.0.1:{server.address.port}"
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.get(f"{url}/livez"), await client.get(f"{url}/nowhere"), await client.post(url)]
        answers.append(await client.get(f"{url}/livez", headers={"host": "elsewhere.test"}))
    assert [answer.status_code for answer in answers] == [200, 404, 405, 421]
    for answer in answers:
        (date,) = answer.headers.get_list("date")
        assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60
    await server.stop()


async def test_off_listens_nowhere(state: FakeState) -> None:
    server = WebServer(build_web(state, FakeFeed()), None)
    await server.start()
    assert server.address is None
    await server.stop()


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "is taken; stop what listens there or set another port"),
        ("192.0.2.1", "is no address of this machine"),
        ("no-such-host.invalid", "can't be listened on"),
    ],
)
async def test_an_address_that_cannot_be_had_stops_the_start_with_one_line(
    state: FakeState, host: str, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart) as stop:
            await WebServer(build_web(state, FakeFeed()), Listen(host, port)).start()
    (line,) = stop.value.lines
    assert stop.value.exit_code == 1
    assert line.startswith(f"BRIDGE_HTTP_LISTEN: {host}:{port} {told}")


async def test_a_client_that_never_finishes_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    asked = asyncio.Event()
    server = WebServer(never, ANY_PORT)
    await server.start()
    assert server.address
    _, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asked.wait()
    with caplog.at_level(logging.CRITICAL):  # uvicorn tells that it cuts somebody off
        await asyncio.wait_for(server.stop(), 4)
    writer.close()
