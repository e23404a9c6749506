"""What goes wrong around deliveries: a real nats-server, `Deliveries` alone, and a target that answers anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest
from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from credentials import Authority
from lab import EVENTS, PREFIX, Lab, until
from receiver import Receiver, Reply, check_order, listening, receiving
from task_bridge.checks import expected_jetstream
from task_bridge.delivery.deliverer import prepare_consumer
from task_bridge.delivery.deliveries import Deliveries
from task_bridge.delivery.metrics import DeliveryMetrics
from task_bridge.delivery.report import build_sample
from task_bridge.domain.deliveries import DeliveryReport
from task_bridge.domain.errors import CannotStart
from task_bridge.domain.subjects import SubjectNames
from task_bridge.jetstream.connection import Connection
from task_bridge.jetstream.delivery_consumer import WINDOW, DeliveryConsumers
from task_bridge.jetstream.provision import provision
from task_bridge.jetstream.streams import Streams
from task_bridge.settings import DeliverySettings, NatsSettings

NAMES = SubjectNames(PREFIX)


def hook(receiver: Receiver, **more: Any) -> DeliverySettings:
    return DeliverySettings.model_validate({"name": "hook", "url": receiver.url, "start": "all"} | more)


class Replica:
    """The deliveries of a process of its own, in this one."""

    def __init__(self, deliveries: Deliveries, streams: Streams, registry: CollectorRegistry) -> None:
        self.deliveries = deliveries
        self.streams = streams
        self.registry = registry

    @property
    def report(self) -> DeliveryReport:
        return self.deliveries.reports()[0]


@asynccontextmanager
async def replica(lab: Lab, *settings: DeliverySettings, create: bool = True) -> AsyncIterator[Replica]:
    connection = Connection(NatsSettings(urls=(lab.server.url,)), "deliverer")
    try:
        streams = Streams(await connection.open(), None)
        registry = CollectorRegistry()
        metrics = DeliveryMetrics(registry, [one.name for one in settings])
        deliveries = Deliveries({one.name: one for one in settings}, streams, NAMES, metrics, time.time, create=create)
        connection.on_reconnect(deliveries.reset)
        await deliveries.start()
        try:
            yield Replica(deliveries, streams, registry)
        finally:
            await deliveries.stop()
    finally:
        await connection.close()


@pytest.fixture
async def streams(lab: Lab) -> Streams:
    """The streams, made as the bridge makes them."""
    streams = Streams(lab.client, None)
    await provision(streams, expected_jetstream(lab.settings()), create=True)
    return streams


async def put(streams: Streams, task: str = "t", sequence: int = 3, body: bytes | None = None) -> None:
    """Store an event as a bridge does."""
    event = json.loads(build_sample("x", time.time())[1])
    event["id"] = f"{task}/{sequence}"
    event["data"] |= {"task": task, "sequence": sequence}
    headers = {"Bridge-Watch": task, "Bridge-Sequence": str(sequence)}
    subject = NAMES.put_subject("lab", task, "completed.succeeded")
    await streams.publish(EVENTS, subject, json.dumps(event).encode() if body is None else body, headers)


async def reports(lab: Lab) -> list[dict[str, Any]]:
    found = [message for message in await lab.messages() if message.subject == f"{PREFIX}.undelivered.hook"]
    return [json.loads(message.data or b"")["data"] for message in found]


async def until_undelivered(lab: Lab, within_s: float = 20.0) -> dict[str, Any]:
    async with asyncio.timeout(within_s):
        while not (found := await reports(lab)):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
    return found[0]


async def test_an_event_is_given_up_in_time_also_over_a_restart(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(500)
    async with receiving(receiver):
        settings = hook(receiver, give_up_after="5s")
        await prepare_consumer(DeliveryConsumers(streams, NAMES), settings, NAMES, time.time(), create=True)
        await put(streams)
        began = time.monotonic()
        async with replica(lab, settings):
            await until(lambda: len(receiver.got) == 2)
        async with replica(lab, settings):
            report = await until_undelivered(lab)
    assert 4.5 < time.monotonic() - began < 9
    assert report["reason"] == "the target answered 500 Internal Server Error"


async def test_a_target_that_asks_to_wait_beyond_that_gets_no_request_too_early(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(503, (("Retry-After", "60"),))
    async with receiving(receiver), replica(lab, hook(receiver, give_up_after="2s")):
        await put(streams)
        assert (await until_undelivered(lab))["tries"] == 1
    assert len(receiver.got) == 1


async def test_a_stream_that_is_missing_is_waited_for(lab: Lab) -> None:
    receiver = Receiver()
    async with receiving(receiver), replica(lab, hook(receiver)) as one:
        await until(lambda: one.report.state == "blocked" and "stream" in (one.report.reason or ""))
        await provision(one.streams, expected_jetstream(lab.settings()), create=True)
        await put(one.streams)
        await until(lambda: receiver.delivered())
        await until(lambda: one.report.state == "delivering")


async def test_a_consumer_that_is_deleted_is_made_again_where_it_was(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda headers, _: Reply(500 if headers["webhook-id"].startswith("late") else 200)
    async with receiving(receiver), replica(lab, hook(receiver, start="new")) as one, replica(lab, hook(receiver)):
        await until(lambda: one.report.state == "waiting")
        await put(streams, "early")
        await put(streams, "late")
        await until(lambda: len(receiver.got) >= 2)
        await lab.js.delete_consumer(EVENTS, "deliver-hook")
        await put(streams, "meanwhile")
        receiver.decide = lambda *_: Reply()
        await until(lambda: {one.event_id for one in receiver.delivered()} >= {"late/3", "meanwhile/3"}, 40)


async def test_a_restart_of_nats_while_events_are_sent_loses_none(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(delay_s=0.02)
    async with receiving(receiver), replica(lab, hook(receiver, timeout="1s", max_in_flight=2)):
        for number in range(60):
            await put(streams, f"t{number % 20}", number)
        await until(lambda: len(receiver.got) > 10)
        lab.server.stop()
        await asyncio.sleep(0.5)  # requests go on while it is away
        lab.server.start()
        await until(lambda: len({one.event_id for one in receiver.delivered()}) == 60, 40)
    check_order(receiver)


@pytest.mark.parametrize(
    ("start", "wanted"), [("new", {"after/3"}), ("all", {"before/3", "after/3"}), ("1h", {"before/3", "after/3"})]
)
async def test_where_a_delivery_begins_counts_when_it_is_first_made(
    lab: Lab, streams: Streams, start: str, wanted: set[str]
) -> None:
    receiver = Receiver()
    await put(streams, "before")
    async with receiving(receiver):
        consumers = DeliveryConsumers(streams, NAMES)
        await prepare_consumer(consumers, hook(receiver, start=start), NAMES, time.time(), create=True)
        await put(streams, "after")
        async with replica(lab, hook(receiver, start=start)):
            await until(lambda: {one.event_id for one in receiver.got} == wanted)
        async with replica(lab, hook(receiver, start="all")):
            await put(streams, "last")
            await until(lambda: {one.event_id for one in receiver.got} == {*wanted, "last/3"})
    assert len(receiver.got) == len(wanted) + 1


async def test_changed_filters_reach_the_durable(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    async with receiving(receiver):
        async with replica(lab, hook(receiver, events="status")) as one:
            await until(lambda: one.report.state == "waiting")
        await put(streams, "selected")
        async with replica(lab, hook(receiver, events="completed,completed.failed")):
            await until(lambda: [one.event_id for one in receiver.got] == ["selected/3"])
    filters = (await lab.js.consumer_info(EVENTS, "deliver-hook")).config.filter_subjects
    assert filters == [f"{PREFIX}.events.*.*.completed.*", f"{PREFIX}.internal.redeliver.hook"]


async def test_where_operators_own_the_streams_they_make_the_durable(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    async with receiving(receiver), replica(lab, hook(receiver), create=False) as one:
        await until(lambda: "task-bridge provision" in (one.report.reason or ""))
        with pytest.raises(nats.js.errors.NotFoundError):
            await lab.js.consumer_info(EVENTS, "deliver-hook")
        await prepare_consumer(DeliveryConsumers(streams, NAMES), hook(receiver), NAMES, time.time(), create=True)
        await put(streams)
        await until(lambda: receiver.delivered())


REPLIES = [Reply(400), Reply(500), Reply(0), Reply(302, (("Location", "http://x/?s3cret"),)), Reply(410)]


async def test_no_secret_appears_anywhere(lab: Lab, streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("whsec_czNjcmV0a2V5")
    more = {"secret_file": str(tmp_path / "key"), "headers": {"X-Key": "s3cret-header"}, "give_up_after": "1s"}
    receivers = [Receiver() for _ in REPLIES]
    settings = []
    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            for reply, receiver in zip(REPLIES, receivers, strict=True):
                receiver.decide = lambda *_, reply=reply: reply
                await stack.enter_async_context(receiving(receiver))
                url = f"http://s3cret-user:s3cret-pass@127.0.0.1:{receiver.port}/s3cret-path?s3cret-query=1"
                settings.append(hook(receiver, name=f"h{reply.status}", url=url, **more))
            gone = "https://s3cret-user:s3cret-pass@127.0.0.1:9/s3cret-path?s3cret-query=1"
            settings.append(hook(receivers[0], name="gone", url=gone, **more))
            one = await stack.enter_async_context(replica(lab, *settings))
            reported: set[str] = set()

            async def hear(message: Msg) -> None:
                reported.add(message.subject)

            await lab.client.subscribe(f"{PREFIX}.undelivered.*", cb=hear)
            await put(streams)
            await until(lambda: len(reported) == len(settings))
            shown = [repr(one.deliveries.reports()), generate_latest(one.registry).decode(), repr(settings)]
    shown += [repr(logs), *(bytes(message.data or b"").decode() for message in await lab.messages())]
    assert len(shown) == 4 + 1 + len(settings)
    for text in shown:
        assert "s3cret" not in text
        assert "czNjcmV0a2V5" not in text
    assert receivers[0].got[0].headers["authorization"].startswith("Basic ")
    assert receivers[0].got[0].headers["x-key"] == "s3cret-header"


async def test_a_wrong_secret_stops_the_start_and_later_only_waits(lab: Lab, streams: Streams, tmp_path: Path) -> None:
    receiver, file = Receiver(), tmp_path / "key"
    async with receiving(receiver):
        file.write_text("no base64!")
        with pytest.raises(CannotStart, match="BRIDGE_DELIVERIES__HOOK: SECRET_FILE must hold") as refused:
            async with replica(lab, hook(receiver, secret_file=str(file))):
                pass
        assert refused.value.exit_code == 2
        file.write_text("whsec_b2xk")
        async with replica(lab, hook(receiver, secret_file=str(file))) as one:
            file.write_text("no base64 at all!")
            await put(streams)
            await until(lambda: one.report.state == "failing")
            assert "SECRET_FILE must hold" in (one.report.reason or "")
            assert receiver.got == []
            file.write_text("whsec_b2xk\nwhsec_bmV3")
            await until(lambda: receiver.delivered())
    assert len(receiver.got[0].headers["webhook-signature"].split()) == 2


async def test_a_template_is_read_again_and_a_wrong_one_replaces_none(
    lab: Lab, streams: Streams, tmp_path: Path
) -> None:
    receiver, file = Receiver(), tmp_path / "body.json"
    more = {"format": "template", "template_file": str(file), "content_type": "text/plain"}
    async with receiving(receiver):
        for name, text in (("first", "one {{ event.id }}"), ("second", "{{"), ("third", "two {{ event.id }}")):
            if name == "first":
                file.write_text(text)
                running = replica(lab, hook(receiver, **more))
                await running.__aenter__()
            else:
                file.write_text(text)
            await put(streams, name)
            await until(lambda name=name: any(one.event_id == f"{name}/3" for one in receiver.got))  # type: ignore[misc]
        await running.__aexit__(None, None, None)
    assert [one.body for one in receiver.got] == [b"one first/3", b"one second/3", b"two third/3"]
    assert receiver.got[0].headers["content-type"] == "text/plain"


async def test_what_is_no_event_is_passed_on_or_reported(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    other = Receiver()
    async with receiving(receiver), receiving(other):
        plain = hook(other, name="plain")
        async with replica(lab, hook(receiver, format="binary"), plain):
            await put(streams, body=b"no JSON \xff")
            report = await until_undelivered(lab)
            await until(lambda: other.delivered())
    assert report["event"] == "no JSON \\xff"
    assert "CloudEvent" in report["reason"]
    assert (receiver.got, other.got[0].body) == ([], b"no JSON \xff")


async def test_at_most_so_many_requests_are_under_way(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    most = 0

    def decide(*_: Any) -> Reply:
        nonlocal most
        most = max(most, receiver.open)
        return Reply(delay_s=0.05)

    receiver.decide = decide
    async with receiving(receiver), replica(lab, hook(receiver, max_in_flight=3)):
        for number in range(30):
            await put(streams, f"t{number}")
        await until(lambda: len(receiver.delivered()) == 30)
    assert most == 3


async def test_a_certificate_must_be_trusted(lab: Lab, streams: Streams, tmp_path: Path) -> None:
    receiver, authority = Receiver(), Authority(tmp_path)
    pair = authority.pair("target")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with receiving(receiver, tls=context):
        await put(streams)
        async with replica(lab, hook(receiver)) as one:
            await until(lambda: one.report.state == "failing")
            assert "isn't trusted" in (one.report.reason or "")
        async with replica(lab, hook(receiver, ca_file=str(authority.file))):
            await until(lambda: receiver.delivered())
    assert receiver.got[0].headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_a_status_counts_though_its_body_never_ends(lab: Lab, streams: Streams) -> None:
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        await asyncio.sleep(0.8)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin")
        await reader.read()

    receiver = Receiver()
    async with listening(answer) as receiver.port, replica(lab, hook(receiver, timeout="1s")) as one:
        await put(streams)
        await until(lambda: one.report.delivered == 1)
    assert requests == 1


async def test_a_target_that_reads_nothing_is_no_answer(lab: Lab, streams: Streams) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    receiver = Receiver()
    async with listening(answer) as receiver.port, replica(lab, hook(receiver, timeout="500ms")) as one:
        await put(streams, body=json.dumps({"id": "x", "data": "x" * 900_000}).encode())
        await until(lambda: one.report.reason == "no answer within 0.5 s")


async def test_a_stop_does_not_wait_for_a_target_that_hangs(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(delay_s=20)
    async with receiving(receiver):
        async with replica(lab, hook(receiver, timeout="20s")):
            await put(streams)
            await until(lambda: receiver.open == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 1.4, "a replica that stops has 1.5 s"


async def test_a_delivery_that_is_paused_is_paused_on_all_replicas(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(410)
    async with receiving(receiver):
        settings = hook(receiver, max_in_flight=1)
        async with replica(lab, settings) as first, replica(lab, settings) as second:
            for number in range(3):
                await put(streams, f"t{number}")
            await until(lambda: "paused" in (first.report.state, second.report.state))
            await asyncio.sleep(13)  # beyond the time after which a silent client loses its pin
            assert {first.report.state, second.report.state} == {"paused", "waiting"}
            assert "another replica sends" in (first.report.reason, second.report.reason)
            assert len(receiver.got) == 1  # the end of the replica that sends lets the other one go on


async def test_a_proxy_is_used(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    lines: list[bytes] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])
        body = await reader.read(1_000)
        assert body
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    receiver.port = 9
    async with listening(connect) as port, replica(lab, hook(receiver, proxy=f"http://127.0.0.1:{port}")) as one:
        await put(streams)
        await until(lambda: one.report.delivered == 1)
    assert lines == [b"POST http://127.0.0.1:9/hook?token=query-secret HTTP/1.1"]


async def test_a_proxy_to_a_target_with_tls_sees_its_address_alone(lab: Lab, streams: Streams, tmp_path: Path) -> None:
    receiver, authority = Receiver(), Authority(tmp_path)
    pair = authority.pair("target")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    heads: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(pump(reader, target_writer), pump(target_reader, writer))

    async with receiving(receiver, tls=context), listening(tunnel) as port:
        settings = hook(receiver, proxy=f"http://127.0.0.1:{port}", ca_file=str(authority.file))
        async with replica(lab, settings):
            await put(streams)
            await until(lambda: receiver.delivered())
    assert heads[0].startswith(f"CONNECT 127.0.0.1:{receiver.port} HTTP/1.1\r\n".encode())
    assert b"secret" not in heads[0]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


async def test_however_many_events_wait_a_replica_holds_few(lab: Lab, streams: Streams) -> None:
    receiver = Receiver()
    receiver.decide = lambda *_: Reply(503)
    for batch in range(20):
        await asyncio.gather(*(put(streams, f"t{batch}-{number}") for number in range(50)))
    async with receiving(receiver), replica(lab, hook(receiver)) as one:
        await until(lambda: one.report.held == WINDOW)
        receiver.decide = lambda *_: Reply()
        await until(lambda: len({got.event_id for got in receiver.delivered()}) == 1_000, 30)
        assert one.report.held <= WINDOW
