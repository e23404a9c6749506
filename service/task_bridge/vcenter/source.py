"""The tasks of one vCenter, of both kinds: an id tells which API knows it, and nobody beyond this needs to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ..domain.errors import VCenterUnavailable
from ..domain.ports import PollResult
from ..domain.task import TaskIdentity, is_vim_task
from ..metrics import Metrics
from ..settings import VCenterSettings
from .cis import CisSource
from .health import VCenterHealthTracker
from .policy import PollPolicy
from .vim import VimSource

CANCEL_S = 15.0
"""For vCenter's answer to a cancel: whoever asks the bridge for it has an answer within 20 s."""


class VCenterTaskSource:
    """The port `TaskSource`, over HTTP. Classic tasks are followed unless `vim` is off.

    `async with VCenterTasks(settings, policy, metrics) as source:` looks; leaving it logs out.
    """

    def __init__(self, settings: VCenterSettings, policy: PollPolicy, metrics: Metrics) -> None:
        self._name = settings.name
        self._cis = CisSource(settings, policy, metrics)
        way = settings.vim
        self._vim = None if way == "off" else VimSource(self._cis.shared, settings, policy, metrics, way=way)
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

    def _of(self, task: str) -> CisSource | VimSource | None:
        """None for the classic tasks of earlier, where they aren't followed any more: their watches wait."""
        return self._vim if is_vim_task(task) else self._cis

    def track(self, task: str, since: float, *, seen: bool, with_result: bool, birth: TaskIdentity | None) -> None:
        if not is_vim_task(task):
            self._cis.track(task, since, seen=seen, with_result=with_result)
        elif self._vim is not None:
            self._vim.track(task, since, seen=seen, birth=birth)

    def resume(self, task: str) -> None:
        if source := self._of(task):
            source.resume(task)

    def poll_now(self, task: str) -> None:
        if source := self._of(task):
            source.poll_now(task)

    def forget(self, task: str) -> None:
        if source := self._of(task):
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
        if (source := self._of(task)) is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await source.cancel(task)
        except TimeoutError as error:
            told = f"vCenter {self._name} doesn't answer in time whether it cancels the task."
            raise VCenterUnavailable(told) from error
