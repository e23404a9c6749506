"""vCenter's tasks service: list, get and cancel, in whichever rendering this vCenter has them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from ...domain.errors import Refused, VCenterUnavailable
from ...domain.task import Rendering, TaskError
from ..http import AmbiguousFailure, Answer, AnswerTooLarge
from ..policy import VCenterConfig
from . import renderings
from .schedule import Group, TrackedCisTask
from .session import CisSession


class BadAnswer(VCenterUnavailable):
    """vCenter answers, but not for these tasks: fewer at once may do, and others do."""


class TaskAnswerTooLarge(BadAnswer):
    """The answer is larger than the bridge takes in."""


class ListUnavailable(VCenterUnavailable):
    """This vCenter has no list of tasks, or not now: they can only be had one by one."""


class Listing(NamedTuple):
    """Those of the tasks that vCenter shows, each still as JSON in this rendering."""

    bodies: renderings.TaskBodies
    rendering: Rendering


class FetchedTask(NamedTuple):
    """A task as JSON in a rendering."""

    body: msgspec.Raw
    rendering: Rendering


class MissingTask(NamedTuple):
    """vCenter doesn't show the task: 404, or `denied` by a 403.

    `well_formed`: the tasks service itself said so, with the error that belongs to it.
    """

    denied: bool
    answer: TaskError
    well_formed: bool


class CisTasksApi:
    """The tasks service of one vCenter."""

    def __init__(self, session: CisSession, settings: VCenterConfig) -> None:
        self._session = session
        self._name = settings.name
        self._renderings: list[Rendering] = ["api", "rest"] if settings.api == "auto" else [settings.api]
        self._excludes_results = True

    @property
    def list_max(self) -> int:
        """How many tasks one request can list."""
        return renderings.LIST_MAX if self._renderings[0] == "api" else renderings.REST_LIST_MAX

    async def list_tasks(self, tasks: list[str], *, with_result: bool) -> Listing:
        """The tasks that vCenter shows of these. Raises BadAnswer, NoList or VCenterUnavailable."""
        for rendering in tuple(self._renderings):
            found: renderings.TaskBodies = {}
            for call in renderings.list_calls(rendering, tasks, with_result=with_result):
                answer = await self._asked_for_list(call, with_result)
                if renderings.is_no_route(answer) or (answer.ok and not answer.body):
                    break
                found |= self._read_list(answer, rendering)
            else:
                self._prefer(rendering)
                return Listing(found, rendering)
        raise ListUnavailable(f"vCenter {self._name} has no list of tasks.")

    async def get_task(self, task: str, *, with_result: bool) -> FetchedTask | MissingTask:
        """The task, or that it isn't there. Raises BadAnswer or VCenterUnavailable."""
        try:
            answer, rendering = await self._asked_for_task(task, with_result)
        except AnswerTooLarge as error:
            raise TaskAnswerTooLarge(str(error)) from error
        if answer.ok:
            self._refuse_page(answer)
            self._prefer(rendering)
            try:
                return FetchedTask(renderings.unwrap_task(rendering, answer.body), rendering)
            except renderings.UnreadableBody as error:
                raise BadAnswer(f"vCenter {self._name} answers for {task} with {error}.") from error
        words = renderings.parse_message(answer)
        if answer.status in (403, 404):
            denied = answer.status == 403
            right_type = words.type == ("UNAUTHORIZED" if denied else "NOT_FOUND")
            return MissingTask(denied, words.to_task_error(), right_type and not words.is_by_router)
        raise self._failure(answer)

    async def cancel_task(self, task: str) -> None:
        """Asks vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
        answer, _ = await self._first_offered(
            "cancel", "POST", lambda rendering: renderings.cancel_target(rendering, task)
        )
        if answer.ok:
            return
        words = renderings.parse_message(answer)
        if answer.status == 404 and words.is_by_router:
            raise VCenterUnavailable(f"vCenter {self._name} has no tasks service now: {words}")
        refusal = _CANCEL_REFUSED.get((answer.status, words.type)) or _CANCEL_REFUSED.get((answer.status, None))
        if refusal is None:
            raise self._failure(answer)
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {words.to_task_error().message}")

    async def _asked_for_list(self, call: renderings.ListCall, with_result: bool) -> Answer:
        try:
            return await self._session.request("result" if with_result else "list", *call)
        except AnswerTooLarge as error:
            raise TaskAnswerTooLarge(str(error)) from error

    async def _asked_for_task(self, task: str, with_result: bool) -> tuple[Answer, Rendering]:
        """The get's answer. Where leaving out the result is refused as a bad request, it is asked for too."""
        operation = "result" if with_result else "get"
        whole = with_result or not self._excludes_results
        while True:
            target = functools.partial(renderings.task_target, task=task, with_result=whole)
            answer, rendering = await self._first_offered(operation, "GET", target)
            if answer.ok and whole and not with_result:
                self._excludes_results = False
            if whole or answer.status != 400:
                return answer, rendering
            whole = True

    def _read_list(self, answer: Answer, rendering: Rendering) -> renderings.TaskBodies:
        if not answer.ok:
            raise self._failure(answer)
        self._refuse_page(answer)
        try:
            return renderings.parse_list(rendering, answer.body)
        except renderings.UnreadableBody as error:
            raise BadAnswer(f"vCenter {self._name} answers with {error}.") from error

    async def _first_offered(
        self, operation: str, method: str, target: Callable[[Rendering], str]
    ) -> tuple[Answer, Rendering]:
        """The answer of the first rendering that knows the path, else that of the last."""
        *others, last = self._renderings
        for rendering in others:
            answer = await self._session.request(operation, method, target(rendering))
            if not renderings.is_no_route(answer):
                return answer, rendering
        return await self._session.request(operation, method, target(last)), last

    def _refuse_page(self, answer: Answer) -> None:
        if answer.body[:64].lstrip()[:1] == b"<":
            raise AmbiguousFailure(f"vCenter {self._name} answers with a page for people, not with tasks.")

    def _prefer(self, rendering: Rendering) -> None:
        """What has worked is asked first from now on."""
        if self._renderings[0] != rendering:
            self._renderings.reverse()

    def _failure(self, answer: Answer) -> VCenterUnavailable:
        words = renderings.parse_message(answer)
        text, said = f"vCenter {self._name} can't tell about tasks now: {words}", words.to_task_error()
        if answer.status == 429 or answer.retry_after_s is not None:
            return VCenterUnavailable(text, retry_after_s=answer.retry_after_s, answer=said)
        return (BadAnswer if _is_about_these_tasks(answer) else AmbiguousFailure)(text, answer=said)


_CANCEL_REFUSED: dict[tuple[int, str | None], tuple[int, str, str]] = {
    (400, "UNSUPPORTED"): (409, "not_cancelable", "This task can't be canceled."),
    (400, "NOT_ALLOWED_IN_CURRENT_STATE"): (409, "already_ended", "The task has ended."),
    (403, None): (403, "forbidden", "The bridge's user may not cancel this task."),
    (404, None): (404, "unknown_task", "vCenter doesn't know this task."),
}


def _is_about_these_tasks(answer: Answer) -> bool:
    """Whether other tasks may get a better answer: a refusal in vCenter's own words, or a request too long."""
    if answer.status == 500:
        return renderings.parse_message(answer).error is not None
    return answer.status < 500


RESULTS_MAX = 70
"""Some kilobytes a result: vCenter's own limit for an answer is 7 MB."""


class ListPart(NamedTuple):
    """Tasks that were asked for, and what came: a listing, an error, or neither where there is no list at all."""

    tasks: list[TrackedCisTask]
    listing: Listing | None = None
    error: BadAnswer | None = None


class TaskLister:
    """Lists of one vCenter's tasks."""

    def __init__(self, tasks: CisTasksApi) -> None:
        self._tasks = tasks
        self._results_max = RESULTS_MAX

    def max_tasks(self, group: Group) -> int:
        """How many tasks of the group one list may ask for."""
        return min(self._results_max, self._tasks.list_max) if group.with_result else self._tasks.list_max

    async def list_in_parts(self, group: Group, batch: list[TrackedCisTask]) -> AsyncIterator[ListPart]:
        """The batch in parts: what vCenter lists, and each task that no list works with, alone.

        Where so much fails that it isn't worth going on, the rest comes as one part with the last error.
        Raises VCenterUnavailable.
        """
        parts, failures = [batch], 0
        allowed = 3 if group.failures else 6 + 2 * len(batch).bit_length()
        while parts:
            part = parts.pop()
            try:
                yield ListPart(part, await self._list(group, part))
                continue
            except ListUnavailable:
                yield ListPart([followed for rest in (part, *parts) for followed in rest])
                return
            except BadAnswer as error:
                failures += 1
                if len(part) == 1:
                    yield ListPart(part, error=error)
                elif failures > allowed:
                    yield ListPart([followed for rest in (part, *parts) for followed in rest], error=error)
                    return
                else:
                    parts += _halves(part)

    async def _list(self, group: Group, part: list[TrackedCisTask]) -> Listing:
        try:
            listing = await self._tasks.list_tasks([followed.id for followed in part], with_result=group.with_result)
        except BadAnswer:
            if group.with_result:
                self._results_max = max(1, min(self._results_max, len(part) // 2))
            raise
        if group.with_result and len(part) >= self._results_max:
            self._results_max = min(RESULTS_MAX, self._results_max + 1 + self._results_max // 8)
        return listing


def _halves(part: list[TrackedCisTask]) -> tuple[list[TrackedCisTask], list[TrackedCisTask]]:
    middle = len(part) // 2
    return part[middle:], part[:middle]
