"""Which requests start a watch, and how a watch ends that no replica holds. Over a stream in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from task_bridge.domain.durations import rfc3339
from task_bridge.domain.errors import NatsUnavailable, Refused, VCenterUnavailable
from task_bridge.domain.events import WatchRef
from task_bridge.domain.ports import Memory, MemoryLost
from task_bridge.domain.requests import WatchRequest, parse_request
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.task import TaskIdentity
from task_bridge.domain.watch import Draft, Watch
from task_bridge.jetstream.streams import PubAck, StoredMessage, StoreRefused
from task_bridge.jetstream.watch_store import (
    AlreadyEnded,
    WatchStore,
    build_watch,
    decode_watch,
    end_timed_out_watches,
    rebuild_watch,
)
from unit.builders import NOW, POLICY, TASK, a_watch, an_event
from unit.fakes import Entry, FakeSource, RecordingJournal
from virtual_time import run_in_virtual_time

NAMES = SubjectNames("vcenter.tasks")
TAKEN = StoreRefused(10077, "maximum messages per subject exceeded")
OTHER = WatchRef("another-watch", "2025-11-24T22:00:00.000Z")
VIM_TASK = "task-42"
TRACE = ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x=y")


class WatchStream:
    """The stream of watches: one message of each subject. `keeps`: a deleted message stays for so many publishes."""

    def __init__(self) -> None:
        self.messages: dict[int, StoredMessage] = {}
        self.sequence = 0
        self.refusal: Exception | None = None
        self.published: list[tuple[float, str, dict[str, str]]] = []
        self.deleted: list[int] = []
        self.keeps = 0
        self.pages: list[tuple[str, int, int]] = []
        self.on_read: list[Any] = []
        self.away = 0

    def put(self, body: bytes, subject: str = NAMES.watch_subject("lab", TASK)) -> int:
        self.sequence += 1
        self.messages[self.sequence] = StoredMessage(subject, self.sequence, NOW, {}, body)
        return self.sequence

    def put_watch(self, watch: Watch) -> int:
        return self.put(msgspec.json.encode(watch), NAMES.watch_subject(watch.vcenter, watch.task))

    async def publish(self, stream: str, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        assert stream == NAMES.watches_stream
        self.published.append((asyncio.get_running_loop().time(), subject, headers))
        if self.refusal is not None:
            raise self.refusal
        if self.keeps:
            self.keeps -= 1
            raise TAKEN
        if any(message.subject == subject for message in self.messages.values()):
            raise TAKEN
        return PubAck(self.put(body, subject))

    async def read_last(self, stream: str, subject: str, *, leader: bool) -> StoredMessage | None:
        assert stream == NAMES.watches_stream
        assert leader
        if self.on_read:
            self.on_read.pop(0)()
        return next((one for one in reversed(self.messages.values()) if one.subject == subject), None)

    async def read_page(self, stream: str, subjects: str, after: int, limit: int) -> tuple[list[StoredMessage], int]:
        assert stream == NAMES.watches_stream
        self.pages.append((subjects, after, limit))
        if self.away:
            self.away -= 1
            raise NatsUnavailable("away")
        prefix, _, _ = subjects.removeprefix(NAMES.watches + ".").partition(".*")
        found = [
            one
            for one in self.messages.values()
            if one.sequence > after and prefix in ("*", one.subject.removeprefix(NAMES.watches + ".").split(".")[0])
        ]
        return found[:limit], len(found) - len(found[:limit])

    async def delete(self, stream: str, sequence: int) -> None:
        assert stream == NAMES.watches_stream
        self.deleted.append(sequence)
        self.messages.pop(sequence, None)


class Journal(RecordingJournal):
    """A journal whose memory of a watch can be lost, and which others can write to before an append."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW + 1)
        self.lost = False
        self.lost_appends: list[bool] = []
        self.before_append: list[Any] = []
        self.after_append: list[Any] = []

    async def read_memory(self, watch: Watch) -> Memory[Entry]:
        return (await super().read_memory(watch))._replace(lost=self.lost)

    async def append(self, draft: Draft, after: int, *, memory_lost: bool = False) -> Entry:
        self.lost_appends.append(memory_lost)
        if self.before_append:
            self.before_append.pop(0)()
        entry = await super().append(draft, after, memory_lost=memory_lost)
        if self.after_append:  # its confirmation was lost, and the task's last event is another by now
            self.after_append.pop(0)()
            return self.entries[-1]
        return entry


class Source(FakeSource):
    """A vCenter that may not answer, or hang, when it is asked for a task's identity."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.hangs = False

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()
        return await super().fetch_identity(task)


class Desk:
    def __init__(self) -> None:
        self.stream = WatchStream()
        self.journal = Journal()
        self.source = Source()
        self.now = NOW + 60
        self.store = WatchStore(
            self.stream,  # type: ignore[arg-type]
            NAMES,
            self.journal,  # type: ignore[arg-type]
            lambda _: POLICY,
            {"lab": self.source},
            lambda: self.now,
        )

    def admit(self, watch: Watch) -> tuple[str, str, int | None]:
        """The outcome, the id of the watch in force, and the sequence of its last event."""
        outcome, ref, last = run_in_virtual_time(self.store.admit(watch))
        return outcome, ref.id, last and last.sequence

    def end(self, kind: str = "completed", outcome: str = "succeeded", *, at: float = NOW + 5, **fields: Any) -> None:
        self.journal.write(an_event(kind, outcome, **fields), stored_at=at)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def stored_request(**fields: Any) -> Watch:
    return a_watch(stored_request=True, **fields)


# What a watch is made of


def build(stored_as: str | None = "17", **asked: object) -> Watch:
    request = parse_request(WatchRequest, json.dumps({"task": TASK, **asked}).encode())
    return build_watch(request, "lab", NOW, stored_as=stored_as, stalled_after_s=600.0, trace=TRACE)


def test_the_id_of_a_stored_request_s_watch_is_made_of_its_time_and_place() -> None:
    watch = build(labels={"a": "b"})
    assert watch == a_watch(
        id="1764024000000-17",
        labels={"a": "b"},
        stalled_after_s=600.0,
        traceparent=TRACE[0],
        tracestate=TRACE[1],
        stored_request=True,
    )


def test_each_request_over_the_api_has_an_id_of_its_own() -> None:
    one, other = build(None, task=VIM_TASK), build(None, task=VIM_TASK)
    assert one.id.startswith("1764024000000-a")
    assert len(one.id) == len("1764024000000-a") + 12
    assert one.id != other.id
    assert (one.api, one.stored_request) == ("vim", False)


def test_a_watch_has_the_limits_and_wishes_of_its_request() -> None:
    watch = build(timeout="90s", stalled_after="0s", partial_results=True, details=True)
    assert (watch.timeout_at, watch.stalled_after_s, watch.partial_results, watch.details) == (NOW + 90, 0, True, True)


def test_a_watch_is_rebuilt_from_its_last_event() -> None:
    ref = WatchRef("w", rfc3339(NOW - 5), rfc3339(NOW + 5), {"a": "b"})
    event = msgspec.structs.replace(an_event(watch=ref), traceparent=TRACE[0], tracestate=TRACE[1])
    rebuilt = rebuild_watch(Entry(event, 1, NOW, "i"), "lab", TASK)  # type: ignore[arg-type]
    assert rebuilt == a_watch(
        id="w", since=NOW - 5, timeout_at=NOW + 5, labels={"a": "b"}, traceparent=TRACE[0], tracestate=TRACE[1]
    )


def test_a_watch_whose_event_has_no_time_began_when_it_was_stored() -> None:
    rebuilt = rebuild_watch(Entry(an_event(watch=WatchRef("w", "")), 1, NOW, "i"), "lab", TASK)  # type: ignore[arg-type]
    assert (rebuilt.since, rebuilt.timeout_at) == (NOW, None)


@pytest.mark.parametrize("body", [b"{", b'{"id": 5}', b""])
def test_a_message_that_is_no_watch_is_none(body: bytes) -> None:
    assert decode_watch(StoredMessage("x", 1, NOW, {}, body)) is None


# Requests


def test_a_stored_request_starts_its_watch_and_reads_nothing_else(desk: Desk) -> None:
    desk.end()
    assert desk.admit(stored_request()) == ("accepted", "1764024000000-42", None)
    ((_, subject, headers),) = desk.stream.published
    assert (subject, headers) == (NAMES.watch_subject("lab", TASK), {"Nats-Msg-Id": "1764024000000-42"})
    assert decode_watch(desk.stream.messages[1]) == (stored_request(), 1)


def test_a_request_over_the_api_for_a_new_task_is_accepted(desk: Desk) -> None:
    assert desk.admit(a_watch()) == ("accepted", "1764024000000-42", None)
    assert list(desk.stream.messages) == [1]


def test_a_watch_that_was_taken_up_at_once_is_accepted_with_its_event(desk: Desk) -> None:
    desk.journal.write(an_event("watching"))
    assert desk.admit(a_watch()) == ("accepted", "1764024000000-42", 1)


def test_a_task_that_has_completed_needs_no_watch(desk: Desk) -> None:
    desk.end(watch=OTHER)
    assert desk.admit(a_watch()) == ("already_completed", "another-watch", 1)
    assert desk.stream.deleted == [1]


def test_a_task_whose_last_watch_was_given_up_is_watched_again(desk: Desk) -> None:
    desk.end("abandoned", "lost", watch=OTHER)
    assert desk.admit(a_watch()) == ("accepted", "1764024000000-42", None)
    assert not desk.stream.deleted


def vim_end(desk: Desk) -> None:
    desk.end(api="vim", task=VIM_TASK, watch=OTHER, queued_at=rfc3339(NOW - 9), operation="Task.x")


@pytest.mark.parametrize(
    ("now_queued_at", "outcome"), [(NOW - 9, "already_completed"), (NOW + 30, "accepted"), (None, "already_completed")]
)
def test_another_task_with_the_id_of_one_that_completed_is_watched(
    desk: Desk, now_queued_at: float | None, outcome: str
) -> None:
    vim_end(desk)
    desk.source.born = None if now_queued_at is None else TaskIdentity(now_queued_at, "Task.x")
    assert desk.admit(a_watch(task=VIM_TASK, api="vim"))[0] == outcome


def test_while_vcenter_does_not_answer_a_completed_task_counts_as_the_same(desk: Desk) -> None:
    vim_end(desk)
    desk.source.error = VCenterUnavailable("no answer")
    assert desk.admit(a_watch(task=VIM_TASK, api="vim"))[0] == "already_completed"


def test_a_requester_waits_five_seconds_for_vcenter(desk: Desk) -> None:
    vim_end(desk)
    desk.source.hangs = True

    async def timed() -> tuple[str, float]:
        admission = await desk.store.admit(a_watch(task=VIM_TASK, api="vim"))
        return admission.outcome, asyncio.get_running_loop().time()

    assert run_in_virtual_time(timed()) == ("already_completed", 5.0)


def test_a_second_request_is_told_the_watch_in_force_and_its_last_event(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="first"))
    desk.journal.write(an_event(watch=WatchRef("first", "x")))
    assert desk.admit(stored_request()) == ("already_watching", "first", 1)
    assert not desk.stream.deleted


def test_the_last_event_of_an_earlier_watch_is_not_that_of_the_one_in_force(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="first"))
    desk.end("abandoned", "lost", watch=OTHER)
    assert desk.admit(stored_request()) == ("already_watching", "first", None)


def test_a_request_that_is_delivered_again_finds_its_own_watch(desk: Desk) -> None:
    desk.stream.put_watch(stored_request())
    desk.end()
    assert desk.admit(stored_request()) == ("already_watching", "1764024000000-42", 1)


def test_a_request_for_a_task_that_completed_while_its_watch_goes_gets_the_end(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="first"))
    desk.end(watch=WatchRef("first", "x"))
    assert desk.admit(stored_request()) == ("already_completed", "first", 1)
    assert list(desk.stream.messages) == [1]


def test_a_request_takes_the_place_of_a_watch_that_was_given_up(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="first"))
    desk.end("abandoned", "unwatched", watch=WatchRef("first", "x"))
    assert desk.admit(stored_request()) == ("accepted", "1764024000000-42", None)
    assert (desk.stream.deleted, list(desk.stream.messages)) == ([1], [2])


def test_a_subject_that_is_free_soon_is_waited_for(desk: Desk) -> None:
    desk.stream.keeps = 100
    assert desk.admit(stored_request())[0] == "accepted"
    assert desk.stream.published[-1][0] == pytest.approx(0.5)


def test_a_watch_that_never_goes_is_reported(desk: Desk) -> None:
    desk.stream.put(b"unreadable")
    with pytest.raises(NatsUnavailable, match="still being removed"):
        desk.admit(stored_request())
    assert len(desk.stream.published) == 500


@pytest.mark.parametrize("start", ["admit", "start"])
def test_a_stream_that_takes_nothing_is_no_watch(desk: Desk, start: str) -> None:
    desk.stream.refusal = StoreRefused(10077, "maximum bytes exceeded")
    with pytest.raises(StoreRefused, match="bytes"):
        run_in_virtual_time(getattr(desk.store, start)(stored_request()))
    assert len(desk.stream.published) == 1


def test_an_answer_about_a_watch_and_its_last_event_is_of_one_moment(desk: Desk) -> None:
    """The watch ends between both reads: another one may have begun by then."""

    def replace() -> None:
        desk.stream.messages.clear()
        desk.end(watch=OTHER)
        desk.stream.put_watch(a_watch(id="second"))

    desk.stream.put_watch(a_watch(id="first"))
    desk.stream.on_read = [lambda: None, replace]
    present, last = run_in_virtual_time(desk.store.read_watch_and_last_event("lab", TASK))
    assert present is not None
    assert last is not None
    assert (present.watch.id, present.sequence, last.sequence) == ("second", 2, 1)


def test_a_watch_that_goes_while_its_last_event_is_read_is_none(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="first"))
    desk.stream.on_read = [lambda: None, desk.stream.messages.clear]
    assert run_in_virtual_time(desk.store.read_watch_and_last_event("lab", TASK)) == (None, None)


def test_a_watch_with_an_event_of_its_own_is_read_once(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.write(an_event())
    desk.stream.on_read = [lambda: None, lambda: pytest.fail("the last event says that the watch was in force")]
    present, last = run_in_virtual_time(desk.store.read_watch_and_last_event("lab", TASK))
    assert present is not None
    assert last is not None


# Watches of follows


def found(queued_at: float = NOW) -> Watch:
    return a_watch(id="found", task=VIM_TASK, api="vim", follow="f", queued_at=queued_at, description_id="Task.x")


def test_a_found_task_is_watched_unless_it_is_already(desk: Desk) -> None:
    assert run_in_virtual_time(desk.store.start(found()))
    assert not run_in_virtual_time(desk.store.start(found()))


def test_a_found_task_waits_for_the_watch_of_an_earlier_one_with_its_id(desk: Desk) -> None:
    desk.stream.put_watch(found(NOW - 600))
    desk.stream.on_read = [lambda: None] * 4 + [desk.stream.messages.clear]
    assert run_in_virtual_time(desk.store.start(found()))


def test_a_found_task_is_put_off_while_the_watch_of_an_earlier_one_goes_on(desk: Desk) -> None:
    desk.stream.put_watch(found(NOW - 600))
    with pytest.raises(NatsUnavailable, match="goes on"):
        run_in_virtual_time(desk.store.start(found()))
    assert len(desk.stream.published) == 10
    assert desk.stream.published[-1][0] == pytest.approx(0.9)


@pytest.mark.parametrize(("queued_at", "is_same"), [(NOW, True), (NOW - 600, False)])
def test_a_requested_watch_is_known_by_what_its_last_event_says(desk: Desk, queued_at: float, is_same: bool) -> None:
    desk.stream.put_watch(a_watch(id="asked", task=VIM_TASK, api="vim"))
    watch = WatchRef("asked", "x")
    event = an_event(api="vim", task=VIM_TASK, watch=watch, queued_at=rfc3339(queued_at), operation="Task.x")
    desk.journal.write(event)
    if is_same:
        assert not run_in_virtual_time(desk.store.start(found()))
    else:
        with pytest.raises(NatsUnavailable):
            run_in_virtual_time(desk.store.start(found()))


def test_a_found_task_of_which_nothing_is_known_counts_as_the_one_that_is_watched(desk: Desk) -> None:
    desk.stream.put_watch(found(NOW - 600))
    unknown = a_watch(id="found", task=VIM_TASK, api="vim", follow="f")
    assert not run_in_virtual_time(desk.store.start(unknown))


def test_a_watch_of_which_nothing_is_known_yet_counts_as_the_task_s(desk: Desk) -> None:
    desk.stream.put_watch(a_watch(id="asked", task=VIM_TASK, api="vim"))
    assert not run_in_virtual_time(desk.store.start(found()))


def test_whether_a_watch_has_ended_is_what_the_last_event_says(desk: Desk) -> None:
    assert not run_in_virtual_time(desk.store.has_ended(a_watch()))
    desk.journal.write(an_event())
    assert not run_in_virtual_time(desk.store.has_ended(a_watch()))
    desk.end()
    assert run_in_virtual_time(desk.store.has_ended(a_watch()))


# Lists


def test_watches_are_listed_oldest_first_over_several_vcenters(desk: Desk) -> None:
    for number, vcenter in enumerate(["b", "a", "c", "b", "a"]):
        desk.stream.put_watch(a_watch(id=f"w{number}", vcenter=vcenter, task=f"task-{number}"))
    read = desk.store.read_page

    def ids(vcenters: list[str] | None, after: int, limit: int) -> tuple[list[str], int]:
        page, following = run_in_virtual_time(read(vcenters, after, limit))
        return [one.watch.id for one in page], following

    assert ids(["a", "b"], 0, 3) == (["w0", "w1", "w3"], 1)
    assert ids(["a", "b"], 0, 1) == (["w0"], 3)
    assert ids(["a", "b"], 4, 3) == (["w4"], 0)
    assert ids(None, 0, 9) == (["w0", "w1", "w2", "w3", "w4"], 0)
    assert ids([], 0, 9) == ([], 0)
    assert run_in_virtual_time(desk.store.count(None)) == 5
    assert run_in_virtual_time(desk.store.count(["b"])) == 2
    assert run_in_virtual_time(desk.store.count(["x"])) == 0


def test_a_list_leaves_out_what_can_not_be_read(desk: Desk) -> None:
    desk.stream.put(b"{")
    desk.stream.put_watch(a_watch(task="task-1"))
    page, _ = run_in_virtual_time(desk.store.read_page(None, 0, 9))
    assert [one.sequence for one in page] == [2]


# Ends on request


def unwatch(desk: Desk) -> tuple[str, str, int]:
    watch, final = run_in_virtual_time(desk.store.unwatch("lab", TASK))
    return watch.id, final.event.kind, final.event.data.sequence


def test_a_watch_that_is_unwatched_gets_its_final_event_and_goes(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.write(an_event(sequence=3, status="RUNNING"))
    assert unwatch(desk) == ("1764024000000-42", "abandoned.unwatched", 4)
    assert (desk.stream.deleted, desk.journal.lost_appends) == ([1], [False])


def test_a_watch_before_its_first_event_can_be_unwatched(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    assert unwatch(desk) == ("1764024000000-42", "abandoned.unwatched", 1)


def test_a_watch_whose_events_have_gone_ends_under_a_new_number(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.lost = True
    unwatch(desk)
    assert desk.journal.lost_appends == [True]


def test_what_a_lagging_replica_shows_of_a_watch_hides_no_loss_when_it_is_unwatched(desk: Desk) -> None:
    """A replica that was killed has the watch's first event again, which has gone. The leader has none of the task."""
    desk.stream.put_watch(a_watch())
    desk.journal.write(an_event(sequence=1, status="RUNNING"))
    resurrected = [Memory(desk.journal.entries.pop(), lost=False), Memory(None, lost=True)]

    async def read_memory(watch: Watch) -> Memory[Entry]:
        return resurrected.pop(0)

    desk.journal.read_memory = read_memory  # type: ignore[method-assign]
    unwatch(desk)
    assert desk.journal.lost_appends == [False, True]


def test_whoever_ended_a_watch_is_told_so_though_the_next_one_began_before_the_confirmation_came(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    later = an_event("watching", status="RUNNING", watch=OTHER)
    desk.journal.after_append = [lambda: desk.journal.write(later)]
    assert unwatch(desk) == ("1764024000000-42", "abandoned.unwatched", 1)


def test_nobody_s_watch_can_not_be_unwatched(desk: Desk) -> None:
    with pytest.raises(Refused) as refused:
        unwatch(desk)
    assert (refused.value.status, refused.value.code) == (404, "not_watched")
    desk.journal.write(an_event())
    with pytest.raises(Refused) as refused:
        unwatch(desk)
    assert refused.value.code == "not_watched"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_watch_that_has_ended_can_not_be_unwatched(desk: Desk, is_there: bool) -> None:
    if is_there:
        desk.stream.put_watch(a_watch())
    desk.end()
    with pytest.raises(AlreadyEnded) as refused:
        unwatch(desk)
    assert (refused.value.status, refused.value.code, refused.value.last.sequence) == (409, "already_ended", 1)
    assert "completed.succeeded" in refused.value.message
    assert len(desk.journal.entries) == 1


def test_an_end_that_a_later_watch_s_event_covers_counts(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.end()
    desk.journal.write(an_event(watch=OTHER))
    with pytest.raises(AlreadyEnded) as refused:
        unwatch(desk)
    assert refused.value.last.sequence == 1


def test_an_event_that_comes_first_is_followed_by_the_end(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.before_append = [lambda: desk.journal.write(an_event(sequence=1))]
    assert unwatch(desk) == ("1764024000000-42", "abandoned.unwatched", 2)


def test_an_event_of_this_replica_that_comes_first_is_not_the_end(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.before_append = [lambda: desk.journal.write(an_event(sequence=1), "mine")]
    assert unwatch(desk) == ("1764024000000-42", "abandoned.unwatched", 2)


def test_the_end_of_another_watch_that_comes_first_is_not_this_one_s(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    end = an_event("abandoned", "unwatched", watch=OTHER)
    desk.journal.before_append = [lambda: desk.journal.write(end, "mine", stored_at=NOW - 5)]
    assert unwatch(desk)[0] == "1764024000000-42"
    assert [event.data.watch.id for event in desk.journal.events] == ["another-watch", "1764024000000-42"]


def test_a_watch_whose_task_completed_before_it_began_has_ended(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.end(watch=OTHER)
    with pytest.raises(AlreadyEnded):
        unwatch(desk)
    assert len(desk.journal.entries) == 1


def test_an_end_that_comes_first_wins(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.before_append = [desk.end]
    with pytest.raises(AlreadyEnded):
        unwatch(desk)


def test_another_replica_s_end_on_request_is_not_ours(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.before_append = [lambda: desk.end("abandoned", "unwatched")]
    with pytest.raises(AlreadyEnded):
        unwatch(desk)


def test_events_that_vanish_meanwhile_are_no_end(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())
    desk.journal.write(an_event(sequence=1))

    def lose() -> None:
        raise MemoryLost(0)

    desk.journal.before_append = [lose]
    assert unwatch(desk)[1] == "abandoned.unwatched"
    assert len(desk.journal.lost_appends) == 2


def test_of_two_calls_one_ends_the_watch(desk: Desk) -> None:
    desk.stream.put_watch(a_watch())

    async def both() -> list[Any]:
        calls = [desk.store.unwatch("lab", TASK) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = run_in_virtual_time(both())
    assert first[0] == a_watch()
    assert isinstance(second, AlreadyEnded)
    assert desk.journal.kinds == ["abandoned.unwatched"]


# Ends of watches that can't be read, and of those whose time is up


def test_an_abandoned_watch_keeps_its_message(desk: Desk) -> None:
    desk.stream.put(b"{")
    run_in_virtual_time(desk.store.abandon(a_watch()))
    assert (desk.journal.kinds, desk.stream.deleted) == (["abandoned.unwatched"], [])
    run_in_virtual_time(desk.store.abandon(a_watch()))
    assert len(desk.journal.kinds) == 1
    assert desk.journal.leaders == [True, True]


def test_a_watch_whose_task_completed_before_is_not_abandoned(desk: Desk) -> None:
    desk.end(watch=OTHER)
    run_in_virtual_time(desk.store.abandon(a_watch()))
    assert desk.journal.kinds == ["completed.succeeded"]


def test_a_watch_is_abandoned_though_an_event_comes_first(desk: Desk) -> None:
    desk.journal.before_append = [lambda: desk.journal.write(an_event(sequence=1))]
    run_in_virtual_time(desk.store.abandon(a_watch()))
    assert desk.journal.kinds == ["status", "abandoned.unwatched"]


def test_a_watch_that_ended_under_another_s_event_is_not_abandoned_again(desk: Desk) -> None:
    desk.end("abandoned", "lost")
    desk.journal.write(an_event(watch=OTHER))
    run_in_virtual_time(desk.store.abandon(a_watch()))
    assert len(desk.journal.kinds) == 2


@pytest.mark.parametrize("clock_s", [-100.0, 100.0])
def test_a_timed_out_watch_ends_with_what_keeps_vcenter_from_being_asked(desk: Desk, clock_s: float) -> None:
    """Also if the clock was set back since its time was up."""
    watch = a_watch(timeout_at=NOW + 60)
    desk.stream.put_watch(watch)
    desk.now = watch.deadline + clock_s
    desk.source.trouble = "vCenter is away."
    stored = decode_watch(desk.stream.messages[1])
    assert stored is not None
    run_in_virtual_time(desk.store.time_out(stored))
    (event,) = desk.journal.events
    assert (event.kind, desk.stream.deleted) == ("abandoned.watch_timed_out", [1])
    assert event.time == max(desk.now, watch.deadline)
    assert event.data.error is not None
    assert "vCenter is away." in event.data.error.message


class Waiting:
    """Watches that wait from some time on."""

    def __init__(self, from_s: float = 0.0) -> None:
        self._from_s = from_s

    def __call__(self) -> bool:
        return asyncio.get_running_loop().time() >= self._from_s


def run_for(desk: Desk, waiting: Waiting, seconds: float) -> None:
    async def run() -> None:
        work = end_timed_out_watches(desk.store, waiting, lambda: desk.now)
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            pass

    run_in_virtual_time(run())


@pytest.mark.parametrize(("late_s", "ends"), [(17.0, False), (17.1, True)])
def test_a_watch_ends_once_its_holder_would_have_ended_it(desk: Desk, late_s: float, ends: bool) -> None:
    desk.stream.put_watch(a_watch(timeout_at=NOW))
    desk.stream.put_watch(a_watch(id="endless", task="task-1"))
    desk.now = NOW + late_s
    run_for(desk, Waiting(), 1.5)
    assert desk.journal.kinds == (["abandoned.watch_timed_out"] if ends else [])


def test_watches_are_read_only_while_some_wait(desk: Desk) -> None:
    waiting = Waiting(from_s=3.5)
    run_for(desk, waiting, 3.4)
    assert not desk.stream.pages
    run_for(desk, waiting, 6.5)
    assert len(desk.stream.pages) == 3


def test_timed_out_watches_are_searched_page_by_page_and_again_from_the_start(desk: Desk) -> None:
    for number in range(1_001):
        desk.stream.put_watch(a_watch(id=f"w{number}", task=f"task-{number}"))
    desk.stream.away = 1
    run_for(desk, Waiting(), 4.5)
    assert [(after, limit) for _, after, limit in desk.stream.pages] == [(0, 1000), (0, 1000), (1000, 1000), (0, 1000)]
