"""vCenter's tasks service: list, get and cancel tasks, in whichever rendering this vCenter has."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from ...domain import task_json
from ...domain.errors import Refused, VCenterUnavailable
from ...domain.task import Rendering, TaskError
from ..http import AmbiguousFailure, Answer, AnswerLimits, AnswerTooLarge
from ..parsing import parse_outside_loop
from ..policy import VCenterConfig
from . import renderings
from .renderings import Refusal
from .schedule import PollGroup, TrackedCisTask
from .session import CisSession

RESULTS_MAX = 70
"""Results take some kilobytes each, and vCenter limits its answers to 7 MB."""


LIST_LIMITS = AnswerLimits(max_bytes=8 * 1024 * 1024)
"""A list that is longer is split. A task that fills one by itself is fetched alone, where more is accepted."""


class BadAnswer(VCenterUnavailable):
    """vCenter answers, but not for these tasks. A request for fewer, or for others, may succeed."""


class TaskAnswerTooLarge(BadAnswer):
    """The answer is larger than the bridge accepts."""


class TaskOutOfBounds(BadAnswer):
    """The answer about one task exceeds what the bridge decodes."""


class ListUnavailable(VCenterUnavailable):
    """This vCenter has no list of tasks: get each task alone."""


class ListMissing(BadAnswer):
    """This vCenter has listed tasks before, but nothing answers requests for these now."""


class Listing(NamedTuple):
    """Those of the tasks that vCenter shows, each still as JSON in this rendering."""

    bodies: task_json.TaskBodies
    rendering: Rendering


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


class CisTasksApi:
    """The tasks service of one vCenter."""

    def __init__(self, session: CisSession, settings: VCenterConfig) -> None:
        self._session = session
        self._name = settings.name
        self._renderings: list[Rendering] = ["api", "rest"] if settings.api == "auto" else [settings.api]
        self._excludes_results = True
        self._has_listed = False

    @property
    def list_max(self) -> int:
        """The number of tasks that one request can list."""
        return renderings.LIST_MAX if self._renderings[0] == "api" else renderings.REST_LIST_MAX

    async def list_tasks(self, tasks: list[str], *, with_result: bool) -> Listing:
        """Return those of the tasks that vCenter shows. Raises BadAnswer, ListUnavailable or VCenterUnavailable."""
        operation, refusal = "result" if with_result else "list", ""
        for rendering in tuple(self._renderings):
            listed: task_json.TaskBodies = {}
            for call in renderings.list_calls(rendering, tasks, with_result=with_result):
                try:
                    answer = await self._session.request(operation, *call, limits=LIST_LIMITS)
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

    async def get_task(self, task: str, *, with_result: bool) -> FetchedTask | MissingTask:
        """Return the task, or that it isn't there. Raises BadAnswer or VCenterUnavailable."""
        try:
            answer, rendering = await self._request_task(task, with_result)
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
                raise BadAnswer(f"vCenter {self._name} can't show {task}: its answer is {error}.") from error
            return FetchedTask(body, rendering)
        message = renderings.parse_message(answer)
        if answer.status in (403, 404):
            return MissingTask(answer.status == 403, message.to_task_error(), renderings.classify_refusal(answer))
        raise self._to_error(answer)

    async def cancel_task(self, task: str) -> None:
        """Ask vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
        answer, _ = await self._request_any("cancel", "POST", lambda way: renderings.cancel_target(way, task))
        if answer.ok:
            return
        message = renderings.parse_message(answer)
        if answer.status == 404 and message.is_from_router:
            raise VCenterUnavailable(f"vCenter {self._name} has no tasks service now: {message}")
        refusal = _CANCEL_REFUSED.get((answer.status, message.type)) or _CANCEL_REFUSED.get((answer.status, None))
        if refusal is None:
            raise self._to_error(answer)
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {message.to_task_error().message}")

    async def _request_task(self, task: str, with_result: bool) -> tuple[Answer, Rendering]:
        """Get the task. If vCenter rejects the flag that leaves out the result (400), get it with its result."""
        operation = "result" if with_result else "get"
        whole = with_result or not self._excludes_results
        while True:
            target = functools.partial(renderings.task_target, task=task, with_result=whole)
            answer, rendering = await self._request_any(operation, "GET", target)
            if answer.ok and whole and not with_result:
                self._excludes_results = False
            if whole or answer.status != 400:
                return answer, rendering
            whole = True

    async def _request_any(
        self, operation: str, method: str, target: Callable[[Rendering], str]
    ) -> tuple[Answer, Rendering]:
        """Return the answer of the first rendering that has the path, otherwise that of the last one."""
        *others, last = self._renderings
        for rendering in others:
            answer = await self._session.request(operation, method, target(rendering))
            if not renderings.is_no_route(answer):
                return answer, rendering
        return await self._session.request(operation, method, target(last)), last

    async def _parse_list(self, answer: Answer, rendering: Rendering) -> task_json.TaskBodies:
        if not answer.ok:
            raise self._to_error(answer)
        self._refuse_web_page(answer)
        try:
            return await parse_outside_loop(len(answer.body), task_json.parse_list, rendering, answer.body)
        except task_json.UnreadableBody as error:
            raise BadAnswer(f"vCenter {self._name} can't list tasks: its answer is {error}.") from error

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
        return min(self._results_max, self._api.list_max) if group.with_result else self._api.list_max

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
            listing = await self._api.list_tasks([followed.id for followed in part], with_result=group.with_result)
        except BadAnswer:
            if group.with_result:
                self._results_max = max(1, min(self._results_max, len(part) // 2))
            raise
        if group.with_result and len(part) >= self._results_max:
            self._results_max = min(RESULTS_MAX, self._results_max + 1 + self._results_max // 8)
        return listing
