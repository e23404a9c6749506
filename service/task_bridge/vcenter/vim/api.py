"""The methods of the vSphere Web Services API that following tasks takes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from ...domain.durations import rfc3339
from ...domain.errors import Refused, VCenterUnavailable
from ..http import AnswerLimits, NoAnswer
from . import soap
from .session import ANSWER_LIMITS, MAX_BYTES, VimSession
from .soap import Element, Ref, SoapFault, child, children, ref_of, text_of
from .taskinfo import PATHS, QUESTION, Info, Question, parse_field, parse_info, parse_question

OBJECTS_MAX = 500
WAIT_S = 30
WAIT_LIMITS = AnswerLimits(read_timeout_s=WAIT_S + 15.0, max_bytes=MAX_BYTES)
DESTROY_LIMITS = AnswerLimits(read_timeout_s=1.0)
UPDATES_MAX = 500
_PAGE, _PAGES = 500, 40
_DENIED = {"NoPermission", "RestrictedByAdministrator"}
_WANTED = "".join(
    f"<propSet>{soap.xml_text('type', kind)}{''.join(soap.xml_text('pathSet', path) for path in paths)}</propSet>"
    for kind, paths in (("Task", PATHS), ("VirtualMachine", (QUESTION,)))
)


class VmTimeout(NoAnswer):
    """No answer came in the time that VMs may hold tasks up for. vcsim keeps a VM locked while a task works on it,
    and who reads it waits.
    """


class ObjectState(NamedTuple):
    """What was told of an object: of a task its fields, of a VM its question where `asked` (None: there is none).

    `whole`: what isn't told isn't there. `denied`: the fault by which its properties are kept back. `gone`: it left
    what is waited for.
    """

    ref: Ref
    info: Info
    is_complete: bool = True
    has_question_field: bool = False
    question: Question | None = None
    denied: str | None = None
    is_gone: bool = False


class UpdateSet(NamedTuple):
    """An update set: the version to go on from, what changed, and whether there is more already."""

    version: str
    objects: list[ObjectState]
    is_truncated: bool


async def fetch_objects(
    session: VimSession, tasks: Collection[str], vms: Collection[str] = (), held_s: float | None = None
) -> list[ObjectState]:
    """How tasks stand, and which questions VMs have. Those that aren't among the answers don't exist.

    Raises VCenterUnavailable, which is HeldUp where VMs are asked about for longer than `held_s`.
    """
    held_s = held_s if vms else None
    refs = [*(Ref("Task", task) for task in tasks), *(Ref("VirtualMachine", vm) for vm in vms)]
    objects = "".join(f"<objectSet>{soap.xml_ref('obj', ref)}</objectSet>" for ref in refs)
    told = soap.xml_text("reportMissingObjectsInResults", "true")
    inner = f"<specSet>{_WANTED}{objects}{told}</specSet><options/>"
    service = await session.ensure_logged_in()
    number = session.number
    answer = await _called(session, "pull", "RetrievePropertiesEx", service.collector, inner, held_s)
    found: list[ObjectState] = []
    while True:
        page = child(answer, "returnval")
        if page is None:
            return found
        found += [_shown(one, "propSet", session, number) for one in children(page, "objects")]
        if (token := text_of(child(page, "token"))) is None:
            return found
        more = soap.xml_text("token", token)
        answer = await _called(session, "pull", "ContinueRetrievePropertiesEx", service.collector, more, held_s)


async def filter_existing(session: VimSession, refs: Collection[Ref], held_s: float) -> set[Ref]:
    """Those of the tasks and VMs that there are. Raises VCenterUnavailable, and HeldUp as `pull` does."""
    tasks = [ref.id for ref in refs if ref.type == "Task"]
    vms = [ref.id for ref in refs if ref.type == "VirtualMachine"]
    parts = [tasks[first : first + OBJECTS_MAX] for first in range(0, len(tasks), OBJECTS_MAX)] or [[]]
    shown = [
        one for part in parts for one in await fetch_objects(session, part, vms if part is parts[0] else (), held_s)
    ]
    return {one.ref for one in shown if not one.is_gone}


async def fetch_labels(session: VimSession) -> dict[str, str]:
    """What each description id means, in words. Raises VCenterUnavailable."""
    service = await session.ensure_logged_in()
    paths = soap.xml_text("type", "TaskManager") + soap.xml_text("pathSet", "description")
    inner = f"<specSet><propSet>{paths}</propSet><objectSet>{soap.xml_ref('obj', service.tasks)}</objectSet></specSet>"
    answer = await session.call("pull", "RetrievePropertiesEx", service.collector, f"{inner}<options/>")
    found = child(answer, "returnval", "objects", "propSet", "val")
    infos = [] if found is None else children(found, "methodInfo")
    pairs = ((text_of(child(info, "key")), text_of(child(info, "label"))) for info in infos)
    return {key: label for key, label in pairs if key and label}


_REFUSALS = {
    "NotSupported": (409, "not_cancelable", "This task can't be canceled."),
    "InvalidState": (409, "already_ended", "The task has ended."),
    "NoPermission": (403, "forbidden", "The bridge's user may not cancel this task."),
    "ManagedObjectNotFound": (404, "unknown_task", "vCenter doesn't know this task."),
}


async def cancel_task(session: VimSession, task: str) -> None:
    """Asks vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
    try:
        await session.call("cancel", "CancelTask", Ref("Task", task))
    except SoapFault as fault:
        if (refusal := _REFUSALS.get(fault.kind or "")) is None:
            raise
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {fault.reason or fault.kind}") from fault


async def fetch_history(session: VimSession, tasks: Collection[str], begin: float, end: float) -> dict[str, Info]:
    """Those of the tasks that vCenter's history has, queued between two times. Raises VCenterUnavailable."""
    service = await session.ensure_logged_in()
    times = soap.xml_text("beginTime", rfc3339(begin)) + soap.xml_text("endTime", rfc3339(end))
    inner = f"<filter><time>{soap.xml_text('timeType', 'queuedTime')}{times}</time></filter>"
    answer = await session.call("history", "CreateCollectorForTasks", service.tasks, inner)
    collector = ref_of(child(answer, "returnval"))
    if collector is None:
        raise session.build_unreadable_error("gives no collector of its task history")
    try:
        found = await _in_history(session, collector, set(tasks))
        if len(found) < len(tasks):
            # Where a new collector begins to read differs.
            await session.call("history", "RewindCollector", collector)
            found |= await _in_history(session, collector, set(tasks) - set(found))
        return found
    finally:
        await session.call("history", "DestroyCollector", collector)


async def _in_history(session: VimSession, collector: Ref, wanted: set[str]) -> dict[str, Info]:
    found: dict[str, Info] = {}
    for _ in range(_PAGES):
        answer = await session.call("history", "ReadNextTasks", collector, soap.xml_text("maxCount", _PAGE))
        page = [parse_info(one) for one in children(answer, "returnval")]
        found |= {info["key"]: info for info in page if info.get("key") in wanted}
        if not page or len(found) == len(wanted):
            break
    return found


# Push


async def create_collector(session: VimSession) -> Ref:
    service = await session.ensure_logged_in()
    return _ref(await session.call("push", "CreatePropertyCollector", service.collector), session)


async def create_view(session: VimSession) -> Ref:
    """An empty ListView: one with an unknown reference would be refused."""
    service = await session.ensure_logged_in()
    return _ref(await session.call("push", "CreateListView", service.views), session)


async def create_filter(session: VimSession, collector: Ref, view: Ref) -> None:
    """Whole values: `partialUpdates` would tell parts of fields."""
    through = soap.xml_text("type", "ListView") + soap.xml_text("path", "view") + soap.xml_text("skip", "false")
    select = f'<selectSet xsi:type="TraversalSpec">{soap.xml_text("name", "view")}{through}</selectSet>'
    objects = f"<objectSet>{soap.xml_ref('obj', view)}{soap.xml_text('skip', 'true')}{select}</objectSet>"
    told = soap.xml_text("reportMissingObjectsInResults", "true")
    spec = f"<spec>{_WANTED}{objects}{told}</spec>{soap.xml_text('partialUpdates', 'false')}"
    await session.call("push", "CreateFilter", collector, spec)


async def destroy_collector(session: VimSession, collector: Ref) -> None:
    """Ends the wait of a collector that nobody needs any more, if that goes quickly. Never raises."""
    with contextlib.suppress(VCenterUnavailable):
        await session.call("push", "DestroyPropertyCollector", collector, limits=DESTROY_LIMITS)


async def modify_view(
    session: VimSession, view: Ref, add: Iterable[Ref], remove: Iterable[Ref], held_s: float | None
) -> list[Ref]:
    """Changes what the view lists; those of `add` that don't exist. Raises HeldUp after `held_s`."""
    inner = "".join([*(soap.xml_ref("add", one) for one in add), *(soap.xml_ref("remove", one) for one in remove)])
    answer = await _called(session, "modify", "ModifyListView", view, inner, held_s)
    return [ref for ref in map(ref_of, children(answer, "returnval")) if ref]


async def wait_for_updates(session: VimSession, collector: Ref, version: str) -> UpdateSet | None:
    """What changed since `version`, None when nothing did for WAIT_S. Never two of them in one session."""
    options = soap.xml_text("maxWaitSeconds", WAIT_S) + soap.xml_text("maxObjectUpdates", UPDATES_MAX)
    inner = f"{soap.xml_text('version', version)}<options>{options}</options>"
    number = session.number
    answer = await session.call("wait", "WaitForUpdatesEx", collector, inner, WAIT_LIMITS)
    found = child(answer, "returnval")
    new = text_of(child(found, "version")) if found is not None else None
    if found is None or new is None:
        return None
    shown = [_update(one, session, number) for of in children(found, "filterSet") for one in children(of, "objectSet")]
    return UpdateSet(new, shown, text_of(child(found, "truncated")) in ("true", "1"))


async def _called(
    session: VimSession, operation: str, method: str, this: Ref, inner: str, held_s: float | None
) -> Element:
    """The answer to what VMs may hold up, HeldUp after `held_s`; None where none has a part in it."""
    if held_s is None:
        return await session.call(operation, method, this, inner)
    try:
        return await session.call(operation, method, this, inner, ANSWER_LIMITS._replace(read_timeout_s=held_s))
    except NoAnswer as error:
        raise VmTimeout(str(error)) from error


def _ref(answer: Element, session: VimSession) -> Ref:
    found = ref_of(child(answer, "returnval"))
    if found is None:
        raise session.build_unreadable_error("answers without the object that was asked for")
    return found


def _update(element: Element, session: VimSession, number: int) -> ObjectState:
    kind = text_of(child(element, "kind"))
    if kind == "leave":
        return ObjectState(_ref_in(element, session), {}, is_gone=True)
    return _shown(element, "changeSet", session, number, whole=kind == "enter")


def _shown(element: Element, properties: str, session: VimSession, number: int, *, whole: bool = True) -> ObjectState:
    """One object out of an answer. Raises SessionEnded when all of it is missing for that."""
    missing = {kind for kind in map(_missing_kind, children(element, "missingSet")) if kind}
    if "NotAuthenticated" in missing:
        raise session.mark_ended(number)
    ref, told = _ref_in(element, session), list(_properties(element, properties))
    denied = next(iter(missing & _DENIED), None) if not told else None
    if ref.type == "VirtualMachine":
        asked = [found for path, found in told if path == QUESTION]
        return ObjectState(ref, {}, whole, whole or bool(asked), parse_question(asked[0]) if asked else None)
    info: dict[str, Any] = {}
    for path, found in told:
        field = path.removeprefix("info.")
        info[field] = parse_field(field, found)
    return ObjectState(ref, info, whole, denied=denied, is_gone="ManagedObjectNotFound" in missing)


def _properties(element: Element, properties: str) -> Iterator[tuple[str, Element | None]]:
    for one in children(element, properties):
        if path := text_of(child(one, "name")):
            yield path, child(one, "val")


def _missing_kind(element: Element) -> str | None:
    fault = child(element, "fault", "fault")
    return None if fault is None else soap.type_of(fault)


def _ref_in(element: Element, session: VimSession) -> Ref:
    found = ref_of(child(element, "obj"))
    if found is None:
        raise session.build_unreadable_error("tells of an object without saying which")
    return found
