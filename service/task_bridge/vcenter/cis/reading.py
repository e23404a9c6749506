"""From the JSON that vCenter shows of a task to how it stands. Pure, and the hottest path of the bridge."""

from __future__ import annotations

import msgspec

from ...domain.task import NotATask, Rendering, Task, parse_task
from .renderings import UnreadableBody, parse_json


def parse_raw_task(body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool) -> Task:
    """The task that a body shows. Raises Unreadable.

    Without `with_result` the result was to be left out; where it is there nevertheless, the task that ended has it.
    """
    info = parse_json(body)
    carried = isinstance(info, dict) and info.get("result") is not None
    try:
        task = parse_task(info, rendering, with_result=with_result or carried)
    except (NotATask, RecursionError) as error:
        raise UnreadableBody(str(error)) from error
    if task.ended:
        return task
    # What is told only at the end needn't be kept, nor a result that nobody asked for.
    return msgspec.structs.replace(task, extra=None, result=task.result if with_result else None)
