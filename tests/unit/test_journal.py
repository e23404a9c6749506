"""What the journal publishes, when it tries again, and what it makes of each answer. Over a fenced list in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
import pytest
from structlog.testing import capture_logs

from task_bridge.domain.durations import rfc3339
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.events import INLINE_MAX_BYTES, Event, EventData, WatchRef, to_cloudevent
from task_bridge.domain.ports import MemoryLost
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.task import UNAVAILABLE, Result
from task_bridge.domain.watch import Draft
from task_bridge.jetstream.infos import StreamReport, StreamState
from task_bridge.jetstream.journal import JetStreamJournal
from task_bridge.jetstream.lost_memories import LostMemories
from task_bridge.jetstream.streams import PubAck, StoredMessage
from task_bridge.metrics import Metrics
from unit.builders import NOW, TASK, a_watch, an_event
from virtual_time import run_in_virtual_time

NAMES = SubjectNames("vcenter.tasks")
FILTER = NAMES.event_filter("lab", TASK)
AWAY = NatsUnavailable("nobody answers")
MAX_PAYLOAD = 1024 * 1024
Answer = PubAck | Exception | Callable[[], PubAck]


class FakeStreams:
    """The events stream as a list, its bucket as a dict, and the connection to both. Faults are used up in order."""

    def __init__(self) -> None:
        self.connection = self.js = self
        self.max_payload = MAX_PAYLOAD
        self.messages: list[StoredMessage] = []
        self.answers: list[Answer] = []
        self.read_faults: list[Exception] = []
        self.report_faults: list[Exception] = []
        self.put_faults: list[Exception] = []
        self.report = StreamReport(StreamState(messages=1, first_seq=1), "2025-11-01T00:00:00Z", "2025-11-24T22:40:09Z")
        self.published: list[tuple[float, dict[str, str]]] = []
        self.subjects: list[str] = []
        self.bodies: list[bytes] = []
        self.reads: list[tuple[float, bool]] = []
        self.pages: list[tuple[str, int]] = []
        self.page_messages = 1000
        self.objects: dict[str, tuple[bytes, Any]] = {}
        self.put_at: list[float] = []

    def write(self, event: Event, instance: str = "another", *, sequence: int | None = None, body: bytes = b"") -> int:
        """An event of another writer."""
        data = event.data
        headers = {
            "Bridge-Instance": instance,
            "Bridge-Watch": data.watch.id,
            "Bridge-Sequence": str(data.sequence),
            "Bridge-Kind": event.kind,
        }
        number = sequence or len(self.messages) + 1
        self.messages.append(StoredMessage(FILTER, number, NOW, headers, body or to_cloudevent(event)))
        return number

    async def publish(self, stream: str, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        assert stream == NAMES.events_stream
        self.published.append((asyncio.get_running_loop().time(), headers))
        self.subjects.append(subject)
        self.bodies.append(body)
        answer = self.answers.pop(0) if self.answers else self.store
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, PubAck) else answer()

    def store(self) -> PubAck:
        """Store what was published last."""
        headers = self.published[-1][1]
        self.messages.append(StoredMessage(FILTER, len(self.messages) + 1, NOW, headers, self.bodies[-1]))
        return PubAck(len(self.messages))

    def store_and_lose_the_answer(self) -> PubAck:
        self.store()
        raise AWAY

    async def read_last(self, stream: str, subject: str, *, leader: bool = False) -> StoredMessage | None:
        assert (stream, subject) == (NAMES.events_stream, FILTER)
        self.reads.append((asyncio.get_running_loop().time(), leader))
        if self.read_faults:
            raise self.read_faults.pop(0)
        return self.messages[-1] if self.messages else None

    async def read_page(self, stream: str, subject: str, after: int, limit: int) -> tuple[list[StoredMessage], int]:
        assert (stream, subject) == (NAMES.events_stream, FILTER)
        self.pages.append((stream, after))
        later = [one for one in self.messages if one.sequence > after]
        page = later[: min(limit, self.page_messages)]
        return page, len(later) - len(page)

    async def read_report(self, stream: str) -> StreamReport:
        assert stream == NAMES.events_stream
        if self.report_faults:
            raise self.report_faults.pop(0)
        return self.report

    async def object_store(self, bucket: str) -> FakeStreams:
        assert bucket == NAMES.results_bucket
        return self

    async def put(self, name: str, body: bytes, meta: Any) -> None:
        self.put_at.append(asyncio.get_running_loop().time())
        if self.put_faults:
            raise self.put_faults.pop(0)
        self.objects[name] = body, meta


class Desk:
    """A journal over a stream in memory, and what it counted."""

    def __init__(self) -> None:
        self.streams = FakeStreams()
        self.metrics = Metrics()
        self.lost_memories = LostMemories(self.metrics, NAMES.events_stream)
        self.journal = JetStreamJournal(
            self.streams,  # type: ignore[arg-type]
            NAMES,
            self.metrics,
            lambda: NOW + 1,
            lost_memories=self.lost_memories,
            instance="mine",
        )

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"task_bridge_{name}", labels) or 0.0

    def events_counted(self) -> float:
        return self.counted("events_total", vcenter="lab", kind="status", outcome="")

    def append(self, event: Event, after: int = 0, *, result: Result | None = None, memory_lost: bool = False) -> Any:
        return run_in_virtual_time(self.journal.append(Draft(event, result), after, memory_lost=memory_lost))

    @property
    def published_at(self) -> list[float]:
        return [at for at, _ in self.streams.published]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def a_status(number: int = 1, **fields: Any) -> Event:
    return an_event("status", sequence=number, status="RUNNING", **fields)


# Behind the fence


def test_an_event_is_published_with_its_fence_and_its_place(desk: Desk) -> None:
    entry = desk.append(a_status(3), after=7)
    ((_, headers),) = desk.streams.published
    assert headers == {
        "Content-Type": "application/cloudevents+json",
        "Nats-Msg-Id": "1764024000000-42/3",
        "Nats-Expected-Last-Subject-Sequence": "7",
        "Nats-Expected-Last-Subject-Sequence-Subject": FILTER,
        "Bridge-Instance": "mine",
        "Bridge-Watch": "1764024000000-42",
        "Bridge-Sequence": "3",
        "Bridge-Kind": "status",
    }
    assert desk.streams.subjects == [NAMES.put_subject("lab", TASK, "status")]
    assert (entry.sequence, entry.stored_at, entry.instance) == (1, NOW + 1, "mine")
    assert entry.body == desk.streams.bodies[0] == to_cloudevent(a_status(3))
    assert desk.events_counted() == 1
    assert desk.counted("publish_seconds_count") == 1
    assert desk.counted("publish_seconds_sum") < 60
    assert desk.counted("publish_retries_total") == desk.counted("lost_memories_total") == 0


def test_a_reported_standstill_is_a_header(desk: Desk) -> None:
    entry = desk.append(a_status(stalled_reported=True))
    assert desk.streams.published[0][1]["Bridge-Stalled"] == "1"
    last = run_in_virtual_time(desk.journal.read_last("lab", TASK, leader=True))
    assert last is not None
    assert last.event.stalled_reported
    assert last.event == entry.event


def test_a_publish_without_an_answer_is_tried_again_after_longer_and_longer_pauses(desk: Desk) -> None:
    desk.streams.answers = [AWAY] * 7
    entry = desk.append(a_status())
    pauses = [after - before for before, after in zip(desk.published_at, desk.published_at[1:], strict=False)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert entry.sequence == 1
    assert desk.counted("publish_retries_total") == 7
    assert desk.events_counted() == desk.counted("publish_seconds_count") == 1


@pytest.mark.parametrize("asked", ["answers", "read_faults", "report_faults"])
def test_a_stream_that_does_not_answer_for_long_is_told_once_for_the_event(desk: Desk, asked: str) -> None:
    desk.streams.answers = [AWAY]
    setattr(desk.streams, asked, [AWAY] * 7)
    with capture_logs() as logs:
        desk.append(a_status(), memory_lost=True)
    told = [(log["vcenter"], log["task"], log["reason"]) for log in logs if log["event"] == "event_not_stored_yet"]
    assert told == [("lab", TASK, "nobody answers")]


def test_the_leader_is_asked_until_it_answers(desk: Desk) -> None:
    desk.streams.answers = [AWAY]
    desk.streams.read_faults = [AWAY] * 3
    desk.append(a_status())
    assert desk.streams.reads == [(0.0, True), (0.25, True), (0.75, True), (1.75, True)]
    assert desk.published_at == [0.0, 2.0]


def test_an_event_whose_answer_was_lost_counts_as_stored_once(desk: Desk) -> None:
    desk.streams.answers = [desk.streams.store_and_lose_the_answer]
    entry = desk.append(a_status())
    assert (entry.sequence, entry.instance, entry.event.id) == (1, "mine", a_status().id)
    assert len(desk.streams.published) == 1
    assert (desk.events_counted(), desk.counted("fenced_total")) == (1, 0)


def test_another_writer_s_event_is_returned_and_counted_as_fenced(desk: Desk) -> None:
    desk.streams.write(a_status(1), "another")
    desk.streams.answers = [AWAY]
    entry = desk.append(a_status(1))
    assert entry.instance == "another"
    assert (desk.events_counted(), desk.counted("fenced_total")) == (0, 1)


def test_another_event_of_this_replica_is_fenced_too(desk: Desk) -> None:
    desk.streams.write(an_event("abandoned", "unwatched", sequence=1, watch=WatchRef("another-watch", "x")), "mine")
    desk.streams.answers = [AWAY]
    entry = desk.append(a_status(1))
    assert entry.event.data.watch.id == "another-watch"
    assert (desk.events_counted(), desk.counted("fenced_total")) == (0, 1)


@pytest.mark.parametrize(
    ("number", "watch", "is_answer"),
    [
        (2, "1764024000000-42", True),  # this number is taken
        (3, "1764024000000-42", True),
        (1, "1764024000000-42", False),
        (3, "another-watch", False),
    ],
)
def test_in_a_recreated_stream_the_number_of_the_watch_s_last_event_decides(
    desk: Desk, number: int, watch: str, is_answer: bool
) -> None:
    desk.streams.write(a_status(number, watch=WatchRef(watch, "2025-11-24T22:40:00.000Z")), sequence=7)
    desk.streams.answers = [AWAY]
    entry = desk.append(a_status(2), after=7)
    assert (entry.instance == "another") is is_answer


# Lost memories


@pytest.mark.parametrize("sequence", [0, 3])
def test_an_event_before_that_has_gone_is_lost_memory(desk: Desk, sequence: int) -> None:
    if sequence:
        desk.streams.write(a_status(1, watch=WatchRef("w", "x")), sequence=sequence)
    desk.streams.answers = [AWAY]
    with pytest.raises(MemoryLost) as lost:
        desk.append(a_status(2), after=4)
    assert lost.value.sequence == sequence
    assert len(desk.streams.published) == 1


def test_an_id_that_jetstream_knows_twice_was_used(desk: Desk) -> None:
    desk.streams.answers = [PubAck(9, duplicate=True)] * 2
    with pytest.raises(MemoryLost) as lost:
        desk.append(a_status(2))
    assert lost.value.sequence == 0
    assert desk.published_at == [0.0, 0.25]


@pytest.mark.parametrize("memory_lost", [False, True])
def test_an_event_without_an_answer_may_have_been_stored_in_a_stream_that_was_deleted_since(
    desk: Desk, memory_lost: bool
) -> None:
    def vanish() -> PubAck:
        desk.streams.report = StreamReport(StreamState(), rfc3339(NOW + 2), rfc3339(NOW + 3))
        raise AWAY

    desk.streams.answers = [vanish]
    with pytest.raises(MemoryLost) as lost:
        desk.append(a_status(1), memory_lost=memory_lost)
    assert lost.value.sequence == 0


def test_a_restated_event_without_an_answer_keeps_its_number_while_others_go(desk: Desk) -> None:
    def evict() -> PubAck:
        state = StreamState(messages=1, first_seq=9, first_ts=rfc3339(NOW + 5), last_seq=9, last_ts=rfc3339(NOW + 5))
        desk.streams.report = StreamReport(state, rfc3339(NOW - 9), rfc3339(NOW + 6))
        raise AWAY

    desk.streams.answers = [evict]
    desk.append(a_status(1), memory_lost=True)
    assert len({headers["Nats-Msg-Id"] for _, headers, *_ in desk.streams.published}) == 1
    assert len(desk.streams.published) == 2


def test_a_first_event_is_not_tried_again_before_it_is_known_whether_the_stream_was_deleted(desk: Desk) -> None:
    desk.streams.report = StreamReport(StreamState(), rfc3339(NOW + 2), rfc3339(NOW + 3))
    desk.streams.answers, desk.streams.report_faults = [AWAY], [AWAY] * 2
    with pytest.raises(MemoryLost):
        desk.append(a_status(1))
    assert len(desk.streams.published) == 1


def test_one_duplicate_that_a_refusal_left_behind_is_no_loss(desk: Desk) -> None:
    desk.streams.answers = [PubAck(9, duplicate=True)]
    assert desk.append(a_status(2)).event.data.sequence == 2
    assert desk.events_counted() == 1


def test_unanswered_publishes_are_no_duplicates(desk: Desk) -> None:
    desk.streams.answers = [AWAY, AWAY, AWAY]
    assert desk.append(a_status(2)).event.data.sequence == 2


def test_after_a_loss_the_number_is_the_server_s_time(desk: Desk) -> None:
    desk.streams.report_faults = [AWAY, AWAY]
    entry = desk.append(a_status(2), memory_lost=True)
    assert entry.event.data.sequence == 1_764_024_009_000
    assert desk.published_at == [0.75]
    assert desk.streams.published[0][1]["Bridge-Sequence"] == "1764024009000"
    assert desk.counted("lost_memories_total") == desk.events_counted() == 1
    assert "1 watch" in (desk.lost_memories.reason or "")


def test_without_the_server_s_time_the_number_is_ours(desk: Desk) -> None:
    desk.streams.report = StreamReport(StreamState(), "", "")
    assert desk.append(a_status(2), memory_lost=True).event.data.sequence == int((NOW + 1) * 1000)


def test_a_renumbered_event_that_another_replica_stored_first_is_adopted(desk: Desk) -> None:
    """Both number by time, so only the number before tells that the watch has gone on."""
    desk.streams.write(a_status(1_764_024_005_000), sequence=3)
    desk.streams.answers = [AWAY]
    entry = desk.append(a_status(2), after=3, memory_lost=True)
    assert entry.instance == "another"
    assert desk.counted("lost_memories_total") == 0


def test_a_watch_s_memory_is_its_newest_event_on_any_page(desk: Desk) -> None:
    other = WatchRef("another-watch", "2025-11-24T22:40:00.000Z")
    desk.streams.page_messages = 2
    for number in (1, 2, 3):
        desk.streams.write(a_status(number))
    for number in (1, 2, 3):
        desk.streams.write(a_status(number, watch=other))
    memory = run_in_virtual_time(desk.journal.read_memory(a_watch()))
    assert memory.last is not None
    assert (memory.last.event.data.sequence, memory.last.sequence, memory.lost) == (3, 3, False)
    assert [after for _, after in desk.streams.pages] == [0, 2, 4]


@pytest.mark.parametrize(("since", "is_lost"), [(NOW - 30 * 86_400.0, True), (NOW, False)])
def test_whether_memory_was_lost_is_read_from_the_stream(desk: Desk, since: float, is_lost: bool) -> None:
    memory = run_in_virtual_time(desk.journal.read_memory(a_watch(since=since)))
    assert (memory.last, memory.lost) == (None, is_lost)


def test_a_page_that_ends_empty_ends_the_search(desk: Desk) -> None:
    desk.streams.page_messages = 0
    desk.streams.write(a_status(1))
    assert run_in_virtual_time(desk.journal.read_memory(a_watch())).last is None
    assert len(desk.streams.pages) == 1


def test_the_last_event_comes_from_any_replica_of_the_stream_unless_the_leader_is_asked_for(desk: Desk) -> None:
    desk.streams.write(a_status(1))
    assert run_in_virtual_time(desk.journal.read_last("lab", TASK)) is not None
    assert run_in_virtual_time(desk.journal.read_last("lab", TASK, leader=True)) is not None
    assert [leader for _, leader in desk.streams.reads] == [False, True]


# Events that can't be read


def read_unreadable(desk: Desk, headers: dict[str, str]) -> EventData:
    desk.streams.messages.append(StoredMessage(FILTER, 5, NOW + 3, headers, b"{"))
    last = run_in_virtual_time(desk.journal.read_last("lab", TASK))
    assert last is not None
    assert (last.sequence, last.stored_at, last.event.time, last.body) == (5, NOW + 3, NOW + 3, b"{")
    assert last.instance == headers.get("Bridge-Instance", "")
    assert (last.event.data.vcenter, last.event.data.task) == ("lab", TASK)
    return last.event.data


def test_an_event_that_can_not_be_read_is_what_its_headers_say(desk: Desk) -> None:
    headers = {"Bridge-Watch": "w", "Bridge-Kind": "completed.failed", "Bridge-Sequence": "4", "Bridge-Instance": "i"}
    data = read_unreadable(desk, headers)
    assert (data.watch.id, data.kind, data.outcome, data.final, data.sequence) == ("w", "completed", "failed", True, 4)


def test_an_event_without_headers_is_a_status_of_no_watch(desk: Desk) -> None:
    data = read_unreadable(desk, {})
    assert (data.watch.id, data.kind, data.outcome, data.final, data.sequence) == ("", "status", None, False, 0)


@pytest.mark.parametrize("number", ["", "x", "-1", "²", "٣"])
def test_a_number_that_is_none_counts_as_zero(desk: Desk, number: str) -> None:
    assert read_unreadable(desk, {"Bridge-Sequence": number}).sequence == 0


# Results


def succeeded(**fields: Any) -> Event:
    return an_event("completed", "succeeded", sequence=2, status="SUCCEEDED", **fields)


def json_of(size: int) -> Result:
    return Result(b'"' + b"x" * (size - 2) + b'"')


def test_a_result_goes_into_the_event_up_to_the_limit(desk: Desk) -> None:
    result = json_of(INLINE_MAX_BYTES)
    data = desk.append(succeeded(), result=result).event.data
    assert (data.result_state, bytes(data.result)) == ("inline", result.json)
    assert desk.counted("events_total", vcenter="lab", kind="completed", outcome="succeeded") == 1
    assert not desk.streams.objects


@pytest.mark.parametrize(("result", "state"), [(Result(b""), "none"), (UNAVAILABLE, "unavailable"), (None, "none")])
def test_a_result_without_json_needs_no_room(desk: Desk, result: Result | None, state: str) -> None:
    assert desk.append(succeeded(), result=result).event.data.result_state == state
    assert not desk.streams.put_at


def free_bytes(desk: Desk, event: Event) -> int:
    """The room for a result: a message holds the event, its headers, and, in a reply, the watch a second time."""
    return desk.streams.max_payload - 4096 - len(msgspec.json.encode(event.data.watch)) - len(to_cloudevent(event))


@pytest.mark.parametrize(("more", "state"), [(0, "inline"), (1, "stored")])
def test_a_result_that_its_message_can_not_carry_is_stored_beside_it(desk: Desk, more: int, state: str) -> None:
    desk.streams.max_payload = 64 * 1024
    event = succeeded()
    result = json_of(free_bytes(desk, event) + more)
    assert desk.append(event, result=result).event.data.result_state == state


def test_a_large_result_is_stored_under_a_name_with_its_digest(desk: Desk) -> None:
    result = json_of(INLINE_MAX_BYTES + 1)
    data = desk.append(succeeded(), result=result).event.data
    ((name, (body, meta)),) = desk.streams.objects.items()
    ref = data.result_ref
    assert ref is not None
    assert (data.result_state, ref.name, ref.bucket, ref.size) == (
        "stored",
        name,
        NAMES.results_bucket,
        len(result.json),
    )
    assert name == f"1764024000000-42/2-{ref.sha256[:16]}"
    assert (body, meta.name, meta.options.max_chunk_size) == (result.json, name, 128 * 1024)


def test_chunks_of_a_result_are_no_larger_than_a_message_may_be(desk: Desk) -> None:
    desk.streams.max_payload = 64 * 1024
    desk.append(succeeded(), result=json_of(INLINE_MAX_BYTES + 1))
    ((_, meta),) = desk.streams.objects.values()
    assert meta.options.max_chunk_size == 64 * 1024


@pytest.mark.parametrize(
    "fault", [nats.errors.TimeoutError(), nats.errors.NoRespondersError(), nats.js.errors.NoStreamResponseError()]
)
def test_a_result_is_stored_once_somebody_answers(desk: Desk, fault: Exception) -> None:
    desk.streams.put_faults = [fault] * 2
    data = desk.append(succeeded(), result=json_of(INLINE_MAX_BYTES + 1)).event.data
    assert data.result_state == "stored"
    assert desk.streams.put_at == pytest.approx([desk.streams.put_at[0] + tried * 0.25 for tried in range(3)])


@pytest.mark.parametrize(
    ("faults", "within_s"),
    [
        ([nats.errors.NoRespondersError()] * 1_000, 30.0),
        ([OSError("broken pipe")], 0.0),
        ([nats.js.errors.APIError(err_code=10047, description="full")], 0.0),
    ],
)
def test_the_event_of_a_result_that_can_not_be_stored_says_so(
    desk: Desk, faults: list[Exception], within_s: float
) -> None:
    desk.streams.put_faults = list(faults)
    result = json_of(INLINE_MAX_BYTES + 1)
    with capture_logs() as logs:
        data = desk.append(succeeded(), result=result).event.data
    assert (data.result_state, data.result_ref) == ("unavailable", None)
    assert desk.published_at[0] == pytest.approx(within_s, abs=0.3)
    ((task, size, reason),) = [(log["task"], log["bytes"], log["reason"]) for log in logs if "cure" in log]
    assert (task, size) == (TASK, len(result.json))
    assert reason


def test_an_event_that_its_message_can_not_carry_is_cut(desk: Desk) -> None:
    desk.streams.max_payload = 64 * 1024
    event = succeeded(extra={"x": ""})
    room = free_bytes(desk, event)
    for more in (0, 1):
        desk.append(succeeded(extra={"x": "y" * (room + more)}), after=more)
    extras = [json.loads(body)["data"]["extra"] is None for body in desk.streams.bodies]
    assert extras == [False, True]
