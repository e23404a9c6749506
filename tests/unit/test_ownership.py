"""The watches that a replica holds: what it tells JetStream of each delivery, and when. Over a recorded connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from task_bridge.domain.errors import NatsUnavailable, VCenterUnavailable
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.watch import Watch
from task_bridge.jetstream import ownership as module
from task_bridge.jetstream.ownership import HeldMessage, Ownership, parse_ack_subject
from task_bridge.jetstream.streams import StoredMessage
from task_bridge.jetstream.watch_store import hold_watches
from task_bridge.logs import FailureLog
from task_bridge.metrics import Metrics
from unit.builders import a_watch

NAMES = SubjectNames("vcenter.tasks")


class Recorder:
    """A connection and the streams over it, which write down what is published."""

    def __init__(self) -> None:
        self.connection = self
        self.prefix = "$JS.API"
        self.published: list[tuple[str, bytes]] = []
        self.is_connected, self.is_closed = True, False
        self.unsubscribed = 0
        self.stored: StoredMessage | None = None
        self.read: list[tuple[str, str, bool]] = []
        self.cb: Callable[[Any], Any] | None = None
        self.on_publish: Callable[[str], None] = lambda _: None
        self.sent_commands: list[bytes] = []
        self._flush_queue = None

    def new_inbox(self) -> str:
        return "_INBOX.1"

    async def subscribe(self, _subject: str, cb: Callable[[Any], Any]) -> Recorder:
        self.cb = cb
        return self

    async def unsubscribe(self) -> None:
        self.unsubscribed += 1

    async def publish(self, subject: str, body: bytes, _reply: str = "") -> None:
        self.published.append((subject, body))
        self.on_publish(subject)

    async def _send_command(self, commands: bytes) -> None:
        self.sent_commands.append(commands)
        lines = commands.decode().split("\r\n")
        for command, body in zip(lines[:-1:2], lines[1::2], strict=True):
            name, subject, size = command.split(" ")
            assert (name, int(size)) == ("PUB", len(body))
            await self.publish(subject, body.encode())

    async def read_last(self, stream: str, subject: str, *, leader: bool) -> StoredMessage | None:
        self.read.append((stream, subject, leader))
        return self.stored

    def acks(self) -> list[tuple[int, bytes]]:
        """The acknowledgements by the stream sequence of their messages."""
        replies = [(subject, body) for subject, body in self.published if subject.startswith("$JS.ACK.")]
        return [(parse_ack_subject(subject).sequence, body) for subject, body in replies]

    def pulls(self) -> list[int]:
        return [json.loads(body)["batch"] for subject, body in self.published if ".MSG.NEXT." in subject]


def ack_subject(sequence: int, delivered: int = 1) -> str:
    return f"$JS.ACK.VCENTER_TASKS_WATCHES.bridge.{delivered}.{sequence}.7.1764024000000000000.0"


def message(watch: Watch | bytes, sequence: int, delivered: int = 1) -> Any:
    data = watch if isinstance(watch, bytes) else msgspec.json.encode(watch)
    metadata = SimpleNamespace(
        timestamp=datetime.fromtimestamp(1_764_024_000, UTC), sequence=SimpleNamespace(stream=sequence)
    )
    subject = f"{NAMES.watches_stream}.x"
    return SimpleNamespace(
        data=data, subject=subject, reply=ack_subject(sequence, delivered), headers=None, metadata=metadata
    )


class Bench:
    def __init__(self, capacity: int = 100, ack_wait_s: float = 30.0) -> None:
        self.nats = Recorder()
        self.metrics = Metrics()
        self.ack_wait_s = ack_wait_s
        self.taken: list[tuple[Watch, HeldMessage]] = []
        self.outcome: str | None = "accepted"
        self.error: Exception | None = None
        self.quarantined: list[StoredMessage] = []
        self.can_quarantine = True
        self.reported: list[tuple[str, str]] = []
        self.ownership = Ownership(
            self.nats,  # type: ignore[arg-type]
            hold_watches(NAMES),
            self.metrics,
            capacity=capacity,
            ack_wait_s=lambda: self.ack_wait_s,
            take_over=self.take_over,
            report_outcome=self.report_outcome,
            quarantine=self.quarantine,
            failures=FailureLog(structlog.get_logger(), "watches_not_taken_up", "watches_taken_up_again"),
        )

    async def take_over(self, watch: Watch, handle: HeldMessage) -> str | None:
        self.taken.append((watch, handle))
        if self.error is not None:
            raise self.error
        return self.outcome

    def report_outcome(self, watch: Watch, outcome: str) -> None:
        self.reported.append((watch.id, outcome))

    async def quarantine(self, stored: StoredMessage, reason: str) -> bool:
        assert reason
        self.quarantined.append(stored)
        return self.can_quarantine

    async def deliver(self, watch: Watch | bytes, sequence: int, delivered: int = 1) -> HeldMessage | None:
        before = len(self.taken)
        await self.ownership._on_message(message(watch, sequence, delivered))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.taken[-1][1] if len(self.taken) > before else None

    async def hold(self, count: int) -> list[HeldMessage]:
        handles = [await self.deliver(a_watch(task=f"{number}:p"), number + 1) for number in range(count)]
        return [handle for handle in handles if handle is not None]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"task_bridge_{name}", labels) or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.ownership.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not fact():  # noqa: ASYNC110 - lists don't wake anybody
                await asyncio.sleep(0.005)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_ack_subject_names_the_delivery_the_message_and_its_time() -> None:
    for prefix in ("$JS.ACK", "$JS.ACK.domain.account"):  # the newer form has both
        parsed = parse_ack_subject(f"{prefix}.STREAM.bridge.3.42.7.1764024000000000000.9")
        assert parsed == (3, 42, 1764024000000000000)


async def test_a_delivered_watch_is_held_until_it_is_acked(bench: Bench) -> None:
    handle = await bench.deliver(a_watch(), 42)
    assert handle is not None
    assert (bench.ownership.held_count, handle.is_redelivered, bench.counted("takeovers_total")) == (1, False, 0)
    await handle.ack()
    assert bench.ownership.held_count == 0
    assert bench.nats.acks() == [(42, b"+ACK")]


async def test_a_status_of_the_pull_is_no_watch(bench: Bench) -> None:
    status: Any = SimpleNamespace(headers={"Status": "100"}, reply="", data=b"", subject="_INBOX.1")
    await bench.ownership._on_message(status)
    await asyncio.sleep(0)
    assert (bench.quarantined, bench.taken, bench.ownership.held_count) == ([], [], 0)


@pytest.mark.parametrize(("delivered", "is_redelivered"), [(1, False), (2, True), (9, True)])
async def test_a_redelivered_watch_is_a_takeover_unless_it_was_held(
    bench: Bench, delivered: int, is_redelivered: bool
) -> None:
    handle = await bench.deliver(a_watch(), 42, delivered)
    assert handle is not None
    assert handle.is_redelivered is is_redelivered
    assert bench.counted("takeovers_total") == is_redelivered
    await bench.deliver(a_watch(), 42, delivered + 1)
    assert (bench.ownership.held_count, bench.counted("takeovers_total")) == (1, is_redelivered)


async def test_only_the_newest_delivery_is_held_and_an_older_handle_drops_nothing(bench: Bench) -> None:
    old, new = await bench.deliver(a_watch(), 42), await bench.deliver(a_watch(), 42, 2)
    assert old is not None
    assert new is not None
    old.drop()
    assert bench.ownership.held_count == 1
    new.drop()
    assert bench.ownership.held_count == 0
    assert bench.nats.acks() == []


async def test_what_jetstream_did_not_deliver_is_not_held(bench: Bench) -> None:
    stray = message(a_watch(), 42)
    stray.reply = ""  # its heartbeats would cost the connection
    with pytest.raises(ValueError, match="not enough values"):
        await bench.ownership._on_message(stray)
    assert bench.ownership.held_count == 0


@pytest.mark.parametrize("held", [False, True])
async def test_a_watch_that_belongs_elsewhere_is_handed_on_unless_it_is_held(bench: Bench, held: bool) -> None:
    if held:
        await bench.deliver(a_watch(), 42)
    bench.ownership.belongs_elsewhere = lambda vcenter: vcenter == "lab"
    taken = await bench.deliver(a_watch(), 42, 2)
    assert (taken is not None) is held
    assert bench.ownership.held_count == held
    assert bench.nats.acks() == ([] if held else [(42, b'-NAK{"delay": 200000000}')])


@pytest.mark.parametrize(
    ("outcome", "delivered", "reported"),
    [("accepted", 1, ["accepted"]), ("accepted", 2, []), (None, 1, [])],
    ids=["first", "redelivered", "already over"],
)
async def test_an_outcome_is_reported_when_a_watch_is_first_taken_up(
    bench: Bench, outcome: str | None, delivered: int, reported: list[str]
) -> None:
    bench.outcome = outcome
    watch = a_watch()
    await bench.deliver(watch, 42, delivered)
    assert bench.reported == [(watch.id, one) for one in reported]


@pytest.mark.parametrize("error", [NatsUnavailable("away"), VCenterUnavailable("away")])
async def test_a_watch_that_cannot_be_taken_up_is_let_go_without_a_word_and_logged_once(
    bench: Bench, error: Exception
) -> None:
    bench.error = error
    with capture_logs() as logs:
        for sequence in (1, 2):
            await bench.deliver(a_watch(task=f"{sequence}:p"), sequence)
        assert (bench.ownership.held_count, bench.nats.acks()) == (0, [])
        bench.error = None
        await bench.deliver(a_watch(task="1:p"), 1, 2)
    assert [line["event"] for line in logs] == ["watches_not_taken_up", "watches_taken_up_again"]
    assert (logs[0]["vcenter"], logs[0]["task"], logs[0]["reason"]) == ("lab", "1:p", "away")
    assert bench.ownership.held_count == 1


async def test_a_message_that_is_no_watch_is_quarantined_and_removed(bench: Bench) -> None:
    await bench.deliver(b"{", 42)
    assert (bench.ownership.held_count, bench.nats.acks()) == (0, [(42, b"+TERM")])
    (stored,) = bench.quarantined
    assert (stored.sequence, stored.stored_at, stored.headers, stored.body) == (42, 1_764_024_000, {}, b"{")
    assert not bench.ownership._tasks


async def test_a_message_that_cannot_be_quarantined_stays(bench: Bench) -> None:
    bench.can_quarantine = False
    await bench.deliver(b'{"id": 1}', 42)
    assert bench.nats.acks() == []


@pytest.mark.parametrize(("sequence", "is_current"), [(42, True), (43, False), (None, False)])
async def test_a_delivery_is_current_while_its_message_is_the_subject_s_last(
    bench: Bench, sequence: int | None, is_current: bool
) -> None:
    handle = await bench.deliver(a_watch(), 42)
    assert handle is not None
    if sequence is not None:
        bench.nats.stored = StoredMessage("x", sequence, 0.0, {}, b"")
    assert await handle.is_current() is is_current
    assert bench.nats.read == [(NAMES.watches_stream, NAMES.watch_subject("lab", handle.key[1]), True)]


class TestHandingBack:
    @pytest.mark.parametrize(
        ("surplus", "count"), [(1, 1), (49, 49), (50, 50), (51, 50), (200, 50), (204, 51), (400, 100)]
    )
    async def test_a_quarter_of_the_surplus_but_fifty_at_least_goes_back_at_once(
        self, bench: Bench, surplus: int, count: int
    ) -> None:
        requested: list[int] = []
        await bench.hold(3)

        def release(at_most: int) -> list[tuple[str, str]]:
            requested.append(at_most)
            return [("lab", "0:p"), ("lab", "2:p"), ("lab", "unknown")]

        assert await bench.ownership.hand_back_surplus(surplus, release)
        assert requested == [count]
        assert bench.nats.acks() == [(1, b"-NAK"), (3, b"-NAK")]
        assert bench.ownership.held_count == 1

    async def test_without_a_surplus_nothing_goes_back(self, bench: Bench) -> None:
        await bench.hold(1)
        assert not await bench.ownership.hand_back_surplus(0, lambda _: [("lab", "0:p")])
        assert bench.ownership.held_count == 1

    async def test_while_a_pull_is_open_nothing_goes_back_and_none_is_sent_until_the_surplus_is_over(
        self, bench: Bench
    ) -> None:
        def release(_: int) -> list[tuple[str, str]]:
            return [("lab", "0:p")]

        async with bench.running():
            await bench.until(bench.nats.pulls)
            await bench.hold(1)
            assert not await bench.ownership.hand_back_surplus(7, release)
            assert bench.ownership.held_count == 1
            bench.ownership.pull.reset()  # the request expired
            await asyncio.sleep(0.02)
            assert bench.nats.pulls() == [100]
            assert await bench.ownership.hand_back_surplus(7, release)
            await asyncio.sleep(0.02)
            assert bench.nats.pulls() == [100]
            await bench.ownership.hand_back_surplus(0, release)
            await bench.until(lambda: bench.nats.pulls() == [100, 100])

    async def test_the_pull_is_woken_once_when_a_surplus_is_over(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        woken: list[int] = []
        monkeypatch.setattr(bench.ownership.pull, "request_more", lambda: woken.append(len(surpluses)))
        surpluses: list[int] = []
        for surplus in (0, 7, 7, 0, 0, 3):
            surpluses.append(surplus)
            await bench.ownership.hand_back_surplus(surplus, lambda _: [])
        assert woken == [4]

    async def test_at_the_end_all_go_back(self, bench: Bench) -> None:
        await bench.hold(3)
        await bench.ownership.hand_all_back()
        assert bench.nats.acks() == [(1, b"-NAK"), (2, b"-NAK"), (3, b"-NAK")]
        assert bench.ownership.held_count == 0


class TestPulling:
    @pytest.mark.parametrize(("capacity", "requested"), [(3, 3), (5_000, 5_000), (50_000, 5_000)])
    async def test_free_capacity_is_requested_up_to_a_bound(self, capacity: int, requested: int) -> None:
        bench = Bench(capacity)
        async with bench.running():
            await bench.until(bench.nats.pulls)
        assert bench.nats.pulls() == [requested]

    async def test_a_watch_that_is_dropped_makes_room_at_once(self) -> None:
        bench = Bench(capacity=1)
        (handle,) = await bench.hold(1)
        async with bench.running():
            await asyncio.sleep(0.02)
            assert bench.nats.pulls() == []
            handle.drop()
            await bench.until(lambda: bench.nats.pulls() == [1])

    @pytest.mark.parametrize("closed", [False, True])
    async def test_at_the_end_it_unsubscribes_while_the_connection_is_open(self, bench: Bench, closed: bool) -> None:
        async with bench.running():
            await bench.until(bench.nats.pulls)
            bench.nats.is_closed = closed
        assert bench.nats.unsubscribed == (not closed)

    async def test_at_the_end_work_that_is_under_way_is_canceled(self, bench: Bench) -> None:
        started, canceled = asyncio.Event(), asyncio.Event()

        async def take_over(_watch: Watch, _handle: HeldMessage) -> str | None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                canceled.set()
            return None

        bench.ownership._take_over = take_over
        async with bench.running():
            await bench.ownership._on_message(message(a_watch(), 1))
            await started.wait()
        async with asyncio.timeout(5):
            await canceled.wait()

    async def test_the_status_of_a_pull_is_no_watch(self, bench: Bench) -> None:
        status = message(b"", 1)
        status.reply, status.headers = "", {"Status": "100"}
        with capture_logs() as logs:
            await bench.ownership._on_message(status)
        assert (logs, bench.ownership.held_count) == ([], 0)


class TestHeartbeats:
    async def test_every_held_watch_gets_one_three_times_per_ack_wait(self) -> None:
        bench = Bench(ack_wait_s=0.3)
        loop, at = asyncio.get_running_loop(), list[float]()
        await bench.hold(2)
        bench.nats.on_publish = lambda subject: at.append(loop.time()) if ".1.2." in subject else None
        began = loop.time()
        async with bench.running():
            await bench.until(lambda: len(at) >= 3)
        assert {body for _, body in bench.nats.acks()} == {b"+WPI"}
        assert {sequence for sequence, _ in bench.nats.acks()} == {1, 2}
        assert at[0] - began >= 0.099
        assert at[2] - began >= 0.299

    async def test_the_time_of_the_next_round_is_a_third_of_ack_wait_from_now(self) -> None:
        bench, times = Bench(ack_wait_s=30.0), iter([100.0, 110.0])
        assert await bench.ownership._sleep_until_heartbeat(lambda: next(times)) == 110.0

    async def test_without_a_connection_none_is_sent_and_then_they_go_on(self) -> None:
        bench = Bench(ack_wait_s=0.06)
        await bench.hold(2)
        bench.nats.is_connected = False
        async with bench.running():
            await asyncio.sleep(0.1)
            assert bench.nats.acks() == []
            bench.nats.is_connected = True
            await bench.until(lambda: len(bench.nats.acks()) >= 2)

    async def test_a_connection_that_is_lost_meanwhile_ends_the_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CHUNK", 1)
        bench = Bench(ack_wait_s=0.06)
        await bench.hold(5)

        def lose(subject: str) -> None:
            bench.nats.is_connected = not subject.startswith("$JS.ACK.")

        bench.nats.on_publish = lose
        async with bench.running():
            await bench.until(bench.nats.acks)
            await asyncio.sleep(0.05)
        assert len(bench.nats.acks()) == 1

    async def test_a_changed_ack_wait_applies_soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_RECHECK_S", 0.02)
        bench = Bench(ack_wait_s=600.0)
        await bench.hold(1)
        async with bench.running():
            await asyncio.sleep(0.05)
            assert bench.nats.acks() == []
            bench.ack_wait_s = 900.0
            await bench.until(bench.nats.acks)
            await asyncio.sleep(0.1)
            assert len(bench.nats.acks()) == 1

    async def test_a_round_of_many_lets_others_run_in_between(self) -> None:
        bench = Bench(capacity=5_000, ack_wait_s=0.3)
        for number in range(1_200):
            key = ("lab", str(number))
            bench.ownership._handles[key] = HeldMessage(bench.ownership, key, ack_subject(number + 1))
        turns: list[int] = []

        async def count() -> None:
            while True:
                await asyncio.sleep(0)
                turns.append(len(bench.nats.acks()))

        counting = asyncio.create_task(count())
        async with bench.running():
            await bench.until(lambda: len(bench.nats.acks()) >= 1_200)
        counting.cancel()
        assert {500, 1_000} <= set(turns)
        assert [commands.count(b"+WPI") for commands in bench.nats.sent_commands[:3]] == [500, 500, 200]

    async def test_their_lag_is_reported(self) -> None:
        bench = Bench(ack_wait_s=0.06)
        await bench.hold(1)
        async with bench.running():
            await bench.until(lambda: len(bench.nats.acks()) >= 2)
        assert 0 <= bench.counted("heartbeat_lag_seconds") < 5
