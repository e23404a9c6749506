"""vCenter's tasks service: list, get and cancel tasks, in whichever rendering this vCenter has."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec
import structlog

from ...domain import task_json
from ...domain.errors import Refused, VCenterUnavailable
from ...domain.task import Rendering, TaskError
from ..http import DEFAULT_LIMITS, MAX_BODY_BYTES, AmbiguousFailure, Answer, AnswerLimits, AnswerTooLarge
from ..parsing import parse_outside_loop
from ..policy import VCenterConfig
from . import renderings
from .renderings import Refusal, ServiceFilter
from .return_all import ReturnAllMemory
from .schedule import PollGroup, TrackedCisTask, provider_of
from .session import CisSession

log = structlog.get_logger(__name__)

RESULTS_MAX = 70
"""Results and details take some kilobytes each, and vCenter limits its answers to 7 MB."""


LIST_MAX_BYTES = 8 * 1024 * 1024
"""A list that is longer is split. A task that fills one by itself is fetched alone, where more is accepted."""
_LIST_SHORT_BYTES = 512 * 1024
"""Splitting such a list takes eight milliseconds at worst, and handing it to a thread costs more than most take."""
_LIST_LIMITS = AnswerLimits(max_bytes=LIST_MAX_BYTES)


class BadAnswer(VCenterUnavailable):
    """vCenter answers, but not for these tasks. A request for fewer, or for others, may succeed."""


class TaskAnswerTooLarge(BadAnswer):
    """The answer is larger than the bridge accepts."""


class UnreadableAnswer(BadAnswer):
    """The answer isn't what was requested. That of fewer tasks may be."""


class TaskOutOfBounds(UnreadableAnswer):
    """The answer about one task exceeds what the bridge decodes."""


class ListUnavailable(VCenterUnavailable):
    """This vCenter has no list of tasks: get each task alone."""


class ListMissing(BadAnswer):
    """This vCenter has listed tasks before, but nothing answers requests for these now."""


class TooManyTasks(BadAnswer):
    """vCenter can't list so many tasks at once, or has another trouble with them. A narrower list may succeed."""


class Listing(NamedTuple):
    """Those of the tasks that vCenter shows, each still as JSON in this rendering.

    `date`: when vCenter wrote it, in whole Unix seconds by its own clock; None if it didn't say.
    """

    bodies: task_json.TaskBodies
    rendering: Rendering
    date: float | None = None


class FetchedTask(NamedTuple):
    """A task as JSON in a rendering."""

    body: bytes | msgspec.Raw
    rendering: Rendering


class MissingTask(NamedTuple):
    """vCenter doesn't show the task: a 404, or a 403 (`denied`). Only Refusal.TASK says something about the task."""

    denied: bool
    answer: TaskError
    refusal: Refusal


_CANCEL_REFUSED: dict[tuple[int, str | None], tuple[int, str, str]] = {
    (400, "UNSUPPORTED"): (409, "not_cancelable", "This task can't be canceled."),
    (400, "NOT_ALLOWED_IN_CURRENT_STATE"): (409, "already_ended", "The task has ended."),
    (403, None): (403, "forbidden", "The bridge's user may not cancel this task."),
    (404, None): (404, "unknown_task", "vCenter doesn't know this task."),
}


T = TypeVar("T")


class CisTasksApi:
    """The tasks service of one vCenter.

    `return_all` asks for all that a task's provider knows. A provider that refuses that is asked without.
    """

    def __init__(
        self,
        session: CisSession,
        settings: VCenterConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        return_all_timeout_s: float = 10.0,
    ) -> None:
        self._session = session
        self._name = settings.name
        self._renderings: list[Rendering] = ["api", "rest"] if settings.api == "auto" else [settings.api]
        self._excludes_results = True
        self._has_listed = False
        self._return_all = ReturnAllMemory(clock)
        self._return_all_timeout_s = min(return_all_timeout_s, settings.timeout_s)

    @property
    def list_max(self) -> int:
        """The number of tasks that one request can list."""
        return renderings.LIST_MAX if self._renderings[0] == "api" else renderings.REST_LIST_MAX

    async def list_tasks(self, tasks: list[str], *, with_result: bool, return_all: bool = False) -> Listing:
        """Return those of the tasks that vCenter shows. Raises BadAnswer, ListUnavailable or VCenterUnavailable."""
        request = functools.partial(self._list_tasks, tasks, with_result)
        return await self._try_return_all(tasks, request) if return_all else await request(False)

    async def list_service(self, wanted: ServiceFilter) -> Listing:
        """Return the tasks of a service. Raises TooManyTasks, BadAnswer, ListUnavailable or VCenterUnavailable."""
        refusal = ""
        for rendering in tuple(self._renderings):
            try:
                answer = await self._session.request(
                    "list", *renderings.service_call(rendering, wanted), limits=_LIST_LIMITS
                )
            except AnswerTooLarge as error:
                raise TooManyTasks(str(error)) from error
            if renderings.is_no_route(answer) or (answer.ok and not answer.body):
                refusal = refusal or str(renderings.parse_message(answer))
                continue
            if not answer.ok and renderings.parse_message(answer).type == "RESOURCE_INACCESSIBLE":
                raise TooManyTasks(f"vCenter can't list so many tasks: {renderings.parse_message(answer)}")
            bodies = await self._parse_list(answer, rendering)
            self._prefer(rendering)
            return Listing(bodies, rendering, answer.date)
        raise ListUnavailable(f"vCenter {self._name} has no list of tasks: {refusal}.")

    async def get_task(self, task: str, *, with_result: bool, return_all: bool = False) -> FetchedTask | MissingTask:
        """Return the task, or that it isn't there. Raises BadAnswer or VCenterUnavailable."""
        request = functools.partial(self._get_task, task, with_result)
        return await self._try_return_all([task], request) if return_all else await request(False)

    async def _try_return_all(self, tasks: list[str], request: Callable[[bool], Awaitable[T]]) -> T:
        """Request all, and less where that fails. Remember that if less then succeeds: then `return_all` was at fault.

        Raises as `request` does: at once if fewer tasks, or each alone, may be shown with all.
        """
        if not self._return_all.is_answered(tasks):
            return await request(False)
        refused = provider_of(tasks[0])
        try:
            answer = await request(True)
            if not _is_denied(answer):
                return answer
            error = "vCenter doesn't allow it (HTTP 403)"
        except TaskAnswerTooLarge as too_large:
            if len(tasks) > 1:
                raise
            refused, error = tasks[0], str(too_large)
        except UnreadableAnswer:
            raise
        except (BadAnswer, AmbiguousFailure) as failure:
            error = str(failure)
        answer = await request(False)
        if not isinstance(answer, MissingTask):
            self._record_refusal(refused, tasks[0], error)
        return answer

    def forgo_return_all(self, task: str, reason: str) -> bool:
        """Get this task without `return_all` for an hour, as its answer can't be read. Return False if that is so."""
        if not self._return_all.is_answered([task]):
            return False
        self._record_refusal(task, task, reason)
        return True

    def _record_refusal(self, provider_or_task: str, task: str, reason: str) -> None:
        self._return_all.record_refusal(provider_or_task)
        provider = provider_of(task)
        log.info("return_all_refused", vcenter=self._name, provider=provider, task=task, reason=reason)

    async def _list_tasks(self, tasks: list[str], with_result: bool, return_all: bool) -> Listing:
        limits = self._limits(return_all, max_bytes=LIST_MAX_BYTES)
        operation, refusal = "result" if with_result else "list", ""
        for rendering in tuple(self._renderings):
            listed: task_json.TaskBodies = {}
            for call in renderings.list_calls(rendering, tasks, with_result=with_result, return_all=return_all):
                try:
                    answer = await self._session.request(operation, *call, limits=limits)
                except AnswerTooLarge as error:
                    raise TaskAnswerTooLarge(str(error)) from error
                if renderings.is_no_route(answer) or (answer.ok and not answer.body):
                    refusal = refusal or str(renderings.parse_message(answer))
                    break
                listed |= await self._parse_list(answer, rendering)
            else:
                self._prefer(rendering)
                self._has_listed = True
                return Listing(listed, rendering)
        kind = ListMissing if self._has_listed else ListUnavailable
        raise kind(f"vCenter {self._name} has no list of these tasks: {refusal}.")

    def _limits(self, return_all: bool, *, max_bytes: int = MAX_BODY_BYTES) -> AnswerLimits:
        return AnswerLimits(self._return_all_timeout_s if return_all else None, max_bytes)

    async def _get_task(self, task: str, with_result: bool, return_all: bool) -> FetchedTask | MissingTask:
        try:
            answer, rendering = await self._request_task(task, with_result, return_all)
        except AnswerTooLarge as error:
            raise TaskAnswerTooLarge(str(error)) from error
        if answer.ok:
            self._refuse_web_page(answer)
            self._prefer(rendering)
            try:
                body = await parse_outside_loop(len(answer.body), task_json.unwrap_task, rendering, answer.body)
            except task_json.BodyOutOfBounds as error:
                raise TaskOutOfBounds(f"vCenter {self._name} shows {task} in an answer that is {error}.") from error
            except task_json.UnreadableBody as error:
                raise UnreadableAnswer(f"vCenter {self._name} can't show {task}: its answer is {error}.") from error
            return FetchedTask(body, rendering)
        message = renderings.parse_message(answer)
        if answer.status in (403, 404):
            return MissingTask(answer.status == 403, message.to_task_error(), renderings.classify_refusal(answer))
        raise self._to_error(answer)

    async def cancel_task(self, task: str) -> None:
        """Ask vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
        answer, _ = await self._request_any(
            "cancel", "POST", lambda way: renderings.cancel_target(way, task), DEFAULT_LIMITS
        )
        if answer.ok:
            return
        message = renderings.parse_message(answer)
        if answer.status == 404 and renderings.classify_refusal(answer) is Refusal.ROUTER:
            raise VCenterUnavailable(f"vCenter {self._name} has no tasks service now: {message}")
        refusal = _CANCEL_REFUSED.get((answer.status, message.type)) or _CANCEL_REFUSED.get((answer.status, None))
        if refusal is None:
            raise self._to_error(answer)
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {message.to_task_error().message}")

    async def _request_task(self, task: str, with_result: bool, return_all: bool) -> tuple[Answer, Rendering]:
        """Get the task. If vCenter rejects the flag that leaves out the result (400), get it with its result."""
        operation = "result" if with_result else "get"
        whole = with_result or not self._excludes_results
        while True:
            target = functools.partial(renderings.task_target, task=task, with_result=whole, return_all=return_all)
            answer, rendering = await self._request_any(operation, "GET", target, self._limits(return_all))
            if answer.ok and whole and not with_result:
                self._excludes_results = False
            if whole or answer.status != 400:
                return answer, rendering
            whole = True

    async def _request_any(
        self, operation: str, method: str, target: Callable[[Rendering], str], limits: AnswerLimits
    ) -> tuple[Answer, Rendering]:
        """Return the answer of the first rendering that has the path, otherwise that of the last one."""
        *others, last = self._renderings
        for rendering in others:
            answer = await self._session.request(operation, method, target(rendering), limits=limits)
            if not renderings.is_no_route(answer):
                return answer, rendering
        return await self._session.request(operation, method, target(last), limits=limits), last

    async def _parse_list(self, answer: Answer, rendering: Rendering) -> task_json.TaskBodies:
        if not answer.ok:
            raise self._to_error(answer)
        self._refuse_web_page(answer)
        try:
            if len(answer.body) <= _LIST_SHORT_BYTES:
                return task_json.parse_list(rendering, answer.body)
            return await parse_outside_loop(len(answer.body), task_json.parse_list, rendering, answer.body)
        except task_json.UnreadableBody as error:
            raise UnreadableAnswer(f"vCenter {self._name} can't list tasks: its answer is {error}.") from error

    def _refuse_web_page(self, answer: Answer) -> None:
        if answer.body[:64].lstrip()[:1] == b"<":
            raise AmbiguousFailure(f"vCenter {self._name} answers with a web page, not with tasks.")

    def _prefer(self, rendering: Rendering) -> None:
        """Try this rendering first from now on, because it has worked."""
        if self._renderings[0] != rendering:
            self._renderings.reverse()

    def _to_error(self, answer: Answer) -> VCenterUnavailable:
        message = renderings.parse_message(answer)
        text, task_error = f"vCenter {self._name} can't report on tasks now: {message}", message.to_task_error()
        if answer.status == 429 or answer.retry_after_s is not None:
            return VCenterUnavailable(text, retry_after_s=answer.retry_after_s, answer=task_error)
        # A 400 or a 500 in vCenter's own words concerns these tasks: others may get an answer. A 503 of vCenter without
        # Retry-After, or any other 5xx, may concern all of them.
        about_these_tasks = message.error is not None if answer.status == 500 else answer.status < 500
        return (BadAnswer if about_these_tasks else AmbiguousFailure)(text, answer=task_error)


class ListPart(NamedTuple):
    """Requested tasks with a listing of them, or an error, or neither if vCenter has no list at all."""

    tasks: list[TrackedCisTask]
    listing: Listing | None = None
    error: BadAnswer | None = None


class TaskLister:
    """Lists many tasks in few requests. Splits a list that vCenter refuses, and shortens those that are too large."""

    def __init__(self, api: CisTasksApi) -> None:
        self._api = api
        self._results_max = RESULTS_MAX

    def max_tasks(self, group: PollGroup) -> int:
        """Return how many tasks of the group one list may request."""
        return min(self._results_max, self._api.list_max) if _is_long(group) else self._api.list_max

    async def list_in_parts(self, group: PollGroup, batch: list[TrackedCisTask]) -> AsyncIterator[ListPart]:
        """Yield the batch in parts: listings, and alone each task that no list works with.

        After too many failures the remaining tasks come as one part with the last error. Raises VCenterUnavailable.
        """
        parts, failures = [batch], 0
        failures_max = 3 if group.failures else 6 + 2 * len(batch).bit_length()
        while parts:
            part = parts.pop()
            try:
                yield ListPart(part, await self._list(group, part))
                continue
            except (ListUnavailable, ListMissing) as error:
                rest = [followed for one in (part, *parts) for followed in one]
                yield ListPart(rest, error=error if isinstance(error, ListMissing) else None)
                return
            except BadAnswer as error:
                failures += 1
                if len(part) == 1:
                    yield ListPart(part, error=error)
                elif failures > failures_max:
                    yield ListPart([followed for rest in (part, *parts) for followed in rest], error=error)
                    return
                else:
                    middle = len(part) // 2
                    parts += part[middle:], part[:middle]

    async def _list(self, group: PollGroup, part: list[TrackedCisTask]) -> Listing:
        """List the tasks. Adapt how many results one list requests: halve after a failure, then grow by an eighth."""
        try:
            listing = await self._api.list_tasks(
                [followed.id for followed in part], with_result=group.with_result, return_all=group.return_all
            )
        except BadAnswer:
            if _is_long(group):
                self._results_max = max(1, min(self._results_max, len(part) // 2))
            raise
        if _is_long(group) and len(part) >= self._results_max:
            self._results_max = min(RESULTS_MAX, self._results_max + 1 + self._results_max // 8)
        return listing


def _is_long(group: PollGroup) -> bool:
    """Return whether a list of the group has some kilobytes for each task."""
    return group.with_result or group.return_all


def _is_denied(answer: object) -> bool:
    return isinstance(answer, MissingTask) and answer.denied
