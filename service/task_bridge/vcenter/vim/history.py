"""vCenter's history of classic tasks: TaskHistoryCollectors, which read it page by page, oldest task first.

Source: the vSphere API reference of TaskManager, TaskFilterSpec and TaskHistoryCollector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from ...domain.durations import parse_time, rfc3339
from ...domain.task import TaskIdentity, may_be_same_task
from ..http import AnswerTooLarge
from . import soap
from .answers import read_history
from .api import parse_created_ref
from .session import VimSession
from .soap import Ref, child, text_of
from .taskinfo import Info, parse_identity

PAGE = 1_000
"""The most tasks that vCenter returns at once."""
_LOOKUP_PAGE, _LOOKUP_PAGES_MAX = 500, 40


class HistoryFilter(NamedTuple):
    """What vCenter itself selects: tasks of these users, on this entity (or on what is below it, too)."""

    users: tuple[str, ...] = ()
    entity: Ref | None = None
    recursive: bool = False

    def to_xml(self, queued_since: float | None, queued_until: float | None = None) -> str:
        """Return a TaskFilterSpec. The times are by vCenter's clock, in Unix seconds."""
        times = [("beginTime", queued_since), ("endTime", queued_until)]
        bounds = "".join(soap.xml_text(name, rfc3339(at)) for name, at in times if at is not None)
        time = f"<time>{soap.xml_text('timeType', 'queuedTime')}{bounds}</time>" if bounds else ""
        users = "".join(soap.xml_text("userList", user) for user in self.users)
        by_user = f"<userName>{soap.xml_text('systemUser', 'false')}{users}</userName>" if users else ""
        recursion = soap.xml_text("recursion", "all" if self.recursive else "self")
        entity = f"<entity>{soap.xml_ref('entity', self.entity)}{recursion}</entity>" if self.entity else ""
        return f"<filter>{entity}{time}{by_user}</filter>"


async def open_history(session: VimSession, filter_xml: str) -> Ref:
    """Create a collector of the tasks that match. Raises VCenterUnavailable."""
    service = await session.ensure_logged_in()
    answer = await session.call("history", "CreateCollectorForTasks", service.tasks, filter_xml)
    return parse_created_ref(answer, session)


async def read_page(session: VimSession, collector: Ref, at_most: int = PAGE) -> list[Info]:
    """Return the next tasks of the collector, oldest first. Raises VCenterUnavailable."""
    count = soap.xml_text("maxCount", at_most)
    return await session.read("history", "ReadNextTasks", collector, count, read_history)


async def step_back(session: VimSession, collector: Ref, count: int) -> None:
    """Move the position back before so many tasks, even if they can't be read. Raises VCenterUnavailable."""
    with contextlib.suppress(AnswerTooLarge, soap.UnreadableXml):
        await session.read("history", "ReadPreviousTasks", collector, soap.xml_text("maxCount", count), read_history)


async def close_history(session: VimSession, collector: Ref) -> None:
    """Destroy the collector. Raises VCenterUnavailable."""
    await session.call("history", "DestroyCollector", collector)


async def fetch_oldest(session: VimSession, take_turn: Callable[[], Awaitable[None]]) -> float | None:
    """Return when the oldest task of the whole history was queued (Unix s), None without one.

    Raises VCenterUnavailable.
    """
    collector = await open_history(session, "<filter/>")
    try:
        await take_turn()
        page = await read_page(session, collector, 1)
    finally:
        await close_history(session, collector)
    return parse_time(page[0].get("queueTime")) if page else None


async def fetch_time(session: VimSession) -> float:
    """Return the time of vCenter's clock in Unix seconds. Raises VCenterUnavailable."""
    answer = await session.call("session", "CurrentTime", None)
    now = parse_time(text_of(child(answer, "returnval")))
    if now is None:
        raise session.build_unreadable_error("doesn't tell its time")
    return now


async def fetch_history(
    session: VimSession, tasks: Mapping[str, TaskIdentity | None], begin: float, end: float
) -> dict[str, Info]:
    """Return those of the tasks that vCenter's history has, queued between two times in Unix seconds.

    `tasks`: their identities by id, as far as they are known; others with the same id are left out. Raises
    VCenterUnavailable.
    """
    collector = await open_history(session, HistoryFilter().to_xml(begin, end))
    try:
        infos = await _find_in_history(session, collector, tasks)
        if len(infos) < len(tasks):
            # vCenters differ in where a new collector starts to read.
            await session.call("history", "RewindCollector", collector)
            missing = {task: identity for task, identity in tasks.items() if task not in infos}
            infos |= await _find_in_history(session, collector, missing)
        return infos
    finally:
        await close_history(session, collector)


async def _find_in_history(
    session: VimSession, collector: Ref, tasks: Mapping[str, TaskIdentity | None]
) -> dict[str, Info]:
    infos: dict[str, Info] = {}
    for _ in range(_LOOKUP_PAGES_MAX):
        page = await read_page(session, collector, _LOOKUP_PAGE)
        infos |= {info["key"]: info for info in page if _is_one_of(tasks, info)}
        if not page or len(infos) == len(tasks):
            break
    return infos


def _is_one_of(tasks: Mapping[str, TaskIdentity | None], info: Info) -> bool:
    if info.get("key") not in tasks:
        return False
    identity = tasks[info["key"]]
    return identity is None or may_be_same_task(identity, parse_identity(info))
