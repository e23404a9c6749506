"""Methods of the managed objects: those that clients use to start, watch and cancel tasks."""

import itertools
from collections.abc import Callable
from typing import Any

from ..errors import StandardError
from ..scenarios import stays_pending
from ..script import ENDED, message
from ..sessions import SimulatedSession
from ..simulated_task import SimulatedTask
from ..state import VCenterState
from ..task_attributes import OPERATIONS, SimulatedTarget
from . import properties, soap
from .collector import ListView, PropertyCollector, PropertyFilter, PropertySpec
from .history_collector import LATEST_PAGE, TaskFilter, TaskHistoryCollector, parse_page_size
from .inventory import ROOT_COLLECTOR, Inventory, parse_property_spec
from .soap import (
    MethodCall,
    SoapFaultError,
    children,
    find,
    object_not_found_fault,
    parse_target,
    permission_fields,
    text_of,
)
from .values import moref, text

MAX_UPDATES = 100
"""vCenter's own limit of objects in one update set."""
_STATUSES = {state: status for status, state in reversed(properties.STATES.items())}
Answer = str
"""The content of a method's response."""


class SessionObjects:
    """The managed objects of one session, which end with it."""

    def __init__(self) -> None:
        self.collectors = {ROOT_COLLECTOR: PropertyCollector(ROOT_COLLECTOR)}
        self.views: dict[SimulatedTarget, ListView] = {}
        self.history_collectors: dict[SimulatedTarget, TaskHistoryCollector] = {}

    def destroy(self) -> None:
        for collector in self.collectors.values():
            for property_filter in collector.filters.values():
                property_filter.destroy()


class Methods:
    """Methods by name; each returns an answer or raises SoapFaultError. Those that read or wait are the endpoint's.

    `session_objects` contains the managed objects of each session by its id.
    """

    def __init__(self, state: VCenterState, inventory: Inventory) -> None:
        self._state = state
        self._inventory = inventory
        self._numbers = itertools.count(1)
        self.session_objects: dict[str, SessionObjects] = {}
        self.by_name: dict[str, Callable[[MethodCall, SimulatedSession], Answer]] = {
            "CreateFilter": self.create_filter,
            "CreatePropertyCollector": self.create_collector,
            "DestroyPropertyCollector": self.destroy_collector,
            "DestroyPropertyFilter": self.destroy_filter,
            "CancelWaitForUpdates": self.cancel_wait,
            "CreateListView": self.create_list_view,
            "ModifyListView": self.modify_list_view,
            "DestroyView": self.destroy_view,
            "CreateTask": self.create_task,
            "SetTaskState": self.set_task_state,
            "SetTaskDescription": self.set_task_description,
            "UpdateProgress": self.update_progress,
            "CancelTask": self.cancel_task,
            "AnswerVM": self.answer_vm,
            "CreateCollectorForTasks": self.create_history_collector,
            "ReadNextTasks": self.read_tasks,
            "ReadPreviousTasks": self.read_tasks,
            "RewindCollector": self.rewind_collector,
            "ResetCollector": self.reset_collector,
            "SetCollectorPageSize": self.set_page_size,
            "DestroyCollector": self.destroy_history_collector,
            "CurrentTime": self.show_current_time,
            "SessionIsActive": self.show_session_activity,
        }

    # PropertyCollector

    def find_collector(self, call: MethodCall, session: SimulatedSession) -> PropertyCollector:
        collector = self.session_objects[session.id].collectors.get(call.this)
        if collector is None:
            raise object_not_found_fault(call.this)
        return collector

    def create_filter(self, call: MethodCall, session: SimulatedSession) -> Answer:
        collector = self.find_collector(call, session)
        spec = find(call.arguments, "spec")
        if spec is None:
            raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("spec")))
        ref = self._new_ref("PropertyFilter", session)
        property_filter = PropertyFilter(ref, parse_property_spec(spec), self._inventory.filters)
        views = self.session_objects[session.id].views
        for object_spec in children(spec, "objectSet"):
            target = parse_target(object_spec[0])
            view = views.get(target)
            if view is not None:
                view.filters.append(property_filter)
            for member in list(view.members) if view else [target]:
                if view is None and self._inventory.take_snapshot(member, property_filter.spec, session) is None:
                    raise object_not_found_fault(member)
                property_filter.add(member)
        collector.filters[ref] = property_filter
        return soap.return_value(moref(ref))

    def create_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        ref = self._new_ref("PropertyCollector", session)
        self.session_objects[session.id].collectors[ref] = PropertyCollector(ref)
        return soap.return_value(moref(ref))

    def destroy_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        collector = self.find_collector(call, session)
        collector.cancel_count += 1
        for property_filter in collector.filters.values():
            property_filter.destroy()
        del self.session_objects[session.id].collectors[call.this]
        return ""

    def destroy_filter(self, call: MethodCall, session: SimulatedSession) -> Answer:
        for collector in self.session_objects[session.id].collectors.values():
            if property_filter := collector.filters.pop(call.this, None):
                property_filter.destroy()
                return ""
        raise object_not_found_fault(call.this)

    def cancel_wait(self, call: MethodCall, session: SimulatedSession) -> Answer:
        self.find_collector(call, session).cancel_count += 1
        return ""

    # ListView

    def create_list_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        view = ListView(self._new_ref("ListView", session))
        targets = call.targets("obj")
        if unresolved := self._list_unresolved(targets, session):
            raise object_not_found_fault(unresolved[0])
        view.modify(targets, ())
        self.session_objects[session.id].views[view.ref] = view
        return soap.return_value(moref(view.ref))

    def modify_list_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        """Change the view's members; the answer contains the objects that don't exist."""
        view = self.session_objects[session.id].views.get(call.this)
        if view is None:
            raise object_not_found_fault(call.this)
        targets = call.targets("add")
        unresolved = self._list_unresolved(targets, session)
        missing = set(unresolved)
        view.modify([target for target in targets if target not in missing], call.targets("remove"))
        return "".join(soap.return_value(moref(target)) for target in unresolved)

    def _list_unresolved(self, targets: list[SimulatedTarget], session: SimulatedSession) -> list[SimulatedTarget]:
        spec = PropertySpec({})
        return [target for target in targets if self._inventory.take_snapshot(target, spec, session) is None]

    def destroy_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        view = self.session_objects[session.id].views.pop(call.this, None)
        if view is None:
            raise object_not_found_fault(call.this)
        view.modify((), list(view.members))
        return ""

    # Tasks

    def create_task(self, call: MethodCall, session: SimulatedSession) -> Answer:
        """Start a task with the next script. Without one the task stays pending until its owner sets its state."""
        service, _, operation = (call.text("taskTypeId") or "").rpartition(".")
        task_id = self._state.tasks.create(
            self._state.next_scripts.take(default=stays_pending()),
            flavour="vim",
            service=service,
            operation=operation or OPERATIONS["vim"],
            target=next(iter(call.targets("obj")), None),
            user=session.user,
            parent=call.text("parentTaskKey") or "",
        )
        return self._render_task_info(self._state.tasks[task_id])

    def set_task_state(self, call: MethodCall, session: SimulatedSession) -> Answer:
        changes: dict[str, Any] = {"status": _STATUSES.get(call.text("state") or "", "RUNNING")}
        result, error = find(call.arguments, "result"), find(call.arguments, "fault")
        if result is not None:
            kind = result.get("type")
            changes["result"] = {"type": kind, "id": text_of(result)} if kind else text_of(result)
        if error is not None:
            kind = (find(error, "fault") or error).get(soap.XSI_TYPE) or "SystemError"
            reason = text_of(find(error, "localizedMessage")) or text_of(find(error, "fault", "reason")) or ""
            changes["error"] = {"fault": kind.rpartition(":")[2], "message": reason}
        self._state.tasks.set(self._find_unfinished(call).id, changes)
        return ""

    def set_task_description(self, call: MethodCall, session: SimulatedSession) -> Answer:
        task = self._find_unfinished(call)
        progress = task.frame_at(self._state.clock()).fields.get("progress") or {"total": 100, "completed": 0}
        description = message(call.text("description", "message") or "")
        self._state.tasks.set(task.id, {"progress": {**progress, "message": description}})
        return ""

    def update_progress(self, call: MethodCall, session: SimulatedSession) -> Answer:
        percent = int(call.text("percentDone") or 0)
        self._state.tasks.set(self._find_unfinished(call).id, {"progress": {"total": 100, "completed": percent}})
        return ""

    def cancel_task(self, call: MethodCall, session: SimulatedSession) -> Answer:
        try:
            self._state.tasks.cancel(call.this.id, classic=True)
        except StandardError as error:
            raise _CANCEL_FAULTS[error.error_type](call.this) from error
        return ""

    def answer_vm(self, call: MethodCall, session: SimulatedSession) -> Answer:
        """Let the VM's blocked tasks continue, whatever the answer is."""
        for task in self._inventory.list_tasks_of_vm(call.this):
            if task.frame_at(self._state.clock()).status == "BLOCKED":
                self._state.tasks.set(task.id, {"status": "RUNNING"})
        return ""

    def _find_unfinished(self, call: MethodCall) -> SimulatedTask:
        """Return the task that its owner wants to change. Raises SoapFaultError if it has ended."""
        task = self._state.tasks.find_classic(call.this.id)
        if task is None:
            raise object_not_found_fault(call.this)
        if task.frame_at(self._state.clock()).status in ENDED:
            raise SoapFaultError("InvalidState")
        return task

    def _render_task_info(self, task: SimulatedTask) -> Answer:
        return soap.return_value(properties.task_info_value(self._inventory.read_task_info(task)))

    # TaskHistoryCollector

    def create_history_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        collectors, options = self.session_objects[session.id].history_collectors, self._state.options
        if len(collectors) >= options.max_history_collectors:
            raise SoapFaultError("InvalidState", "The session has too many collectors.")
        spec = find(call.arguments, "filter")
        task_filter = TaskFilter(spec, options.timestamps.skew_s, self._inventory.is_within)
        ref = self._new_ref("TaskHistoryCollector", session)
        collectors[ref] = TaskHistoryCollector(ref, self._state.tasks, options, task_filter, self._state.clock())
        return soap.return_value(moref(ref))

    def read_tasks(self, call: MethodCall, session: SimulatedSession) -> Answer:
        history, at_most = self._find_history(call, session), parse_page_size(call.text("maxCount"))
        read = history.read_next if call.name == "ReadNextTasks" else history.read_previous
        return "".join(map(self._render_task_info, read(at_most, self._state.clock())))

    def rewind_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        self._find_history(call, session).rewind()
        return ""

    def reset_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        self._find_history(call, session).reset(self._state.clock())
        return ""

    def set_page_size(self, call: MethodCall, session: SimulatedSession) -> Answer:
        self._find_history(call, session).latest_size = parse_page_size(call.text("maxCount"), default=LATEST_PAGE)
        return ""

    def destroy_history_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        del self.session_objects[session.id].history_collectors[self._find_history(call, session).ref]
        return ""

    def _find_history(self, call: MethodCall, session: SimulatedSession) -> TaskHistoryCollector:
        history = self.session_objects[session.id].history_collectors.get(call.this)
        if history is None:
            raise object_not_found_fault(call.this)
        return history

    # ServiceInstance and SessionManager

    def show_current_time(self, call: MethodCall, session: SimulatedSession) -> Answer:
        return soap.return_value(properties.time_value(self._state.clock(), self._state.options.timestamps))

    def show_session_activity(self, call: MethodCall, session: SimulatedSession) -> Answer:
        return f"<returnval>{'true' if call.text('sessionID') == session.id else 'false'}</returnval>"

    def _new_ref(self, kind: str, session: SimulatedSession) -> SimulatedTarget:
        return SimulatedTarget(kind, f"session[{session.id}]{next(self._numbers)}")


_CANCEL_FAULTS: dict[str, Callable[[SimulatedTarget], SoapFaultError]] = {
    "NOT_FOUND": object_not_found_fault,
    "UNAUTHORIZED": lambda target: SoapFaultError("NoPermission", "No permission.", *permission_fields(target)),
    "UNSUPPORTED": lambda _: SoapFaultError("NotSupported", "The task can't be canceled."),
    "NOT_ALLOWED_IN_CURRENT_STATE": lambda _: SoapFaultError("InvalidState", "The task has ended."),
}
