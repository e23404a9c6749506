"""The state of a vCenter as replies give it, combined from what the replicas report. Pure.

The replica that answers may not be the one that polls, so each reports its view to the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from .durations import rfc3339
from .errors import Trouble

State = Literal["ok", Trouble, "unconfigured"]
_WORST_LAST = ("ok", "degraded", "unreachable", "refused")


class VCenterReport(msgspec.Struct, frozen=True):
    """One replica's view of a vCenter. `since`: Unix seconds. `polls`: the replica holds watches of its tasks."""

    state: Literal["ok", Trouble] = "ok"
    reason: str | None = None
    since: float | None = None
    polls: bool = False


class VCenterState(msgspec.Struct, frozen=True):
    """Whether the vCenter's tasks can be polled, and if not, why and since when."""

    state: State
    reason: str | None = None
    since: str | None = None


def unconfigured(vcenter: str) -> VCenterState:
    reason = f"No running replica has {vcenter!r} in its settings, so its tasks aren't polled; their watches are kept."
    return VCenterState("unconfigured", reason)


def combine_reports(vcenter: str, reports: Iterable[VCenterReport]) -> VCenterState:
    """Return the state by the views of the replicas that poll it, or of all if none does; the worst one counts."""
    views = list(reports)
    views = [view for view in views if view.polls] or views
    if not views:
        return unconfigured(vcenter)
    worst = max(views, key=lambda view: (_WORST_LAST.index(view.state), -(view.since or 0.0)))
    return VCenterState(worst.state, worst.reason, None if worst.since is None else rfc3339(worst.since))
