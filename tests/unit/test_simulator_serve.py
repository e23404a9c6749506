"""The simulated vCenter over real HTTP and TLS."""

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from task_bridge.simulator import SimulatedVCenter, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.serve import serve_vcenter


@pytest.fixture
def vcenter() -> SimulatedVCenter:
    return SimulatedVCenter()


async def login(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    answer = await client.post("/api/session", auth=(vcenter.options.username, vcenter.options.password))
    client.headers["vmware-api-session-id"] = answer.json()


async def test_answers_and_stops_while_a_client_stays_connected(vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.succeeds_at_once())
    async with httpx.AsyncClient() as client:
        async with serve_vcenter(vcenter) as url:
            client.base_url = httpx.URL(url)
            await login(client, vcenter)
            assert (await client.get(f"/api/cis/tasks/{task}")).json()["status"] == "SUCCEEDED"
        with pytest.raises(httpx.ConnectError):
            await client.get("/api/session")


async def test_two_are_served_side_by_side(vcenter: SimulatedVCenter) -> None:
    async with serve_vcenter(vcenter) as one, serve_vcenter(SimulatedVCenter()) as other:
        assert one != other


async def test_a_taken_port_is_an_error_at_once(vcenter: SimulatedVCenter) -> None:
    async with serve_vcenter(vcenter) as url:
        with pytest.raises(OSError, match="in use"):
            async with serve_vcenter(SimulatedVCenter(), port=httpx.URL(url).port or 0):
                pass


@pytest.mark.parametrize("sends", [None, 3])
async def test_a_dropped_connection_is_one_on_the_wire(vcenter: SimulatedVCenter, sends: int | None) -> None:
    async with serve_vcenter(vcenter) as url, httpx.AsyncClient(base_url=url) as client:
        vcenter.faults.add(faults.connection_reset(sends), operation="session", times=1)
        await login(client, vcenter)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get("/api/session")
        assert (await client.get("/api/session")).status_code == 200
    assert vcenter.request_log.in_flight == 0


async def test_a_stalled_body_runs_into_the_clients_timeout(vcenter: SimulatedVCenter) -> None:
    async with serve_vcenter(vcenter) as url, httpx.AsyncClient(base_url=url) as client:
        await login(client, vcenter)
        vcenter.faults.add(faults.stalled_body(), operation="session")
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/api/session", timeout=0.05)


@pytest.mark.parametrize("fault", [faults.stalled_body(), faults.delayed(3600)])
async def test_stops_quietly_while_it_owes_an_answer(
    vcenter: SimulatedVCenter, fault: Effect, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient() as client:
        async with serve_vcenter(vcenter) as url:
            client.base_url = httpx.URL(url)
            await login(client, vcenter)
            vcenter.faults.add(fault, operation="session")
            asking = asyncio.create_task(client.get("/api/session", timeout=None))
            async with asyncio.timeout(5):
                while not vcenter.request_log.of("session"):  # noqa: ASYNC110 - a journal doesn't wake anybody
                    await asyncio.sleep(0.001)
        with pytest.raises(httpx.TransportError):
            await asking
    assert vcenter.request_log.in_flight == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for this machine, and its key in the same file."""
    file = tmp_path / "certificate.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    named = ["-subj", "/CN=simulated", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *made, *named, "-keyout", "key.pem", "-out", file.name]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "key.pem").read_text())
    return file


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate has to be made")
async def test_speaks_tls(vcenter: SimulatedVCenter, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    async with serve_vcenter(vcenter, ssl=context) as url, httpx.AsyncClient(base_url=url, verify=trusting) as client:
        assert url.startswith("https://")
        await login(client, vcenter)
        assert (await client.get("/api/session")).status_code == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate has to be made")
@pytest.mark.timeout(20)
async def test_stops_while_a_tls_handshake_is_under_way(vcenter: SimulatedVCenter, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    async with serve_vcenter(vcenter, ssl=context) as url:
        plain = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0))
        await asyncio.sleep(0)  # the server accepts it
        plain.setblocking(False)
        opening = asyncio.open_connection(sock=plain, ssl=trusting, server_hostname="127.0.0.1")
        shaking_hands = asyncio.create_task(opening)
        await asyncio.sleep(0)  # its first part is sent
    with contextlib.suppress(OSError):
        _, writer = await shaking_hands
        writer.transport.abort()


async def test_a_client_that_is_killed_while_it_asks_is_no_mistake(
    vcenter: SimulatedVCenter, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_vcenter(vcenter) as url, httpx.AsyncClient(base_url=url) as client:
        await login(client, vcenter)
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        session = client.headers["vmware-api-session-id"]
        head = f"POST /api/cis/tasks?action=list HTTP/1.1\r\nHost: x\r\nvmware-api-session-id: {session}\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        async with asyncio.timeout(10):
            while not vcenter.request_log.in_flight:  # noqa: ASYNC110 - a count that nobody announces
                await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(10):
            while vcenter.request_log.in_flight:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_silent_fault_sends_nothing_until_it_is_cleared(vcenter: SimulatedVCenter) -> None:
    async with serve_vcenter(vcenter) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        fault = vcenter.faults.add(faults.silent(), operation="session")
        request = asyncio.create_task(client.get("/api/session"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.2)
        vcenter.faults.clear(fault)
        assert (await request).status_code == 401


async def test_a_late_answer_shows_what_was_true_when_it_was_asked_for(vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.runs_forever())
    async with serve_vcenter(vcenter) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        await login(client, vcenter)
        vcenter.faults.add(faults.late(0.3), operation="get", times=1)
        request = asyncio.create_task(client.get(f"/api/cis/tasks/{task}"))
        async with asyncio.timeout(5):
            while not vcenter.request_log.of("get"):  # noqa: ASYNC110 - a log wakes nobody
                await asyncio.sleep(0.01)
        vcenter.set(task, status="SUCCEEDED")
        assert (await request).json()["status"] == "RUNNING"
        assert (await client.get(f"/api/cis/tasks/{task}")).json()["status"] == "SUCCEEDED"
