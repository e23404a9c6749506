"""The session over real HTTP: one, begun anew when it ended, never more than needed, and logged out."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from credentials import Authority
from task_bridge.domain.errors import Refused, VCenterUnavailable
from task_bridge.domain.ports import Unchanged
from task_bridge.metrics import Metrics
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.options import Options
from task_bridge.simulator.script import Script
from task_bridge.simulator.serve import serve_vcenter
from task_bridge.vcenter.cis import CisSource, PollPolicy
from task_bridge.vcenter.http import VCenterHttp
from vcenter_lab import POLICY, Given, lab

NOT_AUTHENTICATED = (
    '{"error_type": "INTERNAL_SERVER_ERROR", "messages": [{"id": "x", "args": [], '
    '"default_message": "Rejecting login on a session where login failed"}]}'
)


@pytest.mark.parametrize(
    "told",
    [
        None,
        faults.unauthenticated(empty=True),
        faults.answer(403, '{"error_type": "UNAUTHENTICATED", "messages": []}'),
        faults.answer(500, NOT_AUTHENTICATED),
    ],
    ids=["401", "empty 401", "403", "500"],
)
async def test_a_session_that_ended_is_begun_anew_once_for_all(told: faults.Effect | None) -> None:
    vcenter = SimulatedVCenter(Options(list_enabled=False))
    async with lab(vcenter) as it:
        tasks = [vcenter.create(scenarios.runs_forever()) for _ in range(4)]
        it.follow(*tasks)
        await it.shown(*tasks)
        vcenter.sessions.invalidate()
        if told:
            vcenter.faults.add(told, operation="get", times=1)
        for task in tasks:
            await it.more_looks(task)
        assert vcenter.sessions.counts.logins == 2
        assert it.source.health.state == "ok"
        assert not it.is_gone(tasks[0])
    assert vcenter.sessions.live == []


async def test_a_session_that_ends_in_the_middle_of_ten_thousand_looks_costs_one_login() -> None:
    async with lab(policy=PollPolicy(1.0, 1.0, 30.0)) as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(10_000)]
        it.follow(*tasks)
        await it.until(lambda: len({found.task for found in it.found}) == 10_000)
        it.vcenter.options.latency_s = 0.1
        await it.until(lambda: it.vcenter.request_log.in_flight > 1)
        it.vcenter.sessions.invalidate()
        it.found.clear()
        await it.until(lambda: len({found.task for found in it.found}) == 10_000)
        assert {type(found.standing) for found in it.found} == {Unchanged}
        assert it.vcenter.sessions.counts.logins == 2
        assert it.counted("vcenter_logins_total", vcenter="lab", result="ok") == 2


async def test_looking_keeps_a_session_alive() -> None:
    async with lab(SimulatedVCenter(Options(idle_timeout_s=0.6))) as it:
        await it.until(lambda: len(it.vcenter.request_log.of("session")) >= 6)
        assert it.vcenter.sessions.counts.logins == 1


async def test_a_session_that_is_never_accepted_makes_no_flood_of_logins() -> None:
    async with lab() as it:
        it.vcenter.faults.add(faults.unauthenticated(), path="/tasks")
        await it.until(lambda: it.source.health.state == "ok")
        for _ in range(5):
            with pytest.raises(VCenterUnavailable, match="doesn't accept the session that it has just created"):
                await it.source.cancel("a:b")
        assert it.vcenter.sessions.counts.logins == 1


async def test_a_refused_password_is_tried_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong")
    async with lab(secret=file.read_text) as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.until(lambda: it.source.health.state == "degraded")
        assert "refuses the user name or the password" in str(it.source.health.reason)
        for _ in range(3):
            with pytest.raises(VCenterUnavailable, match="refuses the user name or the password"):
                await it.source.cancel(task)
        assert it.vcenter.sessions.counts.failed_logins == 1
        file.write_text("simulated")
        await it.shown(task)
        assert it.counted("vcenter_logins_total", vcenter="lab", result="refused") == 1
        assert it.counted("vcenter_logins_total", vcenter="lab", result="ok") == 1


async def test_a_changed_file_is_read_at_once_although_the_password_before_it_worked(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("simulated")
    async with lab(secret=file.read_text) as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.shown(task)
        it.vcenter.options.password = "changed"
        it.vcenter.sessions.invalidate()
        await it.until(lambda: it.source.health.state == "degraded")
        assert "after 3 minutes" in str(it.source.health.reason) or "after 4 minutes" in str(it.source.health.reason)
        file.write_text("changed")
        await it.more_looks(task)
        counts = it.vcenter.sessions.counts
        assert (counts.logins, counts.failed_logins, len(it.vcenter.sessions.live)) == (2, 1, 1)


async def test_a_password_file_that_can_not_be_read_is_told_and_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "password"
    async with lab(secret=file.read_text) as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.until(lambda: it.source.health.state == "degraded")
        assert str(file) in str(it.source.health.reason)
        file.write_text("simulated")
        await it.shown(task)


async def test_the_session_limit_is_told_by_its_own_line_and_metric() -> None:
    with capture_logs() as logs:
        async with lab(SimulatedVCenter(Options(max_sessions_per_user=0))) as it:
            await it.until(lambda: it.source.health.state == "degraded")
            for _ in range(3):
                with pytest.raises(VCenterUnavailable, match="no session left"):
                    await it.source.cancel("a:b")
            assert it.vcenter.sessions.counts.refused_logins == 1
            assert it.counted("vcenter_logins_total", vcenter="lab", result="session_limit") == 1
    assert [line["event"] for line in logs].count("session_limit_reached") == 1


@pytest.mark.parametrize(
    "fault",
    [faults.service_unavailable(1), faults.gateway_unavailable(1), faults.too_many_requests(1)],
    ids=["503", "503 page", "429"],
)
async def test_retry_after_is_honoured(fault: faults.Effect) -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.shown(task)
        it.vcenter.faults.add(fault, times=1)
        await it.until(lambda: it.source.health.state == "degraded")
        busy = time.time()
        await it.until(lambda: it.source.health.state == "ok")
        assert it.vcenter.request_log.since(busy)[0].at - busy > 0.9


async def test_an_outage_is_told_once_and_its_end_once_and_is_asked_about_by_single_requests() -> None:
    vcenter = SimulatedVCenter(Options(list_enabled=False))
    with capture_logs() as logs:
        async with lab(vcenter) as it:
            tasks = [vcenter.create(scenarios.runs_forever()) for _ in range(20)]
            it.follow(*tasks)
            await it.shown(*tasks)
            fault = vcenter.faults.add(faults.gateway_unavailable())
            await it.until(lambda: it.source.health.state == "degraded" and not vcenter.request_log.in_flight)
            vcenter.request_log.clear()
            await it.until(lambda: len(vcenter.request_log.requests) >= 4)
            assert vcenter.request_log.most_in_flight == 1
            vcenter.faults.clear(fault)
            for task in tasks:
                await it.more_looks(task, 1)
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told == ["vcenter_unavailable", "vcenter_available_again"]


async def test_without_tasks_vcenter_is_asked_now_and_then() -> None:
    async with lab() as it:
        await it.until(lambda: len(it.vcenter.request_log.of("session")) >= 3)
        assert it.source.health.state == "ok"
        assert it.source.health.last_good_poll_at is not None
        assert time.monotonic() - it.source.health.last_good_poll_at < 5
        with it.vcenter.faults.during(faults.bad_gateway()):
            await it.until(lambda: it.source.health.state == "degraded")
        await it.until(lambda: it.source.health.state == "ok")


async def test_before_anything_was_asked_health_is_unknown() -> None:
    source = CisSource(Given("http://127.0.0.1:9"), POLICY, Metrics())
    assert (source.health.state, source.health.last_good_poll_at) == ("unknown", None)


async def test_leaving_logs_out_of_a_session_that_is_just_being_given() -> None:
    vcenter = SimulatedVCenter(Options(latency_s=0.2))
    async with lab(vcenter) as it:
        it.follow(vcenter.create(scenarios.runs_forever()))
        await it.until(lambda: vcenter.request_log.in_flight)
    assert vcenter.sessions.counts.logins == 1
    assert vcenter.sessions.live == []


async def test_leaving_does_not_wait_for_a_vcenter_that_hangs() -> None:
    async with lab() as it:
        it.follow(it.vcenter.create(scenarios.runs_forever()))
        await it.until(lambda: it.vcenter.sessions.live)
        it.vcenter.faults.add(faults.stalled_body(), operation="logout")
        it.vcenter.faults.add(faults.delayed(30), operation="logout")
        left = time.monotonic()
    assert time.monotonic() - left < 3.0


class TestCancel:
    async def test_a_task_is_canceled_whether_followed_or_not(self) -> None:
        async with lab() as it:
            task = it.vcenter.create(scenarios.runs_forever(cancel_takes_s=0.0))
            await it.source.cancel(task)
            it.follow(task)
            ended = await it.ended(task)
            assert ended.error is not None
            assert ended.error.type == "CANCELED"

    @pytest.mark.parametrize("api", ["api", "rest"])
    @pytest.mark.parametrize(
        ("script", "status", "code"),
        [
            (scenarios.runs_forever(cancelable=False), 409, "not_cancelable"),
            (scenarios.succeeds_at_once(), 409, "already_ended"),
            (None, 404, "unknown_task"),
        ],
        ids=["unsupported", "ended", "unknown"],
    )
    async def test_what_vcenter_refuses_is_told_in_its_own_words(
        self, api: str, script: Script | None, status: int, code: str
    ) -> None:
        async with lab(api=api) as it:
            task = it.vcenter.create(script) if script else "no:such"
            with pytest.raises(Refused) as refused:
                await it.source.cancel(task)
            assert (refused.value.status, refused.value.code) == (status, code)
            assert task in refused.value.message

    async def test_a_403_is_forbidden(self) -> None:
        async with lab() as it:
            task = it.vcenter.create(scenarios.runs_forever())
            it.vcenter.deny(task)
            with pytest.raises(Refused, match="No right") as refused:
                await it.source.cancel(task)
            assert (refused.value.status, refused.value.code) == (403, "forbidden")

    @pytest.mark.parametrize(
        "fault",
        [faults.bad_gateway(), faults.connection_reset(), faults.route_not_found(), faults.resource_inaccessible()],
        ids=["502", "reset", "no route", "inaccessible"],
    )
    async def test_anything_else_is_unavailable(self, fault: faults.Effect) -> None:
        async with lab() as it:
            task = it.vcenter.create(scenarios.runs_forever())
            it.vcenter.faults.add(fault, path="cis/tasks")
            with pytest.raises(VCenterUnavailable):
                await it.source.cancel(task)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class TestTls:
    async def test_a_ca_file_makes_a_certificate_trusted(self, authority: Authority) -> None:
        async with lab(ssl=authority.server(), ca_file=authority.file) as it:
            task = it.vcenter.create(scenarios.succeeds_at_once())
            it.follow(task)
            await it.ended(task)

    async def test_an_untrusted_certificate_is_told_with_the_cure_and_no_password_is_sent(
        self, authority: Authority
    ) -> None:
        async with lab(ssl=authority.server()) as it:
            await it.until(lambda: it.source.health.state == "degraded")
            assert "BRIDGE_VCENTERS__LAB__CA_FILE" in str(it.source.health.reason)
            assert not it.vcenter.request_log.requests

    async def test_verification_can_be_switched_off(self, authority: Authority) -> None:
        async with lab(ssl=authority.server(), verify_tls=False) as it:
            await it.until(lambda: it.source.health.state == "ok")

    async def test_a_certificate_for_another_name_is_told_as_that(self, authority: Authority) -> None:
        async with lab(ssl=authority.server("vcenter.example.com"), ca_file=authority.file) as it:
            await it.until(lambda: it.source.health.state == "degraded")
            assert "has a certificate for another host name" in str(it.source.health.reason)

    async def test_a_new_ca_file_is_used_without_a_restart(self, authority: Authority, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        file = tmp_path / "configured.pem"
        file.write_bytes(Authority(tmp_path / "other").file.read_bytes())
        async with lab(ssl=authority.server(), ca_file=file) as it:
            await it.until(lambda: it.source.health.state == "degraded")
            replacement = tmp_path / "new.pem"
            replacement.write_bytes(authority.file.read_bytes())
            os.replace(replacement, file)
            await it.until(lambda: it.source.health.state == "ok")

    async def test_a_ca_file_that_is_gone_is_told_and_waited_for(self, authority: Authority, tmp_path: Path) -> None:
        file = tmp_path / "configured.pem"
        async with lab(ssl=authority.server(), ca_file=file) as it:
            await it.until(lambda: it.source.health.state == "degraded")
            assert str(file) in str(it.source.health.reason)
            file.write_bytes(authority.file.read_bytes())
            await it.until(lambda: it.source.health.state == "ok")

    async def test_a_url_with_https_for_a_plain_port_is_told_as_such(self) -> None:
        async with serve_vcenter(SimulatedVCenter()) as url:
            source = CisSource(Given(url.replace("http:", "https:")), POLICY, Metrics())
            async with source:
                with pytest.raises(VCenterUnavailable, match="doesn't speak TLS as expected"):
                    await source.cancel("a:b")


async def test_a_refused_connection_is_told_as_such() -> None:
    async with serve_vcenter(SimulatedVCenter()) as url:
        pass
    async with CisSource(Given(url), POLICY, Metrics()) as source:
        with pytest.raises(VCenterUnavailable, match="refuses the connection"):
            await source.cancel("a:b")


async def test_a_kept_connection_that_vcenter_just_closed_is_no_failure() -> None:
    served: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(2):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                served.append(head.split(" HTTP")[0])
                if number:
                    break  # read, and closed without an answer
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + b'"t"')
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    http = VCenterHttp(Given(f"http://{host}:{port}"), Metrics())
    try:
        assert (await http.request("login", "POST", "/login", {})).ok
        assert (await http.request("get", "GET", "/task", {})).ok
        with pytest.raises(VCenterUnavailable):
            await http.request("cancel", "POST", "/cancel", {})
        assert served == ["POST /login", "GET /task", "GET /task", "POST /cancel"]
    finally:
        await http.close()
        server.close()
        await server.wait_closed()


async def test_the_environment_s_proxy_is_ignored_and_the_configured_one_used(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    tunnels: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        tunnels.append(head.split("\r\n")[0])
        host, port = head.split(" ")[1].split(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with lab(ssl=authority.server(), ca_file=authority.file) as it:
        await it.until(lambda: it.source.health.state == "ok")
    proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
    host, port = proxy.sockets[0].getsockname()
    async with lab(ssl=authority.server(), ca_file=authority.file, proxy=f"http://{host}:{port}") as it:
        await it.until(lambda: it.source.health.state == "ok")
    assert tunnels[0].startswith("CONNECT 127.0.0.1:")
    proxy.close()
    await proxy.wait_closed()
