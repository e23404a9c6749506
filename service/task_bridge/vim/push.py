"""Push: one collector of our own, one view of what is followed, one filter, one wait at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ..link.budget import Budget
from . import methods
from .methods import Shown
from .session import Session
from .soap import Ref, SoapFault


class Push:
    """It lives as long as its session. `number` is the session's."""

    def __init__(self, session: Session, collector: Ref, view: Ref, pace: Budget) -> None:
        self._session = session
        self._collector = collector
        self._view = view
        self._pace = pace
        self.number = session.number

    @property
    def is_current(self) -> bool:
        """Whether its session is the one that calls go by: another call may have begun a new one meanwhile."""
        return self._session.is_open and self._session.number == self.number

    @classmethod
    async def open(cls, session: Session, pace: Budget) -> Push:
        """Raises VCenterUnavailable."""
        collector, view = await methods.create_collector(session), await methods.create_view(session)
        await methods.create_filter(session, collector, view)
        return cls(session, collector, view, pace)

    async def modify(self, add: list[Ref], remove: list[Ref]) -> list[Ref]:
        """Those of `add` that vCenter doesn't have. Raises VCenterUnavailable."""
        try:
            return await methods.modify(self._session, self._view, add, remove)
        except SoapFault as fault:
            if fault.kind != "ManagedObjectNotFound":
                raise
        # Older vcsim refuses all for one that it doesn't have; where it is the view that is gone, it refuses again.
        there = await methods.existing(self._session, add)
        missing = [ref for ref in add if ref not in there]
        await methods.modify(self._session, self._view, [ref for ref in add if ref in there], remove)
        return missing

    async def updates(self) -> AsyncIterator[list[Shown]]:
        """What changes, without end; nothing at all is told as well, after each wait. Raises VCenterUnavailable."""
        version = ""
        while True:
            if not self.is_current:
                raise self._session.ended(self.number)
            try:
                found = await methods.wait(self._session, self._collector, version)
            except SoapFault as fault:
                if fault.kind != "InvalidCollectorVersion" or not version:
                    raise
                version = ""
                continue
            if found is not None:
                version = found.version
            yield found.shown if found is not None else []
            if found is None or not found.truncated:
                await self._pace.take()
