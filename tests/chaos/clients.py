"""Several clients that ask at the same time, again, wrongly, and take back what they asked."""

from __future__ import annotations

import asyncio
import random
import time

from chaos.world import ANNEX, LAB, World
from task_bridge.simulator import Script, scenarios
from task_bridge.simulator.script import Flavour

BAD = [b"{", b'{"task": "a:b", "tmeout": 5}', b'"a/b"', b'{"task": "a:b", "timeout": NaN}', b"\xff"]


def a_fate(chance: random.Random) -> Script:
    """A task of any kind that ends within some ten seconds, or never by itself."""
    after_s = chance.uniform(0.5, 10)
    return chance.choice(
        [
            scenarios.succeeds(after_s, looks=chance.randint(1, 12)),
            scenarios.succeeds(after_s),
            scenarios.blocked_then_succeeds(after_s / 3, after_s),
            scenarios.partial_results(after_s),
            scenarios.large_result(400_000, after_s),
            scenarios.bare_success(after_s),
            scenarios.fails_with_error(after_s),
            scenarios.fails_by_result(after_s),
            scenarios.canceled(after_s),
            scenarios.progress_backwards(after_s),
            scenarios.cancelable_flips(after_s),
            scenarios.succeeds_at_once(),
            scenarios.runs_forever(),
            scenarios.runs_forever(),
        ]
    )


class Starters:
    """Start tasks, for which nobody asks: a follow is to find them."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.tasks: list[str] = []
        self._world = world
        self._chance = chance

    async def run(self, for_s: float, pace_s: float) -> None:
        """Start one about every `pace_s` seconds, and many at once now and then."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            for _ in range(20 if self._chance.random() < 0.02 else 1):
                flavour: Flavour | None = self._chance.choice([None, "vim", "vim"])
                self.tasks.append(self._world.create(LAB, a_fate(self._chance), flavour))
            await asyncio.sleep(self._chance.uniform(0, 2 * pace_s))


class Clients:
    """Asks for `until` seconds, as chance has it. `unknown`: ids that vCenter never had are asked for too.

    `annex`: some tasks are those of the vCenter that not all replicas know.
    """

    def __init__(self, world: World, chance: random.Random, *, unknown: bool, annex: bool = False) -> None:
        self.tasks: list[str] = []
        self._world = world
        self._chance = chance
        self._annex = annex
        self._asking: set[asyncio.Task[object]] = set()
        self._actions = [self._new, self._new, self._new_from_many, self._again, self._unwatch, self._unwatch_race]
        self._actions += [self._twice, self._bad, *([self._unknown] if unknown else [])]

    async def run(self, for_s: float, pace_s: float) -> None:
        """Acts about every `pace_s` seconds, however slow the answers are; then waits for the answers."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            self._chance.choice(self._actions)()
            await asyncio.sleep(self._chance.uniform(0, 2 * pace_s))
        await asyncio.gather(*self._asking)

    def _create(self) -> str:
        if self._annex and self._chance.random() < 0.3:
            task = self._world.create(ANNEX, a_fate(self._chance))
        else:
            task = self._world.create(LAB, a_fate(self._chance), self._chance.choice([None, "vim"]))
        self.tasks.append(task)
        return task

    def _some(self) -> str:
        return self._chance.choice(self.tasks) if self.tasks else self._create()

    def _new(self) -> None:
        self._ask_for(self._create())

    def _new_from_many(self) -> None:
        task = self._create()
        for _ in range(self._chance.randint(2, 5)):
            self._ask_for(task)

    def _again(self) -> None:
        self._ask_for(self._some())

    def _twice(self) -> None:
        """The same message again, known by its Msg-Id, and its body alone."""
        task = self._create()
        request = self._request(task)
        for _ in range(2):
            self._begin(self._world.store(request, task, at=time.time(), message_id=f"twice-{task}"))
        self._begin(self._world.store(request, task, at=time.time()))

    def _unknown(self) -> None:
        number = self._chance.getrandbits(32)
        self._ask_for(self._chance.choice([f"never-there-{number:x}:x", f"task-9{number}"]))

    def _bad(self) -> None:
        self._begin(self._world.store(self._chance.choice(BAD), "", valid=False, at=time.time()))

    def _unwatch(self) -> None:
        task = self._some()
        self._begin(self._world.ask("unwatch", task, self._named(task)))

    def _unwatch_race(self) -> None:
        """Several want it over while it ends by itself and somebody asks for it anew."""
        task = self._some()
        for _ in range(2):
            self._begin(self._world.ask("unwatch", task, self._named(task)))
        if self._chance.random() < 0.5:
            self._world.end_task(task)
        self._ask_for(task)

    def _ask_for(self, task: str) -> None:
        request = self._request(task)
        if self._chance.random() < 0.5:
            self._begin(self._world.store(request, task, at=time.time()))
        else:
            self._begin(self._world.ask("watch", task, request))

    def _request(self, task: str) -> dict[str, object]:
        chance = self._chance
        request = {**self._named(task), "partial_results": chance.random() < 0.3}
        return request | ({"timeout": chance.choice([0.5, 1.5, 4])} if chance.random() < 0.2 else {})

    def _named(self, task: str) -> dict[str, object]:
        vcenter = self._world.vcenter_of(task)
        return {"task": task} if vcenter == LAB else {"task": task, "vcenter": vcenter}

    def _begin(self, asking: object) -> None:
        task = asyncio.ensure_future(asking)  # type: ignore[call-overload] # any awaitable
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
