"""`serve` logs in to NATS by each kind of credential there is, and ends with a cure where it is the wrong one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from credentials import Authority, nkey, operated
from lab import BridgeProcess, Lab, NatsServer, until
from task_bridge.jetstream.connection import Connection
from task_bridge.settings.nats import load_client_settings

SECRET = "s3cr3t-that-no-log-tells"


class Kind(NamedTuple):
    """A server's configuration, the bridge's settings for it, and settings that it refuses."""

    server: str
    right: dict[str, str]
    wrong: dict[str, str]


def _file(directory: Path, name: str, text: str) -> str:
    (directory / name).write_text(text)
    return str(directory / name)


def password(directory: Path) -> Kind:
    right, wrong = _file(directory, "right", f"{SECRET}\n"), _file(directory, "wrong", f"not {SECRET}")
    return Kind(
        f"authorization: {{ user: bridge, password: {SECRET} }}",
        {"BRIDGE_NATS_USER": "bridge", "BRIDGE_NATS_PASSWORD_FILE": right},
        {"BRIDGE_NATS_USER": "bridge", "BRIDGE_NATS_PASSWORD_FILE": wrong},
    )


def token(directory: Path) -> Kind:
    right, wrong = _file(directory, "right", f"{SECRET}\n"), _file(directory, "wrong", f"not {SECRET}")
    server = f"authorization: {{ token: {SECRET} }}"
    return Kind(server, {"BRIDGE_NATS_TOKEN_FILE": right}, {"BRIDGE_NATS_TOKEN_FILE": wrong})


def seed(directory: Path) -> Kind:
    known, unknown = nkey(), nkey()
    right, wrong = _file(directory, "right", known.seed), _file(directory, "wrong", unknown.seed)
    server = f"authorization: {{ users: [{{ nkey: {known.public} }}] }}"
    return Kind(server, {"BRIDGE_NATS_NKEY_SEED_FILE": right}, {"BRIDGE_NATS_NKEY_SEED_FILE": wrong})


def credentials(directory: Path) -> Kind:
    known, unknown = operated(), operated()
    right, wrong = _file(directory, "right", known.credentials), _file(directory, "wrong", unknown.credentials)
    return Kind(known.config, {"BRIDGE_NATS_CREDS_FILE": right}, {"BRIDGE_NATS_CREDS_FILE": wrong})


def certificate(directory: Path) -> Kind:
    authority = Authority(directory)
    server, known, unknown = (authority.pair(name) for name in ("server", "bridge", "stranger"))
    tls = f"cert_file: '{server.certificate}', key_file: '{server.key}', ca_file: '{authority.file}'"
    users = "authorization: { users: [{ user: 'CN=bridge' }] }"
    settings = [
        {
            "BRIDGE_NATS_TLS_CA_FILE": str(authority.file),
            "BRIDGE_NATS_TLS_CERT_FILE": str(pair.certificate),
            "BRIDGE_NATS_TLS_KEY_FILE": str(pair.key),
        }
        for pair in (known, unknown)
    ]
    return Kind(f"tls: {{ {tls}, verify_and_map: true }}\n{users}", *settings)


@pytest.mark.parametrize("kind", [password, token, seed, credentials, certificate])
async def test_serve_logs_in(lab: Lab, tmp_path: Path, kind: Callable[[Path], Kind]) -> None:
    directory = tmp_path / "guarded"
    directory.mkdir()
    given = kind(directory)
    server = NatsServer(directory, "-c", _file(directory, "nats.conf", given.server))
    server.start()
    process = BridgeProcess(lab.environment(BRIDGE_NATS_URL=server.url, **given.right), tmp_path)
    refused = BridgeProcess(lab.environment(BRIDGE_NATS_URL=server.url, **given.wrong), directory)
    try:
        for bridge in (process, refused):
            await bridge.start()
        await process.ready()
        server.stop()
        server.start()
        await until(lambda: '"nats_back"' in process.log.read_text())
        assert await refused.exit(within_s=30) == 1
        assert await process.end() == 0
    finally:
        for bridge in (process, refused):
            await bridge.close()
        server.stop()
    last = json.loads(refused.log.read_text().splitlines()[-1])
    assert last["event"] == "cannot_run"
    assert "BRIDGE_NATS" in last["reason"]
    assert all(json.loads(line)["level"] != "error" for line in process.log.read_text().splitlines())
    for log in (process.log, refused.log):
        assert SECRET not in log.read_text()


async def test_a_certificate_of_nats_that_is_refused_is_told_with_its_extension(lab: Lab, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server", only_for_clients=True)
    config = _file(tmp_path, "nats.conf", f"tls: {{ cert_file: '{pair.certificate}', key_file: '{pair.key}' }}")
    server = NatsServer(tmp_path, "-c", config)
    server.start()
    given = lab.environment(BRIDGE_NATS_URL=server.url, BRIDGE_NATS_TLS_CA_FILE=str(authority.file))
    bridge = BridgeProcess(given, tmp_path)
    try:
        await bridge.start()
        await until(lambda: "its certificate is refused (" in bridge.log.read_text())
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "task_bridge", "list", env=given, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
        )
        _, said = await client.communicate()
    finally:
        await bridge.close()
        server.stop()
    assert "extendedKeyUsage" in bridge.log.read_text()
    assert b"its certificate is refused (" in said
    assert b"extendedKeyUsage" in said


def _replace(before: Kind, after: Kind) -> None:
    for name, file in before.right.items():
        if name.endswith("_FILE"):
            Path(file).write_text(Path(after.right[name]).read_text().replace(SECRET, "another"))


@pytest.mark.parametrize("kind", [password, token, credentials, certificate])
async def test_a_secret_that_changes_in_its_file_needs_no_restart(
    lab: Lab, tmp_path: Path, kind: Callable[[Path], Kind]
) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    before, after = kind(tmp_path / "before"), kind(tmp_path / "after")
    config = _file(tmp_path, "nats.conf", before.server)
    server = NatsServer(tmp_path / "before", "-c", config)
    server.start()
    process = BridgeProcess(lab.environment(BRIDGE_NATS_URL=server.url, **before.right), tmp_path)
    try:
        await process.start()
        await process.ready()
        server.stop()
        _file(tmp_path, "nats.conf", after.server.replace(SECRET, "another"))
        server.start()
        refusal = '"nats_away"' if kind is certificate else '"nats_refuses"'
        await until(lambda: refusal in process.log.read_text())
        _replace(before, after)
        await until(lambda: '"nats_back"' in process.log.read_text())
        assert await process.end() == 0
    finally:
        await process.close()
        server.stop()
    assert process.log.read_text().count(refusal) == 1


@pytest.mark.parametrize("kind", [password, token])
async def test_a_secret_that_changes_while_the_server_goes_on_needs_no_restart(
    lab: Lab, tmp_path: Path, kind: Callable[[Path], Kind]
) -> None:
    """nats-server cuts off whoever came by the old one, and nats-py then closes for good (2.16)."""
    given = kind(tmp_path)
    server = NatsServer(tmp_path, "-c", _file(tmp_path, "nats.conf", given.server))
    server.start()
    process = BridgeProcess(lab.environment(BRIDGE_NATS_URL=server.url, **given.right), tmp_path)
    try:
        await process.start()
        await process.ready()
        _file(tmp_path, "nats.conf", given.server.replace(SECRET, "another"))
        server.reload()
        await until(lambda: '"nats_refuses"' in process.log.read_text())
        _file(tmp_path, "right", "another")
        await until(lambda: '"nats_accepts_again"' in process.log.read_text())
        assert await process.end() == 0
    finally:
        await process.close()
        server.stop()


async def test_credentials_that_expire_are_read_again(lab: Lab, tmp_path: Path) -> None:
    known = operated()
    file = _file(tmp_path, "bridge.creds", known.expiring(4))
    server = NatsServer(tmp_path, "-c", _file(tmp_path, "nats.conf", known.config))
    server.start()
    process = BridgeProcess(lab.environment(BRIDGE_NATS_URL=server.url, BRIDGE_NATS_CREDS_FILE=file), tmp_path)
    try:
        await process.start()
        await process.ready()
        await until(lambda: '"nats_refuses"' in process.log.read_text())
        _file(tmp_path, "bridge.creds", "half-written")
        await until(lambda: '"nats_away"' in process.log.read_text())
        _file(tmp_path, "bridge.creds", known.credentials)
        await until(lambda: '"nats_accepts_again"' in process.log.read_text())
        assert await process.end() == 0
    finally:
        await process.close()
        server.stop()


async def test_a_seed_that_is_half_written_is_read_again(tmp_path: Path) -> None:
    given = seed(tmp_path)
    whole = (tmp_path / "right").read_text()
    server = NatsServer(tmp_path, "-c", _file(tmp_path, "nats.conf", given.server))
    server.start()
    connection = Connection(load_client_settings({"BRIDGE_NATS_URL": server.url, **given.right}).nats, "it")
    try:
        await connection.open()
        server.stop()
        _file(tmp_path, "right", whole[:9])
        server.start()
        await until(lambda: "seed" in (connection.reason or "").lower())
        _file(tmp_path, "right", whole)
        await until(lambda: connection.reason is None)
    finally:
        await connection.close()
        server.stop()


@asynccontextmanager
async def dies_at_first(server: NatsServer) -> AsyncIterator[str]:
    """The URL of a way to `server` whose first connection is cut when the client answers the first line."""
    linked: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        linked.append(own)
        upstream, sink = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            if len(linked) == 1:
                writer.write(await upstream.readline())
                await reader.read(65_536)
            else:
                await asyncio.gather(pump(reader, sink), pump(upstream, writer))
        except (OSError, asyncio.CancelledError):
            pass  # ends with its connections, or with the test
        finally:
            for end in (writer, sink):
                end.close()

    way = await asyncio.start_server(link, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{way.sockets[0].getsockname()[1]}"
    finally:
        way.close()
        for task in linked:
            task.cancel()
        await asyncio.gather(*linked)


@pytest.mark.parametrize("kind", [password, certificate])
async def test_a_nats_that_dies_while_it_is_connected_to_is_tried_again(
    lab: Lab, tmp_path: Path, kind: Callable[[Path], Kind]
) -> None:
    """In the middle of the TLS handshake nats-py then waits for ever; before the first answer it takes the end for
    the answer, and the refusal that comes next was none at the start (2.16, both seen)."""
    (directory := tmp_path / "guarded").mkdir()
    given = kind(directory)
    server = NatsServer(directory, "-c", _file(directory, "nats.conf", given.server))
    server.start()
    try:
        async with dies_at_first(server) as url, dies_at_first(server) as other_url:
            process = BridgeProcess(lab.environment(BRIDGE_NATS_URL=url, **given.right), tmp_path)
            refused = BridgeProcess(lab.environment(BRIDGE_NATS_URL=other_url, **given.wrong), directory)
            try:
                for bridge in (process, refused):
                    await bridge.start()
                await process.ready(within_s=30)
                assert await refused.exit(within_s=30) == 1
                assert await process.end() == 0
            finally:
                for bridge in (process, refused):
                    await bridge.close()
    finally:
        server.stop()
    assert "refuses the bridge: 'Authorization Violation'" in refused.log.read_text()
    for told in ("nats_away", "nats_back", "nats_connected"):
        assert process.log.read_text().count(f'"event": "{told}"') == 1
