"""vCenter's tasks service: list, get and cancel, in whichever rendering this vCenter has them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ...domain.errors import Refused, VCenterUnavailable
from ...domain.task import Rendering, TaskError
from ..http import AmbiguousFailure, Answer, AnswerTooLarge
from ..policy import VCenterConfig
from . import renderings as wire
from .session import CisSession


class BadAnswer(VCenterUnavailable):
    """vCenter answers, but not for these tasks: fewer at once may do, and others do."""


class TaskAnswerTooLarge(BadAnswer):
    """The answer is larger than the bridge takes in."""


class ListUnavailable(VCenterUnavailable):
    """This vCenter has no list of tasks, or not now: they can only be had one by one."""


class Listing(NamedTuple):
    """Those of the tasks that vCenter shows, each still as JSON in this rendering."""

    bodies: wire.TaskBodies
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
        return wire.LIST_MAX if self._renderings[0] == "api" else wire.REST_LIST_MAX

    async def list_tasks(self, tasks: list[str], *, with_result: bool) -> Listing:
        """The tasks that vCenter shows of these. Raises BadAnswer, NoList or VCenterUnavailable."""
        for rendering in tuple(self._renderings):
            found: wire.TaskBodies = {}
            for call in wire.list_calls(rendering, tasks, with_result=with_result):
                answer = await self._asked_for_list(call, with_result)
                if wire.is_no_route(answer) or (answer.ok and not answer.body):
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
                return FetchedTask(wire.unwrap_task(rendering, answer.body), rendering)
            except wire.UnreadableBody as error:
                raise BadAnswer(f"vCenter {self._name} answers for {task} with {error}.") from error
        words = wire.parse_message(answer)
        if answer.status in (403, 404):
            denied = answer.status == 403
            right_type = words.type == ("UNAUTHORIZED" if denied else "NOT_FOUND")
            return MissingTask(denied, words.to_task_error(), right_type and not words.is_by_router)
        raise self._failure(answer)

    async def cancel_task(self, task: str) -> None:
        """Asks vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
        answer, _ = await self._first_offered("cancel", "POST", lambda rendering: wire.cancel_target(rendering, task))
        if answer.ok:
            return
        words = wire.parse_message(answer)
        if answer.status == 404 and words.is_by_router:
            raise VCenterUnavailable(f"vCenter {self._name} has no tasks service now: {words}")
        refusal = _CANCEL_REFUSED.get((answer.status, words.type)) or _CANCEL_REFUSED.get((answer.status, None))
        if refusal is None:
            raise self._failure(answer)
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {words.to_task_error().message}")

    async def _asked_for_list(self, call: wire.ListCall, with_result: bool) -> Answer:
        try:
            return await self._session.request("result" if with_result else "list", *call)
        except AnswerTooLarge as error:
            raise TaskAnswerTooLarge(str(error)) from error

    async def _asked_for_task(self, task: str, with_result: bool) -> tuple[Answer, Rendering]:
        """The get's answer. Where leaving out the result is refused as a bad request, it is asked for too."""
        operation = "result" if with_result else "get"
        whole = with_result or not self._excludes_results
        while True:
            target = functools.partial(wire.task_target, task=task, with_result=whole)
            answer, rendering = await self._first_offered(operation, "GET", target)
            if answer.ok and whole and not with_result:
                self._excludes_results = False
            if whole or answer.status != 400:
                return answer, rendering
            whole = True

    def _read_list(self, answer: Answer, rendering: Rendering) -> wire.TaskBodies:
        if not answer.ok:
            raise self._failure(answer)
        self._refuse_page(answer)
        try:
            return wire.parse_list(rendering, answer.body)
        except wire.UnreadableBody as error:
            raise BadAnswer(f"vCenter {self._name} answers with {error}.") from error

    async def _first_offered(
        self, operation: str, method: str, target: Callable[[Rendering], str]
    ) -> tuple[Answer, Rendering]:
        """The answer of the first rendering that knows the path, else that of the last."""
        *others, last = self._renderings
        for rendering in others:
            answer = await self._session.request(operation, method, target(rendering))
            if not wire.is_no_route(answer):
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
        words = wire.parse_message(answer)
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
        return wire.parse_message(answer).error is not None
    return answer.status < 500
