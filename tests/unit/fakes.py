"""The watcher's ports as things in memory: a source that keeps a script, a journal that is a fenced list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.events import Event
from task_bridge.domain.ports import Memory, MemoryLost, PollResult
from task_bridge.domain.task import Api, TaskIdentity
from task_bridge.domain.watch import Draft, Watch
from unit.builders import NOW, TASK, place, stored

Key = tuple[str, str]


class Clock:
    """NOW and what passed since; `jump` sets it forward or back."""

    def __init__(self) -> None:
        self._offset = NOW - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset

    def jump(self, seconds: float) -> None:
        self._offset += seconds


class FakeSource:
    """Gives what the test tells it to, and keeps what the watcher asked for.

    `on_hurry` is the answer to a hurried look. It takes a moment, as vCenter does.
    """

    def __init__(self) -> None:
        self.followed: dict[str, tuple[float, bool, bool]] = {}
        self.births: dict[str, TaskIdentity | None] = {}
        self.with_details: dict[str, bool] = {}
        self.quiet_until: dict[str, float] = {}
        self.born: TaskIdentity | None = None
        self.calls: list[str] = []
        self.on_hurry: PollResult | None = None
        self.trouble: str | None = None
        self._batches: asyncio.Queue[list[tuple[str, PollResult]]] = asyncio.Queue()

    def give(self, *standings: PollResult, task: str = TASK) -> None:
        """Each in a batch of its own."""
        for standing in standings:
            self._batches.put_nowait([(task, standing)])

    def give_batch(self, batch: list[tuple[str, PollResult]]) -> None:
        self._batches.put_nowait(batch)

    def track(
        self,
        task: str,
        since: float,
        *,
        seen: bool,
        begun: bool,
        with_result: bool,
        with_details: bool,
        identity: TaskIdentity | None,
    ) -> None:
        self.with_details[task] = with_details
        self.births[task] = identity
        self.calls.append(f"follow {task}")
        self.followed[task] = (since, seen, with_result)

    def resume(self, task: str, *, quiet_until: float) -> None:
        self.quiet_until[task] = quiet_until
        self.calls.append(f"again {task}")

    def poll_now(self, task: str) -> None:
        self.calls.append(f"hurry {task}")
        if self.on_hurry is not None:
            asyncio.get_running_loop().call_later(0.005, self._batches.put_nowait, [(task, self.on_hurry)])

    def forget(self, task: str) -> None:
        self.calls.append(f"forget {task}")
        self.followed.pop(task, None)

    @property
    def absent_counts(self) -> dict[Api, int]:
        return {}

    def set_absent_elsewhere(self, counts: Mapping[Api, int]) -> None:
        self.calls.append(f"absent elsewhere {dict(counts)}")

    def find_trouble(self, task: str) -> str | None:
        return self.trouble

    async def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        while True:
            yield await self._batches.get()

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        self.calls.append(f"birth {task}")
        return self.born

    async def cancel(self, task: str) -> None:
        self.calls.append(f"cancel {task}")


class Entry(NamedTuple):
    event: Event
    sequence: int
    stored_at: float
    instance: str


class RecordingJournal:
    """A list of events with a real fence. Others can write into it, it can be away, and it can take its time.

    `leaders`: for each read, whether only the leader may answer it.
    """

    def __init__(self, clock: Callable[[], float], instance: str = "mine") -> None:
        self.instance = instance
        self.entries: list[Entry] = []
        self.reachable = True
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.faults: list[Exception] = []
        self.leaders: list[bool] = []
        self._clock = clock

    def write(self, event: Event, instance: str = "another", stored_at: float | None = None) -> Entry:
        """An event of whoever: it is there before the watcher's next one."""
        at = self._clock() if stored_at is None else stored_at
        entry = Entry(stored(event), len(self.entries) + 1, at, instance)
        self.entries.append(entry)
        return entry

    @property
    def kinds(self) -> list[str]:
        return [entry.event.kind for entry in self.entries]

    @property
    def events(self) -> list[Event]:
        return [entry.event for entry in self.entries]

    def of(self, vcenter: str, task: str) -> list[Entry]:
        return [e for e in self.entries if (e.event.data.vcenter, e.event.data.task) == (vcenter, task)]

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> Entry | None:
        self.leaders.append(leader)
        await self._answer()
        if not self.reachable:
            raise NatsUnavailable("nobody answers")
        return next(reversed(self.of(vcenter, task)), None)

    async def read_memory(self, watch: Watch) -> Memory[Entry]:
        own = [entry for entry in self.of(watch.vcenter, watch.task) if entry.event.data.watch.id == watch.id]
        return Memory(own[-1] if own else None, lost=False)

    async def append(self, draft: Draft, after: int, *, memory_lost: bool = False) -> Entry:
        await self._answer()
        if self.faults:
            raise self.faults.pop()
        data = draft.event.data
        last = next(reversed(self.of(data.vcenter, data.task)), None)
        if last is not None and last.sequence > after:
            return last
        if after > (last.sequence if last else 0):
            raise MemoryLost(last.sequence if last else 0)
        return self.write(place(draft), self.instance)

    async def _answer(self) -> None:
        self.waiting += 1
        await asyncio.sleep(0)
        await self.open.wait()
        self.waiting -= 1


class RecordingHandle:
    """A held message that keeps what was said of it. `current`: it lies in the stream still. `asked`: how often."""

    def __init__(self, *, current: bool = True, is_redelivered: bool = False) -> None:
        self.said: list[str] = []
        self.current = current
        self.is_redelivered = is_redelivered
        self.asked = 0

    async def is_current(self) -> bool:
        self.asked += 1
        return self.current

    async def ack(self) -> None:
        self.said.append("ack")

    def drop(self) -> None:
        self.said.append("drop")


class FakeMarks:
    """Marks of results that are being read, in memory."""

    def __init__(self, readers: dict[str, int] | None = None) -> None:
        self.readers = readers or {}
        self.is_away = False

    async def read(self, watch_id: str) -> int:
        if self.is_away:
            raise NatsUnavailable("away")
        return self.readers.get(watch_id, 0)

    async def write(self, watch_id: str, readers: int) -> None:
        if self.is_away:
            raise NatsUnavailable("away")
        self.readers[watch_id] = readers
