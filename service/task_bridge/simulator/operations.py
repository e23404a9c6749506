"""What vCenter does for each operation, once the request has come through."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from . import errors
from .answers import json_answer
from .bodies import BodyView, SimulatedTarget, written
from .errors import StandardError
from .renderings import Rendering, rest_info, rest_map
from .script import Fields
from .sessions import SimulatedSession
from .tasks_service import FilterSpec, SimulatedTask

if TYPE_CHECKING:
    from .app import SimulatedVCenter

SESSION_ID = "vmware-api-session-id"

# Operations that return a task when asked for one: their service, and what they work on.
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
    """One request on its way through vCenter. `spec` is a list's; an error when it can't be read."""

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


class Operations:
    def __init__(self, vcenter: "SimulatedVCenter") -> None:
        self._vcenter = vcenter
        self._tasks = vcenter.tasks
        self._sessions = vcenter.sessions
        self.by_name: dict[str, Callable[[Call], Response]] = {
            "login": self._login,
            "session": self._session,
            "logout": self._logout,
            "get": self._get,
            "list": self._list,
            "cancel": self._cancel,
            "create": self._create,
        }

    def _login(self, call: Call) -> Response:
        session = self._sessions.login(_credentials(call.request))
        call.session = session
        if call.rendering == "api":
            return json_answer(session.id, 201)
        answer = json_answer({"value": session.id})
        if call.request.headers.get("vmware-use-header-authn", "").lower() != "true":
            answer.set_cookie(SESSION_ID, session.id, path="/rest", httponly=True)
        return answer

    def _session(self, call: Call) -> Response:
        session = _let_in(call)
        timestamps = self._vcenter.options.timestamps
        return _answered(
            call,
            {
                "user": session.user,
                "created_time": written(session.created_at, timestamps),
                "last_accessed_time": written(session.last_accessed_at, timestamps),
            },
        )

    def _logout(self, call: Call) -> Response:
        self._sessions.logout(_let_in(call))
        return Response(status_code=_done(call))

    def _get(self, call: Call) -> Response:
        view = _view(call.query, "", "spec.")
        task = self._tasks.get(call.task or "")
        return _answered(call, next(iter(self._shown(call, [task], view).values())))

    def _list(self, call: Call) -> Response:
        if isinstance(call.spec, StandardError):
            raise call.spec
        spec = call.spec or ListSpec()
        infos = self._shown(call, self._tasks.list(spec.filter_spec), spec.result_spec or BodyView())
        return json_answer(infos) if call.rendering == "api" else json_answer({"value": rest_map(infos)})

    def _cancel(self, call: Call) -> Response:
        self._tasks.cancel(call.task or "")
        return Response(status_code=_done(call))

    def _create(self, call: Call) -> Response:
        if call.query.get("vmw-task") != "true":
            raise errors.route_not_found()
        service, target_type = TASK_MAKERS[call.request.scope["route"].path]
        action = call.query.get("action", "create")
        task = self._vcenter.create(
            self._vcenter.next_script(),
            service=service,
            operation=f"{action}$task",
            target=SimulatedTarget(target_type, call.request.path_params["target"]),
        )
        return json_answer(task, 202)

    def _shown(self, call: Call, found: Sequence[SimulatedTask], view: BodyView) -> Mapping[str, Fields | msgspec.Raw]:
        self._vcenter.request_log.polls.update(task.id for task in found)
        if call.rendering == "api":
            return self._tasks.jsons(found, view)
        return {task: rest_info(info) for task, info in self._tasks.infos(found, view).items()}


def read_body(body: bytes) -> ListSpec | StandardError:
    """A list's specification out of the body of a POST."""
    try:
        return msgspec.json.decode(body or b"{}", type=ListSpec)
    except msgspec.MsgspecError as problem:
        return errors.invalid_argument(str(problem))


def read_query(query: QueryParams) -> ListSpec:
    """A list's specification out of the query of `/rest`, where a name stands once for each value."""
    names = ("tasks", "services", "operations", "status", "users")
    wanted = {name: query.getlist(f"filter_spec.{name}") for name in names}
    return ListSpec(msgspec.convert(wanted, FilterSpec), _view(query, "result_spec."))


def session_id(request: Request) -> str | None:
    return request.headers.get(SESSION_ID) or request.cookies.get(SESSION_ID)


def _view(query: QueryParams, *prefixes: str) -> BodyView:
    def asked(name: str) -> bool:
        return any(query.get(prefix + name) == "true" for prefix in prefixes)

    return BodyView(asked("exclude_result"), asked("return_all"))


def _credentials(request: Request) -> tuple[str, str] | None:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user, password


def _let_in(call: Call) -> SimulatedSession:
    if call.session is None:
        raise errors.unauthenticated()
    return call.session


def _answered(call: Call, value: Fields | msgspec.Raw) -> Response:
    return json_answer({"value": value} if call.rendering == "rest" else value)


def _done(call: Call) -> int:
    return 200 if call.rendering == "rest" else 204
