"""HTTP at `/sdk`: one method a request, let in by its session's cookie, through the faults that others meet too."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .. import request_log
from ..answers import faulted
from ..bodies import SimulatedTarget
from ..errors import StandardError
from ..faults import Fault
from ..sessions import SimulatedSession
from ..tasks_service import SimulatedTask
from . import soap
from .collector import Collector
from .inventory import Inventory, content, read_by, user_session
from .methods import MAX_UPDATES, Methods, SessionObjects
from .soap import MethodCall, SoapFaultError, not_authenticated

if TYPE_CHECKING:
    from ..app import SimulatedVCenter

COOKIE = "vmware_soap_session"
_SLICE_S = 0.25
_LOCKED_S = 0.05
_VERSIONS = (
    '<?xml version="1.0" encoding="UTF-8" ?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    "<version>8.0.2.0</version><priorVersions><version>7.0</version><version>6.7.1</version>"
    "</priorVersions></namespace></namespaces>"
)
_WAITS = ("WaitForUpdates", "WaitForUpdatesEx")
_READS = ("RetrieveProperties", "RetrievePropertiesEx", "Fetch")


class Sdk:
    """`routes` are served beside the others of the simulated vCenter."""

    def __init__(self, vcenter: "SimulatedVCenter") -> None:
        self._vcenter = vcenter
        self._inventory = Inventory(vcenter)
        self._methods = Methods(vcenter, self._inventory)
        self._wakers: set[asyncio.Event] = set()
        vcenter.tasks.on_vim_change = self._changed

    def routes(self) -> list[BaseRoute]:
        return [
            *(Route(path, self._endpoint, methods=["POST"]) for path in ("/sdk", "/sdk/")),
            Route("/sdk/vimServiceVersions.xml", _versions, methods=["GET"]),
        ]

    def forget_collectors(self) -> None:
        """What happens to them at a restart, with the sessions alive."""
        for rooms in self._methods.rooms.values():
            rooms.destroy()
        self._methods.rooms = {session: SessionObjects() for session in self._methods.rooms}
        self._wake()

    def _changed(self, task: SimulatedTask) -> None:
        self._inventory.changed(task)
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

    async def _endpoint(self, request: Request) -> Response:
        body = await request.body()
        try:
            call = soap.read(body)
        except SoapFaultError as error:
            return soap.fault_answer(error)
        entry: request_log.LoggedRequest = request.scope["simulator.entry"]
        named = [target.id for target in _named(call)]
        entry.operation, entry.tasks = call.name, len(named)
        entry.task = call.this.id if call.this.type == "Task" else None
        if self._vcenter.options.latency_s:
            await self._vcenter.sleep(self._vcenter.options.latency_s)
        session = self._session(request)
        if session:
            entry.session, entry.user = session.id, session.user
        fault = self._vcenter.faults.claim(call.name, "/sdk", named)
        if fault is None:
            return await self._answer(request, call, session)
        entry.fault = fault.name
        return await self._faulted(request, call, session, fault)

    async def _faulted(
        self, request: Request, call: MethodCall, session: SimulatedSession | None, fault: Fault
    ) -> Response:
        if fault.effect.delay_s:
            await self._vcenter.sleep(fault.effect.delay_s)
        genuine = Response() if fault.effect.stands_in else await self._answer(request, call, session)
        return faulted(genuine, fault, "api", self._vcenter.sleep)

    async def _answer(self, request: Request, call: MethodCall, session: SimulatedSession | None) -> Response:
        try:
            if call.name == "Login":
                return self._login(call, session)
            if session is None:
                return soap.answer(call.name, self._to_a_stranger(call))
            if call.name in _WAITS:
                return soap.answer(call.name, await self._waited(request, call, session))
            await self._unlocked(request, call, session)
            return soap.answer(call.name, self._called(call, session))
        except SoapFaultError as error:
            return soap.fault_answer(error)

    def _session(self, request: Request) -> SimulatedSession | None:
        cookie = request.cookies.get(COOKIE, "").strip('"')
        try:
            session = self._vcenter.sessions.touch(cookie)
        except StandardError:
            if rooms := self._methods.rooms.pop(cookie, None):
                rooms.destroy()
            return None
        self._methods.rooms.setdefault(session.id, SessionObjects())
        return session

    def _login(self, call: MethodCall, session: SimulatedSession | None) -> Response:
        credentials = (call.text("userName") or "", call.text("password") or "")
        try:
            if session is not None:
                raise SoapFaultError("InvalidLogin", "The session is already logged in.")
            made = self._vcenter.sessions.login(credentials)
        except StandardError as error:
            if error.error_type != "UNAUTHENTICATED":
                return Response("503 Service Unavailable: too many sessions", 503)
            said = "Cannot complete login due to an incorrect user name or password."
            raise SoapFaultError("InvalidLogin", said) from error
        answer = soap.answer("Login", soap.returned(user_session(made)))
        answer.headers["set-cookie"] = f'{COOKIE}="{made.id}"; Path=/; HttpOnly'
        return answer

    def _to_a_stranger(self, call: MethodCall) -> str:
        if call.name == "RetrieveServiceContent":
            return soap.returned(content())
        if call.name in _READS:
            return self._read(call, None)
        raise not_authenticated(call.this)

    def _called(self, call: MethodCall, session: SimulatedSession) -> str:
        if call.name == "RetrieveServiceContent":
            return soap.returned(content())
        if call.name in _READS:
            return self._read(call, session)
        if call.name == "Logout":
            self._vcenter.sessions.logout(session)
            self._methods.rooms.pop(session.id).destroy()
            self._wake()
            return ""
        if (method := self._methods.by_name.get(call.name)) is None:
            raise SoapFaultError("MethodNotFound", f"{call.this.type} has no method {call.name}.")
        return method(call, session)

    def _read(self, call: MethodCall, session: SimulatedSession | None) -> str:
        self._inventory.changes.pass_time(self._vcenter.clock())
        if call.name == "Fetch":
            return self._inventory.fetch(call, session)
        return self._inventory.retrieve(call, session, self._methods.rooms[session.id].views if session else {})

    # Waiting

    async def _unlocked(self, request: Request, call: MethodCall, session: SimulatedSession) -> None:
        while self._is_locked(call, session):
            await asyncio.sleep(_LOCKED_S)
            if session not in self._vcenter.sessions.live or await request.is_disconnected():
                raise not_authenticated(call.this)

    def _is_locked(self, call: MethodCall, session: SimulatedSession) -> bool:
        """Whether it reads an object that is locked, or changes a view whose filter is in the middle of that: vcsim
        lets both wait.
        """
        locked, views = self._vcenter.locked, self._methods.rooms[session.id].views
        if call.name in _READS:
            return bool(locked) and any(target.id in locked for target in read_by(call, views))
        view = views.get(call.this) if call.name == "ModifyListView" else None
        return view is not None and any(one.is_held_up(locked) for one in view.filters)

    async def _waited(self, request: Request, call: MethodCall, session: SimulatedSession) -> str:
        collector = self._methods.collector(call, session)
        version = call.text("version") or ""
        if version not in ("", str(collector.version)):
            raise SoapFaultError("InvalidCollectorVersion", f"Version {version} isn't the collector's last.")
        if not version:
            collector.begin_again()
        most = int(call.text("options", "maxObjectUpdates") or MAX_UPDATES)
        seconds = call.text("options", "maxWaitSeconds")
        until = float("inf") if seconds is None else self._vcenter.clock() + float(seconds)
        found = await self._news(request, call, session, collector, min(most, MAX_UPDATES), until)
        return f"<returnval>{found}</returnval>" if found else ""

    async def _news(
        self,
        request: Request,
        call: MethodCall,
        session: SimulatedSession,
        collector: Collector,
        most: int,
        until: float,
    ) -> str | None:
        """The next update set, None at the end of the time or when the client has gone."""
        inventory, canceled = self._inventory, collector.canceled
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                waker.clear()
                now = self._vcenter.clock()
                self._check_wait(call, session, collector, canceled)
                inventory.changes.pass_time(now)
                if not collector.read(self._vcenter.locked):
                    if await request.is_disconnected():
                        return None
                    await asyncio.sleep(_LOCKED_S)
                    continue
                found = collector.update_set(lambda target, wanted: inventory.snapshot(target, wanted, session), most)
                if found or now >= until or await request.is_disconnected():
                    return found
                wait_s = min(_SLICE_S, until - now, max(0.0, inventory.changes.next_at - now))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await waker.wait()
        finally:
            self._wakers.discard(waker)

    def _check_wait(self, call: MethodCall, session: SimulatedSession, collector: Collector, canceled: int) -> None:
        """Raises SoapFaultError where the wait ends without an answer. It doesn't keep its session alive."""
        if session not in self._vcenter.sessions.live:
            raise not_authenticated(call.this)
        if collector.canceled != canceled:
            raise SoapFaultError("RequestCanceled", "The request was canceled.")
        if self._methods.rooms[session.id].collectors.get(call.this) is not collector:
            raise SoapFaultError("ManagedObjectNotFound", "The collector is gone.")


def _named(call: MethodCall) -> list[SimulatedTarget]:
    """The objects that a call is about, for the faults that are for one task."""
    listed = [call.this, *call.targets("add")]
    sets = (one for spec in call.all("specSet") for one in soap.children(spec, "objectSet"))
    listed += [soap.target_of(found) for found in (soap.find(one, "obj") for one in sets) if found is not None]
    return [target for target in listed if target.type == "Task"]


async def _versions(_request: Request) -> Response:
    return Response(_VERSIONS, media_type="text/xml")
