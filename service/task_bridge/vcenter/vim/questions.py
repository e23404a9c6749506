"""The questions of VMs, asked by themselves: a VM that is kept locked then holds up other questions alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from ...domain.errors import VCenterUnavailable
from ..policy import VimTimeouts
from . import api
from .session import VimSession
from .tracker import VimTaskTracker

log = structlog.get_logger(__name__)

_FEW_SLOTS = 2
"""So many are taken by the wait for updates and by the asking about tasks."""


class QuestionPoller:
    """Asks while `VimTaskTracker.apart`. `may_ask` says whether vCenter answers at all; `news` wakes up who tends."""

    def __init__(
        self,
        vcenter: str,
        session: VimSession,
        looks: VimTaskTracker,
        patience: VimTimeouts,
        slots: int,
        may_ask: Callable[[], bool],
        news: Callable[[], object],
    ) -> None:
        self._vcenter = vcenter
        self._session = session
        self._looks = looks
        self._held_s = patience.vm_timeout_s
        self._apart_s = patience.separate_questions_s
        self._may_ask = may_ask
        self._news = news
        # Without a slot of its own a long question would hold the tasks up again.
        is_tight = slots <= _FEW_SLOTS
        self._read_s = patience.vm_timeout_s if is_tight else None
        self._pause_s = (
            max(patience.pull_interval_s, 5 * patience.vm_timeout_s) if is_tight else patience.pull_interval_s
        )
        self._asking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Unless it goes on. Raises what ended it, which is a bug."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        elif self._asking.done():
            asking, self._asking = self._asking, None
            asking.result()

    async def end(self) -> None:
        """Nobody needs the answers any more."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self) -> None:
        until = time.monotonic() + self._apart_s
        while True:
            await asyncio.sleep(self._pause_s)
            if await self._is_well() and time.monotonic() >= until:
                break
        self._asking = None
        self._looks.poll_questions_with_tasks()
        self._news()

    async def _is_well(self) -> bool:
        """Asks once; whether all answers came as soon as they must when tasks wait for them."""
        vms, well = self._looks.questions.vms, True
        for first in range(0, len(vms), api.OBJECTS_MAX):
            well = await self._is_answered(vms[first : first + api.OBJECTS_MAX]) and well
        return well

    async def _is_answered(self, vms: list[str]) -> bool:
        if not self._may_ask():
            return False
        began = time.monotonic()
        try:
            self._looks.answers(await api.fetch_objects(self._session, (), vms, self._read_s))
        except VCenterUnavailable as error:
            log.debug("questions_not_answered", vcenter=self._vcenter, reason=str(error))
            self._news()  # the session may have ended
            return False
        return time.monotonic() - began <= self._held_s
