"""What the methods of the managed objects do: of those that matter to who starts, watches and cancels tasks."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..bodies import OPERATIONS, SimulatedTarget
from ..errors import StandardError
from ..script import ENDED, message
from ..sessions import SimulatedSession
from ..tasks_service import SimulatedTask
from . import properties, soap
from .collector import Collector, ListView, PropertyFilter, PropertySpec
from .history_collector import History, within
from .inventory import ROOT_COLLECTOR, Inventory, wanted_of
from .soap import MethodCall, SoapFaultError, about_denied, children, find, not_found, target_of, text_of
from .values import moref, text

if TYPE_CHECKING:
    from ..app import SimulatedVCenter

MAX_UPDATES = 100
"""vCenter's own limit of objects in one update set."""
_STATES = {wire: status for status, wire in reversed(properties.STATES.items())}
Answer = str
"""The inside of a method's response."""


class SessionObjects:
    """The managed objects of one session, which end with it."""

    def __init__(self) -> None:
        self.collectors = {ROOT_COLLECTOR: Collector(ROOT_COLLECTOR)}
        self.views: dict[SimulatedTarget, ListView] = {}
        self.histories: dict[SimulatedTarget, History] = {}

    def destroy(self) -> None:
        for collector in self.collectors.values():
            for one in collector.filters.values():
                one.destroy()


class Methods:
    """`called` does what a method call asks for; only `WaitForUpdates` waits, elsewhere."""

    def __init__(self, vcenter: "SimulatedVCenter", inventory: Inventory) -> None:
        self._vcenter = vcenter
        self._tasks = vcenter.tasks
        self._numbers = itertools.count(1)
        self._inventory = inventory
        self.rooms: dict[str, SessionObjects] = {}
        self.by_name: dict[str, Callable[[MethodCall, SimulatedSession], Answer]] = {
            "CreateFilter": self._create_filter,
            "CreatePropertyCollector": self._create_collector,
            "DestroyPropertyCollector": self._destroy_collector,
            "DestroyPropertyFilter": self._destroy_filter,
            "CancelWaitForUpdates": self._cancel_wait,
            "CreateListView": self._create_view,
            "ModifyListView": self._modify_view,
            "DestroyView": self._destroy_view,
            "CreateTask": self._create_task,
            "SetTaskState": self._set_state,
            "SetTaskDescription": self._set_description,
            "UpdateProgress": self._update_progress,
            "CancelTask": self._cancel_task,
            "AnswerVM": self._answer_vm,
            "CreateCollectorForTasks": self._create_history,
            "ReadNextTasks": self._read_history,
            "ReadPreviousTasks": self._read_history,
            "RewindCollector": self._turn_history,
            "ResetCollector": self._turn_history,
            "DestroyCollector": self._destroy_history,
            "CurrentTime": self._current_time,
            "SessionIsActive": self._is_active,
        }

    # PropertyCollector

    def collector(self, call: MethodCall, session: SimulatedSession) -> Collector:
        found = self.rooms[session.id].collectors.get(call.this)
        if found is None:
            raise not_found(call.this)
        return found

    def _create_filter(self, call: MethodCall, session: SimulatedSession) -> Answer:
        collector = self.collector(call, session)
        spec = find(call.arguments, "spec")
        if spec is None:
            raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("spec")))
        one = PropertyFilter(self._ref("PropertyFilter", session), wanted_of(spec), self._inventory.watchers)
        views = self.rooms[session.id].views
        for named in children(spec, "objectSet"):
            target = target_of(named[0])
            view = views.get(target)
            if view is not None:
                view.filters.append(one)
            for member in list(view.members) if view else [target]:
                if view is None and self._inventory.snapshot(member, one.wanted, session) is None:
                    raise not_found(member)
                one.enter(member)
        collector.filters[one.ref] = one
        return soap.returned(moref(one.ref))

    def _create_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        ref = self._ref("PropertyCollector", session)
        self.rooms[session.id].collectors[ref] = Collector(ref)
        return soap.returned(moref(ref))

    def _destroy_collector(self, call: MethodCall, session: SimulatedSession) -> Answer:
        collector = self.collector(call, session)
        collector.canceled += 1
        for one in collector.filters.values():
            one.destroy()
        del self.rooms[session.id].collectors[call.this]
        return ""

    def _destroy_filter(self, call: MethodCall, session: SimulatedSession) -> Answer:
        for collector in self.rooms[session.id].collectors.values():
            if one := collector.filters.pop(call.this, None):
                one.destroy()
                return ""
        raise not_found(call.this)

    def _cancel_wait(self, call: MethodCall, session: SimulatedSession) -> Answer:
        self.collector(call, session).canceled += 1
        return ""

    def _create_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        view = ListView(self._ref("ListView", session))
        targets = call.targets("obj")
        if unresolved := self._unresolved(targets, session):
            raise not_found(unresolved[0])
        view.modify(targets, ())
        self.rooms[session.id].views[view.ref] = view
        return soap.returned(moref(view.ref))

    def _modify_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        view = self.rooms[session.id].views.get(call.this)
        if view is None:
            raise not_found(call.this)
        targets = call.targets("add")
        unresolved = self._unresolved(targets, session)
        missing = set(unresolved)
        view.modify([target for target in targets if target not in missing], call.targets("remove"))
        return "".join(soap.returned(moref(target)) for target in unresolved)

    def _unresolved(self, targets: list[SimulatedTarget], session: SimulatedSession) -> list[SimulatedTarget]:
        return [target for target in targets if self._inventory.snapshot(target, PropertySpec({}), session) is None]

    def _destroy_view(self, call: MethodCall, session: SimulatedSession) -> Answer:
        view = self.rooms[session.id].views.pop(call.this, None)
        if view is None:
            raise not_found(call.this)
        view.modify((), list(view.members))
        return ""

    # Tasks

    def _create_task(self, call: MethodCall, session: SimulatedSession) -> Answer:
        service, _, operation = (call.text("taskTypeId") or "").rpartition(".")
        task_id = self._vcenter.create(
            self._vcenter.next_vim_script(),
            flavour="vim",
            service=service,
            operation=operation or OPERATIONS["vim"],
            target=next(iter(call.targets("obj")), None),
            user=session.user,
            parent=call.text("parentTaskKey") or "",
        )
        return soap.returned(properties.whole_info(self._inventory.info(self._tasks[task_id])))

    def _running(self, call: MethodCall) -> str:
        """The id of the task whose owner changes it. Raises SoapFaultError when it has ended."""
        task = self._tasks.visible_vim(call.this.id)
        if task is None:
            raise not_found(call.this)
        if task.at(self._vcenter.clock()).status in ENDED:
            raise SoapFaultError("InvalidState")
        return task.id

    def _set_state(self, call: MethodCall, session: SimulatedSession) -> Answer:
        changes: dict[str, Any] = {"status": _STATES.get(call.text("state") or "", "RUNNING")}
        result, failed = find(call.arguments, "result"), find(call.arguments, "fault")
        if result is not None:
            kind = result.get("type")
            changes["result"] = {"type": kind, "id": text_of(result)} if kind else text_of(result)
        if failed is not None:
            kind = (find(failed, "fault") or failed).get(soap.XSI_TYPE) or "SystemError"
            said = text_of(find(failed, "localizedMessage")) or text_of(find(failed, "fault", "reason")) or ""
            changes["error"] = {"fault": kind.rpartition(":")[2], "message": said}
        self._tasks.set(self._running(call), changes)
        return ""

    def _set_description(self, call: MethodCall, session: SimulatedSession) -> Answer:
        task = self._tasks[self._running(call)]
        said = call.text("description", "message") or ""
        shown = task.at(self._vcenter.clock()).fields.get("progress") or {"total": 100, "completed": 0}
        self._tasks.set(task.id, {"progress": {**shown, "message": message(said)}})
        return ""

    def _update_progress(self, call: MethodCall, session: SimulatedSession) -> Answer:
        percent = int(call.text("percentDone") or 0)
        self._tasks.set(self._running(call), {"progress": {"total": 100, "completed": percent}})
        return ""

    def _cancel_task(self, call: MethodCall, session: SimulatedSession) -> Answer:
        try:
            self._tasks.cancel(call.this.id, vim=True)
        except StandardError as error:
            raise _CANCEL_FAULTS[error.error_type](call.this) from error
        return ""

    def _answer_vm(self, call: MethodCall, session: SimulatedSession) -> Answer:
        """Whatever the answer is, the task goes on."""
        for task in self._inventory.on_vm(call.this):
            if task.at(self._vcenter.clock()).status == "BLOCKED":
                self._tasks.set(task.id, {"status": "RUNNING"})
        return ""

    # History

    def _create_history(self, call: MethodCall, session: SimulatedSession) -> Answer:
        begin, end = within(find(call.arguments, "filter"))
        # Without the fraction that the filter's times may not have.
        tasks = [task for task in self._inventory.vim() if begin - 1 <= task.created_at <= end + 1 and _is_kept(task)]
        history = History(self._ref("TaskHistoryCollector", session), sorted(tasks, key=lambda task: task.created_at))
        self.rooms[session.id].histories[history.ref] = history
        return soap.returned(moref(history.ref))

    def _history(self, call: MethodCall, session: SimulatedSession) -> History:
        found = self.rooms[session.id].histories.get(call.this)
        if found is None:
            raise not_found(call.this)
        return found

    def _read_history(self, call: MethodCall, session: SimulatedSession) -> Answer:
        history, at_most = self._history(call, session), int(call.text("maxCount") or 0)
        if at_most < 1:
            raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("maxCount")))
        page = history.read_next(at_most) if call.name == "ReadNextTasks" else history.read_previous(at_most)
        return "".join(soap.returned(properties.whole_info(self._inventory.info(task))) for task in page)

    def _turn_history(self, call: MethodCall, session: SimulatedSession) -> Answer:
        history = self._history(call, session)
        history.rewind() if call.name == "RewindCollector" else history.reset()
        return ""

    def _destroy_history(self, call: MethodCall, session: SimulatedSession) -> Answer:
        del self.rooms[session.id].histories[self._history(call, session).ref]
        return ""

    # The rest

    def _current_time(self, call: MethodCall, session: SimulatedSession) -> Answer:
        return soap.returned(properties.at_time(self._vcenter.clock(), self._vcenter.options.timestamps))

    def _is_active(self, call: MethodCall, session: SimulatedSession) -> Answer:
        return f"<returnval>{'true' if call.text('sessionID') == session.id else 'false'}</returnval>"

    def _ref(self, kind: str, session: SimulatedSession) -> SimulatedTarget:
        return SimulatedTarget(kind, f"session[{session.id}]{next(self._numbers)}")


def _is_kept(task: SimulatedTask) -> bool:
    return task.gone_at is None or task.retired


_CANCEL_FAULTS: dict[str, Callable[[SimulatedTarget], SoapFaultError]] = {
    "NOT_FOUND": not_found,
    "UNAUTHORIZED": lambda target: SoapFaultError("NoPermission", "No permission.", *about_denied(target)),
    "UNSUPPORTED": lambda _: SoapFaultError("NotSupported", "The task can't be canceled."),
    "NOT_ALLOWED_IN_CURRENT_STATE": lambda _: SoapFaultError("InvalidState", "The task has ended."),
}
