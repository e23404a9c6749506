"""What there is to be read: tasks, their VMs, and the service's own objects, as properties."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..bodies import SimulatedTarget
from ..sessions import SimulatedSession
from ..tasks_service import SimulatedTask
from . import properties, soap
from .changes import Changes
from .collector import ListView, ObjectSnapshot, PropertySpec, Watchers, missing_set
from .properties import task_ref
from .soap import MethodCall, SoapFaultError, about_denied, children, find, not_found, target_of, text_of
from .values import Value, element, fault, integer, moref, structure, text

if TYPE_CHECKING:
    from ..app import SimulatedVCenter

SERVICE, SESSIONS = (
    SimulatedTarget("ServiceInstance", "ServiceInstance"),
    SimulatedTarget("SessionManager", "SessionManager"),
)
TASKS, VIEWS = SimulatedTarget("TaskManager", "TaskManager"), SimulatedTarget("ViewManager", "ViewManager")
ROOT_COLLECTOR = SimulatedTarget("PropertyCollector", "propertyCollector")
_CONTENT = (
    ("rootFolder", SimulatedTarget("Folder", "group-d1")),
    ("propertyCollector", ROOT_COLLECTOR),
    ("viewManager", VIEWS),
    ("sessionManager", SESSIONS),
    ("taskManager", TASKS),
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

Views = Mapping[SimulatedTarget, ListView]


class Inventory:
    """Everything that a PropertyCollector can show, and who hears when it changes."""

    def __init__(self, vcenter: "SimulatedVCenter") -> None:
        self._vcenter = vcenter
        self._tasks = vcenter.tasks
        self._on_vm: dict[SimulatedTarget, dict[str, SimulatedTask]] = {}
        self.watchers = Watchers()
        self.changes = Changes(self._heard)

    def changed(self, task: SimulatedTask) -> None:
        self.changes.changed(task, self._vcenter.clock())

    def _heard(self, task: SimulatedTask) -> None:
        self.watchers.touch(task_ref(task.id))
        if (vm := task.about.target) is None:
            return
        if task.gone_at is None:
            self._on_vm.setdefault(vm, {})[task.id] = task
        else:
            self._on_vm.get(vm, {}).pop(task.id, None)
        self.watchers.touch(vm)

    def retrieve(self, call: MethodCall, session: SimulatedSession | None, views: Views) -> str:
        """RetrieveProperties and its Ex. Without a session every property is missing, and there is no fault."""
        found: dict[SimulatedTarget, ObjectSnapshot] = {}
        for spec in call.all("specSet"):
            wanted = wanted_of(spec)
            for target in _selected(spec, views):
                shown = self.snapshot(target, wanted, session)
                if shown is not None:
                    found[target] = shown
                elif text_of(find(spec, "reportMissingObjectsInResults")) not in ("true", "1"):
                    raise not_found(target)
        inner = "".join(_object_content(target, shown) for target, shown in found.items())
        if call.name == "RetrieveProperties":
            return inner.replace("<objects>", "<returnval>").replace("</objects>", "</returnval>")
        return f"<returnval>{inner}</returnval>" if inner else ""

    def fetch(self, call: MethodCall, session: SimulatedSession | None) -> str:
        """pyVmomi's way to one property."""
        path = call.text("prop") or ""
        if call.this == SERVICE and path == "content":
            return soap.returned(content())
        shown = self.snapshot(call.this, PropertySpec({call.this.type: (path,)}), session)
        if shown is None:
            raise not_found(call.this)
        if path in shown.missing:
            kind = "NotAuthenticated" if session is None else "InvalidProperty"
            raise SoapFaultError(kind, "", *(about_denied(call.this) if session is None else [("name", text(path))]))
        return soap.returned(shown.properties.get(path), typed=True)

    def snapshot(
        self, target: SimulatedTarget, wanted: PropertySpec, session: SimulatedSession | None
    ) -> ObjectSnapshot | None:
        """How the object stands, None when there is no such object."""
        paths = wanted.paths.get(target.type, ())
        known = self._known(target, paths, session)
        if known is None:
            return None
        if session is None:
            return ObjectSnapshot({}, {path: fault("NotAuthenticated", "", *about_denied(target)) for path in paths})
        if target.type == "Task" and target.id in self._tasks.denied:
            return ObjectSnapshot({}, {path: fault("NoPermission", "", *about_denied(target)) for path in paths})
        found = {path: known[path] for path in paths if path in known}
        odd = (path for path in paths if "." not in path and path not in known)
        return ObjectSnapshot(found, {path: fault("InvalidProperty", "", ("name", text(path))) for path in odd})

    def _known(
        self, target: SimulatedTarget, paths: tuple[str, ...], session: SimulatedSession | None
    ) -> dict[str, Value] | None:
        match target.type:
            case "Task":
                return self._task(target, paths)
            case "VirtualMachine":
                return self._vm(target)
            case "TaskManager":
                return {"description": self._description(), "maxCollector": integer(32)}
            case "SessionManager":
                return {} if session is None else {"currentSession": user_session(session)}
        return None

    def _task(self, target: SimulatedTarget, paths: tuple[str, ...]) -> dict[str, Value] | None:
        task = self._tasks.visible_vim(target.id)
        if task is None:
            return None
        self._vcenter.request_log.polls[task.id] += 1
        info = self.info(task)
        known = {f"info.{name}": value for name, value in info.items()}
        if "info" in paths:
            known["info"] = properties.whole_info(info)
        return known

    def info(self, task: SimulatedTask) -> dict[str, Value]:
        return properties.task_info(task, self._vcenter.clock(), self._vcenter.options.timestamps)

    def _vm(self, target: SimulatedTarget) -> dict[str, Value]:
        now = self._vcenter.clock()
        asked = (properties.question(task, now) for task in self.on_vm(target))
        question = next((found for found in asked if found), None)
        state = text("poweredOff", "VirtualMachinePowerState")
        runtime = structure("VirtualMachineRuntimeInfo", ("powerState", state), ("question", question))
        known = {"name": text(target.id), "runtime": runtime, "runtime.powerState": state}
        if question is not None:
            known["runtime.question"] = question
        return known

    def _description(self) -> Value:
        labels = dict(_LABELS)
        labels |= {f"{task.about.service}.{task.about.operation}": task.about.description for task in self.vim()}
        info = [("methodInfo", properties.described(key, label)) for key, label in labels.items()]
        return structure("TaskDescription", *info)

    def vim(self) -> list[SimulatedTask]:
        return [task for task in self._tasks.everything() if task.is_vim]

    def on_vm(self, vm: SimulatedTarget) -> list[SimulatedTask]:
        """The classic tasks that are about this VM."""
        return list(self._on_vm.get(vm, {}).values())


def _invalid(path: str) -> SoapFaultError:
    return SoapFaultError("InvalidProperty", "", ("name", text(path)))


def content() -> Value:
    """ServiceContent, which everybody may read."""
    about = structure("AboutInfo", *((name, text(value)) for name, value in _ABOUT.items()))
    return structure("ServiceContent", *((name, moref(ref)) for name, ref in _CONTENT), ("about", about))


def user_session(session: SimulatedSession) -> Value:
    named = (("key", session.id), ("userName", session.user), ("fullName", session.user), ("locale", "en"))
    return structure("UserSession", *((name, text(value)) for name, value in named))


def wanted_of(spec: soap.Element) -> PropertySpec:
    paths: dict[str, tuple[str, ...]] = {}
    for asked in children(spec, "propSet"):
        kind = text_of(find(asked, "type")) or ""
        named = tuple(text_of(path) or "" for path in children(asked, "pathSet"))
        if text_of(find(asked, "all")) in ("true", "1"):
            named = {"Task": ("info",)}.get(kind, ("name",))
        paths[kind] = named
    return PropertySpec(paths)


def read_by(call: MethodCall, views: Views) -> list[SimulatedTarget]:
    """The objects that a reading method names, or that the views have which it goes through."""
    return [call.this, *(target for spec in call.all("specSet") for target in _selected(spec, views))]


def _selected(spec: soap.Element, views: Views) -> list[SimulatedTarget]:
    """The objects of a filter: those named, or those of the views that are gone through."""
    targets = []
    for named in children(spec, "objectSet"):
        found = find(named, "obj")
        if found is None:
            continue
        target = target_of(found)
        view = views.get(target)
        targets += list(view.members) if view else [target]
    return targets


def _object_content(target: SimulatedTarget, shown: ObjectSnapshot) -> str:
    found = "".join(
        f"<propSet>{element('name', text(path), typed=False)}{element('val', value, typed=True)}</propSet>"
        for path, value in shown.properties.items()
    )
    return f"<objects>{element('obj', moref(target), typed=False)}{found}{missing_set(shown.missing)}</objects>"
