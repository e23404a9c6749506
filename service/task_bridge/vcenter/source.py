"""The tasks of one vCenter, whichever API knows them: a task's id says which one does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ..domain.errors import VCenterUnavailable
from ..domain.follows.event import FollowMemory
from ..domain.follows.order import Follow, FollowEntity, FoundTask
from ..domain.follows.ports import FoundBatch, TaskFinder
from ..domain.ports import PollResult, TaskSource
from ..domain.task import Api, TaskIdentity, is_vim_task
from ..domain.vcenter_state import VCenterReport
from ..metrics import Metrics
from ..settings import VCenterSettings
from .cis import CisSource
from .health import ApiHealth, combine_apis
from .name_lookup import NameLookup
from .named_results import NamedResults
from .policy import TIMEOUTS, PollPolicy, Timeouts, VCenterConfig
from .vim.inventory import find_ref, is_below
from .vim.source import VimSource

CANCEL_S = 15.0
"""Time for vCenter's answer to a cancel. The bridge itself answers every request within 20 s."""


class VCenterTaskSource:
    """The port `TaskSource` over HTTP. Unless `vim` is off, it covers classic tasks. Leaving it logs out.

    `async with VCenterTaskSource(settings, policy, metrics) as source:`
    """

    def __init__(
        self,
        settings: VCenterSettings,
        policy: PollPolicy,
        metrics: Metrics,
        clock: Callable[[], float],
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._name = settings.name
        self._clock = clock
        self._cis = CisSource(settings, policy, metrics, clock=clock, timeouts=timeouts)
        self._vim: VimSource | None = None
        self._sources: dict[Api, CisSource | VimSource] = {"cis": self._cis}
        if (mode := settings.vim) != "off":
            self._vim = VimSource(
                self._cis.shared, settings, policy, metrics, mode=mode, clock=clock, timeouts=timeouts
            )
            self._sources["vim"] = self._vim
        self._lookup: NameLookup | None = None
        self._named: NamedResults | None = None
        # With one request at a time, a lookup that hangs would hold up all polls.
        if self._vim is not None and settings.names and settings.max_concurrent_requests > 1:
            self._lookup = NameLookup(settings.name, self._vim, time.monotonic)
            self._named = NamedResults(self._cis.shared.results, self._lookup)
            self._vim.on_missing = self._lookup.forget
            for source in self._sources.values():
                source.name_tasks_by(self._named.add_known_names)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._cis)
        if self._vim is not None:
            await self._stack.enter_async_context(self._vim)
        if self._lookup is not None:
            self._stack.push_async_callback(self._lookup.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def report_health(self) -> dict[Api, ApiHealth]:
        """Return the health of each API, without any request."""
        return {api: source.report_health() for api, source in self._sources.items()}

    def report_state(self) -> VCenterReport:
        """Return what this replica knows of the vCenter, for requesters and other replicas."""
        whole = combine_apis(self.report_health())
        since = None if whole.since is None else self._clock() - (time.monotonic() - whole.since)
        # Tasks that vanished together wait for an end that the bridge holds back, and that has a reason too.
        state = whole.trouble or ("degraded" if whole.reason else "ok")
        return VCenterReport(state, whole.reason, since, polls=whole.watches > 0)

    def find_trouble(self, task: str) -> str | None:
        """Return why `task` can't be polled, as far as that is known."""
        apis = self.report_health()
        own = apis.get("vim" if is_vim_task(task) else "cis")
        return own.reason if own is not None and own.reason else combine_apis(apis).reason

    @property
    def budget_used(self) -> float:
        return self._cis.budget_used

    def _source_of(self, task: str) -> CisSource | VimSource | None:
        """Return None for a classic task if `vim` is off by now: its watch waits until it is on again."""
        return self._vim if is_vim_task(task) else self._cis

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
        self._forget_names(task)
        if not is_vim_task(task):
            self._cis.track(task, since, seen=seen, with_result=with_result, with_details=with_details)
        elif self._vim is not None:
            self._vim.track(task, since, seen=seen, begun=begun, identity=identity)

    def resume(self, task: str, *, quiet_until: float) -> None:
        if source := self._source_of(task):
            source.resume(task, quiet_until=quiet_until)

    def poll_now(self, task: str) -> None:
        if source := self._source_of(task):
            source.poll_now(task)

    def forget(self, task: str) -> None:
        self._forget_names(task)
        if source := self._source_of(task):
            source.forget(task)

    def _forget_names(self, task: str) -> None:
        if self._named is not None:
            self._named.forget(task)

    @property
    def absent_counts(self) -> dict[Api, int]:
        return {api: source.absent_count for api, source in self._sources.items()}

    def set_absent_elsewhere(self, counts: Mapping[Api, int]) -> None:
        for api, source in self._sources.items():
            source.set_absent_elsewhere(counts.get(api, 0))

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._named.batches() if self._named is not None else self._cis.poll_results()

    async def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield what the finders of the follow's APIs find, each at its own pace."""
        finders = [self._find_classic_tasks(follow, memory)] if "vim" in follow.apis else []
        if "cis" in follow.apis:
            finders.append(self._find_cis_tasks(follow, memory))
        async with contextlib.aclosing(merge_batches(finders)) as batches:
            async for batch in batches:
                yield batch

    async def _find_classic_tasks(
        self, follow: Follow, memory: Callable[[], FollowMemory]
    ) -> AsyncGenerator[FoundBatch]:
        if self._vim is None:
            setting = f"BRIDGE_VCENTERS__{self._name.upper()}__VIM"
            yield FoundBatch(trouble=f"Classic tasks of {self._name} can't be found: {setting} is off.")
            await asyncio.Event().wait()
            return
        async with contextlib.aclosing(self._vim.find_tasks(follow, memory)) as batches:
            async for batch in batches:
                yield batch

    async def _find_cis_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        async with contextlib.aclosing(self._cis.find_tasks(follow, memory)) as batches:
            async for batch in batches:
                yield batch._replace(tasks=await self._select_below(follow.entity, batch.tasks))

    async def _select_below(self, entity: FollowEntity | None, tasks: Sequence[FoundTask]) -> Sequence[FoundTask]:
        """Return the tasks on objects below a recursive entity, and those of which the inventory doesn't tell that."""
        if entity is None or not entity.recursive or not tasks or self._vim is None:
            return tasks
        refs = {task.id: find_ref(task.target) if task.target else None for task in tasks}
        try:
            await self._vim.prepare_lookup()
            wanted = list({ref for ref in refs.values() if ref is not None})
            entities = await self._vim.fetch_entities(wanted, self._cis.shared.turns.wait) if wanted else {}
        except VCenterUnavailable:
            return tasks
        belongs = {task: ref is not None and is_below(ref, entity.id, entities) for task, ref in refs.items()}
        return [task for task in tasks if belongs[task.id] is not False]

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


async def merge_batches(finders: Sequence[AsyncGenerator[FoundBatch]]) -> AsyncGenerator[FoundBatch]:
    """Yield the batches of all finders as they come. None runs ahead by more than a batch. Raises what one raises."""
    merged: asyncio.Queue[FoundBatch | Exception] = asyncio.Queue(1)

    async def pass_on(finder: AsyncGenerator[FoundBatch]) -> None:
        try:
            async with contextlib.aclosing(finder):
                async for batch in finder:
                    await merged.put(batch)
        except Exception as error:
            await merged.put(error)

    tasks = [asyncio.create_task(pass_on(finder)) for finder in finders]
    try:
        while True:
            batch = await merged.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_VCENTER_TASK_SOURCE_IS_A_TASK_SOURCE: type[TaskSource] = VCenterTaskSource
_VCENTER_TASK_SOURCE_IS_A_TASK_FINDER: type[TaskFinder] = VCenterTaskSource
_VCENTER_SETTINGS_ARE_A_VCENTER_CONFIG: type[VCenterConfig] = VCenterSettings
