"""The API over HTTP through a whole bridge: the same answers as over NATS, for those who have a token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from http_api import bearer, line, reading, write_tokens
from lab import Lab, until
from task_bridge.app import Bridge
from task_bridge.simulator import scenarios
from validity import check_event, check_reply

CHANGING = ("watch", "unwatch", "cancel", "follow", "unfollow")


@asynccontextmanager
async def serving(lab: Lab, directory: Path, *lines: str, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a bridge that has these tokens."""
    tokens = write_tokens(directory, *lines)
    async with lab.bridge(http_tokens_file=tokens, **more) as bridge, client_of(bridge) as http:
        yield http


@asynccontextmanager
async def client_of(bridge: Bridge) -> AsyncIterator[httpx.AsyncClient]:
    assert bridge.web.address
    url = f"http://127.0.0.1:{bridge.web.address.port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as http:
        yield http


async def post(http: httpx.AsyncClient, verb: str, body: object, by: str = "all", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http.post(f"/v1/{verb}", content=content, headers=bearer(by) | headers)


async def code_of(http: httpx.AsyncClient, verb: str, body: object, by: str = "all") -> tuple[int, str]:
    answer = await post(http, verb, body, by)
    check_reply(verb, answer.content, refused=True)
    error = answer.json()["error"]
    assert error["status"] == answer.status_code
    return answer.status_code, error["code"]


async def test_each_verb_answers_as_over_nats(lab: Lab, tmp_path: Path) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    follow = {"name": "all", "labels": {"team": "a"}}
    async with serving(lab, tmp_path, allow_cancel=True) as http:
        statuses: dict[str, list[tuple[int, str | None]]] = {}
        for verb, body in (
            ("watch", {"task": task, "labels": {"workflow": "w"}}),
            ("watch", task),
            ("get", {"task": task, "vcenter": "lab"}),
            ("list", {}),
            ("list", b""),
            ("follow", follow),
            ("follow", follow),
            ("follows", {}),
            ("unfollow", {"name": "all"}),
            ("cancel", task),
        ):
            answer = await post(http, verb, body)
            check_reply(verb, answer.content, refused=False)
            assert answer.headers["content-type"] == "application/json"
            statuses.setdefault(verb, []).append((answer.status_code, answer.json().get("outcome")))
        assert statuses == {
            "watch": [(202, "accepted"), (200, "already_watching")],
            "get": [(200, None)],
            "list": [(200, None), (200, None)],
            "follow": [(202, "accepted"), (200, "already_following")],
            "follows": [(200, None)],
            "unfollow": [(200, "unfollowed")],
            "cancel": [(200, "cancel_requested")],
        }
        over_http = (await post(http, "get", task)).json()
        assert over_http["watch"] == (await lab.ask("get", task))["watch"]


async def test_unwatch_ends_a_watch_once(lab: Lab, tmp_path: Path) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    async with serving(lab, tmp_path) as http:
        await post(http, "watch", task)
        assert (await post(http, "unwatch", task)).json()["last_event"]["outcome"] == "unwatched"
        again = await post(http, "unwatch", task)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "already_ended")
        assert again.json()["last_event"]["outcome"] == "unwatched"


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("watch", b"{"),
        ("watch", b"\xff"),
        ("watch", b"[" * 60_000),
        ("watch", {"task": "a:b", "tmeout": 5}),
        ("watch", {"task": "a:b", "vcenter": "elsewhere"}),
        ("watch", b'{"task": "a:b", "task": "a:c"}'),
        ("watch", b" " * 70_000),
        ("get", "nobody:knows"),
        ("get", b""),
        ("list", {"limit": 0}),
        ("list", {"vcenter": "*"}),
        ("unwatch", "nobody:watches"),
        ("cancel", "a:b"),
        ("follow", {"name": "No"}),
        ("unfollow", {"name": "none"}),
        ("follows", {"vcenter": "other"}),
    ],
)
async def test_an_error_is_the_same_as_over_nats(lab: Lab, tmp_path: Path, verb: str, body: object) -> None:
    async with serving(lab, tmp_path) as http:
        over_http = await post(http, verb, body)
        over_nats = await lab.reply(verb, body)
        assert over_http.content == over_nats.data
        assert str(over_http.status_code) == (over_nats.headers or {})["Nats-Service-Error-Code"]


async def test_without_a_token_there_is_no_answer_and_the_verbs_of_a_token_limit_it(lab: Lab, tmp_path: Path) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    async with serving(lab, tmp_path) as http:
        for verb in ("watch", "get", "list", *CHANGING):
            assert (await http.post(f"/v1/{verb}", content=b"{}")).status_code == 401
        for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic YTpi"}):
            answer = await http.get("/v1/events", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert await code_of(http, "watch", task, "nobody") == (401, "unauthorized")
        assert await code_of(http, "watch", task, "reader") == (403, "forbidden")
        message = (await post(http, "watch", task, "reader")).json()["error"]["message"]
        assert "'watch'" in message
        assert (await post(http, "watch", task, "asker")).status_code == 202
        assert (await http.get("/v1/events", headers=bearer("asker"))).status_code == 403
        assert (await post(http, "list", {}, "reader")).json()["total"] == 1
        scheme = {"Authorization": "bEaReR   all-secret"}
        assert (await http.post("/v1/list", content=b"", headers=scheme)).status_code == 200


async def test_a_token_of_some_vcenters_reaches_and_sees_no_others(lab: Lab, tmp_path: Path) -> None:
    lines = line("one", vcenters="lab"), line("two", vcenters="lab,third"), line("all")
    vcenters = {name: lab.vcenter_settings(name=name) for name in ("lab", "other", "third")}
    async with serving(lab, tmp_path, *lines, vcenters=vcenters) as http:
        task = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
        for vcenter in vcenters:
            forever = lab.vcenter.create(scenarios.runs_forever())
            assert (await post(http, "watch", {"task": forever, "vcenter": vcenter})).status_code == 202
            assert (await post(http, "follow", {"name": "all", "vcenter": vcenter})).status_code == 202
        for verb in ("watch", "get", "unwatch", "cancel"):
            assert await code_of(http, verb, {"task": task, "vcenter": "other"}, "one") == (403, "forbidden")
            assert await code_of(http, verb, task, "one") == (400, "invalid_request")
        for verb in ("follow", "unfollow"):
            assert await code_of(http, verb, {"name": "all", "vcenter": "other"}, "one") == (403, "forbidden")
        for verb in ("list", "follows"):
            assert await code_of(http, verb, {"vcenter": "other"}, "one") == (403, "forbidden")
        assert "other" not in (await post(http, "watch", task, "one")).text
        assert "other" not in (await post(http, "list", {"vcenter": "*"}, "one")).text
        seen = {}
        for token in ("one", "two", "all"):
            listed = (await post(http, "list", {}, token)).json()
            follows = (await post(http, "follows", {}, token)).json()
            seen[token] = {one["vcenter"] for one in (*listed["watches"], *follows["follows"])}
            assert listed["total"] == len(listed["watches"]) == len(follows["follows"])
        assert seen == {"one": {"lab"}, "two": {"lab", "third"}, "all": {"lab", "other", "third"}}
        answer = await http.get("/v1/events", params={"vcenter": "other"}, headers=bearer("one"))
        assert answer.status_code == 403


async def test_pages_of_a_token_of_some_vcenters_have_each_watch_once_in_order(lab: Lab, tmp_path: Path) -> None:
    vcenters = {name: lab.vcenter_settings(name=name) for name in ("lab", "other", "third")}
    async with serving(lab, tmp_path, line("two", vcenters="lab,third"), line("all"), vcenters=vcenters) as http:
        expected = []
        for number in range(13):
            task, vcenter = lab.vcenter.create(scenarios.runs_forever()), ("lab", "other", "third")[number % 3]
            await asyncio.sleep(0.06)  # 20 requests a second
            assert (await post(http, "watch", {"task": task, "vcenter": vcenter})).status_code == 202
            expected += [] if vcenter == "other" else [task]
        read, cursor = [], None
        while True:
            page = (await post(http, "list", {"limit": 4, "cursor": cursor}, "two")).json()
            read += [one["task"] for one in page["watches"]]
            assert page["total"] == len(expected)
            if (cursor := page["cursor"]) is None:
                break
        assert read == expected


async def test_the_default_vcenter_of_the_bridge_is_that_of_each_token(lab: Lab, tmp_path: Path) -> None:
    vcenters = {name: lab.vcenter_settings(name=name) for name in ("lab", "other")}
    lines, task = (line("one", vcenters="lab"), line("all")), lab.vcenter.create(scenarios.runs_forever())
    async with serving(lab, tmp_path, *lines, vcenters=vcenters, default_vcenter="other") as http:
        answer = await post(http, "watch", task, "one")
        assert (answer.status_code, answer.json()["error"]["details"]) == (
            403,
            [{"field": "vcenter", "problem": "must be one of lab"}],
        )
        assert (await post(http, "watch", task, "all")).json()["vcenter"] == "other"


async def test_without_a_file_of_tokens_there_is_no_api(lab: Lab) -> None:
    async with lab.bridge() as bridge, client_of(bridge) as http:
        for method, path in (("POST", "/v1/watch"), ("GET", "/v1/events"), ("GET", "/v1/openapi.json"), ("PUT", "/v1")):
            answer = await http.request(method, path, headers=bearer("all"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await http.post("/")).status_code == 405
        assert (await http.get("/")).status_code == 200


async def test_the_pages_stay_read_only_and_open_beside_the_api(lab: Lab, tmp_path: Path) -> None:
    async with serving(lab, tmp_path) as http:
        for path in ("/", "/readyz", "/metrics"):
            assert (await http.get(path)).status_code == 200
            assert (await http.post(path, headers=bearer("all"))).status_code == 405
        document = await http.get("/v1/openapi.json")
        assert document.json()["openapi"].startswith("3.1")
        metrics = (await http.get("/metrics")).text
        assert 'task_bridge_http_requests_total{code="200",verb="openapi.json"} 1.0' in metrics


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/watch", 405),
        ("PUT", "/v1/watch", 405),
        ("OPTIONS", "/v1/watch", 405),
        ("POST", "/v1/events", 405),
        ("POST", "/v1/openapi.json", 405),
        ("POST", "/v1/", 404),
        ("POST", "/v1", 404),
        ("POST", "/v1/watch/", 404),
        ("POST", "/v1//watch", 404),
        ("POST", "/v1/Watch", 404),
        ("POST", "/V1/watch", 405),
        ("POST", "/v1/watch%2F..%2Fcancel", 404),
        ("POST", "/v1/%2e%2e/v1/watch", 404),
        ("POST", "/v1/answer", 404),
        ("POST", "/v1/_serve", 404),
        ("POST", "/v1/watch?x=/../list", 401),
        ("POST", "/v1/%77atch", 401),
    ],
)
async def test_only_the_paths_of_verbs_are_served(
    lab: Lab, tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with serving(lab, tmp_path) as http:
        target = httpx.URL(str(http.base_url)).copy_with(raw_path=path.encode())
        answer = await http.send(httpx.Request(method, target))
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        if status == 405:
            assert answer.headers["allow"] in ("POST", "GET, HEAD")


async def test_each_request_that_changes_something_is_one_line_with_the_name_of_the_token(
    lab: Lab, tmp_path: Path
) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with capture_logs() as logs:
        async with serving(lab, tmp_path, line("ci"), line("reader", "get")) as http:
            await post(http, "watch", {"task": task, "labels": {"a": "b"}}, "ci", traceparent=trace)
            await post(http, "get", task, "ci")
            await post(http, "list", {}, "ci")
            await post(http, "cancel", {"task": task, "vcenter": "lab"}, "ci")
            await post(http, "unwatch", task, "ci")
            await post(http, "follow", {"name": "all"}, "ci")
            await post(http, "unfollow", {"name": "none"}, "ci")
            await post(http, "watch", b"{", "ci")
            await post(http, "watch", task, "reader")
            await lab.ask("unwatch", task)
    lines = [entry for entry in logs if entry["event"] == "request"]
    assert [(one["by"], one["verb"], one["vcenter"], one["task"], one["follow"], one["outcome"]) for one in lines] == [
        ("ci", "watch", "lab", task, None, "accepted"),
        ("ci", "cancel", "lab", task, None, "forbidden"),
        ("ci", "unwatch", "lab", task, None, "unwatched"),
        ("ci", "follow", "lab", None, "all", "accepted"),
        ("ci", "unfollow", "lab", None, "none", "not_following"),
        ("ci", "watch", "lab", None, None, "invalid_request"),
        ("reader", "watch", None, None, None, "forbidden"),
        (None, "unwatch", "lab", task, None, "already_ended"),
    ]
    assert lines[0]["trace_id"] == trace.split("-")[1]
    text = repr(logs)
    assert "ci-secret" not in text
    assert line("ci").split()[1] not in text


async def test_events_come_as_they_are_stored_until_the_watch_ends(lab: Lab, tmp_path: Path) -> None:
    async with serving(lab, tmp_path) as http:
        first = lab.vcenter.create(scenarios.succeeds(after_s=0.5))
        other = lab.vcenter.create(scenarios.runs_forever())
        await post(http, "watch", other)
        watch = (await post(http, "watch", first)).json()["watch"]["id"]
        async with reading(http, {"watch": watch}) as events:
            assert events.answer.headers["content-type"].startswith("text/event-stream")
            messages = await events.rest()
        stored = {message.seq: event for message, event in await lab.stored()}
        assert messages[-1].kind == "completed.succeeded"
        assert [message.event["data"]["sequence"] for message in messages] == list(range(1, len(messages) + 1))
        assert all(stored[message.id] == message.event for message in messages)
        for message in messages:
            check_event(json.dumps(message.event).encode())
        async with reading(http, {"watch": watch, "kind": "watching"}) as events:  # it ends all the same
            assert [message.kind for message in await events.rest()] == ["watching"]
        async with reading(http, {"watch": watch}, after=messages[0].id) as events:
            assert await events.rest() == messages[1:]


async def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(lab: Lab, tmp_path: Path) -> None:
    async with serving(lab, tmp_path) as http:
        read = []
        async with reading(http) as events:
            for _ in range(5):
                await post(http, "watch", lab.vcenter.create(scenarios.succeeds(after_s=0.2)))
            read += await events.take(4)
        for _ in range(5):
            await post(http, "watch", lab.vcenter.create(scenarios.succeeds_at_once()))
        async with reading(http, after=read[-1].id) as events:
            read += await events.take(16)
        stored = [(message.seq, event) for message, event in await lab.stored()]
        assert [(message.id, message.event) for message in read] == stored[: len(read)]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"kind": "completed"}, 2),
        ({"kind": "completed.failed"}, 1),
        ({"kind": "watching"}, 3),
        ({"vcenter": "lab", "kind": ""}, 5),
        ({"since": "1h"}, 5),
        ({"since": "2020-01-01T00:00:00Z"}, 5),
        ({"since": "now"}, 0),
        ({"task": "failed"}, 2),
        ({"task": "failed", "kind": "watching", "vcenter": "lab"}, 1),
    ],
)
async def test_events_are_filtered(lab: Lab, tmp_path: Path, query: dict[str, str], count: int) -> None:
    tasks = {
        "failed": lab.vcenter.create(scenarios.fails_with_error(0.0)),
        "succeeded": lab.vcenter.create(scenarios.succeeds_at_once()),
    }
    async with serving(lab, tmp_path) as http:
        for task in tasks.values():
            await post(http, "watch", task)
        await post(http, "watch", lab.vcenter.create(scenarios.runs_forever()))
        while len(await lab.stored()) < 5:  # noqa: ASYNC110 - the stream has no event for it
            await asyncio.sleep(0.05)
        wanted = query | ({"task": tasks[query["task"]]} if "task" in query else {})
        async with reading(http, wanted) as events:
            found = await events.take(count)
            with pytest.raises(TimeoutError):
                await events.next(within_s=0.3)
        for message in found:
            assert query.get("kind", "") in ("", message.kind, message.event["data"]["kind"])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("kind=completd", "kind"),
        ("kind=completed.lost", "kind"),
        ("kind=*", "kind"),
        ("vcenter=elsewhere", "vcenter"),
        ("vcenter=*", "vcenter"),
        ("task=a/b", "task"),
        ("since=yesterday", "since"),
        ("since=-1h", "since"),
        ("watch=a/b", "watch"),
        ("limit=5", "limit"),
        ("KIND=completed", "KIND"),
        ("kind=watching&kind=completed", "kind"),
        ("x", "x"),
    ],
)
async def test_what_no_event_can_match_is_refused(lab: Lab, tmp_path: Path, query: str, field: str) -> None:
    async with serving(lab, tmp_path) as http:
        for method in ("GET", "HEAD"):
            answer = await http.request(method, f"/v1/events?{query}", headers=bearer("all"))
            assert answer.status_code == 400, (method, answer.text)
        answer = await http.get(f"/v1/events?{query}", headers=bearer("all"))
        assert field in [detail["field"] for detail in answer.json()["error"]["details"]]
        answer = await http.get("/v1/events", headers=bearer("all") | {"Last-Event-ID": "-1"})
        assert answer.status_code == 400
        assert (await http.head("/v1/events", headers=bearer("all"))).status_code == 200


async def test_a_token_reads_events_of_its_vcenters_only(lab: Lab, tmp_path: Path) -> None:
    vcenters = {name: lab.vcenter_settings(name=name) for name in ("lab", "other", "third")}
    lines = line("two", vcenters="lab,third"), line("all")
    async with serving(lab, tmp_path, *lines, vcenters=vcenters) as http:
        for vcenter in ("other", "lab", "other", "third"):
            task = lab.vcenter.create(scenarios.succeeds_at_once())
            await post(http, "watch", {"task": task, "vcenter": vcenter})
        async with reading(http, by="two") as events:
            found = await events.take(4)
            with pytest.raises(TimeoutError):
                await events.next(within_s=0.3)
        assert {message.event["data"]["vcenter"] for message in found} == {"lab", "third"}
        assert [message.id for message in found] == sorted(message.id for message in found)


async def test_streams_survive_an_outage_of_nats(lab: Lab, tmp_path: Path) -> None:
    async with serving(lab, tmp_path) as http:
        task = lab.vcenter.create(scenarios.succeeds(after_s=3.0))
        watch = (await post(http, "watch", task)).json()["watch"]["id"]
        async with reading(http, {"watch": watch}) as events:
            (first,) = await events.take(1)
            lab.server.stop()
            await until(lambda: not lab.client.is_connected)
            assert await code_of(http, "get", task) == (503, "unavailable")
            assert (await http.get("/v1/events", headers=bearer("all"))).status_code == 503
            lab.server.start()
            rest = await events.rest()
        numbers = [message.event["data"]["sequence"] for message in (first, *rest)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert rest[-1].kind == "completed.succeeded"


async def test_before_nats_is_there_the_api_says_so(lab: Lab, tmp_path: Path) -> None:
    lab.server.stop()
    bridge = Bridge(lab.settings(http_tokens_file=write_tokens(tmp_path)))
    async with bridge.running(), client_of(bridge) as http:
        assert await code_of(http, "list", {}) == (503, "unavailable")
        assert (await http.get("/v1/events", headers=bearer("all"))).status_code == 503
        assert await code_of(http, "list", {}, "nobody") == (401, "unauthorized")


async def test_a_stream_that_was_made_anew_is_read_from_its_beginning(lab: Lab, tmp_path: Path) -> None:
    async with serving(lab, tmp_path) as http:
        await post(http, "watch", lab.vcenter.create(scenarios.succeeds_at_once()))
        async with reading(http, after=10**12) as events:
            assert [message.kind for message in await events.take(2)] == ["watching", "completed.succeeded"]


async def test_a_bridge_that_stops_ends_the_streams(lab: Lab, tmp_path: Path) -> None:
    bridge = Bridge(lab.settings(http_tokens_file=write_tokens(tmp_path)))
    async with AsyncExitStack() as running, AsyncExitStack() as client:
        await running.enter_async_context(bridge.running())
        await until(lambda: bridge.status.health().status != "unready")
        http = await client.enter_async_context(client_of(bridge))
        await post(http, "watch", lab.vcenter.create(scenarios.runs_forever()))
        events = await client.enter_async_context(reading(http))
        await events.take(1)
        stopping = asyncio.create_task(running.aclose())
        assert await events.next(within_s=5) is None
        await stopping
