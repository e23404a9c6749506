"""HTTP at `/sdk`: one method per request, authenticated by its session's cookie, with the same faults as `/api`."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...waits import wait_for_event
from ..errors import StandardError
from ..request_log import LoggedRequest
from ..responses import respond_with_fault
from ..sessions import SimulatedSession
from ..simulated_task import SimulatedTask
from ..state import VCenterState
from ..task_attributes import SimulatedTarget
from . import soap
from .collector import ObjectSnapshot, PropertyCollector, PropertySpec
from .inventory import Inventory, build_service_content, build_user_session, list_read_objects
from .methods import MAX_UPDATES, Methods, SessionObjects
from .soap import MethodCall, SoapFaultError, no_session_fault

COOKIE = "vmware_soap_session"
_SLICE_S = 0.25
"""A wait checks its client and its session at least this often."""
_LOCKED_S = 0.05
"""How often a read of a locked object is tried again."""
_VERSIONS = (
    '<?xml version="1.0" encoding="UTF-8" ?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    "<version>8.0.2.0</version><priorVersions><version>7.0</version><version>6.7.1</version>"
    "</priorVersions></namespace></namespaces>"
)
_WAITS = ("WaitForUpdates", "WaitForUpdatesEx")
_READS = ("RetrieveProperties", "RetrievePropertiesEx", "Fetch")


class SdkEndpoint:
    """The endpoint of `/sdk`. It follows the changes of classic tasks from its creation on."""

    def __init__(self, state: VCenterState) -> None:
        self._state = state
        self._inventory = Inventory(state)
        self._methods = Methods(state, self._inventory)
        self._wakers: set[asyncio.Event] = set()
        state.tasks.on_classic_change = self._on_classic_change
        state.on_restart = self._forget_session_objects

    def build_routes(self) -> list[BaseRoute]:
        return [
            *(Route(path, self._handle, methods=["POST"]) for path in ("/sdk", "/sdk/")),
            Route("/sdk/vimServiceVersions.xml", _show_versions, methods=["GET"]),
        ]

    def _forget_session_objects(self) -> None:
        objects = self._methods.session_objects
        for session, existing in list(objects.items()):
            existing.destroy()
            objects[session] = SessionObjects()
        self._wake_waits()

    def _on_classic_change(self, task: SimulatedTask) -> None:
        self._inventory.on_classic_change(task)
        self._wake_waits()

    def _wake_waits(self) -> None:
        for waker in self._wakers:
            waker.set()

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        try:
            call = soap.parse_call(body)
        except SoapFaultError as error:
            return soap.fault_response(error)
        entry: LoggedRequest = request.scope["simulator.entry"]
        tasks = _list_task_ids(call)
        entry.operation, entry.tasks = _name_operation(call), len(tasks)
        entry.task = call.this.id if call.this.type == "Task" else None
        if self._state.options.latency_s:
            await self._state.sleep(self._state.options.latency_s)
        session = self._find_session(request)
        if session:
            entry.session, entry.user = session.id, session.user
        fault = self._state.faults.claim(entry.operation, "/sdk", tasks)
        if fault is None:
            return await self._answer(request, call, session)
        entry.fault = fault.name
        return await respond_with_fault(fault, lambda: self._answer(request, call, session), "api", self._state.sleep)

    async def _answer(self, request: Request, call: MethodCall, session: SimulatedSession | None) -> Response:
        try:
            if call.name == "Login":
                return self._log_in(call, session)
            if call.name == "Logout":
                return soap.method_response(call.name, self._log_out(request, call))
            _check_serves(session)
            if session is None:
                return soap.method_response(call.name, self._call_without_session(call))
            if call.name in _WAITS:
                return soap.method_response(call.name, await self._wait_for_updates(request, call, session))
            await self._wait_until_unlocked(request, call, session)
            return soap.method_response(call.name, self._call(call, session))
        except SoapFaultError as error:
            return soap.fault_response(error)

    def _find_session(self, request: Request) -> SimulatedSession | None:
        cookie = _read_cookie(request)
        try:
            session = self._state.sessions.touch(cookie)
        except StandardError:
            if objects := self._methods.session_objects.pop(cookie, None):
                objects.destroy()
            return None
        self._methods.session_objects.setdefault(session.id, SessionObjects())
        return session

    def _log_in(self, call: MethodCall, session: SimulatedSession | None) -> Response:
        credentials = (call.text("userName") or "", call.text("password") or "")
        try:
            if session is not None:
                raise SoapFaultError("InvalidLogin", "The session is already logged in.")
            new_session = self._state.sessions.login(credentials, "vim")
        except StandardError as error:
            if error.error_type != "UNAUTHENTICATED":
                return Response("503 Service Unavailable: too many sessions", 503)
            reason = "Cannot complete login due to an incorrect user name or password."
            raise SoapFaultError("InvalidLogin", reason) from error
        response = soap.method_response("Login", soap.return_value(build_user_session(new_session)))
        response.headers["set-cookie"] = f'{COOKIE}="{new_session.id}"; Path=/; HttpOnly'
        return response

    def _log_out(self, request: Request, call: MethodCall) -> str:
        """End the session of the request, even one that is refused."""
        try:
            session = self._state.sessions.find(_read_cookie(request))
        except StandardError as error:
            raise no_session_fault(call.this) from error
        self._state.sessions.logout(session)
        if objects := self._methods.session_objects.pop(session.id, None):
            objects.destroy()
        self._wake_waits()
        return ""

    def _call_without_session(self, call: MethodCall) -> str:
        if call.name == "RetrieveServiceContent":
            return soap.return_value(build_service_content())
        if call.name in _READS:
            return self._read(call, None)
        raise no_session_fault(call.this)

    def _call(self, call: MethodCall, session: SimulatedSession) -> str:
        if call.name == "RetrieveServiceContent":
            return soap.return_value(build_service_content())
        if call.name in _READS:
            return self._read(call, session)
        if (method := self._methods.by_name.get(call.name)) is None:
            raise SoapFaultError("MethodNotFound", f"{call.this.type} has no method {call.name}.")
        return method(call, session)

    def _read(self, call: MethodCall, session: SimulatedSession | None) -> str:
        self._inventory.changes.report_due(self._state.clock())
        if call.name == "Fetch":
            return self._inventory.fetch(call, session)
        views = self._methods.session_objects[session.id].views if session else {}
        return self._inventory.retrieve(call, session, views)

    async def _wait_until_unlocked(self, request: Request, call: MethodCall, session: SimulatedSession) -> None:
        while self._is_locked(call, session):
            await asyncio.sleep(_LOCKED_S)
            if session not in self._state.sessions.live or await request.is_disconnected():
                raise no_session_fault(call.this)

    def _is_locked(self, call: MethodCall, session: SimulatedSession) -> bool:
        """True if the call reads a locked object, or changes a view whose filter waits for one: vcsim blocks both."""
        locked, views = self._state.locked, self._methods.session_objects[session.id].views
        if call.name in _READS:
            return bool(locked) and any(target.id in locked for target in list_read_objects(call, views))
        view = views.get(call.this) if call.name == "ModifyListView" else None
        return view is not None and any(property_filter.is_blocked(locked) for property_filter in view.filters)

    # WaitForUpdates

    async def _wait_for_updates(self, request: Request, call: MethodCall, session: SimulatedSession) -> str:
        collector = self._methods.find_collector(call, session)
        version = call.text("version") or ""
        if version not in ("", str(collector.version)):
            raise SoapFaultError("InvalidCollectorVersion", f"Version {version} isn't the collector's last.")
        if not version:
            collector.resend_all()
        wait_s = call.text("options", "maxWaitSeconds")
        until = float("inf") if wait_s is None else self._state.clock() + float(wait_s)
        update_set = await self._next_update_set(request, call, session, collector, until)
        return f"<returnval>{update_set}</returnval>" if update_set else ""

    async def _next_update_set(
        self, request: Request, call: MethodCall, session: SimulatedSession, collector: PropertyCollector, until: float
    ) -> str | None:
        """Wait for the next update set. Return None when the time is over or the client has disconnected."""
        changes, cancel_count = self._inventory.changes, collector.cancel_count
        at_most = min(int(call.text("options", "maxObjectUpdates") or MAX_UPDATES), MAX_UPDATES)

        def take_snapshot(target: SimulatedTarget, spec: PropertySpec) -> ObjectSnapshot | None:
            return self._inventory.take_snapshot(target, spec, session)

        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                waker.clear()
                now = self._state.clock()
                self._check_wait(call, session, collector, cancel_count)
                changes.report_due(now)
                if not collector.begin_read(self._state.locked):
                    if await request.is_disconnected():
                        return None
                    await asyncio.sleep(_LOCKED_S)
                    continue
                update_set = collector.take_update_set(take_snapshot, at_most)
                if update_set or now >= until or await request.is_disconnected():
                    return update_set
                await wait_for_event(waker, min(_SLICE_S, until - now, max(0.0, changes.next_at - now)))
        finally:
            self._wakers.discard(waker)

    def _check_wait(
        self, call: MethodCall, session: SimulatedSession, collector: PropertyCollector, cancel_count: int
    ) -> None:
        """Raise SoapFaultError if the wait must end. A wait doesn't keep its session alive."""
        if session not in self._state.sessions.live or session.state == "refused":
            raise no_session_fault(call.this)
        _check_serves(session)
        if collector.cancel_count != cancel_count:
            raise SoapFaultError("RequestCanceled", "The request was canceled.")
        if self._methods.session_objects[session.id].collectors.get(call.this) is not collector:
            raise SoapFaultError("ManagedObjectNotFound", "The collector is gone.")


def _check_serves(session: SimulatedSession | None) -> None:
    if session is not None and session.state == "failing":
        raise SoapFaultError("SystemError", "A general system error occurred.")


def _read_cookie(request: Request) -> str:
    return request.cookies.get(COOKIE, "").strip('"')


def _list_task_ids(call: MethodCall) -> list[str]:
    """Return the ids of the tasks that a call names, for the faults of single tasks."""
    targets = [call.this, *call.targets("add")]
    object_specs = (object_spec for spec in call.all("specSet") for object_spec in soap.children(spec, "objectSet"))
    nodes = (soap.find(object_spec, "obj") for object_spec in object_specs)
    targets += [soap.parse_target(node) for node in nodes if node is not None]
    return [target.id for target in targets if target.type == "Task"]


def _name_operation(call: MethodCall) -> str:
    """Return the method's name, `names` if it reads objects and what is above them."""
    paths = (soap.text_of(one) for one in call.arguments.iter("{*}path")) if call.name in _READS else ()
    return "names" if "parent" in paths else call.name


async def _show_versions(_request: Request) -> Response:
    return Response(_VERSIONS, media_type="text/xml")
