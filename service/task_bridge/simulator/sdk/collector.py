"""PropertyCollector and ListView: which objects are watched, and what of them is new to whoever waits.

A filter keeps what it has told of each object and a list of those that changed since, so an update costs what
changed and not what is watched.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..bodies import SimulatedTarget
from .values import Value, element, moref, text

Properties = dict[str, Value]
Snapshot = Callable[[SimulatedTarget, "PropertySpec"], "ObjectSnapshot | None"]


class PropertySpec(NamedTuple):
    """The property paths of each type that are asked for; `all` stands for whole objects."""

    paths: dict[str, tuple[str, ...]]


class ObjectSnapshot(NamedTuple):
    """An object's properties, and the paths that can't be shown with the fault that says why."""

    properties: Properties
    missing: dict[str, Value]


class ListView:
    """Objects that somebody listed. `unresolved` ones are left out."""

    def __init__(self, ref: SimulatedTarget) -> None:
        self.ref = ref
        self.members: dict[SimulatedTarget, None] = {}
        self.filters: list[PropertyFilter] = []

    def modify(self, add: Iterable[SimulatedTarget], remove: Iterable[SimulatedTarget]) -> None:
        for target in remove:
            if target in self.members:
                del self.members[target]
                for one in self.filters:
                    one.leave(target)
        for target in add:
            if target not in self.members:
                self.members[target] = None
                for one in self.filters:
                    one.enter(target)


class PropertyFilter:
    """What one PropertyFilter has told of its objects. `watchers` finds the filters of an object that changed."""

    def __init__(self, ref: SimulatedTarget, wanted: PropertySpec, watchers: "Watchers") -> None:
        self.ref = ref
        self.wanted = wanted
        self._watchers = watchers
        self._members: Counter[SimulatedTarget] = Counter()
        self._told: dict[SimulatedTarget, ObjectSnapshot | None] = {}
        self.changed: deque[SimulatedTarget] = deque()
        self._queued: set[SimulatedTarget] = set()
        self._reading: SimulatedTarget | None = None

    def enter(self, target: SimulatedTarget) -> None:
        self._members[target] += 1
        self._watchers.add(target, self)
        self.touch(target)

    def leave(self, target: SimulatedTarget) -> None:
        self._members[target] -= 1
        if not self._members[target]:
            del self._members[target]
            self._watchers.remove(target, self)
            self.touch(target)

    def touch(self, target: SimulatedTarget) -> None:
        """Something about the object may have changed."""
        if target not in self._queued:
            self._queued.add(target)
            self.changed.append(target)

    def begin_again(self) -> None:
        """Nothing counts as told any more."""
        self._told.clear()
        for target in self._members:
            self.touch(target)

    def destroy(self) -> None:
        for target in list(self._members):
            self._watchers.remove(target, self)

    def read(self, locked: set[str]) -> bool:
        """Whether what wasn't told yet can be read. If not, reading has begun and ends when the lock is gone."""
        if self.is_held_up(locked):
            return False
        untold = (one for one in self.changed if one in self._members and one not in self._told)
        self._reading = next((one for one in untold if one.id in locked), None) if locked else None
        return self._reading is None

    def is_held_up(self, locked: set[str]) -> bool:
        """Whether somebody is in the middle of reading an object that is locked."""
        return self._reading is not None and self._reading.id in locked

    def updates(self, snapshot: Snapshot, at_most: int) -> list[str]:
        """ObjectUpdates of what changed, as XML, no more than so many."""
        made: list[str] = []
        while self.changed and len(made) < at_most:
            target = self.changed.popleft()
            self._queued.discard(target)
            if update := self._update(target, snapshot):
                made.append(update)
        return made

    def _update(self, target: SimulatedTarget, snapshot: Snapshot) -> str | None:
        shown = snapshot(target, self.wanted) if target in self._members else None
        told = self._told.get(target)
        if shown is None:
            return _object_update("leave", target) if self._told.pop(target, None) else None
        self._told[target] = shown
        if told is None:
            return _object_update("enter", target, shown.properties, shown.missing)
        changes: dict[str, Value | None] = {
            path: value for path, value in shown.properties.items() if told.properties.get(path) != value
        }
        changes |= {path: None for path in told.properties if path not in shown.properties}
        if not changes and shown.missing == told.missing:
            return None
        return _object_update("modify", target, changes, shown.missing)


class Watchers:
    """The filters that an object is a member of."""

    def __init__(self) -> None:
        self._filters: dict[SimulatedTarget, set[PropertyFilter]] = {}

    def add(self, target: SimulatedTarget, one: PropertyFilter) -> None:
        self._filters.setdefault(target, set()).add(one)

    def remove(self, target: SimulatedTarget, one: PropertyFilter) -> None:
        filters = self._filters.get(target, set())
        filters.discard(one)
        if not filters:
            self._filters.pop(target, None)

    def touch(self, target: SimulatedTarget) -> None:
        for one in self._filters.get(target, ()):
            one.touch(target)


class Collector:
    """A PropertyCollector. `version` counts the update sets; `canceled` how often a wait was canceled."""

    def __init__(self, ref: SimulatedTarget) -> None:
        self.ref = ref
        self.filters: dict[SimulatedTarget, PropertyFilter] = {}
        self.version = 0
        self.canceled = 0
        self._versions = itertools.count(1)

    def begin_again(self) -> None:
        for one in self.filters.values():
            one.begin_again()

    def read(self, locked: set[str]) -> bool:
        """Whether what is new can be read, and isn't locked."""
        return all(one.read(locked) for one in self.filters.values())

    def update_set(self, snapshot: Snapshot, at_most: int) -> str | None:
        """What is new, as the inside of an UpdateSet, None when nothing is."""
        sets, left = [], at_most
        for one in self.filters.values():
            if updates := one.updates(snapshot, left):
                left -= len(updates)
                sets.append(
                    f"<filterSet>{element('filter', moref(one.ref), typed=False)}{''.join(updates)}</filterSet>"
                )
        if not sets:
            return None
        self.version = next(self._versions)
        truncated = any(one.changed for one in self.filters.values())
        flag = f"<truncated>{'true' if truncated else 'false'}</truncated>"
        return f"<version>{self.version}</version>{''.join(sets)}{flag}"


def _object_update(
    kind: str, target: SimulatedTarget, changes: Any = None, missing: dict[str, Value] | None = None
) -> str:
    changed = "".join(_change(path, value) for path, value in (changes or {}).items())
    return (
        f"<objectSet><kind>{kind}</kind>{element('obj', moref(target), typed=False)}{changed}"
        f"{missing_set(missing or {})}</objectSet>"
    )


def _change(path: str, value: Value | None) -> str:
    name = element("name", text(path), typed=False)
    if value is None:
        return f"<changeSet>{name}<op>remove</op></changeSet>"
    return f"<changeSet>{name}<op>assign</op>{element('val', value, typed=True)}</changeSet>"


def missing_set(missing: dict[str, Value]) -> str:
    return "".join(
        f"<missingSet>{element('path', text(path), typed=False)}{element('fault', value, typed=False)}</missingSet>"
        for path, value in missing.items()
    )
