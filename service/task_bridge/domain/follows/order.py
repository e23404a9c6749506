"""A follow: a standing order to watch every task of a vCenter that matches. Pure.

Whatever finds tasks hands them here as `FoundTask`. A follow selects those that it is about, and each becomes an
ordinary watch.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import msgspec

from ..durations import parse_duration, parse_time
from ..task import Target, Task, TaskIdentity
from ..watch import Watch

CONFIGURED_FOLLOW = "config"
"""The name of the follow that a setting of a vCenter makes."""


def is_cis_service(service: str) -> bool:
    """Return whether this is the id of a service of the REST API, which has dots and no capital letters.

    The services of classic tasks are types of managed objects (`VirtualMachine`), or of extensions
    (`com.vmware.vcIntegrity`).
    """
    return re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", service, re.ASCII) is not None


class FollowEntity(msgspec.Struct, frozen=True):
    """A managed object by its id, with all that is below it if `recursive`."""

    id: str
    recursive: bool = False


class Follow(msgspec.Struct, frozen=True):
    """A follow as its JetStream message holds it. `since` is as requested; `requested_at` in Unix seconds."""

    id: str
    vcenter: str
    name: str
    requested_at: float
    apis: tuple[str, ...] = ("vim",)
    services: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    entity: FollowEntity | None = None
    top_level_only: bool = False
    since: str = "now"
    events: str = "all"
    timeout_s: float | None = None
    stalled_after_s: float = 0.0
    labels: dict[str, str] = {}
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The follow's name: there is one follow of that name."""
        return self.vcenter, self.name

    @property
    def log_keys(self) -> dict[str, str]:
        """Keys of every log line about the follow."""
        return {"vcenter": self.vcenter, "follow": self.name}

    @property
    def cis_services(self) -> tuple[str, ...]:
        """The services whose CIS tasks it is about."""
        return tuple(filter(is_cis_service, self.services)) if "cis" in self.apis else ()

    def asks_the_same_as(self, other: Follow) -> bool:
        """Return whether both requests have the same body."""
        return self._body() == other._body()

    def _body(self) -> dict[str, Any]:
        outside = ("id", "requested_at", "traceparent", "tracestate")
        return {field: getattr(self, field) for field in self.__struct_fields__ if field not in outside}

    def begins_at(self, vcenter_ahead_s: float) -> float:
        """Return from which queue time on tasks are followed, by vCenter's clock, in Unix seconds.

        `vcenter_ahead_s`: how far vCenter's clock is ahead of nats-server's. A time that the request names is one of
        vCenter's clock already.
        """
        named = parse_time(self.since)
        if named is not None:
            return named
        ago_s = 0.0 if self.since == "now" else parse_duration(self.since)
        return self.requested_at + vcenter_ahead_s - ago_s


class FoundTask(NamedTuple):
    """A task that was found in vCenter's history or in a list. `identity.queued_at` is None for CIS tasks."""

    id: str
    api: str
    identity: TaskIdentity
    service: str | None
    operation: str | None
    user: str | None
    parent: str | None
    target: Target | None
    ended: bool


def build_found_task(task_id: str, api: str, task: Task, identity: TaskIdentity) -> FoundTask:
    return FoundTask(
        task_id, api, identity, task.service, task.operation, task.user, task.parent, task.target, task.ended
    )


def is_selected(follow: Follow, found: FoundTask) -> bool:
    """Return whether the follow is about this task.

    vCenter applies some of these filters itself; here all are applied, but those of a recursive entity, which needs
    the inventory.
    """
    entity = follow.entity
    return (
        found.api in follow.apis
        and (not follow.services or found.service in follow.services)
        and is_operation_selected(follow.operations, found.operation or "")
        and (not follow.users or _canonical_user(found.user or "") in map(_canonical_user, follow.users))
        and not (follow.top_level_only and found.parent)
        and (entity is None or entity.recursive or (found.target is not None and found.target.id == entity.id))
    )


def is_operation_selected(patterns: tuple[str, ...], operation: str) -> bool:
    """Return whether a name matches one of the patterns and none of those with `!`. Without patterns all names do."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return (not wanted or any(_matches(pattern, operation) for pattern in wanted)) and not any(
        _matches(pattern, operation) for pattern in unwanted
    )


def _matches(pattern: str, name: str) -> bool:
    """Return whether the whole name matches; `*` stands for any characters. Takes linear time, whatever the pattern."""
    first, *parts = pattern.split("*")
    if not parts:
        return name == pattern
    *middle, last = parts
    if not name.startswith(first):
        return False
    at = len(first)
    for part in middle:
        at = name.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return len(name) - len(last) >= at and name.endswith(last)


def _canonical_user(user: str) -> str:
    r"""Return one form of a user name: vCenter writes `DOMAIN\user` for classic tasks and `user@DOMAIN` for others."""
    domain, backslash, name = user.rpartition("\\")
    if not backslash:
        name, _, domain = user.partition("@")
    return f"{name}@{domain}".casefold()


def build_watch_id(vcenter: str, found: FoundTask) -> str:
    """Return the id of the watch that a follow starts for a task: the same whenever, and by whichever follow.

    It begins with the task's queue time in milliseconds; a CIS task has none, and its id is never given to another.
    """
    queued_ms = int((found.identity.queued_at or 0.0) * 1000)
    parts = (vcenter, found.id, found.identity.description_id or "", str(queued_ms))
    return f"{queued_ms}-f{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:16]}"


def build_watch(follow: Follow, found: FoundTask, now: float) -> Watch:
    """Return the watch that the follow starts for a task that was found `now`, in Unix seconds."""
    return Watch(
        id=build_watch_id(follow.vcenter, found),
        vcenter=follow.vcenter,
        task=found.id,
        since=now,
        api=found.api,
        follow=follow.name,
        queued_at=found.identity.queued_at,
        description_id=found.identity.description_id,
        only_endings=follow.events == "endings",
        timeout_at=None if follow.timeout_s is None else now + follow.timeout_s,
        stalled_after_s=follow.stalled_after_s,
        labels=follow.labels,
        traceparent=follow.traceparent,
        tracestate=follow.tracestate,
    )
