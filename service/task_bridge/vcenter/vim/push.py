"""Push: one collector of our own, one view of what is followed, one filter, one wait at a time."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator

from ..http import RequestBudget
from . import api
from .api import ObjectState, UpdateSet
from .session import VimSession
from .soap import Ref, SoapFault


class Push:
    """It lives as long as its session. `number` is the session's.

    `lists_vms`: whether the view ever did. `untold`: those VMs that the wait for updates hasn't told of yet, which
    it should by `untold_until`: a locked one holds it up, and then the next change of the view.
    """

    def __init__(self, session: VimSession, collector: Ref, view: Ref, pace: RequestBudget, held_s: float) -> None:
        self._session = session
        self._collector = collector
        self._view = view
        self._pace = pace
        self._held_s = held_s
        self._told: set[str] = set()
        self.number = session.number
        self.lists_vms = False
        self.untold: set[str] = set()
        self.untold_until = -math.inf

    @property
    def is_current(self) -> bool:
        """Whether its session is the one that calls go by: another call may have begun a new one meanwhile."""
        return self._session.is_open and self._session.number == self.number

    @classmethod
    async def open(cls, session: VimSession, pace: RequestBudget, held_s: float) -> Push:
        """Raises VCenterUnavailable."""
        collector, view = await api.create_collector(session), await api.create_view(session)
        await api.create_filter(session, collector, view)
        return cls(session, collector, view, pace, held_s)

    async def close(self) -> None:
        """Ends the wait at vCenter too, where it may go on when nobody waits any more: there must never be two."""
        await api.destroy_collector(self._session, self._collector)

    async def modify(self, add: list[Ref], remove: list[Ref]) -> list[Ref]:
        """Those of `add` that vCenter doesn't have. Raises VCenterUnavailable: HeldUp where VMs may be why."""
        held_s, began = self._held_s if self.lists_vms else None, time.monotonic()
        vms = _vms(add)
        self.lists_vms = self.lists_vms or bool(vms)
        self._told -= _vms(remove)
        missing = await self._modified(add, remove, held_s)
        self.untold = vms - self._told - _vms(missing)
        now = time.monotonic()
        self.untold_until = now + max(self._held_s, 2 * (now - began))
        return missing

    async def _modified(self, add: list[Ref], remove: list[Ref], held_s: float | None) -> list[Ref]:
        try:
            return await api.modify_view(self._session, self._view, add, remove, held_s)
        except SoapFault as fault:
            if fault.kind != "ManagedObjectNotFound":
                raise
        # Older vcsim refuses all for one that it doesn't have; where it is the view that is gone, it refuses again.
        there = await api.filter_existing(self._session, add, self._held_s)
        missing = [ref for ref in add if ref not in there]
        await api.modify_view(self._session, self._view, [ref for ref in add if ref in there], remove, held_s)
        return missing

    async def updates(self) -> AsyncIterator[list[ObjectState]]:
        """What changes, without end; nothing at all is told as well, after each wait. Raises VCenterUnavailable."""
        version = ""
        while True:
            if not self.is_current:
                raise self._session.mark_ended(self.number)
            try:
                found = await api.wait_for_updates(self._session, self._collector, version)
            except SoapFault as fault:
                if fault.kind != "InvalidCollectorVersion" or not version:
                    raise
                version = ""
                self._begin_again()
                continue
            if found is not None:
                version = found.version
                self._hear(found)
            yield found.objects if found is not None else []
            if found is None or not found.is_truncated:
                await self._pace.take()

    def _hear(self, found: UpdateSet) -> None:
        for one in found.objects:
            if one.ref.type == "VirtualMachine":
                self.untold.discard(one.ref.id)
                self._told.discard(one.ref.id) if one.is_gone else self._told.add(one.ref.id)
        if found.is_truncated:
            self._wait_longer()  # nothing holds it up: there is much to tell

    def _begin_again(self) -> None:
        """Everything will be told anew."""
        self.untold |= self._told
        self._told.clear()
        self._wait_longer()

    def _wait_longer(self) -> None:
        self.untold_until = max(self.untold_until, time.monotonic() + self._held_s)


def _vms(refs: list[Ref]) -> set[str]:
    return {ref.id for ref in refs if ref.type == "VirtualMachine"}
