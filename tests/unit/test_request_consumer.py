"""What becomes of each stored request, and what consuming it leaves behind. Over a recorded connection."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from faststream.nats.message import NatsMessage
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from task_bridge.domain.errors import NatsUnavailable, Refused
from task_bridge.domain.events import WatchRef, to_cloudevent
from task_bridge.domain.requests import VCenterRouting
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.watch import Watch
from task_bridge.jetstream.nats_py_workarounds import UNREADABLE_HEADERS
from task_bridge.jetstream.reported_vcenters import hand_back_interval_s
from task_bridge.jetstream.request_consumer import (
    RequestConsumer,
    RequestContext,
    RequestQueue,
    UnknownVCenter,
    admit_watch_request,
    keep_raw_message,
    quarantine_unreadable_watch,
    report_first_take_over,
)
from task_bridge.jetstream.streams import ACK, IN_PROGRESS, NAK, TERM, StoredMessage, nak_later
from task_bridge.jetstream.watch_store import Admission
from task_bridge.metrics import Metrics
from unit.builders import NOW, TASK, a_watch, an_event
from unit.fakes import RecordingJournal
from virtual_time import run_in_virtual_time

NAMES = SubjectNames("vcenter.tasks")
NOW_NS = int(NOW) * 1_000_000_000
AWAY = NatsUnavailable("nobody answers")
REFUSED = Refused(400, "invalid_request", "No.")
KEY = "1764024000000-v1"


def ack_subject(sequence: int, delivered: int) -> str:
    return f"$JS.ACK.VCENTER_TASKS_REQUESTS.bridge.{delivered}.{sequence}.7.{NOW_NS}.0"


def message(
    sequence: int = 1,
    delivered: int = 1,
    body: bytes = TASK.encode(),
    subject: str = NAMES.requests,
    headers: dict[str, str] | None = None,
) -> Any:
    metadata = SimpleNamespace(timestamp=datetime.fromtimestamp(NOW, UTC), sequence=SimpleNamespace(stream=sequence))
    return SimpleNamespace(
        data=body, subject=subject, reply=ack_subject(sequence, delivered), headers=headers, metadata=metadata
    )


class Recorder:
    """A connection and the streams over it, which write down what is published, and when."""

    def __init__(self) -> None:
        self.connection = self
        self.prefix = "$JS.API"
        self.is_connected = True
        self.published: list[tuple[float, str, bytes]] = []

    def new_inbox(self) -> str:
        return "_INBOX.1"

    async def publish(self, subject: str, body: bytes, _reply: str = "") -> None:
        self.published.append((asyncio.get_running_loop().time(), subject, body))

    def acks(self) -> list[tuple[str, bytes]]:
        return [(subject, body) for _, subject, body in self.published if subject.startswith("$JS.ACK.")]

    def pulls(self) -> list[int]:
        return [json.loads(body)["batch"] for _, subject, body in self.published if ".MSG.NEXT." in subject]


class Broker:
    """What FastStream is to the consumer: it hands messages to one handler until it is stopped."""

    def __init__(self) -> None:
        self.handler: Callable[[Any], Awaitable[None]] | None = None
        self.options: dict[str, Any] = {}
        self.stops = 0

    def subscriber(self, inbox: str, **options: Any) -> Broker:
        self.options = {"inbox": inbox, **options}
        return self

    def __call__(self, handler: Callable[[Any], Awaitable[None]]) -> None:
        self.handler = handler

    async def stop(self) -> None:
        self.stops += 1


class OtherReplicas:
    """What other replicas are known to have survived, and the vCenters that they have."""

    def __init__(self) -> None:
        self.survived: set[str] = set()
        self.asked: list[str] = []
        self.waited: list[tuple[str, float]] = []
        self.hand_back_for_s = 3.0
        self.has_survived: Callable[[str], bool] = lambda _: False
        self.on_vcenter: Callable[[str], Awaitable[None]] | None = None

    def add_requests(self, has_survived: Callable[[str], bool], on_vcenter: Callable[[str], Awaitable[None]]) -> None:
        self.has_survived, self.on_vcenter = has_survived, on_vcenter

    async def was_survived(self, request: str) -> bool:
        self.asked.append(request)
        return request in self.survived

    def hand_back_s(self, vcenter: str, waited_s: float) -> float:
        self.waited.append((vcenter, waited_s))
        return self.hand_back_for_s

    def list_reported_vcenters(self) -> list[str]:
        return ["elsewhere"]


class RecordingRejections:
    def __init__(self) -> None:
        self.published: list[tuple[str, Refused, bytes, Any, Any]] = []
        self.is_away = False

    async def publish(
        self,
        rejection_id: str,
        refused: Refused,
        body: bytes,
        request_headers: Mapping[str, str] | None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        if self.is_away:
            raise AWAY
        self.published.append((rejection_id, refused, body, request_headers, known))


class RecordingWatches:
    def __init__(self) -> None:
        self.outcome = "accepted"
        self.admitted: list[Watch] = []
        self.abandoned: list[Watch] = []

    async def admit(self, watch: Watch) -> Admission:
        self.admitted.append(watch)
        return Admission(self.outcome, WatchRef("in-force", "x"), None)

    async def abandon(self, watch: Watch) -> None:
        self.abandoned.append(watch)


class Desk:
    """A consumer. `results`: what comes of each request, one after the other; then all are served."""

    def __init__(self, ack_wait_s: float = 30.0) -> None:
        self.nats = Recorder()
        self.broker = Broker()
        self.replicas = OtherReplicas()
        self.rejections = RecordingRejections()
        self.watches = RecordingWatches()
        self.journal = RecordingJournal(lambda: NOW)
        self.metrics = Metrics()
        self.now = NOW + 1_000
        self.results: list[Exception | None] = []
        self.admitted: list[str] = []
        self.must_wait = asyncio.Event()
        self.must_wait.set()
        context: Any = (
            self.nats,
            NAMES,
            self.watches,
            None,
            self.journal,
            self.rejections,
            VCenterRouting({"lab": "https://vcenter.test", "other": "https://other.test"}, "lab", frozenset({"other"})),
            {},
            self.metrics,
            lambda: self.now,
        )
        self.context = RequestContext(*context)
        self.queue = RequestQueue("REQUESTS", NAMES.requests, self.admit, "v")
        replicas: Any = self.replicas
        self.consumer = RequestConsumer(self.context, replicas, self.queue, ack_wait_s=ack_wait_s)
        broker: Any = self.broker
        self.consumer.subscribe(broker)

    async def admit(self, message: Msg) -> None:
        self.admitted.append(message.reply)
        await self.must_wait.wait()
        if self.results and (error := self.results.pop(0)) is not None:
            raise error

    async def deliver(self, *messages: Any) -> None:
        assert self.broker.handler is not None
        for one in messages:
            await self.broker.handler(one)

    def run(self, *messages: Any, seconds: float = 20.0) -> list[tuple[str, bytes]]:
        """Deliver these messages, and return what JetStream is told within this time."""

        async def deliver() -> None:
            await self.deliver(*messages)
            await asyncio.sleep(seconds)

        run_in_virtual_time(deliver())
        return self.nats.acks()

    @asynccontextmanager
    async def running(self) -> Any:
        work = asyncio.create_task(self.consumer.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"task_bridge_{name}", labels) or 0.0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def told(logs: Iterable[Mapping[str, Any]], event: str) -> list[Mapping[str, Any]]:
    return [log for log in logs if log["event"] == event]


async def test_a_request_does_not_keep_itself_alive() -> None:
    raw = Msg(Client(), subject="vcenter.tasks.watch", data=b'"task-1"')
    message = NatsMessage(raw_message=raw, body=raw.data)
    message.set_decoder(keep_raw_message)
    assert await message.decode() is raw
    kept = weakref.ref(message)
    gc.disable()
    try:
        del message
        assert kept() is None
    finally:
        gc.enable()


# Requests that are served


def test_a_request_that_was_served_is_acknowledged(desk: Desk) -> None:
    assert desk.run(message()) == [(ack_subject(1, 1), ACK)]
    assert len(desk.admitted) == 1
    assert not desk.replicas.has_survived(KEY)
    assert desk.broker.options["no_reply"] is True


def test_a_status_of_the_pull_is_no_request(desk: Desk) -> None:
    assert desk.run(SimpleNamespace(headers={"Status": "408"}, reply="", data=b"", subject="_INBOX.1")) == []
    assert not desk.admitted


def test_a_request_that_can_not_be_served_now_is_tried_again_every_second(desk: Desk) -> None:
    desk.results = [AWAY] * 3
    with capture_logs() as logs:
        desk.run(message())
    assert [round(at, 3) for at, _, body in desk.nats.published if body == ACK] == [3.0]
    assert len(desk.admitted) == 4
    assert [log["reason"] for log in told(logs, "requests_kept")] == ["nobody answers"]
    assert len(told(logs, "requests_served_again")) == 1
    assert not desk.replicas.has_survived(KEY)


def test_a_request_that_is_kept_has_been_survived(desk: Desk) -> None:
    desk.results = [AWAY] * 1_000
    assert desk.run(message(), seconds=3.5) == []
    assert desk.replicas.has_survived(KEY)


def test_a_request_that_comes_again_while_it_is_kept_is_answered_where_it_came_last(desk: Desk) -> None:
    desk.results = [AWAY]
    assert desk.run(message(1, 1), message(1, 2)) == [(ack_subject(1, 2), ACK)]
    assert len(desk.admitted) == 2  # both tries of the first delivery


# The end of the replica


async def stop(desk: Desk) -> None:
    await asyncio.sleep(0.5)
    await desk.consumer.drain()


def test_requests_that_are_kept_are_handed_back_at_the_end(desk: Desk) -> None:
    desk.results = [AWAY] * 1_000

    async def run() -> float:
        await desk.deliver(message(1), message(2))
        await stop(desk)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(run()) == 0.5
    assert desk.nats.acks() == [(ack_subject(1, 1), NAK), (ack_subject(2, 1), NAK)]
    assert desk.broker.stops == 1


def test_requests_that_are_being_served_are_served_before_the_end(desk: Desk) -> None:
    desk.must_wait.clear()

    async def run() -> float:
        await desk.deliver(message(1))
        asyncio.get_running_loop().call_later(2.0, desk.must_wait.set)
        await stop(desk)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(run()) == 2.0
    assert desk.nats.acks() == [(ack_subject(1, 1), ACK)]


def test_a_consumer_that_never_subscribed_can_be_stopped(desk: Desk) -> None:
    replicas: Any = desk.replicas
    run_in_virtual_time(RequestConsumer(desk.context, replicas, desk.queue, ack_wait_s=30.0).drain())


# Heartbeats and capacity


def test_a_request_that_takes_long_is_kept_in_progress() -> None:
    desk = Desk(ack_wait_s=30.0)
    desk.must_wait.clear()

    async def run() -> None:
        async with desk.running():
            await desk.deliver(message(1))
            await asyncio.sleep(5)
            await desk.deliver(message(2))
            await asyncio.sleep(20)
            desk.nats.is_connected = False
            await asyncio.sleep(10)
            desk.must_wait.set()
            await asyncio.sleep(10)

    run_in_virtual_time(run())
    beats = [(round(at), subject) for at, subject, body in desk.nats.published if body == IN_PROGRESS]
    # The second came 5 s before the first beat.
    assert sorted(beats) == [(10, ack_subject(1, 1)), (20, ack_subject(1, 1)), (20, ack_subject(2, 1))]


def test_no_more_is_pulled_than_may_be_kept(desk: Desk) -> None:
    desk.results = [AWAY] * 100_000

    async def run() -> None:
        await desk.deliver(*(message(number) for number in range(2_000)))
        async with desk.running():
            await asyncio.sleep(1.5)
            assert desk.nats.pulls() == [48]
            await desk.deliver(*(message(number) for number in range(2_000, 2_050)))
            await asyncio.sleep(4)
            assert desk.nats.pulls() == [48]
            desk.results.clear()
            await asyncio.sleep(1.05)
            assert sum(desk.nats.pulls()[1:]) == 128

    run_in_virtual_time(run())


def test_more_is_pulled_as_soon_as_some_of_many_are_served(desk: Desk) -> None:
    async def run() -> None:
        desk.results = [AWAY] * 2_048
        await desk.deliver(*(message(number) for number in range(2_048)))
        async with desk.running():
            await asyncio.sleep(0.5)
            desk.results = [None] * 100 + [AWAY] * 1_948
            await asyncio.sleep(0.6)
            assert sum(desk.nats.pulls()) == 100

    run_in_virtual_time(run())


def test_a_free_consumer_pulls_a_batch(desk: Desk) -> None:
    async def run() -> None:
        async with desk.running():
            await asyncio.sleep(1)

    run_in_virtual_time(run())
    assert desk.nats.pulls() == [128]


# Requests that can't be served


def test_a_request_that_can_never_be_served_is_rejected_for_good(desk: Desk) -> None:
    desk.results = [REFUSED]
    with capture_logs() as logs:
        acks = desk.run(message(body=b"x", subject=f"{NAMES.requests}.other", headers={"a": "b"}))
    assert acks == [(ack_subject(1, 1), TERM)]
    assert desk.rejections.published == [(KEY, REFUSED, b"x", {"a": "b"}, {"vcenter": "other"})]
    assert desk.counted("requests_total", outcome="rejected") == 1
    assert desk.counted("rejected_total", code="invalid_request") == 1
    (log,) = told(logs, "request")
    assert (log["verb"], log["outcome"], log["code"], log["request"]) == ("watch", "rejected", "invalid_request", KEY)


def test_a_request_whose_subject_names_no_vcenter_is_rejected_without_one(desk: Desk) -> None:
    desk.results = [REFUSED]
    desk.run(message())
    assert desk.rejections.published[0][4] is None


def test_a_rejection_that_can_not_be_stored_now_is_tried_again(desk: Desk) -> None:
    desk.results = [REFUSED] * 2
    desk.rejections.is_away = True

    async def run() -> None:
        await desk.deliver(message())
        await asyncio.sleep(0.5)
        desk.rejections.is_away = False
        await asyncio.sleep(1)

    run_in_virtual_time(run())
    assert desk.nats.acks() == [(ack_subject(1, 1), TERM)]


def test_the_bridge_s_own_events_are_dropped_and_that_is_told_once(desk: Desk) -> None:
    event = to_cloudevent(an_event())
    with capture_logs() as logs:
        acks = desk.run(message(1, body=event), message(2, body=event))
    assert acks == [(ack_subject(1, 1), TERM), (ack_subject(2, 1), TERM)]
    assert not desk.admitted
    assert desk.counted("requests_total", outcome="dropped") == 2
    assert [(log["subject"], log["stream"]) for log in told(logs, "event_as_request")] == [(NAMES.requests, "REQUESTS")]


def test_a_bug_over_a_request_has_it_delivered_again_a_second_later(desk: Desk) -> None:
    desk.results = [RuntimeError("a bug")]
    with capture_logs() as logs:
        acks = desk.run(message(1, 4))
    assert acks == [(ack_subject(1, 4), nak_later(1.0))]
    assert desk.replicas.has_survived(KEY)
    assert len(told(logs, "request_failed")) == 1


def test_a_bug_at_the_fifth_delivery_rejects_the_request(desk: Desk) -> None:
    desk.results = [RuntimeError("a bug")]
    assert desk.run(message(1, 5)) == [(ack_subject(1, 5), TERM)]
    ((_, refused, _, _, _),) = desk.rejections.published
    assert "five times" in refused.message
    assert not desk.replicas.has_survived(KEY)


def test_a_request_that_no_replica_survived_is_not_tried_again(desk: Desk) -> None:
    assert desk.run(message(1, 6)) == [(ack_subject(1, 6), TERM)]
    assert "five times" in desk.rejections.published[0][1].message
    assert not desk.admitted
    assert desk.replicas.asked == [KEY]


def test_a_request_that_another_replica_survived_counts_as_survived_here_while_it_is_tried(desk: Desk) -> None:
    desk.replicas.survived = {KEY}
    desk.must_wait.clear()
    desk.run(message(1, 6))
    assert len(desk.admitted) == 1
    assert desk.replicas.has_survived(KEY)


def test_a_request_that_was_delivered_five_times_is_tried_without_a_question(desk: Desk) -> None:
    assert desk.run(message(1, 5)) == [(ack_subject(1, 5), ACK)]
    assert not desk.replicas.asked


def test_a_request_that_another_replica_survived_is_tried(desk: Desk) -> None:
    desk.replicas.survived = {KEY}
    desk.results = [AWAY]
    assert desk.run(message(1, 6)) == [(ack_subject(1, 6), ACK)]
    assert desk.replicas.asked == [KEY]  # since then this replica has survived it too


# Requests for vCenters that this replica doesn't have


def test_a_request_for_another_replica_s_vcenter_is_handed_back(desk: Desk) -> None:
    desk.results = [UnknownVCenter("elsewhere")] * 2
    with capture_logs() as logs:
        acks = desk.run(message(1, 1), seconds=1)
        assert len(told(logs, "request_handed_back")) == 1
        acks += desk.run(message(1, 2), seconds=1)[1:]
    assert acks == [(ack_subject(1, 1), nak_later(3.0)), (ack_subject(1, 2), nak_later(3.0))]
    assert [(log["vcenter"], log["request"]) for log in told(logs, "request_handed_back")] == [("elsewhere", KEY)]
    assert desk.replicas.has_survived(KEY)


def test_a_request_that_was_handed_back_comes_at_once_when_its_vcenter_does(desk: Desk) -> None:
    desk.results = [UnknownVCenter("elsewhere"), UnknownVCenter("nowhere")]

    async def run() -> None:
        await desk.deliver(message(1))
        await asyncio.sleep(1)
        await desk.deliver(message(2))
        await asyncio.sleep(1)
        assert desk.replicas.on_vcenter is not None
        await desk.replicas.on_vcenter("elsewhere")

    run_in_virtual_time(run())
    assert desk.nats.acks()[2:] == [(ack_subject(1, 1), NAK)]


def test_a_request_may_be_handed_back_for_less_than_a_second(desk: Desk) -> None:
    desk.results = [UnknownVCenter("elsewhere")]
    desk.replicas.hand_back_for_s = 0.5
    assert desk.run(message()) == [(ack_subject(1, 1), nak_later(0.5))]


@pytest.mark.parametrize("delay_s", [0.0, -1.0])
def test_a_request_for_a_vcenter_that_nobody_has_for_long_is_rejected(desk: Desk, delay_s: float) -> None:
    desk.results = [UnknownVCenter("nowhere")]
    desk.replicas.hand_back_for_s = delay_s
    assert desk.run(message()) == [(ack_subject(1, 1), TERM)]
    ((_, refused, _, _, _),) = desk.rejections.published
    assert refused.code == "unknown_vcenter"
    assert "elsewhere, lab, other" in refused.message


@pytest.mark.parametrize(
    ("delivered", "by_clock_s", "waited_s"),
    [
        (1, 1_000.0, 0.0),
        (3, 1_000.0, 2 * hand_back_interval_s()),
        (1_000, 7.0, 7.0),
        (1_000, -7.0, 0.0),
    ],
)
def test_a_request_has_waited_for_as_long_as_clock_and_deliveries_agree(
    desk: Desk, delivered: int, by_clock_s: float, waited_s: float
) -> None:
    desk.replicas.survived = {KEY}
    desk.results = [UnknownVCenter("elsewhere")]
    desk.now = NOW + by_clock_s
    desk.run(message(1, delivered))
    ((vcenter, waited),) = desk.replicas.waited
    assert vcenter == "elsewhere"
    assert waited == pytest.approx(waited_s, abs=0.5)


# Requests for watches


def admit(desk: Desk, message: Any) -> None:
    run_in_virtual_time(admit_watch_request(desk.context, 600.0, "v", message))


def test_a_request_starts_the_watch_that_it_asks_for(desk: Desk) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with capture_logs() as logs:
        admit(desk, message(7, headers={"traceparent": trace}))
    (watch,) = desk.watches.admitted
    assert watch == a_watch(id="1764024000000-v7", stalled_after_s=600.0, traceparent=trace, stored_request=True)
    assert not told(logs, "request")
    assert desk.counted("requests_total", outcome="accepted") == 0


def test_a_request_that_needs_no_watch_is_counted_and_told(desk: Desk) -> None:
    desk.watches.outcome = "already_watching"
    with capture_logs() as logs:
        admit(desk, message(7, subject=f"{NAMES.requests}.other"))
    assert desk.watches.admitted[0].vcenter == "other"
    assert desk.counted("requests_total", outcome="already_watching") == 1
    (log,) = told(logs, "request")
    assert (log["verb"], log["outcome"], log["watch"], log["vcenter"]) == (
        "watch",
        "already_watching",
        "in-force",
        "other",
    )


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (message(headers={UNREADABLE_HEADERS: ""}), Refused),
        (message(subject=f"{NAMES.requests}.elsewhere"), UnknownVCenter),
        (message(body=b"task-1", subject=f"{NAMES.requests}.other"), Refused),
        (message(body=b"{"), Refused),
    ],
)
def test_a_request_that_asks_for_no_watch_starts_none(desk: Desk, request_: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        admit(desk, request_)
    assert not desk.watches.admitted


@pytest.mark.parametrize("is_stored", [True, False])
def test_only_the_outcome_of_a_stored_request_is_counted_when_it_is_taken_up(desk: Desk, is_stored: bool) -> None:
    with capture_logs() as logs:
        report_first_take_over(desk.context, a_watch(stored_request=is_stored), "accepted")
    assert desk.counted("requests_total", outcome="accepted") == is_stored
    assert len(told(logs, "request")) == is_stored


# Stored watches that can't be read


def quarantine(desk: Desk, subject: str, headers: dict[str, str] | None = None) -> bool:
    stored = StoredMessage(subject, 9, NOW + 0.5, headers or {}, b"{")
    return run_in_virtual_time(quarantine_unreadable_watch(desk.context, stored, "no JSON"))


WATCH_SUBJECT = NAMES.watch_subject("lab", TASK)


def test_a_watch_that_can_not_be_read_is_rejected_and_given_up(desk: Desk) -> None:
    with capture_logs() as logs:
        assert quarantine(desk, WATCH_SUBJECT, {"Nats-Msg-Id": "w"})
    ((rejection_id, refused, body, headers, known),) = desk.rejections.published
    assert (rejection_id, refused.code, body) == ("watch-1764024000500-9", "invalid_request", b"{")
    assert (headers, known) == ({"Nats-Msg-Id": "w"}, {"vcenter": "lab", "task": TASK})
    assert desk.counted("rejected_total", code="invalid_request") == 1
    assert desk.watches.abandoned == [a_watch(id="w", since=NOW + 0.5)]
    assert desk.journal.leaders == [True]
    assert [log["reason"] for log in told(logs, "watch_unreadable")] == ["no JSON"]


def test_a_watch_that_has_no_id_gets_one_of_its_place(desk: Desk) -> None:
    desk.journal.write(an_event("completed", "succeeded"))
    assert quarantine(desk, WATCH_SUBJECT)
    assert desk.watches.abandoned == [a_watch(id="1764024000500-9", since=NOW + 0.5)]


def test_a_watch_that_has_events_ends_as_they_describe_it(desk: Desk) -> None:
    desk.journal.write(an_event("status", watch=WatchRef("first", "2025-11-24T22:40:00.000Z", None, {"a": "b"})))
    assert quarantine(desk, WATCH_SUBJECT)
    assert desk.watches.abandoned == [a_watch(id="first", labels={"a": "b"})]


def test_a_watch_whose_subject_says_nothing_is_only_rejected(desk: Desk) -> None:
    assert quarantine(desk, f"{NAMES.watches}.lab.a.b")
    assert desk.rejections.published[0][4] is None
    assert not desk.watches.abandoned


def test_a_watch_that_can_not_be_rejected_now_is_kept(desk: Desk) -> None:
    desk.rejections.is_away = True
    with capture_logs() as logs:
        assert not quarantine(desk, WATCH_SUBJECT)
    assert [log["reason"] for log in told(logs, "watch_not_put_aside")] == ["nobody answers"]
    assert not desk.watches.abandoned
