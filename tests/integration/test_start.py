"""Start, stop, and what the bridge can't or won't work with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from nats.js.api import StreamConfig

from lab import PASSWORD, BridgeProcess, Lab, NatsServer, until
from task_bridge.app import Bridge
from task_bridge.simulator import scenarios


async def test_it_waits_for_a_nats_that_is_away_with_http_up(lab: Lab, tmp_path: Path) -> None:
    lab.server.stop()
    process = BridgeProcess(lab.environment(), tmp_path)
    await process.start()
    try:
        await until(lambda: '"http_listening"' in process.log.read_text())
        line = next(line for line in process.log.read_text().splitlines() if '"http_listening"' in line)
        url = f"http://127.0.0.1:{json.loads(line)['port']}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/livez")).status_code == 200
            unready = await http.get("/readyz")
            assert (unready.status_code, unready.json()["nats"]["connected"]) == (503, False)
            lab.server.start()
            await process.ready()
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "ok")
            names = (await http.get("/metrics")).text
        assert "task_bridge_nats_connected 1.0" in names
        assert await process.end() == 0
        assert PASSWORD not in process.log.read_text()
    finally:
        await process.close()


async def test_a_nats_without_jetstream_is_told_as_such_until_it_has_one(lab: Lab, tmp_path: Path) -> None:
    (directory := tmp_path / "bare").mkdir()
    server = NatsServer(directory, jetstream=False)
    server.start()
    bridge = Bridge(lab.settings(nats={"urls": server.url}))
    try:
        async with bridge.running(), httpx.AsyncClient(trust_env=False) as http:
            assert bridge.web.address is not None
            url = f"http://127.0.0.1:{bridge.web.address.port}/readyz"
            await until(lambda: "enabled" in (bridge.status.health().jetstream.reason or ""))
            unready = await http.get(url)
            assert (unready.status_code, unready.json()["nats"]["connected"]) == (503, True)
            assert unready.json()["jetstream"]["ok"] is False
            server.stop()
            await until(lambda: bridge.status.health().jetstream.reason == "NATS is away")
            server.jetstream = True
            server.start()
            await until(lambda: bridge.status.health().status == "ok")
            assert (await http.get(url)).json()["jetstream"] == {"ok": True, "reason": None}
    finally:
        server.stop()


async def test_an_account_without_jetstream_is_told_as_such(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("accounts {A {users: [{user: u, password: p}]}}")
    (directory := tmp_path / "bare").mkdir()
    server = NatsServer(directory, "-c", str(config))
    server.start()
    bridge = Bridge(lab.settings(nats={"urls": server.url, "user": "u", "given_password": "p"}))
    try:
        async with bridge.running():
            await until(lambda: "not enabled for account" in (bridge.status.health().jetstream.reason or ""))
            assert bridge.status.health().status == "unready"
    finally:
        server.stop()


@pytest.mark.parametrize("started", [True, False], ids=["waiting", "at-once"])
async def test_it_stops_while_it_waits_for_nats(lab: Lab, tmp_path: Path, started: bool) -> None:
    lab.server.stop()
    process = BridgeProcess(lab.environment(), tmp_path)
    await process.start()
    try:
        event = "nats_away" if started else "starting"
        await until(lambda: event in process.log.read_text())
        assert await process.end(signal.SIGINT, within_s=5) == 0
    finally:
        await process.close()
    assert len(lab.vcenter.sessions.live) == 0


async def exit_of(environment: dict[str, str], directory: Path) -> tuple[int, list[str]]:
    """How a bridge with this environment ends: its exit code, and the reasons that its last lines give, all JSON."""
    process = BridgeProcess(environment, directory)
    process.log.unlink(missing_ok=True)
    await process.start()
    try:
        code = await process.exit()
    finally:
        await process.close()
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    return code, [line["reason"] for line in lines if line["event"] == "cannot_run"]


FORMATS: dict[str, tuple[dict[str, str], str, bool]] = {
    "json": ({"BRIDGE_LOG_FORMAT": "json"}, "", True),
    "auto": ({"BRIDGE_LOG_FORMAT": "auto"}, "", True),
    "not set": ({}, "", True),
    "console": ({"BRIDGE_LOG_FORMAT": "console"}, "", False),
    "console in .env": ({}, "BRIDGE_LOG_FORMAT=Console", False),
    "json over console": ({"BRIDGE_LOG_FORMAT": "JSON"}, "BRIDGE_LOG_FORMAT=console", True),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        ({"BRIDGE_POLL_MIN": "soon"}, 2, "BRIDGE_POLL_MIN"),
        ({"BRIDGE_HTTP_LISTEN": "192.0.2.1:80"}, 1, "BRIDGE_HTTP_LISTEN"),
    ],
)
async def test_the_last_line_is_json_where_the_log_is(
    lab: Lab, tmp_path: Path, wrong: dict[str, str], code: int, named: str, form: str
) -> None:
    more, dot_env, is_json = FORMATS[form]
    (tmp_path / ".env").write_text(dot_env)
    process = BridgeProcess(lab.environment(**more, **wrong), tmp_path)
    await process.start()
    assert await process.exit() == code
    *before, last = process.log.read_text().splitlines()
    if is_json:
        *_, told = [json.loads(line) for line in (*before, last)]
        assert (told["event"], told["level"], told["exit_code"]) == ("cannot_run", "error", code)
        assert told["reason"].startswith(named)
    else:
        assert last.startswith(named)


async def test_a_wrong_log_format_is_told_in_json_off_a_terminal(lab: Lab, tmp_path: Path) -> None:
    code, lines = await exit_of(lab.environment(BRIDGE_LOG_FORMAT="xml"), tmp_path)
    assert (code, [line.split(":")[0] for line in lines]) == (2, ["BRIDGE_LOG_FORMAT"])


async def test_wrong_settings_are_told_a_line_each_with_exit_code_2(lab: Lab, tmp_path: Path) -> None:
    environment = lab.environment(BRIDGE_ACK_WAIT="soon", BRIDGE_CAPACITY="0")
    del environment["BRIDGE_VCENTERS__LAB__PASSWORD"]
    code, lines = await exit_of(environment, tmp_path)
    assert code == 2
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "BRIDGE_ACK_WAIT",
        "BRIDGE_CAPACITY",
        "BRIDGE_VCENTERS__LAB__PASSWORD",
    ]


async def test_a_taken_port_is_told_with_exit_code_1(lab: Lab, tmp_path: Path) -> None:
    taken = lab.environment(BRIDGE_HTTP_LISTEN=f"127.0.0.1:{lab.server.port}")
    code, lines = await exit_of(taken, tmp_path)
    assert (code, len(lines)) == (1, 1)
    assert "BRIDGE_HTTP_LISTEN" in lines[0]
    assert len(lab.vcenter.sessions.live) == 0


async def test_refused_credentials_are_told_with_exit_code_1(lab: Lab, tmp_path: Path) -> None:
    directory = tmp_path / "guarded"
    directory.mkdir()
    guarded = NatsServer(directory, "--user", "bridge", "--pass", "right")
    guarded.start()
    try:
        wrong = lab.environment(BRIDGE_NATS_URL=guarded.url, BRIDGE_NATS_USER="bridge", BRIDGE_NATS_PASSWORD="wrong")
        code, lines = await exit_of(wrong, tmp_path)
    finally:
        guarded.stop()
    assert (code, len(lines)) == (1, 1)
    assert "BRIDGE_NATS" in lines[0]
    assert len(lab.vcenter.sessions.live) == 0


async def test_streams_that_differ_in_what_safety_needs_end_the_start_with_exit_code_1(
    lab: Lab, tmp_path: Path
) -> None:
    await lab.js.add_stream(StreamConfig(name="VCENTER_TASKS_EVENTS", subjects=["vcenter.tasks.internal.put.>"]))
    code, lines = await exit_of(lab.environment(), tmp_path)
    assert code == 1
    assert any("subject_transform" in line for line in lines)
    assert (lab.vcenter.sessions.counts.logins, len(lab.vcenter.sessions.live)) == (1, 0)


async def test_verify_creates_nothing_and_says_what_is_missing(lab: Lab, tmp_path: Path) -> None:
    code, lines = await exit_of(lab.environment(BRIDGE_PROVISION="verify"), tmp_path)
    assert code == 1
    assert any("VCENTER_TASKS_WATCHES" in line and "provision" in line for line in lines)
    assert await lab.js.streams_info() == []


async def test_what_an_operator_tuned_stays(lab: Lab) -> None:
    async with lab.bridge():
        config = (await lab.js.stream_info("VCENTER_TASKS_EVENTS")).config
    await lab.js.update_stream(config.evolve(max_age=3600.0, max_bytes=10_000_000))
    async with lab.bridge():
        tuned = (await lab.js.stream_info("VCENTER_TASKS_EVENTS")).config
    assert (tuned.max_age, tuned.max_bytes) == (3600.0, 10_000_000)


async def test_watches_of_a_vcenter_that_is_no_longer_configured_are_kept(lab: Lab) -> None:
    await lab.listen()
    task, short = lab.vcenter.create(scenarios.runs_forever()), lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await lab.publish(task)
        await lab.publish({"task": short, "timeout": 2})
        await until(lambda: lab.heard(task) and lab.heard(short))
    other = {"url": lab.vcenter_url, "given_username": "u", "given_password": "p"}
    async with lab.bridge(vcenters={"other": other}) as bridge:
        await until(lambda: bridge.status.health().held)
        listed = (await lab.ask("list"))["watches"]
        health = {vcenter.name: vcenter.state for vcenter in bridge.status.health().vcenters}
        timed_out = await lab.ended(short)
        ended = await lab.ask("unwatch", {"task": task, "vcenter": "lab"})
    assert {watch["unconfigured"] for watch in listed} == {True}
    assert health["lab"] == "unconfigured"
    assert timed_out["data"]["outcome"] == "watch_timed_out"
    assert ended["last_event"]["data"]["outcome"] == "unwatched"


_TOLD_TO_STOP = """
import os, signal, sys
class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "task_bridge.cli":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Early())
sys.argv = ["task-bridge", "serve"]
from task_bridge.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_start_that_is_told_to_stop_while_python_still_imports_ends_with_0(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TOLD_TO_STOP.format(name=name)]
    ended = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
