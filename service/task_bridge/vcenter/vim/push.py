"""Push: one collector of our own, one view of what is tracked, one filter, one wait for updates at a time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable

from ..http import RequestBudget
from . import api
from .answers import ObjectState, UpdateSet
from .session import VimSession
from .soap import Ref, SoapFault


class ViewChanges:
    """The objects to be added to the view and removed from it by its next change."""

    def __init__(self) -> None:
        self.to_add: dict[Ref, None] = {}
        self.to_remove: dict[Ref, None] = {}

    def __bool__(self) -> bool:
        return bool(self.to_add or self.to_remove)

    def add(self, ref: Ref) -> bool:
        """Add the object. Return True if it was still to be removed, so the view may list it already."""
        may_be_listed = ref in self.to_remove
        self.to_remove.pop(ref, None)
        self.to_add[ref] = None
        return may_be_listed

    def remove(self, ref: Ref) -> None:
        self.to_add.pop(ref, None)
        self.to_remove[ref] = None

    def reset(self, refs: Iterable[Ref]) -> None:
        """Add these to a new view, which is empty."""
        self.to_remove.clear()
        self.to_add = dict.fromkeys(refs)

    def take(self) -> tuple[list[Ref], list[Ref]]:
        """Return what to add and what to remove now."""
        add, remove = list(self.to_add), list(self.to_remove)
        self.to_add, self.to_remove = {}, {}
        return add, remove

    def put_back(self, add: list[Ref], remove: list[Ref]) -> None:
        """Change the view once more, except for what has been decided since: nobody knows whether it was changed."""
        self.to_add |= {ref: None for ref in add if ref not in self.to_remove}
        self.to_remove |= {ref: None for ref in remove if ref not in self.to_add}


class Push:
    """A view and the wait for its updates. It lives as long as its session, whose number is `number`.

    `has_listed_vms`: the view has listed a VM. `unreported_vms`: listed VMs that no update has shown yet.
    `vms_due_at`: when updates should have shown them. A locked VM holds up the updates and then the next change of
    the view.
    """

    def __init__(
        self,
        session: VimSession,
        collector: Ref,
        view: Ref,
        pace: RequestBudget,
        vm_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._session = session
        self._collector = collector
        self._view = view
        self._pace = pace
        self._vm_timeout_s = vm_timeout_s
        self._reported_vms: set[str] = set()
        self.number = session.number
        self.has_listed_vms = False
        self.unreported_vms: set[str] = set()
        self.vms_due_at = -math.inf

    @property
    def is_current(self) -> bool:
        """True while its session is the one in use. Another call may have started a new one meanwhile."""
        return self._session.is_open and self._session.number == self.number

    @classmethod
    async def open(
        cls, session: VimSession, pace: RequestBudget, vm_timeout_s: float, clock: Callable[[], float]
    ) -> Push:
        """Create the collector, the view and the filter. Raises VCenterUnavailable."""
        collector, view = await api.create_collector(session), await api.create_view(session)
        await api.create_filter(session, collector, view)
        return cls(session, collector, view, pace, vm_timeout_s, clock)

    async def close(self) -> None:
        """End the wait at vCenter too, where it may outlive its client: there must never be two."""
        await api.destroy_collector(self._session, self._collector)

    async def modify(self, add: list[Ref], remove: list[Ref]) -> list[Ref]:
        """Change the view. Return those of `add` that vCenter doesn't have.

        Raises VCenterUnavailable; it is VmTimeout if VMs may be the reason.
        """
        timeout_s, started_at = self._vm_timeout_s if self.has_listed_vms else None, self._clock()
        vms = _vms_in(add)
        self.has_listed_vms = self.has_listed_vms or bool(vms)
        self._reported_vms -= _vms_in(remove)
        missing = await self._modify_existing(add, remove, timeout_s)
        self.unreported_vms = vms - self._reported_vms - _vms_in(missing)
        now = self._clock()
        self.vms_due_at = now + max(self._vm_timeout_s, 2 * (now - started_at))
        return missing

    async def _modify_existing(self, add: list[Ref], remove: list[Ref], timeout_s: float | None) -> list[Ref]:
        try:
            return await api.modify_view(self._session, self._view, add, remove, timeout_s)
        except SoapFault as fault:
            if fault.kind != "ManagedObjectNotFound":
                raise
        # Older vcsim refuses all because of one that it doesn't have. If the view itself is gone, it refuses again.
        existing = await api.filter_existing(self._session, add, self._vm_timeout_s)
        missing = [ref for ref in add if ref not in existing]
        await api.modify_view(self._session, self._view, [ref for ref in add if ref in existing], remove, timeout_s)
        return missing

    async def updates(self) -> AsyncIterator[tuple[list[ObjectState], float]]:
        """Yield what changed after each wait, an empty list if nothing did, without end. Raises VCenterUnavailable.

        With it comes the time of the request: what changed later may be missing.
        """
        version, asked_at, is_truncated = "", 0.0, False
        while True:
            asked_at = asked_at if is_truncated else self._clock()
            if not self.is_current:
                raise self._session.build_ended_error()
            try:
                update = await api.wait_for_updates(self._session, self._collector, version)
            except SoapFault as fault:
                if fault.kind != "InvalidCollectorVersion" or not version:
                    raise
                version = ""
                # vCenter will show everything again.
                self.unreported_vms |= self._reported_vms
                self._reported_vms.clear()
                self._extend_vms_due()
                continue
            if update is not None:
                version = update.version
                self._note_vms(update)
            yield (update.objects if update is not None else []), asked_at
            is_truncated = update is not None and update.is_truncated
            if not is_truncated:
                await self._pace.take()

    def _note_vms(self, update: UpdateSet) -> None:
        for one in update.objects:
            if one.ref.type == "VirtualMachine":
                self.unreported_vms.discard(one.ref.id)
                self._reported_vms.discard(one.ref.id) if one.is_gone else self._reported_vms.add(one.ref.id)
        if update.is_truncated:
            self._extend_vms_due()  # nothing holds it up: there is much to show

    def _extend_vms_due(self) -> None:
        self.vms_due_at = max(self.vms_due_at, self._clock() + self._vm_timeout_s)


def _vms_in(refs: list[Ref]) -> set[str]:
    return {ref.id for ref in refs if ref.type == "VirtualMachine"}
