"""PropertyCollector and ListView: objects whose properties are watched, and the updates that nobody has fetched yet.

A filter remembers the properties that it sent for each object and queues the objects that changed since. So an update
costs as much as what changed, however many objects the filter contains.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..task_attributes import SimulatedTarget
from .values import Value, element, moref, text

Properties = dict[str, Value]


class PropertySpec(NamedTuple):
    """The requested property paths of each type."""

    paths: dict[str, tuple[str, ...]]


class ObjectSnapshot(NamedTuple):
    """An object's properties, and a fault for each path that can't be shown."""

    properties: Properties
    missing: dict[str, Value]


TakeSnapshot = Callable[[SimulatedTarget, PropertySpec], ObjectSnapshot | None]
"""Returns None if there is no such object."""


class ListView:
    """A list of objects, and the filters that follow it."""

    def __init__(self, ref: SimulatedTarget) -> None:
        self.ref = ref
        self.members: dict[SimulatedTarget, None] = {}
        self.filters: list[PropertyFilter] = []

    def modify(self, add: Iterable[SimulatedTarget], remove: Iterable[SimulatedTarget]) -> None:
        for target in remove:
            if target in self.members:
                del self.members[target]
                for property_filter in self.filters:
                    property_filter.remove(target)
        for target in add:
            if target not in self.members:
                self.members[target] = None
                for property_filter in self.filters:
                    property_filter.add(target)


class PropertyFilter:
    """Objects, the properties sent for each of them, and the objects that changed since."""

    def __init__(self, ref: SimulatedTarget, spec: PropertySpec, index: "FilterIndex") -> None:
        self.ref = ref
        self.spec = spec
        self._index = index
        self._members: Counter[SimulatedTarget] = Counter()
        self._sent: dict[SimulatedTarget, ObjectSnapshot | None] = {}
        self.changed: deque[SimulatedTarget] = deque()
        self._queued: set[SimulatedTarget] = set()
        self._reading: SimulatedTarget | None = None

    def add(self, target: SimulatedTarget) -> None:
        """Add an object; one that several views contain counts several times."""
        self._members[target] += 1
        self._index.add(target, self)
        self.mark_changed(target)

    def remove(self, target: SimulatedTarget) -> None:
        self._members[target] -= 1
        if not self._members[target]:
            del self._members[target]
            self._index.remove(target, self)
            self.mark_changed(target)

    def mark_changed(self, target: SimulatedTarget) -> None:
        """Queue an object that may have changed."""
        if target not in self._queued:
            self._queued.add(target)
            self.changed.append(target)

    def resend_all(self) -> None:
        """Forget what was sent, so that every object is sent again."""
        self._sent.clear()
        for target in self._members:
            self.mark_changed(target)

    def destroy(self) -> None:
        for target in list(self._members):
            self._index.remove(target, self)

    def begin_read(self, locked: set[str]) -> bool:
        """Begin to read the objects that were never sent. Return False if one is locked; the read lasts until it is
        unlocked.
        """
        if self.is_blocked(locked):
            return False
        unsent = (target for target in self.changed if target in self._members and target not in self._sent)
        self._reading = next((target for target in unsent if target.id in locked), None) if locked else None
        return self._reading is None

    def is_blocked(self, locked: set[str]) -> bool:
        """True while a read has begun that waits for a locked object."""
        return self._reading is not None and self._reading.id in locked

    def take_updates(self, take_snapshot: TakeSnapshot, at_most: int) -> list[str]:
        """Return ObjectUpdates of the objects that changed, as XML, and remember them as sent."""
        updates: list[str] = []
        while self.changed and len(updates) < at_most:
            target = self.changed.popleft()
            self._queued.discard(target)
            if update := self._take_update(target, take_snapshot):
                updates.append(update)
        return updates

    def _take_update(self, target: SimulatedTarget, take_snapshot: TakeSnapshot) -> str | None:
        snapshot = take_snapshot(target, self.spec) if target in self._members else None
        sent = self._sent.get(target)
        if snapshot is None:
            return render_object_update("leave", target, {}, {}) if self._sent.pop(target, None) else None
        self._sent[target] = snapshot
        if sent is None:
            return render_object_update("enter", target, snapshot.properties, snapshot.missing)
        changes: dict[str, Value | None] = {
            path: value for path, value in snapshot.properties.items() if sent.properties.get(path) != value
        }
        changes |= {path: None for path in sent.properties if path not in snapshot.properties}
        if not changes and snapshot.missing == sent.missing:
            return None
        return render_object_update("modify", target, changes, snapshot.missing)


class FilterIndex:
    """The filters by the objects that they contain."""

    def __init__(self) -> None:
        self._filters: dict[SimulatedTarget, set[PropertyFilter]] = {}

    def add(self, target: SimulatedTarget, property_filter: PropertyFilter) -> None:
        self._filters.setdefault(target, set()).add(property_filter)

    def remove(self, target: SimulatedTarget, property_filter: PropertyFilter) -> None:
        filters = self._filters.get(target, set())
        filters.discard(property_filter)
        if not filters:
            self._filters.pop(target, None)

    def mark_changed(self, target: SimulatedTarget) -> None:
        for property_filter in self._filters.get(target, ()):
            property_filter.mark_changed(target)


class PropertyCollector:
    """Filters whose updates a client waits for. `version` counts update sets, `cancel_count` canceled waits."""

    def __init__(self, ref: SimulatedTarget) -> None:
        self.ref = ref
        self.filters: dict[SimulatedTarget, PropertyFilter] = {}
        self.version = 0
        self.cancel_count = 0
        self._versions = itertools.count(1)

    def resend_all(self) -> None:
        for property_filter in self.filters.values():
            property_filter.resend_all()

    def begin_read(self, locked: set[str]) -> bool:
        """Begin to read what changed. Return False if an object is locked."""
        return all(property_filter.begin_read(locked) for property_filter in self.filters.values())

    def take_update_set(self, take_snapshot: TakeSnapshot, at_most: int) -> str | None:
        """Return the content of an UpdateSet with what changed, None if nothing did."""
        sets, left = [], at_most
        for property_filter in self.filters.values():
            if updates := property_filter.take_updates(take_snapshot, left):
                left -= len(updates)
                ref = element("filter", moref(property_filter.ref), typed=False)
                sets.append(f"<filterSet>{ref}{''.join(updates)}</filterSet>")
        if not sets:
            return None
        self.version = next(self._versions)
        truncated = any(property_filter.changed for property_filter in self.filters.values())
        flag = f"<truncated>{'true' if truncated else 'false'}</truncated>"
        return f"<version>{self.version}</version>{''.join(sets)}{flag}"


def render_object_update(
    kind: str, target: SimulatedTarget, changes: "dict[str, Value | None] | Properties", missing: dict[str, Value]
) -> str:
    """Return an ObjectUpdate; a change to None removes the property."""
    rendered = []
    for path, value in changes.items():
        name = element("name", text(path), typed=False)
        change = "<op>remove</op>" if value is None else f"<op>assign</op>{element('val', value, typed=True)}"
        rendered.append(f"<changeSet>{name}{change}</changeSet>")
    return (
        f"<objectSet><kind>{kind}</kind>{element('obj', moref(target), typed=False)}{''.join(rendered)}"
        f"{render_missing(missing)}</objectSet>"
    )


def render_missing(missing: dict[str, Value]) -> str:
    return "".join(
        f"<missingSet>{element('path', text(path), typed=False)}{element('fault', value, typed=False)}</missingSet>"
        for path, value in missing.items()
    )
