"""The methods of the vSphere Web Services API that tracking tasks takes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import cache
from typing import TypeVar

from ...domain.errors import Refused, VCenterUnavailable
from ..http import AnswerLimits, AnswerTooLarge, NoAnswer
from . import soap
from .answers import (
    DENIED,
    EntityState,
    ObjectState,
    UpdateSet,
    is_withheld,
    read_entities,
    read_page,
    read_refs,
    read_update_set,
)
from .inventory import Entity
from .session import ANSWER_LIMITS, READ_LIMITS, VimSession
from .soap import Element, Ref, SoapFault, UnreadableXml, child, children, ref_of, text_of
from .taskinfo import PATHS, QUESTION, VALUES

OBJECTS_MAX = 500
"""The number of objects that one request should fetch."""
WAIT_S = 30
WAIT_LIMITS = READ_LIMITS._replace(read_timeout_s=WAIT_S + 15.0)
DESTROY_LIMITS = AnswerLimits(read_timeout_s=1.0)
UPDATES_MAX = 500
_WITHHELD = "it withholds every property (NotAuthenticated)"
_NO_ENTITY = DENIED | {"ManagedObjectNotFound", "InvalidArgument", "InvalidType"}
_ENTITY_PROPERTIES = "".join(
    f"<propSet>{soap.xml_text('type', kind)}{''.join(soap.xml_text('pathSet', path) for path in paths)}</propSet>"
    for kind, paths in (("ManagedEntity", ("name", "parent")), ("VirtualMachine", ("parentVApp",)))
)
_REPORT_MISSING = soap.xml_text("reportMissingObjectsInResults", "true")
T = TypeVar("T")


@cache
def _write_properties(without: tuple[str, ...] = ()) -> str:
    """Return what to show of tasks and VMs. `without`: fields of TaskInfo to leave out."""
    task_paths = [path for path in PATHS if path.removeprefix("info.") not in without]
    sets = (("Task", task_paths), ("VirtualMachine", (QUESTION,)))
    return "".join(
        f"<propSet>{soap.xml_text('type', kind)}{''.join(soap.xml_text('pathSet', path) for path in paths)}</propSet>"
        for kind, paths in sets
    )


class VmTimeout(NoAnswer):
    """No answer came in the time that VMs may delay tasks.

    vcsim locks a VM while a task works on it, and requests that read the VM wait for the lock.
    """


class EntitiesRefused(VCenterUnavailable):
    """vCenter answers, but not about these objects together. Fewer may work.

    `is_final`: if it is one object, a repetition won't help.
    """

    def __init__(self, error: VCenterUnavailable) -> None:
        super().__init__(str(error))
        kind = error.kind if isinstance(error, SoapFault) else None
        self.is_final = kind in _NO_ENTITY or isinstance(error, UnreadableXml | AnswerTooLarge)


# Tasks and VMs


async def fetch_objects(
    session: VimSession,
    tasks: Collection[str],
    vms: Collection[str] = (),
    vm_timeout_s: float | None = None,
    *,
    without: tuple[str, ...] = (),
) -> list[ObjectState]:
    """Return the state of tasks and the questions of VMs. Objects that aren't in the result don't exist.

    `without`: fields of tasks to leave out. Raises VCenterUnavailable; VmTimeout if VMs are among the objects and an
    answer takes longer than `vm_timeout_s`.
    """
    vm_timeout_s = vm_timeout_s if vms else None
    refs = [*(Ref("Task", task) for task in tasks), *(Ref("VirtualMachine", vm) for vm in vms)]
    objects = "".join(f"<objectSet>{soap.xml_ref('obj', ref)}</objectSet>" for ref in refs)
    inner = f"<specSet>{_write_properties(without)}{objects}{_REPORT_MISSING}</specSet><options/>"
    collector = (await session.ensure_logged_in()).collector
    number = session.number
    method, states = "RetrievePropertiesEx", list[ObjectState]()
    while True:
        page = await _read_with_vms(session, "pull", method, collector, inner, read_page, vm_timeout_s)
        await _check_session(session, "pull", number, page.objects)
        states += page.objects
        if page.token is None:
            return states
        method, inner = "ContinueRetrievePropertiesEx", soap.xml_text("token", page.token)


async def filter_existing(session: VimSession, refs: Collection[Ref], vm_timeout_s: float) -> set[Ref]:
    """Return those of the tasks and VMs that exist. Raises VCenterUnavailable, VmTimeout as `fetch_objects` does."""
    tasks = [ref.id for ref in refs if ref.type == "Task"]
    vms = [ref.id for ref in refs if ref.type == "VirtualMachine"]
    existing: set[Ref] = set()
    for first in range(0, max(1, len(tasks)), OBJECTS_MAX):
        part = tasks[first : first + OBJECTS_MAX]
        states = await fetch_objects(session, part, () if first else vms, vm_timeout_s, without=VALUES)
        existing |= {state.ref for state in states if not state.is_gone}
    return existing


async def fetch_labels(session: VimSession) -> dict[str, str]:
    """Return the descriptions of operations by description id. Raises VCenterUnavailable."""
    service = await session.ensure_logged_in()
    paths = soap.xml_text("type", "TaskManager") + soap.xml_text("pathSet", "description")
    objects = f"<objectSet>{soap.xml_ref('obj', service.tasks)}</objectSet>"
    inner = f"<specSet><propSet>{paths}</propSet>{objects}</specSet><options/>"
    number = session.number
    answer = await session.call("pull", "RetrievePropertiesEx", service.collector, inner)
    manager = child(answer, "returnval", "objects")
    description = None if manager is None else child(manager, "propSet", "val")
    if description is not None:
        session.record_good_answer("labels", number)
    elif manager is not None and is_withheld(manager):
        raise await session.handle_refusal("pull", number, _WITHHELD)
    methods = [] if description is None else children(description, "methodInfo")
    pairs = ((text_of(child(method, "key")), text_of(child(method, "label"))) for method in methods)
    return {key: label for key, label in pairs if key and label}


_REFUSALS = {
    "NotSupported": (409, "not_cancelable", "This task can't be canceled."),
    "InvalidState": (409, "already_ended", "The task has ended."),
    "NoPermission": (403, "forbidden", "The bridge's user may not cancel this task."),
    "ManagedObjectNotFound": (404, "unknown_task", "vCenter doesn't know this task."),
}


async def cancel_task(session: VimSession, task: str) -> None:
    """Ask vCenter to cancel the task. Raises Refused or VCenterUnavailable."""
    try:
        await session.call("cancel", "CancelTask", Ref("Task", task))
    except SoapFault as fault:
        if (refusal := _REFUSALS.get(fault.kind or "")) is None:
            raise
        status, code, sentence = refusal
        raise Refused(status, code, f"{sentence} vCenter says: {fault.reason or fault.kind}") from fault


# The inventory


async def fetch_entities(
    session: VimSession, refs: Collection[Ref], take_turn: Callable[[], Awaitable[None]], read_timeout_s: float
) -> dict[Ref, Entity]:
    """Return these objects and all above them, as far as vCenter shows them.

    vCenter may answer in parts; `take_turn` is awaited before the request for each further part.
    Raises VCenterUnavailable, EntitiesRefused among them; NoAnswer if an answer takes longer than `read_timeout_s`.
    """
    limits = ANSWER_LIMITS._replace(read_timeout_s=read_timeout_s)
    collector = (await session.ensure_logged_in()).collector
    number, entities = session.number, dict[Ref, Entity]()
    method, inner = "RetrievePropertiesEx", _entities_spec(refs)
    try:
        while True:
            page = await session.read("names", method, collector, inner, read_entities, limits)
            await _check_session(session, "names", number, page.entities)
            entities |= {one.ref: one.entity for one in page.entities if not (one.is_gone or one.is_withheld)}
            if page.token is None:
                return entities
            method, inner = "ContinueRetrievePropertiesEx", soap.xml_text("token", page.token)
            await take_turn()
    except (SoapFault, UnreadableXml, AnswerTooLarge) as error:
        raise EntitiesRefused(error) from error


def _entities_spec(refs: Collection[Ref]) -> str:
    """Return what to read of objects and of all above them. A VM in a vApp has no parent but the vApp."""
    objects = []
    for number, ref in enumerate(refs):
        name = f"up{number}"  # of its own for each object: names must be unique, at least among those of one object
        upwards = f"<selectSet>{soap.xml_text('name', name)}</selectSet>"
        selects = _xml_traversal("ManagedEntity", "parent", upwards, soap.xml_text("name", name))
        if ref.type == "VirtualMachine":
            selects += _xml_traversal("VirtualMachine", "parentVApp", upwards)
        objects.append(f"<objectSet>{soap.xml_ref('obj', ref)}{selects}</objectSet>")
    return f"<specSet>{_ENTITY_PROPERTIES}{''.join(objects)}{_REPORT_MISSING}</specSet><options/>"


def _xml_traversal(kind: str, path: str, further: str, name: str = "") -> str:
    through = soap.xml_text("type", kind) + soap.xml_text("path", path) + soap.xml_text("skip", "false")
    return f'<selectSet xsi:type="TraversalSpec">{name}{through}{further}</selectSet>'


# Push


async def create_collector(session: VimSession) -> Ref:
    service = await session.ensure_logged_in()
    return parse_created_ref(await session.call("push", "CreatePropertyCollector", service.collector), session)


async def create_view(session: VimSession) -> Ref:
    """Create an empty ListView: vCenter would refuse one with an unknown reference."""
    service = await session.ensure_logged_in()
    return parse_created_ref(await session.call("push", "CreateListView", service.views), session)


async def create_filter(session: VimSession, collector: Ref, view: Ref) -> None:
    """Create a filter that reports whole values: with `partialUpdates` it would report parts of fields."""
    through = soap.xml_text("type", "ListView") + soap.xml_text("path", "view") + soap.xml_text("skip", "false")
    select = f'<selectSet xsi:type="TraversalSpec">{soap.xml_text("name", "view")}{through}</selectSet>'
    objects = f"<objectSet>{soap.xml_ref('obj', view)}{soap.xml_text('skip', 'true')}{select}</objectSet>"
    spec = f"<spec>{_write_properties()}{objects}{_REPORT_MISSING}</spec>{soap.xml_text('partialUpdates', 'false')}"
    await session.call("push", "CreateFilter", collector, spec)


async def destroy_collector(session: VimSession, collector: Ref) -> None:
    """Destroy a collector, which ends the wait on it, if vCenter does so quickly. Never raises."""
    with contextlib.suppress(VCenterUnavailable):
        await session.call("push", "DestroyPropertyCollector", collector, limits=DESTROY_LIMITS)


async def modify_view(
    session: VimSession, view: Ref, add: Iterable[Ref], remove: Iterable[Ref], vm_timeout_s: float | None
) -> list[Ref]:
    """Change what the view lists. Return those of `add` that don't exist. Raises VmTimeout after `vm_timeout_s`."""
    inner = "".join([*(soap.xml_ref("add", ref) for ref in add), *(soap.xml_ref("remove", ref) for ref in remove)])
    return await _read_with_vms(session, "modify", "ModifyListView", view, inner, read_refs, vm_timeout_s)


async def wait_for_updates(session: VimSession, collector: Ref, version: str) -> UpdateSet | None:
    """Return the changes since `version`, None if nothing changed for WAIT_S. Run only one at a time in a session."""
    options = soap.xml_text("maxWaitSeconds", WAIT_S) + soap.xml_text("maxObjectUpdates", UPDATES_MAX)
    inner = f"{soap.xml_text('version', version)}<options>{options}</options>"
    number = session.number
    update_set = await session.read("wait", "WaitForUpdatesEx", collector, inner, read_update_set, WAIT_LIMITS)
    if update_set is not None:
        await _check_session(session, "wait", number, update_set.objects)
    return update_set


# Calls and answers


async def _read_with_vms(
    session: VimSession,
    operation: str,
    method: str,
    this: Ref,
    inner: str,
    read: Callable[[Element], T],
    vm_timeout_s: float | None,
) -> T:
    """Call a method that VMs may delay. Raises VmTimeout after `vm_timeout_s`; None: no VM is involved."""
    limits = READ_LIMITS._replace(read_timeout_s=vm_timeout_s)
    try:
        return await session.read(operation, method, this, inner, read, limits)
    except NoAnswer as error:
        if vm_timeout_s is None:
            raise
        raise VmTimeout(str(error)) from error


async def _check_session(
    session: VimSession, operation: str, number: int, objects: Sequence[ObjectState | EntityState]
) -> None:
    """Note whether objects are shown as to somebody who is logged in. Raises VCenterUnavailable if none is.

    One withheld object among others, or one property of it, says nothing about the session.
    """
    shown = [one for one in objects if not one.is_gone]
    if not all(one.is_withheld for one in shown):
        session.record_good_answer(operation, number)
    elif shown:
        raise await session.handle_refusal(operation, number, _WITHHELD)


def parse_created_ref(answer: Element, session: VimSession) -> Ref:
    ref = ref_of(child(answer, "returnval"))
    if ref is None:
        raise session.build_unreadable_error("answers without the object that it should have created")
    return ref
