"""The faults of nats-py 2.16 that are worked around: each is still there, and the workaround does what it should."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Endpoint, EndpointConfig, Service, ServiceConfig

from lab import NatsServer, until
from task_bridge.jetstream import nats_py_workarounds as workarounds
from task_bridge.jetstream.request_mux import RequestMux, encode_publish


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(server: NatsServer) -> AsyncIterator[Client]:
    client = await connected(server)
    yield client
    await client.close()


async def connected(server: NatsServer) -> Client:
    return await nats.connect(server.url, error_cb=ignored, max_reconnect_attempts=-1, reconnect_time_wait=0.05)


async def ignored(_: Exception) -> None:
    """As most errors are what a test wants."""


async def test_the_private_names_exist(client: Client) -> None:
    for name in ("_process_err", "_process_op_err", "_process_pong", "_attempt_reconnect", "_flush_pending"):
        assert asyncio.iscoroutinefunction(getattr(Client, name)), name
    assert client._error_cb is ignored
    assert isinstance(JetStreamContext(client)._prefix, str)
    assert bytes(client._inbox_prefix) == b"_INBOX"
    assert client._err is None
    assert asyncio.iscoroutinefunction(client._send_command)
    assert isinstance(client._flush_queue, asyncio.Queue)
    assert client._pending_data_size < client._max_pending_size
    workarounds.ignore_utcnow()
    service = await add_service(client, ServiceConfig(name="names", version="1.0.0"))
    await service.add_endpoint(EndpointConfig(name="names", handler=ignored_request))
    assert [type(endpoint) for endpoint in service._endpoints] == [Endpoint]
    assert service._endpoints[0]._subscription is not None
    assert "_msg" in Request.__annotations__
    await service.stop()


async def ignored_request(_: Request) -> None:
    pass


async def test_a_client_that_was_cut_off_connects_again_where_nats_py_closes(
    server: NatsServer, client: Client
) -> None:
    plain = await connected(server)
    workarounds.reconnect_after_any_error(client)
    for each in (plain, client):
        each._transport.writelines([b"NO COMMAND\r\n"])  # type: ignore[union-attr] # nats-server ends the connection
    await until(lambda: plain.is_closed)
    await until(lambda: client.stats["reconnects"] == 1 and client.is_connected)
    await client.flush()


async def test_an_attempt_that_raises_is_reported_and_followed_by_another(server: NatsServer, client: Client) -> None:
    """A seed file that is half-written, say."""
    attempts: list[Exception | None] = []
    connect_again = client._attempt_reconnect

    async def fail_once() -> None:
        if not attempts:
            attempts.append(OSError("half-written"))
            raise OSError("half-written")
        attempts.append(None)
        await connect_again()

    reported: list[Exception] = []

    async def report(error: Exception) -> None:
        reported.append(error)

    client._attempt_reconnect = fail_once  # type: ignore[method-assign]
    workarounds.reconnect_after_any_error(client)
    workarounds.replace_error_callback(client, report)
    server.stop()
    server.start()
    await until(lambda: len(attempts) > 1 and client.is_connected)
    assert "half-written" in map(str, reported)
    await client.flush()


async def test_what_a_closed_transport_refuses_goes_out_by_the_next_connection(
    server: NatsServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    subscription = await client.subscribe("kept")
    await client.flush()
    monkeypatch.setattr(client._transport, "writelines", refuse)
    await client.publish("kept", b"1")
    assert client._flusher_task is not None
    await until(client._flusher_task.done)
    with pytest.raises(RuntimeError):  # which nats-py alone raises from every publish
        await client.publish("kept", b"2")
    workarounds.keep_unwritten_data(client)
    await client.publish("kept", b"3")
    monkeypatch.undo()
    await client.force_reconnect()
    assert [(await subscription.next_msg(timeout=5)).data for _ in range(3)] == [b"1", b"2", b"3"]


async def test_an_answer_to_a_flush_that_was_given_up_ends_no_read_loop(client: Client) -> None:
    def give_up() -> None:
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        pong.cancel()  # as a `flush` does that times out
        client._pongs.append(pong)

    give_up()
    with pytest.raises(asyncio.InvalidStateError):
        await client._process_pong()
    client._pongs.clear()
    workarounds.accept_late_pongs(client)
    give_up()
    await client._process_pong()
    assert not client._pongs
    await client.flush()


@pytest.mark.parametrize(("domain", "prefix"), [(None, "$JS.API"), ("hub", "$JS.hub.API")])
async def test_the_prefix_of_jetstreams_api_knows_the_domain(client: Client, domain: str | None, prefix: str) -> None:
    assert workarounds.api_prefix(client.jetstream(domain=domain)) == prefix


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python doesn't warn of utcnow")
async def test_a_service_starts_where_warnings_are_errors(client: Client) -> None:
    config = ServiceConfig(name="warned", version="1.0.0")
    with pytest.raises(DeprecationWarning, match="utcnow"):
        await add_service(client, config)
    workarounds.ignore_utcnow()
    await (await add_service(client, config)).stop()


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "stopped as nats-py does"])
async def test_requests_that_have_arrived_are_handled_when_endpoints_are_drained(
    server: NatsServer, client: Client, drained: bool
) -> None:
    handled: list[str] = []

    async def handle(request: Request) -> None:
        await asyncio.sleep(0.05)
        handled.append(workarounds.reply_subject(request))

    workarounds.ignore_utcnow()
    service: Service = await add_service(client, ServiceConfig(name="draining", version="1.0.0"))
    await service.add_endpoint(EndpointConfig(name="draining", handler=handle))
    await client.flush()
    requester = await connected(server)
    for number in range(5):
        await requester.publish("draining", b"", reply=f"answers.{number}")
    await requester.flush()
    await workarounds.flush_and_wait(client)
    await (workarounds.drain_endpoints(service) if drained else service.stop())
    if drained:
        await until(lambda: len(handled) == 5)
    else:
        await asyncio.sleep(0.4)
    assert handled == [f"answers.{number}" for number in range(5 if drained else len(handled))]
    assert drained or len(handled) < 5
    await requester.close()


async def test_a_connection_ended_before_the_first_answer_is_waited_for() -> None:
    """By something between that takes connections while nats-server is away, say."""
    accepted: list[asyncio.StreamWriter] = []

    async def end_after_the_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.12.8","max_payload":1048576,"proto":1,"headers":true}\r\n')
        if len(accepted) == 1:
            await reader.readuntil(b"PING\r\n")
            writer.close()
            return
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")

    async with await asyncio.start_server(end_after_the_greeting, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        client = await nats.connect(
            f"nats://127.0.0.1:{port}", error_cb=ignored, max_reconnect_attempts=-1, reconnect_time_wait=0.05
        )
        async with asyncio.timeout(5):
            await workarounds.wait_until_connected(client)
        await client.flush()
        assert len(accepted) == 2
        await client.close()
        for writer in accepted:
            writer.close()


async def test_messages_of_a_subscription_come_one_after_the_other(client: Client) -> None:
    async with workarounds.queued_subscription(client, "queued") as queue:
        for number in range(200):
            await client.publish("queued", b"%d" % number)
        assert [int((await queue.next(5.0)).data) for _ in range(200)] == list(range(200))
        with pytest.raises(TimeoutError):
            await queue.next(0.05)


async def test_commands_that_are_sent_as_one_arrive_one_by_one_as_nats_py_would_send_them(client: Client) -> None:
    arrived: list[Msg] = []

    async def keep(message: Msg) -> None:
        arrived.append(message)

    await client.subscribe("here", cb=keep)
    commands = [encode_publish("here", f"answer.{n}", {"Nats-Msg-Id": f"ä{n}"}, b"body %d" % n) for n in range(100)]
    await workarounds.send_commands(client, [command for command in commands if command])
    await client.publish("here", b"body 100", "answer.100", {"Nats-Msg-Id": "ä100"})
    await until(lambda: len(arrived) == 101)
    assert [(one.reply, one.headers, one.data) for one in arrived] == [
        (f"answer.{n}", {"Nats-Msg-Id": f"ä{n}"}, b"body %d" % n) for n in range(101)
    ]


@pytest.mark.parametrize("condition", ["large", "draining", "closed", "away"])
async def test_what_cannot_be_published_raises_as_nats_py_does(
    client: Client, server: NatsServer, condition: str
) -> None:
    body = b"x" * (client.max_payload + 1 if condition == "large" else 1_000)
    if condition == "away":
        client._max_pending_size = 500
        server.stop()
        await until(lambda: not client.is_connected)
    elif condition == "draining":
        client._status = Client.DRAINING_PUBS
    elif condition == "closed":
        await client.close()
    with pytest.raises(nats.errors.Error) as theirs:
        await client.publish("here", body)
    with pytest.raises(type(theirs.value)):
        workarounds.check_publish(client, len(body))


async def test_what_is_requested_at_once_is_answered_one_by_one(client: Client) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(message.data + b": " + (message.headers or {})["Name"].encode())

    await client.subscribe("echo", cb=answer)
    mux = RequestMux(client)
    odd = mux.request("echo", b"odd", {"Name": "two\nlines"})  # encoded by nats-py, which takes the break out
    answers = await asyncio.gather(*(mux.request("echo", b"%d" % n, {"Name": f"n{n}"}) for n in range(300)), odd)
    assert [one.data for one in answers[:-1]] == [b"%d: n%d" % (n, n) for n in range(300)]
    assert answers[-1].data.startswith(b"odd: two")
    with pytest.raises(nats.errors.NoRespondersError):
        await mux.request("nobody", b"", {})
