"""The story of a watch: due -> look -> diff -> publish -> again, or over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from .task import Task, TaskError
from .watch import Absence


class Unchanged(msgspec.Struct, frozen=True):
    """A good look that found the task as the look before did."""


class Unanswered(msgspec.Struct, frozen=True):
    """A hurried look that failed or told nothing certain; `answer` is what vCenter said, if anything."""

    answer: TaskError | None = None


UNCHANGED = Unchanged()

Standing = Task | Unchanged | Absence | Unanswered
"""How a followed task stands by one look."""


class TaskSource(Protocol):
    """The tasks of one vCenter behind one API. It decides when to look and yields what it finds.

    A task that was given with anything but `Unchanged` isn't looked at again before `again`: its events are
    stored first, so that no state that was seen can be overtaken by the next one. A task that ended is given
    twice: at once with `result` None, and, without waiting for `again`, with its result (or `UNAVAILABLE`).
    """

    def follow(self, task: str, since: float, *, seen: bool, with_result: bool) -> None:
        """Looks at `task` from now on. `since`: when its watch began (Unix s); `seen`: an event tells that
        vCenter showed it before; `with_result`: each look brings the result."""

    def again(self, task: str) -> None:
        """What was given of `task` has been dealt with: look on."""

    def hurry(self, task: str) -> None:
        """Looks at `task` as soon as possible and gives its standing whatever comes."""

    def forget(self, task: str) -> None:
        """Looks no more. Unknown tasks are fine."""

    def looks(self) -> AsyncIterator[list[tuple[str, Standing]]]:
        """What the looks found, in batches, without end."""
        ...

    async def cancel(self, task: str) -> None:
        """Asks vCenter to cancel `task`, followed or not. Raises Refused or VCenterUnavailable."""
