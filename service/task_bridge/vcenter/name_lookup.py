"""Look up the names of targets, many at once, over the session for classic tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from ..domain.errors import VCenterUnavailable
from ..logs import FailureLog
from .names import NameBook
from .vim.api import EntitiesRefused
from .vim.inventory import Entity, ObjectName, build_name
from .vim.soap import Ref

log = structlog.get_logger(__name__)

_FAILURES_LOGGED = 3
"""A failure is logged when it comes so many times in a row."""


class EntitySource(Protocol):
    """What knows the inventory. Both methods raise VCenterUnavailable."""

    async def prepare_lookup(self) -> None:
        """Log in unless there is a session."""

    async def fetch_entities(self, refs: list[Ref], take_turn: Callable[[], Awaitable[None]]) -> Mapping[Ref, Entity]:
        """Return these objects and all above them; await `take_turn` between requests. Raises EntitiesRefused."""
        ...


class NameLookup:
    """The names of one vCenter's objects. What isn't known is looked up, while anything waits, by a task of its own.

    `on_answer` is called with the objects of each batch that vCenter has answered.
    """

    def __init__(self, vcenter: str, source: EntitySource, clock: Callable[[], float]) -> None:
        self.on_answer: Callable[[list[Ref]], None] = lambda _: None
        self._vcenter = vcenter
        self._source = source
        self._clock = clock
        self._book = NameBook()
        self._log = FailureLog(log, "names_unavailable", "names_available_again")
        self._running: asyncio.Task[None] | None = None

    def find(self, ref: Ref) -> ObjectName | None:
        """Return what is known of the object, None if it is only looked up now."""
        name = self._book.find(ref, self._clock())
        if name is None:
            self._book.request(ref)
            if self._running is None:
                self._running = asyncio.create_task(self._run())
        return name

    def is_coming(self, ref: Ref, within_s: float) -> bool:
        """Return True if the object may be known within this time."""
        return self._book.is_coming(ref, self._clock(), within_s)

    def forget(self, ref: Ref) -> None:
        """Forget an object that vCenter doesn't have anymore."""
        self._book.forget(ref)

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._book.has_waiting():
                await self._take_turn()
                await self._look_up()
        finally:
            self._running = None

    async def _take_turn(self) -> None:
        """Wait until the next request may go."""
        await asyncio.sleep(max(0.0, self._book.next_at - self._clock()))
        self._book.record_request(self._clock())

    async def _look_up(self) -> None:
        batch: list[Ref] = []
        try:
            await self._source.prepare_lookup()
            batch = self._book.take_batch()
            entities = await self._source.fetch_entities(batch, self._take_turn)
        except EntitiesRefused as refusal:
            self._book.record_refusal(batch, self._clock(), is_final=refusal.is_final)
            self._log_failure(refusal)
        except VCenterUnavailable as error:
            self._book.record_failure(batch, self._clock())
            self._log_failure(error)
        except Exception:
            self._book.record_failure(batch, self._clock())
            log.exception("look_failed", vcenter=self._vcenter)
        else:
            self._log.report_recovery(vcenter=self._vcenter)
            self._book.record_names({ref: build_name(ref, entities) for ref in batch}, self._clock())
            self.on_answer(batch)

    def _log_failure(self, error: VCenterUnavailable) -> None:
        """Log a failure that persists: nothing but names depends on it."""
        if self._book.failures >= _FAILURES_LOGGED:
            self._log.report_failure(vcenter=self._vcenter, reason=str(error))
