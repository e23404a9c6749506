"""Whoever races for a task through the bridge's own protocols: there is one winner, and the others are told."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog
from msgspec.structs import replace
from nats.aio.msg import Msg

from chaos.servers import Servers
from lab import until
from task_bridge.domain.errors import Refused
from task_bridge.domain.events import Event
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.task import Task
from task_bridge.domain.watch import Draft, Policy, Watch, next_event, record_poll, view_from_event
from task_bridge.jetstream.journal import JetStreamJournal, JournalEntry
from task_bridge.jetstream.nats_py_workarounds import cancel_and_wait
from task_bridge.jetstream.ownership import HeldMessage, Ownership
from task_bridge.jetstream.provision import expected_config, provision
from task_bridge.jetstream.streams import Streams
from task_bridge.jetstream.watch_store import Admission, StoredWatch, WatchStore, hold_watches
from task_bridge.logs import FailureLog
from task_bridge.metrics import Metrics
from unit.builders import running, succeeded

RACES, AT_ONCE, MEETING_S = 300, 30, 0.04
POLICY = Policy("https://vcenter.example.com", progress_interval_s=0.0, events_max_age_s=604_800.0)
_prefixes = iter(range(10_000))


class Side:
    """What one replica races with: its own connection, journal and admission."""

    def __init__(self, streams: Streams, names: SubjectNames) -> None:
        self.streams = streams
        self.names = names
        self.journal = JetStreamJournal(streams, names, Metrics(), time.time)
        self.watches = WatchStore(streams, names, self.journal, lambda _: POLICY, {}, time.time)

    async def ends(self, watch: Watch, last: Event | None, after: int, task: Task) -> JournalEntry:
        return await self.journal.append(draft_of(watch, last, task), after)


def draft_of(watch: Watch, last: Event | None, task: Task) -> Draft:
    """The event that follows from a look at the task."""
    view = view_from_event(last)
    record_poll(view, last, task, time.time())
    draft = next_event(watch, last, view, time.time(), POLICY)
    assert draft is not None
    return draft


def a_watch(number: int, maker: str = "a") -> Watch:
    now = time.time()
    return Watch(id=f"{now * 1000:.0f}-{maker}{number}", vcenter="lab", task=f"t{number}:x", since=now)


async def raced(one: Side, number: int, after: int = 0) -> tuple[Watch, JournalEntry]:
    """A watch that lies in the stream and whose first event is stored."""
    watch = a_watch(number)
    await one.watches.admit(watch)
    return watch, await one.ends(watch, None, after, running(1))


@pytest.fixture
async def sides(servers: Servers) -> AsyncIterator[tuple[Side, Side]]:
    clients = [await servers.connected() for _ in range(2)]
    await servers.ready(clients[0])
    names = SubjectNames(f"races{next(_prefixes)}")
    sides = [Side(Streams(client), names) for client in clients]
    what = expected_config(names, replicas=servers.replicas, ack_wait_s=10, events_max_age_s=604_800)
    await provision(sides[0].streams, what, create=True)
    yield sides[0], sides[1]
    for stream in (names.events_stream, names.watches_stream, names.requests_stream):
        await clients[0].jetstream().delete_stream(stream)
    for client in clients:
        await client.close()


async def in_batches(race: Callable[[int], Awaitable[None]]) -> None:
    """Thirty at once, so that they meet at the server too."""
    for start in range(0, RACES, AT_ONCE):
        await asyncio.gather(*map(race, range(start, start + AT_ONCE)))


async def stored_of(side: Side, watch: Watch) -> list[str]:
    """The kinds of all events of the watch's task."""
    subject = side.names.event_filter(watch.vcenter, watch.task)
    page, _ = await side.streams.read_page(side.names.events_stream, subject, 0, 100)
    return [stored.headers["Bridge-Kind"] for stored in page]


async def test_of_two_owners_one_writes_the_next_event(sides: tuple[Side, Side]) -> None:
    one, other = sides
    winners: Counter[str] = Counter()

    async def race(number: int) -> None:
        watch, first = await raced(one, number)
        entries = await asyncio.gather(
            *(side.ends(watch, first.event, first.sequence, running(number + 2)) for side in sides)
        )
        assert entries[0].sequence == entries[1].sequence
        assert entries[0].instance == entries[1].instance
        assert await stored_of(one, watch) == ["watching", "progress"]
        winners[entries[0].instance] += 1

    await in_batches(race)
    assert winners.total() == RACES
    assert set(winners) == {one.journal.instance, other.journal.instance}  # else it wasn't a race


async def test_of_many_that_ask_for_a_task_one_begins_the_watch(sides: tuple[Side, Side]) -> None:
    async def race(number: int) -> None:
        asked = [(side, a_watch(number, maker)) for maker, side in zip("abcd", (*sides, *sides), strict=True)]
        admitted = await asyncio.gather(*(side.watches.admit(watch) for side, watch in asked))
        assert sorted(one.outcome for one in admitted) == ["accepted", *["already_watching"] * 3]
        assert len({one.watch.id for one in admitted}) == 1

    await in_batches(race)


async def test_a_watch_that_ends_and_is_unwatched_has_one_ending(sides: tuple[Side, Side]) -> None:
    owner, other = sides
    endings: Counter[str] = Counter()

    async def ends_soon(watch: Watch, first: JournalEntry) -> JournalEntry:
        await asyncio.sleep(random.uniform(0, MEETING_S))  # an unwatch reads twice before it writes
        return await owner.ends(watch, first.event, first.sequence, succeeded())

    async def race(number: int) -> None:
        watch, first = await raced(owner, number)
        entry, unwatched = await asyncio.gather(
            ends_soon(watch, first),
            other.watches.unwatch("lab", watch.task),
            return_exceptions=True,
        )
        assert isinstance(entry, JournalEntry)
        endings[entry.event.kind] += 1
        assert await stored_of(owner, watch) == ["watching", entry.event.kind]
        if entry.event.kind == "completed.succeeded":
            assert isinstance(unwatched, Refused)
            assert unwatched.code == "already_ended"
        else:
            assert isinstance(unwatched, tuple)
            assert unwatched[1].event.id == entry.event.id

    await in_batches(race)
    assert set(endings) == {"completed.succeeded", "abandoned.unwatched"}


async def test_of_many_that_unwatch_one_ended_it_and_the_others_are_told(sides: tuple[Side, Side]) -> None:
    async def race(number: int) -> None:
        watch, _ = await raced(sides[0], number)
        asking = [side.watches.unwatch("lab", watch.task) for side in (*sides, *sides)]
        told = await asyncio.gather(*asking, return_exceptions=True)
        refused = [one for one in told if isinstance(one, Refused)]
        assert len(told) - len(refused) == 1
        assert {one.code for one in refused} <= {"already_ended"}
        assert await stored_of(sides[0], watch) == ["watching", "abandoned.unwatched"]
        assert await sides[0].watches.read_watch("lab", watch.task) is None

    await in_batches(race)


async def test_a_watch_that_ends_before_its_asker_is_answered_was_accepted(sides: tuple[Side, Side]) -> None:
    one, other = sides

    class Overtaken(JetStreamJournal):
        """Whose answer to an admission comes when somebody else has already unwatched what was admitted."""

        async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> JournalEntry | None:
            await other.watches.unwatch(vcenter, task)
            return await super().read_last(vcenter, task, leader=leader)

    journal = Overtaken(one.streams, one.names, Metrics(), time.time)
    watches = WatchStore(one.streams, one.names, journal, lambda _: POLICY, {}, time.time)
    admitted = await watches.admit(watch := a_watch(1))
    assert (admitted.outcome, admitted.watch.id) == ("accepted", watch.id)
    assert admitted.last is not None
    assert admitted.last.event.kind == "abandoned.unwatched"


class Slow(WatchStore):
    """To whom JetStream's answer about a watch comes late: `meanwhile` happened, once."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def read_watch(self, vcenter: str, task: str) -> StoredWatch | None:
        present = await super().read_watch(vcenter, task)
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return present


class SlowJournal(JetStreamJournal):
    """The same of a task's last event."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> JournalEntry | None:
        last = await super().read_last(vcenter, task, leader=leader)
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return last


async def unwatched_and_asked_late(side: Side, watch: Watch) -> StoredWatch:
    """The watch is unwatched, and a request that was stored before that comes to be admitted only now."""
    await side.watches.unwatch(watch.vcenter, watch.task)
    late = replace(watch, id=f"{watch.id}-late", since=watch.since - 1, stored_request=True)
    assert (await side.watches.admit(late)).outcome == "accepted"  # its taker finds it served
    present = await side.watches.read_watch(watch.vcenter, watch.task)
    assert present is not None
    return present


async def test_a_handed_over_watch_knows_whether_it_still_lies_in_the_stream(sides: tuple[Side, Side]) -> None:
    one, _ = sides
    handed: asyncio.Queue[tuple[Watch, HeldMessage]] = asyncio.Queue()

    async def take_over(watch: Watch, handle: HeldMessage) -> None:
        handed.put_nowait((watch, handle))

    async def quarantine(_: object, reason: str) -> bool:
        raise AssertionError(reason)

    ownership = Ownership(
        one.streams,
        hold_watches(one.names),
        Metrics(),
        capacity=10,
        ack_wait_s=lambda: 10,
        take_over=take_over,
        report_outcome=lambda *_: None,
        quarantine=quarantine,
        failures=FailureLog(structlog.get_logger(), "not_taken_up", "taken_up_again"),
    )
    owning = asyncio.create_task(ownership.run())
    await one.watches.admit(a_watch(1))
    watch, handle = await handed.get()
    assert await handle.is_current()
    await one.watches.unwatch("lab", watch.task)
    assert not await handle.is_current()
    await one.watches.admit(a_watch(1, "b"))
    _, next_handle = await handed.get()
    assert (await handle.is_current(), await next_handle.is_current()) == (False, True)
    await cancel_and_wait(owning)


async def test_nobody_is_told_of_a_watch_that_does_not_begin(sides: tuple[Side, Side]) -> None:
    one, other = sides
    watch, _ = await raced(other, 1)
    journal = SlowJournal(one.streams, one.names, Metrics(), time.time)
    journal.meanwhile = lambda: unwatched_and_asked_late(other, watch)
    watches = WatchStore(one.streams, one.names, journal, lambda _: POLICY, {}, time.time)
    admitted = await watches.admit(a_watch(1, "b"))
    assert (admitted.outcome, admitted.watch.id) == ("already_watching", watch.id)


@pytest.mark.parametrize("verb", ["watch", "unwatch"])
async def test_what_was_seen_of_a_watch_that_has_gone_counts_no_more(sides: tuple[Side, Side], verb: str) -> None:
    one, other = sides
    watch, _ = await raced(other, 1)
    late = await unwatched_and_asked_late(other, watch)

    begun: list[str] = []

    async def served_and_begun_anew() -> None:
        await other.streams.delete(other.names.watches_stream, late.sequence)
        last = await other.journal.read_last("lab", watch.task, leader=True)
        anew, _ = await raced(other, 1, after=last.sequence if last else 0)
        begun.append(anew.id)

    watches = Slow(one.streams, one.names, one.journal, lambda _: POLICY, {}, time.time)
    watches.meanwhile = served_and_begun_anew
    if verb == "watch":
        told = (await watches.admit(a_watch(1, "b"))).watch.id
    else:
        told = (await watches.unwatch("lab", watch.task))[0].id
    assert [told] == begun
    kinds = ["watching", "abandoned.unwatched", "watching", "abandoned.unwatched"]
    assert await stored_of(one, watch) == kinds[: 3 if verb == "watch" else 4]


async def test_after_an_abandoned_watch_one_of_many_begins_the_next(sides: tuple[Side, Side]) -> None:
    one, _ = sides

    async def race(number: int) -> None:
        watch, first = await raced(one, number)
        view = view_from_event(first.event)
        view.unwatched = True  # its final event is stored, and its message lies there still
        draft = next_event(watch, first.event, view, time.time(), POLICY)
        assert draft is not None
        await one.journal.append(draft, first.sequence)
        asking = [side.watches.admit(a_watch(number, maker)) for maker, side in zip("bc", sides, strict=True)]
        admitted = await asyncio.gather(*asking)
        assert sorted(told.outcome for told in admitted) == ["accepted", "already_watching"]
        present = await one.watches.read_watch("lab", watch.task)
        assert present is not None
        assert {told.watch.id for told in admitted} == {present.watch.id}

    await in_batches(race)


async def test_a_task_that_completed_is_watched_and_unwatched_no_more(sides: tuple[Side, Side]) -> None:
    """Whatever lies in the stream of watches for a moment: nothing follows `completed`, and nobody is told else."""
    one, other = sides

    async def race(number: int) -> None:
        watch, first = await raced(one, number)
        done = await one.ends(watch, first.event, first.sequence, succeeded())
        present = await one.watches.read_watch("lab", watch.task)
        assert present is not None
        await one.streams.delete(one.names.watches_stream, present.sequence)
        told = await asyncio.gather(
            one.watches.admit(a_watch(number, "b")),
            other.watches.admit(a_watch(number, "c")),
            other.watches.unwatch("lab", watch.task),
            return_exceptions=True,
        )
        for answer in told[:2]:
            assert isinstance(answer, Admission)
            assert (answer.outcome, answer.watch.id) == ("already_completed", watch.id)
        assert isinstance(told[2], Refused)
        assert told[2].code == "already_ended"
        last = await other.journal.read_last("lab", watch.task, leader=True)
        assert last is not None
        assert last.sequence == done.sequence

    await in_batches(race)


@pytest.mark.timeout(120)
async def test_a_core_subscriber_hears_nothing_that_the_stream_refused_whoever_is_killed(
    servers: Servers, sides: tuple[Side, Side]
) -> None:
    one, _ = sides
    heard: list[Msg] = []
    listener = await servers.connected()

    async def hear(message: Msg) -> None:
        heard.append(message)

    await listener.subscribe(f"{one.names.events}.>", cb=hear)
    await listener.jetstream().account_info()  # a round trip behind the subscription

    async def race(number: int) -> None:
        watch, first = await raced(one, number)
        last, fence = first.event, first.sequence
        for step in range(4):
            entries = await asyncio.gather(*(side.ends(watch, last, fence, running(step + 2)) for side in sides))
            assert entries[0].sequence == entries[1].sequence
            last, fence = entries[0].event, entries[0].sequence

    async def kill() -> None:
        for server, after in zip(servers.all, (40, 120, 240), strict=False):
            # A publish that a killed server loses is tried again after 5 s, and the next one can be lost as well.
            await until(lambda after=after: len(heard) > after, within_s=60)  # type: ignore[misc]
            server.stop(signal.SIGKILL)
            server.start()

    await asyncio.gather(kill(), *map(race, range(100)))
    await servers.ready(listener)
    stored, following = await one.streams.read_page(one.names.events_stream, ">", 0, 1_000)
    await listener.close()
    assert (len(stored), following) == (500, 0)
    by_sequence = {message.sequence: (message.subject, message.body) for message in stored}
    for message in heard:
        assert by_sequence[int((message.headers or {})["Nats-Sequence"])] == (message.subject, message.data)
    assert len(heard) > 100
