"""The operations of `/api` and `/rest`. They run once a request has passed latency, faults and its session."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from . import errors
from .bodies import BodyView, format_time
from .errors import StandardError
from .renderings import Rendering, render_rest_info, render_rest_map
from .responses import json_response
from .script import Fields
from .sessions import SimulatedSession
from .simulated_task import SimulatedTask
from .state import VCenterState
from .task_attributes import SimulatedTarget
from .tasks_service import FilterSpec

SESSION_ID = "vmware-api-session-id"

# Paths that return a task on `?vmw-task=true`: the task's service and the type of its target.
TASK_MAKERS = {
    "/api/esx/settings/clusters/{target}/software": (
        "com.vmware.esx.settings.clusters.software",
        "ClusterComputeResource",
    ),
    "/api/esx/settings/clusters/{target}/configuration": (
        "com.vmware.esx.settings.clusters.configuration",
        "ClusterComputeResource",
    ),
    "/api/esx/settings/hosts/{target}/software": ("com.vmware.esx.settings.hosts.software", "HostSystem"),
}


class ListSpec(msgspec.Struct):
    filter_spec: FilterSpec = msgspec.field(default_factory=FilterSpec)
    result_spec: BodyView | None = None


@dataclass
class Call:
    """One request to vCenter. `spec` is the specification of a list, or the error that it can't be parsed."""

    request: Request
    operation: str
    rendering: Rendering
    session: SimulatedSession | None = None
    spec: ListSpec | StandardError | None = None

    @property
    def query(self) -> QueryParams:
        return self.request.query_params

    @property
    def task(self) -> str | None:
        return self.request.path_params.get("task")

    @property
    def tasks(self) -> Sequence[str]:
        """The task ids that the request names."""
        if isinstance(self.spec, ListSpec):
            return self.spec.filter_spec.tasks or ()
        return (self.task,) if self.task else ()

    @property
    def view(self) -> BodyView:
        """The options of the body that a get or a list asks for."""
        if self.operation == "get":
            return _parse_view(self.query, "", "spec.")
        return (isinstance(self.spec, ListSpec) and self.spec.result_spec) or BodyView()


class Operations:
    """Operations by name. Each returns a response or raises StandardError."""

    def __init__(self, state: VCenterState) -> None:
        self._state = state
        self.by_name: dict[str, Callable[[Call], Response]] = {
            "login": self.log_in,
            "session": self.show_session,
            "logout": self.log_out,
            "get": self.get_task,
            "list": self.list_tasks,
            "cancel": self.cancel_task,
            "create": self.create_task,
        }

    def log_in(self, call: Call) -> Response:
        session = self._state.sessions.login(_parse_credentials(call.request))
        call.session = session
        if call.rendering == "api":
            return json_response(session.id, 201)
        response = json_response({"value": session.id})
        if call.request.headers.get("vmware-use-header-authn", "").lower() != "true":
            response.set_cookie(SESSION_ID, session.id, path="/rest", httponly=True)
        return response

    def show_session(self, call: Call) -> Response:
        session, timestamps = _require_session(call), self._state.options.timestamps
        return _value_response(
            call,
            {
                "user": session.user,
                "created_time": format_time(session.created_at, timestamps),
                "last_accessed_time": format_time(session.last_accessed_at, timestamps),
            },
        )

    def log_out(self, call: Call) -> Response:
        self._state.sessions.logout(_require_session(call))
        return _empty_response(call)

    def get_task(self, call: Call) -> Response:
        task = self._state.tasks.get(call.task or "")
        infos = self._render_infos(call, [task], call.view)
        return _value_response(call, next(iter(infos.values())))

    def list_tasks(self, call: Call) -> Response:
        if isinstance(call.spec, StandardError):
            raise call.spec
        spec = call.spec or ListSpec()
        infos = self._render_infos(call, self._state.tasks.list(spec.filter_spec), call.view)
        return json_response(infos) if call.rendering == "api" else json_response({"value": render_rest_map(infos)})

    def cancel_task(self, call: Call) -> Response:
        self._state.tasks.cancel(call.task or "")
        return _empty_response(call)

    def create_task(self, call: Call) -> Response:
        if call.query.get("vmw-task") != "true":
            raise errors.route_not_found_error()
        service, target_type = TASK_MAKERS[call.request.scope["route"].path]
        action = call.query.get("action", "create")
        task = self._state.tasks.create(
            self._state.next_scripts.take(),
            service=service,
            operation=f"{action}$task",
            target=SimulatedTarget(target_type, call.request.path_params["target"]),
        )
        return json_response(task, 202)

    def _render_infos(
        self, call: Call, tasks: Sequence[SimulatedTask], view: BodyView
    ) -> Mapping[str, Fields | msgspec.Raw]:
        self._state.request_log.polls.update(task.id for task in tasks)
        if call.rendering == "api":
            return self._state.tasks.encode_infos(tasks, view)
        return {task: render_rest_info(info) for task, info in self._state.tasks.build_infos(tasks, view).items()}


def parse_list_body(body: bytes) -> ListSpec | StandardError:
    """Parse the specification of a list from the body of a POST."""
    try:
        return msgspec.json.decode(body or b"{}", type=ListSpec)
    except msgspec.MsgspecError as problem:
        return errors.invalid_argument_error(str(problem))


def parse_list_query(query: QueryParams) -> ListSpec:
    """Parse the specification of a list from the query of `/rest`, which repeats a name for each of its values."""
    names = ("tasks", "services", "operations", "status", "users")
    filters = {name: query.getlist(f"filter_spec.{name}") for name in names}
    return ListSpec(msgspec.convert(filters, FilterSpec), _parse_view(query, "result_spec."))


def read_session_id(request: Request) -> str | None:
    return request.headers.get(SESSION_ID) or request.cookies.get(SESSION_ID)


def _parse_view(query: QueryParams, *prefixes: str) -> BodyView:
    def is_set(name: str) -> bool:
        return any(query.get(prefix + name) == "true" for prefix in prefixes)

    return BodyView(is_set("exclude_result"), is_set("return_all"))


def _parse_credentials(request: Request) -> tuple[str, str] | None:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user, password


def _require_session(call: Call) -> SimulatedSession:
    if call.session is None:
        raise errors.unauthenticated_error()
    return call.session


def _value_response(call: Call, value: Fields | msgspec.Raw) -> Response:
    return json_response({"value": value} if call.rendering == "rest" else value)


def _empty_response(call: Call) -> Response:
    return Response(status_code=200 if call.rendering == "rest" else 204)
