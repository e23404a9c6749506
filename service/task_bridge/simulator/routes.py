"""Paths of `/api` and `/rest`, and the steps that every request to them takes.

The simulator logs a request, waits for the latency, applies a fault if one matches, and checks the session before it
runs the operation: on a known path, 401 comes before 404. Other paths and methods get the router's 404.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from . import errors
from .errors import StandardError
from .operations import TASK_MAKERS, Call, Operations, parse_list_body, parse_list_query, read_session_id
from .renderings import build_old_router_error
from .request_log import LoggedRequest
from .responses import ANY_METHOD, error_response, json_response, respond_with_fault
from .sessions import SimulatedSession
from .state import VCenterState

# Method, path, action in the query (`*` stands for any), operation
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
SESSION_OPERATIONS = {"login", "session", "logout"}

Actions = dict[str, str]
"""Operations by the action in the query."""


class VCenterRoutes:
    """The endpoints of `/api` and `/rest`. Their routes match every path, so they come last in a router."""

    def __init__(self, state: VCenterState) -> None:
        self._state = state
        self._operations = Operations(state)

    def build_routes(self) -> list[BaseRoute]:
        paths: dict[tuple[str, str], Actions] = defaultdict(dict)
        for method, path, action, operation in PATHS:
            paths[method, path][action] = operation
        routes = [Route(path, self._endpoint(actions), methods=[method]) for (method, path), actions in paths.items()]
        return [*routes, Route("/{path:path}", self._endpoint({}), methods=ANY_METHOD)]

    def _endpoint(self, actions: Actions) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(await self._build_call(request, actions))

        return endpoint

    async def _build_call(self, request: Request, actions: Actions) -> Call:
        """Resolve the operation; it is `unknown` if this vCenter's version doesn't offer it."""
        options, query = self._state.options, request.query_params
        action = query.get("action") or query.get("~action") or ""
        operation = actions.get(action) or actions.get("*") or "unknown"
        call = Call(request, operation, "rest" if request.url.path.startswith("/rest/") else "api")
        offered_on = options.login_on if operation in SESSION_OPERATIONS else options.tasks_on
        if call.rendering not in offered_on or (operation == "list" and not options.list_enabled):
            call.operation = "unknown"
        elif operation == "list":
            is_rest = call.rendering == "rest"
            call.spec = parse_list_query(query) if is_rest else parse_list_body(await request.body())
        return call

    async def _answer(self, call: Call) -> Response:
        entry: LoggedRequest = call.request.scope["simulator.entry"]
        entry.operation, entry.task, entry.tasks = call.operation, call.task, len(call.tasks)
        entry.return_all = call.view.return_all
        if self._state.options.latency_s:
            await self._state.sleep(self._state.options.latency_s)
        fault = self._state.faults.claim(call.operation, call.request.url.path, call.tasks, return_all=entry.return_all)
        if fault is None:
            response = await self._run(call)
        else:
            response = await respond_with_fault(fault, lambda: self._run(call), call.rendering, self._state.sleep)
            entry.fault = fault.name
        if call.session:
            entry.session, entry.user = call.session.id, call.session.user
        return response

    async def _run(self, call: Call) -> Response:
        try:
            if call.operation == "unknown":
                return self._answer_unknown_route(call)
            if call.operation != "login":
                call.session = self._find_session(call)
            return self._operations.by_name[call.operation](call)
        except StandardError as error:
            if error.error_type == "UNAUTHENTICATED" and self._state.options.renderings == "vcsim":
                return Response(status_code=401)
            return error_response(error, call.rendering)

    def _find_session(self, call: Call) -> SimulatedSession:
        """Return the session of the call, which may be one that isn't good if it is a logout. Raises StandardError."""
        sessions, session_id = self._state.sessions, read_session_id(call.request)
        if call.operation == "logout":
            return sessions.find(session_id)
        session = sessions.touch(session_id)
        if session.state == "failing":
            raise errors.internal_server_error()
        return session

    def _answer_unknown_route(self, call: Call) -> Response:
        renderings = self._state.options.renderings
        path = call.request.url.path
        if renderings == "vcsim":
            return PlainTextResponse("404 page not found\n", 404)
        if call.rendering == "rest":
            return error_response(errors.legacy_route_not_found_error(path.removeprefix("/rest")), "rest")
        if renderings == "rest":
            return json_response(build_old_router_error(), 404)
        return error_response(errors.route_not_found_error(), "api")
