"""The paths that the simulated vCenter has, and the one way that every request goes.

A request is written down, waits out the latency, meets its fault if there is one, and is let in by its session
before its operation runs: on a known path 401 comes before 404. Other paths and methods get the router's 404.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from . import errors, request_log
from .answers import ANY_METHOD, error_answer, faulted, json_answer
from .errors import StandardError
from .faults import Fault
from .operations import TASK_MAKERS, Call, Operations, read_body, read_query, session_id
from .renderings import Rendering, old_router_error

if TYPE_CHECKING:
    from .app import SimulatedVCenter

# method, path, action in the query (`*` any), operation
PATHS = (
    ("POST", "/api/session", "", "login"),
    ("GET", "/api/session", "", "session"),
    ("DELETE", "/api/session", "", "logout"),
    ("GET", "/api/cis/tasks/{task}", "", "get"),
    ("POST", "/api/cis/tasks/{task}", "cancel", "cancel"),
    ("POST", "/api/cis/tasks", "list", "list"),
    ("POST", "/rest/com/vmware/cis/session", "", "login"),
    ("POST", "/rest/com/vmware/cis/session", "get", "session"),
    ("DELETE", "/rest/com/vmware/cis/session", "", "logout"),
    ("GET", "/rest/cis/tasks/{task}", "", "get"),
    ("POST", "/rest/cis/tasks/{task}", "cancel", "cancel"),
    ("GET", "/rest/cis/tasks", "", "list"),
    *(("POST", path, "*", "create") for path in TASK_MAKERS),
)
ABOUT_SESSIONS = {"login", "session", "logout"}

Actions = dict[str, str]
Endpoint = Callable[[Request], Awaitable[Response]]


class SimulatorRoutes:
    def __init__(self, vcenter: "SimulatedVCenter") -> None:
        self._vcenter = vcenter
        self._operations = Operations(vcenter)

    def all(self) -> list[BaseRoute]:
        known: dict[tuple[str, str], Actions] = defaultdict(dict)
        for method, path, action, operation in PATHS:
            known[method, path][action] = operation
        routes = [Route(path, self._endpoint(actions), methods=[method]) for (method, path), actions in known.items()]
        return [*routes, Route("/{path:path}", self._endpoint({}), methods=ANY_METHOD)]

    def _endpoint(self, actions: Actions) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            asked = request.query_params.get("action") or request.query_params.get("~action") or ""
            operation = actions.get(asked) or actions.get("*") or "unknown"
            return await self._answer(await self._call(request, self._offered(operation, request)))

        return endpoint

    def _offered(self, operation: str, request: Request) -> str:
        """The operation, or `unknown` where this vCenter's version doesn't have it."""
        options = self._vcenter.options
        offered_on = options.login_on if operation in ABOUT_SESSIONS else options.tasks_on
        switched_off = operation == "list" and not options.list_enabled
        return "unknown" if switched_off or _rendering(request) not in offered_on else operation

    async def _call(self, request: Request, operation: str) -> Call:
        call = Call(request, operation, _rendering(request))
        if operation == "list":
            from_query = call.rendering == "rest"
            call.spec = read_query(request.query_params) if from_query else read_body(await request.body())
        return call

    async def _answer(self, call: Call) -> Response:
        entry: request_log.LoggedRequest = call.request.scope["simulator.entry"]
        entry.operation, entry.task, entry.tasks = call.operation, call.task, len(call.tasks)
        if self._vcenter.options.latency_s:
            await self._vcenter.sleep(self._vcenter.options.latency_s)
        fault = self._vcenter.faults.claim(call.operation, call.request.url.path, call.tasks)
        answer = self._run(call) if fault is None else await self._faulted(call, fault)
        if call.session:
            entry.session, entry.user = call.session.id, call.session.user
        entry.fault = fault.name if fault else None
        return answer

    async def _faulted(self, call: Call, fault: Fault) -> Response:
        if fault.effect.delay_s:
            await self._vcenter.sleep(fault.effect.delay_s)
        # What a proxy answers in vCenter's place never reaches vCenter.
        genuine = Response() if fault.effect.stands_in else self._run(call)
        return faulted(genuine, fault, call.rendering, self._vcenter.sleep)

    def _run(self, call: Call) -> Response:
        try:
            if call.operation == "unknown":
                return self._route_not_found(call)
            if call.operation != "login":
                call.session = self._vcenter.sessions.touch(session_id(call.request))
            return self._operations.by_name[call.operation](call)
        except StandardError as error:
            if error.error_type == "UNAUTHENTICATED" and self._vcenter.options.renderings == "vcsim":
                return Response(status_code=401)
            return error_answer(error, call.rendering)

    def _route_not_found(self, call: Call) -> Response:
        renderings = self._vcenter.options.renderings
        path = call.request.url.path
        if renderings == "vcsim":
            return PlainTextResponse("404 page not found\n", 404)
        if call.rendering == "rest":
            return error_answer(errors.legacy_route_not_found(path.removeprefix("/rest")), "rest")
        if renderings == "rest":
            return json_answer(old_router_error(), 404)
        return error_answer(errors.route_not_found(), "api")


def _rendering(request: Request) -> Rendering:
    return "rest" if request.url.path.startswith("/rest/") else "api"
