"""The objects that can be read at `/sdk`: tasks, their VMs, and the service's own objects, as properties."""

import heapq
import itertools
from collections.abc import Callable, Mapping

from ..entities import MANAGED_ENTITIES, ROOT
from ..script import Script
from ..sessions import SimulatedSession
from ..simulated_task import SimulatedTask
from ..state import VCenterState
from ..task_attributes import SimulatedTarget
from . import properties, soap
from .collector import FilterIndex, ListView, ObjectSnapshot, PropertySpec, render_missing
from .properties import task_ref
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
from .values import Value, element, fault, integer, moref, structure, text

SERVICE = SimulatedTarget("ServiceInstance", "ServiceInstance")
ROOT_COLLECTOR = SimulatedTarget("PropertyCollector", "propertyCollector")
_CONTENT = (
    ("rootFolder", ROOT),
    ("propertyCollector", ROOT_COLLECTOR),
    ("viewManager", SimulatedTarget("ViewManager", "ViewManager")),
    ("sessionManager", SimulatedTarget("SessionManager", "SessionManager")),
    ("taskManager", SimulatedTarget("TaskManager", "TaskManager")),
)
_ABOUT = {
    "name": "VMware vCenter Server",
    "fullName": "VMware vCenter Server 8.0.2 (simulated)",
    "vendor": "VMware, Inc.",
    "version": "8.0.2",
    "build": "0",
    "osType": "linux-x64",
    "productLineId": "vpx",
    "apiType": "VirtualCenter",
    "apiVersion": "8.0.2.0",
}
_LABELS = {"VirtualMachine.powerOn": "Power On virtual machine", "VirtualMachine.clone": "Clone virtual machine"}

_OPTIONAL = frozenset({"parent", "parentVApp"})
"""Properties that some objects have no value of."""

Views = Mapping[SimulatedTarget, ListView]


class ChangeSchedule:
    """Reports each classic task when it changes, without polling them: a heap holds the next step of every task."""

    def __init__(self, report: Callable[[SimulatedTask], None]) -> None:
        self._report = report
        self._numbers = itertools.count()
        self._steps: list[tuple[float, int, SimulatedTask, Script, int]] = []

    def add(self, task: SimulatedTask, now: float) -> None:
        """Report a task that was created, set, canceled, hidden or forgotten just now, and schedule its next step."""
        task.frame_at(now)
        self._report(task)
        if task.forgotten_at is None:
            self._schedule(task, sum(step.after_s <= now - task.created_at for step in task.script.steps))

    def report_due(self, now: float) -> None:
        """Report the tasks whose next step is due."""
        while self._steps and self._steps[0][0] <= now:
            _, _, task, script, step = heapq.heappop(self._steps)
            if task.script is script and task.forgotten_at is None:
                self._report(task)
                self._schedule(task, step + 1)

    @property
    def next_at(self) -> float:
        """The time of the next scheduled change, infinity without one."""
        return self._steps[0][0] if self._steps else float("inf")

    def _schedule(self, task: SimulatedTask, step: int) -> None:
        steps = task.script.steps
        if step < len(steps):
            at = task.created_at + steps[step].after_s
            heapq.heappush(self._steps, (at, next(self._numbers), task, task.script, step))


class Inventory:
    """Everything that a PropertyCollector can show. `filters` are marked when their objects change."""

    def __init__(self, state: VCenterState) -> None:
        self._state = state
        self._tasks_of_vm: dict[SimulatedTarget, dict[str, SimulatedTask]] = {}
        self.filters = FilterIndex()
        self.changes = ChangeSchedule(self._mark_changed)

    def on_classic_change(self, task: SimulatedTask) -> None:
        self.changes.add(task, self._state.clock())

    def _mark_changed(self, task: SimulatedTask) -> None:
        self.filters.mark_changed(task_ref(task.id))
        if (vm := task.attributes.target) is None:
            return
        if task.forgotten_at is None:
            self._tasks_of_vm.setdefault(vm, {})[task.id] = task
        else:
            self._tasks_of_vm.get(vm, {}).pop(task.id, None)
        self.filters.mark_changed(vm)

    def retrieve(self, call: MethodCall, session: SimulatedSession | None, views: Views) -> str:
        """Answer RetrieveProperties and RetrievePropertiesEx. Without a session every property is missing, without a
        fault.
        """
        snapshots: dict[SimulatedTarget, ObjectSnapshot] = {}
        for spec in call.all("specSet"):
            property_spec = parse_property_spec(spec)
            for target in self._select_all(spec, views):
                snapshot = self.take_snapshot(target, property_spec, session)
                if snapshot is not None:
                    snapshots[target] = snapshot
                elif text_of(find(spec, "reportMissingObjectsInResults")) not in ("true", "1"):
                    raise object_not_found_fault(target)
        inner = "".join(_render_object(target, snapshot) for target, snapshot in snapshots.items())
        if call.name == "RetrieveProperties":
            return inner.replace("<objects>", "<returnval>").replace("</objects>", "</returnval>")
        return f"<returnval>{inner}</returnval>" if inner else ""

    def _select_all(self, spec: soap.Element, views: Views) -> list[SimulatedTarget]:
        """Return the objects of a filter and of its views, and what its traversals reach, each once."""
        reached = dict.fromkeys(_select_objects(spec, views))
        for object_spec in children(spec, "objectSet"):
            walk = [(parse_target(object_spec[0]), select) for select in children(object_spec, "selectSet")]
            named = {text_of(find(one, "name")): one for one in object_spec.iter() if find(one, "path") is not None}
            for target, select in walk:  # grows while it is read
                traversal = named.get(text_of(find(select, "name")), select)
                following = self._follow(target, traversal)
                if following is not None:
                    reached[following] = None
                    walk += [(following, one) for one in children(traversal, "selectSet")]
        return list(reached)

    def _follow(self, target: SimulatedTarget, traversal: soap.Element) -> SimulatedTarget | None:
        kind, path = text_of(find(traversal, "type")), text_of(find(traversal, "path"))
        entity = self._state.entities.find(target)
        if entity is None or kind not in (target.type, *_list_bases(target.type)):
            return None
        return {"parent": entity.parent, "parentVApp": entity.vapp}.get(path or "")

    def fetch(self, call: MethodCall, session: SimulatedSession | None) -> str:
        """Answer Fetch, pyVmomi's way to read one property."""
        path = call.text("prop") or ""
        if call.this == SERVICE and path == "content":
            return soap.return_value(build_service_content())
        snapshot = self.take_snapshot(call.this, PropertySpec({call.this.type: (path,)}), session)
        if snapshot is None:
            raise object_not_found_fault(call.this)
        if path in snapshot.missing:
            if session is None:
                raise SoapFaultError("NotAuthenticated", "", *permission_fields(call.this))
            raise SoapFaultError("InvalidProperty", "", ("name", text(path)))
        return soap.return_value(snapshot.properties.get(path), typed=True)

    def take_snapshot(
        self, target: SimulatedTarget, spec: PropertySpec, session: SimulatedSession | None
    ) -> ObjectSnapshot | None:
        """Return the object's properties now, None if there is no such object."""
        paths = spec.paths.get(target.type, ())
        for base in _list_bases(target.type):
            paths += spec.paths.get(base, ())
        known = self._read_properties(target, paths, session)
        if known is None:
            return None
        if session is None:
            return _refuse_properties(target, paths, "NotAuthenticated")
        if target.id in (self._state.tasks.denied if target.type == "Task" else self._state.entities.denied):
            return _refuse_properties(target, paths, "NoPermission")
        unknown = (path for path in paths if "." not in path and path not in known and path not in _OPTIONAL)
        return ObjectSnapshot(
            {path: known[path] for path in paths if path in known},
            {path: fault("InvalidProperty", "", ("name", text(path))) for path in unknown},
        )

    def _read_properties(
        self, target: SimulatedTarget, paths: tuple[str, ...], session: SimulatedSession | None
    ) -> dict[str, Value] | None:
        match target.type:
            case "Task":
                return self._read_task(target, paths)
            case kind if kind in MANAGED_ENTITIES:
                return self._read_entity(target)
            case "TaskManager":
                return {"description": self._read_task_description(), "maxCollector": integer(32)}
            case "SessionManager":
                return {} if session is None else {"currentSession": build_user_session(session)}
        return None

    def _read_task(self, target: SimulatedTarget, paths: tuple[str, ...]) -> dict[str, Value] | None:
        task = self._state.tasks.find_classic(target.id)
        if task is None:
            return None
        self._state.request_log.polls[task.id] += 1
        info = self.read_task_info(task)
        known = {f"info.{name}": value for name, value in info.items()}
        if "info" in paths:
            known["info"] = properties.task_info_value(info)
        return known

    def read_task_info(self, task: SimulatedTask) -> dict[str, Value]:
        return properties.build_task_info(task, self._state.clock(), self._state.options.timestamps)

    def _read_entity(self, target: SimulatedTarget) -> dict[str, Value] | None:
        entity = self._state.entities.find(target)
        if entity is None:
            return None
        known = {"name": text(entity.name)}
        known |= {"parent": moref(entity.parent)} if entity.parent else {}
        known |= {"parentVApp": moref(entity.vapp)} if entity.vapp else {}
        return known | (self._read_runtime(target) if target.type == "VirtualMachine" else {})

    def _read_runtime(self, target: SimulatedTarget) -> dict[str, Value]:
        now = self._state.clock()
        questions = (properties.build_question(task, now) for task in self.list_tasks_of_vm(target))
        question = next((question for question in questions if question), None)
        state = text("poweredOff", "VirtualMachinePowerState")
        runtime = structure("VirtualMachineRuntimeInfo", ("powerState", state), ("question", question))
        known = {"runtime": runtime, "runtime.powerState": state}
        if question is not None:
            known["runtime.question"] = question
        return known

    def _read_task_description(self) -> Value:
        labels = dict(_LABELS)
        for task in self.list_classic_tasks():
            labels[f"{task.attributes.service}.{task.attributes.operation}"] = task.attributes.description
        info = [("methodInfo", properties.element_description(key, label)) for key, label in labels.items()]
        return structure("TaskDescription", *info)

    def is_within(self, target: SimulatedTarget | None, entity: SimulatedTarget) -> bool:
        """Return whether an object lies below another one in the inventory."""
        while target is not None:
            above = self._state.entities.find(target)
            target = (above.parent or above.vapp) if above else None
            if target == entity:
                return True
        return False

    def list_classic_tasks(self) -> list[SimulatedTask]:
        """Return all classic tasks, forgotten ones too."""
        return [task for task in self._state.tasks.iterate_all() if task.is_classic]

    def list_tasks_of_vm(self, vm: SimulatedTarget) -> list[SimulatedTask]:
        """Return the classic tasks that are about this VM."""
        return list(self._tasks_of_vm.get(vm, {}).values())


def build_service_content() -> Value:
    """Return ServiceContent, which clients may read without a session."""
    about = structure("AboutInfo", *((name, text(value)) for name, value in _ABOUT.items()))
    return structure("ServiceContent", *((name, moref(ref)) for name, ref in _CONTENT), ("about", about))


def build_user_session(session: SimulatedSession) -> Value:
    fields = (("key", session.id), ("userName", session.user), ("fullName", session.user), ("locale", "en"))
    return structure("UserSession", *((name, text(value)) for name, value in fields))


def parse_property_spec(spec: soap.Element) -> PropertySpec:
    """Parse a filter's property paths; `all` stands for `info` of a task and `name` of other objects."""
    paths: dict[str, tuple[str, ...]] = {}
    for property_set in children(spec, "propSet"):
        kind = text_of(find(property_set, "type")) or ""
        paths[kind] = tuple(text_of(path) or "" for path in children(property_set, "pathSet"))
        if text_of(find(property_set, "all")) in ("true", "1"):
            paths[kind] = {"Task": ("info",)}.get(kind, ("name",))
    return PropertySpec(paths)


def _list_bases(kind: str) -> tuple[str, ...]:
    return ("ManagedEntity",) if kind in MANAGED_ENTITIES else ()


def list_read_objects(call: MethodCall, views: Views) -> list[SimulatedTarget]:
    """Return the objects that a reading method reads: those it names and the members of its views."""
    return [call.this, *(target for spec in call.all("specSet") for target in _select_objects(spec, views))]


def _select_objects(spec: soap.Element, views: Views) -> list[SimulatedTarget]:
    targets = []
    for object_spec in children(spec, "objectSet"):
        node = find(object_spec, "obj")
        if node is None:
            continue
        target = parse_target(node)
        view = views.get(target)
        targets += list(view.members) if view else [target]
    return targets


def _refuse_properties(target: SimulatedTarget, paths: tuple[str, ...], fault_type: str) -> ObjectSnapshot:
    return ObjectSnapshot({}, {path: fault(fault_type, "", *permission_fields(target)) for path in paths})


def _render_object(target: SimulatedTarget, snapshot: ObjectSnapshot) -> str:
    rendered = "".join(
        f"<propSet>{element('name', text(path), typed=False)}{element('val', value, typed=True)}</propSet>"
        for path, value in snapshot.properties.items()
    )
    missing = render_missing(snapshot.missing)
    return f"<objects>{element('obj', moref(target), typed=False)}{rendered}{missing}</objects>"
