"""The tasks of one vCenter, whichever API knows them: a task's id says which one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ..domain.errors import VCenterUnavailable
from ..domain.ports import PollResult, TaskSource
from ..domain.task import TaskIdentity, is_vim_task
from ..metrics import Metrics
from ..settings import VCenterSettings
from .cis import CisSource
from .health import VCenterHealthTracker
from .policy import PollPolicy, VCenterConfig
from .vim.source import VimSource

CANCEL_S = 15.0
"""Time for vCenter's answer to a cancel. The bridge itself answers every request within 20 s."""


class VCenterTaskSource:
    """The port `TaskSource` over HTTP. Unless `vim` is off, it covers classic tasks. Leaving it logs out.

    `async with VCenterTaskSource(settings, policy, metrics) as source:`
    """

    def __init__(
        self, settings: VCenterSettings, policy: PollPolicy, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._name = settings.name
        self._cis = CisSource(settings, policy, metrics, clock=clock)
        self._vim: VimSource | None = None
        if (mode := settings.vim) != "off":
            self._vim = VimSource(self._cis.shared, settings, policy, metrics, mode=mode, clock=clock)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._cis)
        if self._vim is not None:
            await self._stack.enter_async_context(self._vim)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def health(self) -> VCenterHealthTracker:
        return self._cis.health

    @property
    def budget_used(self) -> float:
        return self._cis.budget_used

    def _source_of(self, task: str) -> CisSource | VimSource | None:
        """Return None for a classic task if `vim` is off by now: its watch waits until it is on again."""
        return self._vim if is_vim_task(task) else self._cis

    def track(self, task: str, since: float, *, seen: bool, with_result: bool, identity: TaskIdentity | None) -> None:
        if not is_vim_task(task):
            self._cis.track(task, since, seen=seen, with_result=with_result)
        elif self._vim is not None:
            self._vim.track(task, since, seen=seen, identity=identity)

    def resume(self, task: str) -> None:
        if source := self._source_of(task):
            source.resume(task)

    def poll_now(self, task: str) -> None:
        if source := self._source_of(task):
            source.poll_now(task)

    def forget(self, task: str) -> None:
        if source := self._source_of(task):
            source.forget(task)

    @property
    def absent_count(self) -> int:
        return self._cis.absent_count + (self._vim.absent_count if self._vim else 0)

    def set_absent_elsewhere(self, count: int) -> None:
        self._cis.set_absent_elsewhere(count)
        if self._vim is not None:
            self._vim.set_absent_elsewhere(count)

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._cis.poll_results()

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        return await self._vim.fetch_identity(task) if self._vim and is_vim_task(task) else None

    async def cancel(self, task: str) -> None:
        if (source := self._source_of(task)) is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await source.cancel(task)
        except TimeoutError as error:
            message = f"vCenter {self._name} didn't answer in time whether it cancels the task."
            raise VCenterUnavailable(message) from error


_VCENTER_TASK_SOURCE_IS_A_TASK_SOURCE: type[TaskSource] = VCenterTaskSource
_VCENTER_SETTINGS_ARE_A_VCENTER_CONFIG: type[VCenterConfig] = VCenterSettings
