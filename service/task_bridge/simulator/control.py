"""The simulated vCenter's control API: scripts and faults by HTTP and JSON, from any language, without a login.

A `fate` is the name of a scenario (`scenarios.py`); `with` holds its arguments.

    GET    /simulator                      names and arguments of the fates and the faults
    POST   /simulator/tasks                {"fate": "succeeds", "with": {"after_s": 3}} -> 201 {"tasks": [id]}
                                           or {"script": {"steps": [{"after_s": 0, "changes": {"status": "RUNNING"},
                                           "removes": ["user"]}], "flavour": "vlcm", "appliance", "minimal"
                                           or "vim" (a classic task, shown at /sdk),
                                           "cancelable": true, "cancel_takes_s": 0.5}};
                                           also id, flavour, service, operation, description,
                                           target {"type", "id"}, user, parent, count
    GET    /simulator/tasks                {id: status}
    DELETE /simulator/tasks                forgets all tasks, like a restart of the service
    PATCH  /simulator/tasks/{id}           {"set": {field: value}, "remove": [field],
                                           "hidden": true, "denied": true}
    DELETE /simulator/tasks/{id}           forgets one task
    GET    /simulator/tasks/{id}/history   {"states": [{"at", "status", "fields"}]}, also of forgotten tasks
    GET    /simulator/history              {id: states}
    POST   /simulator/next                 {"fate" or "script" as above}: for the next task that a client starts by
                                           `vmw-task=true`; with "always": true for all tasks after it
    POST   /simulator/faults               {"kind": "bad_gateway", "with": {}, "operation": "get", "path": "/api",
                                           "task": id, "provider": service, "return_all": true, "times": 3,
                                           "for_s": 10}
                                           -> 201 {"fault": id}
    GET    /simulator/faults               the active faults
    DELETE /simulator/faults               clears all faults; /simulator/faults/{id} clears one
    GET    /simulator/journal              requests, counts, concurrency; ?operation=list&task=id&since=seconds
    DELETE /simulator/journal              forgets the requests
    GET    /simulator/sessions             {"live": n, counts, "apis": {"cis": {"live": n, counts}, "vim": ...}}
    PATCH  /simulator/sessions             {"state": "refused", "failing" or "good", "api": "vim"}: of those live now
    DELETE /simulator/sessions             invalidates all sessions
    POST   /simulator/restart              ends all sessions; with {"forget": true} forgets all tasks and numbers
                                           classic ones from the beginning
    PATCH  /simulator/options              any of `options.Options` by name

Requests that only change something answer 204. A mistake answers 400 {"problem": text}; an unknown task, fault or path
answers 404.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .faults import FAULTS
from .options import Options, SessionApi
from .responses import ANY_METHOD, json_response
from .scenarios import SCENARIOS
from .script import Fields, Flavour, Script
from .sessions import SessionState
from .state import VCenterState
from .task_attributes import ADMINISTRATOR, CLUSTER, SimulatedTarget, TaskDetails

CONTROL = "/simulator"

Product = TypeVar("Product")
Parsed = TypeVar("Parsed")


class ScriptChoice(Struct, kw_only=True, forbid_unknown_fields=True):
    """A scenario by name, or a script. The default is `succeeds`."""

    fate: str = "succeeds"
    arguments: Fields = msgspec.field(name="with", default_factory=dict)
    script: Script | None = None

    def build_script(self) -> Script:
        return self.script or _call_by_name(SCENARIOS, self.fate, self.arguments)


class NewTask(ScriptChoice):
    id: str | None = None
    flavour: Flavour | None = None
    service: str | None = None
    operation: str | None = None
    description: str | None = None
    target: SimulatedTarget | None = CLUSTER
    user: str | None = ADMINISTRATOR
    parent: str = ""
    count: int = 1

    def build_details(self) -> TaskDetails:
        return {
            "id": self.id,
            "flavour": self.flavour,
            "service": self.service,
            "operation": self.operation,
            "description": self.description,
            "target": self.target,
            "user": self.user,
            "parent": self.parent,
        }


class NextScript(ScriptChoice):
    always: bool = False


class TaskChange(Struct, kw_only=True, forbid_unknown_fields=True):
    fields: Fields = msgspec.field(name="set", default_factory=dict)
    remove: tuple[str, ...] = ()
    hidden: bool | None = None
    denied: bool | None = None


class SessionChange(Struct, kw_only=True, forbid_unknown_fields=True):
    state: SessionState
    api: SessionApi | None = None


class RestartRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    forget: bool = False


class NewFault(Struct, kw_only=True, forbid_unknown_fields=True):
    kind: str
    arguments: Fields = msgspec.field(name="with", default_factory=dict)
    operation: str | None = None
    path: str | None = None
    task: str | None = None
    provider: str | None = None
    return_all: bool | None = None
    times: int | None = None
    for_s: float | None = None


class ControlApi:
    """The endpoints below `/simulator`."""

    def __init__(self, state: VCenterState) -> None:
        self._state = state

    def build_routes(self) -> list[BaseRoute]:
        return [
            _build_route("GET", "", self.list_names),
            _build_route("POST", "/tasks", self.create_tasks),
            _build_route("GET", "/tasks", self.list_tasks),
            _build_route("DELETE", "/tasks", self.forget_all_tasks),
            _build_route("PATCH", "/tasks/{task}", self.change_task),
            _build_route("DELETE", "/tasks/{task}", self.forget_task),
            _build_route("GET", "/tasks/{task}/history", self.show_history),
            _build_route("GET", "/history", self.show_histories),
            _build_route("POST", "/next", self.set_next_script),
            _build_route("POST", "/faults", self.add_fault),
            _build_route("GET", "/faults", self.list_faults),
            _build_route("DELETE", "/faults", self.clear_faults),
            _build_route("DELETE", "/faults/{fault}", self.clear_fault),
            _build_route("GET", "/journal", self.show_requests),
            _build_route("DELETE", "/journal", self.clear_requests),
            _build_route("GET", "/sessions", self.show_sessions),
            _build_route("PATCH", "/sessions", self.set_session_state),
            _build_route("DELETE", "/sessions", self.invalidate_sessions),
            _build_route("POST", "/restart", self.restart),
            _build_route("PATCH", "/options", self.set_options),
            Route(CONTROL + "{path:path}", _refuse_unknown_path, methods=ANY_METHOD),
        ]

    def list_names(self, _request: Request, _body: bytes) -> Response:
        return json_response({"fates": _list_signatures(SCENARIOS), "faults": _list_signatures(FAULTS)})

    # Tasks

    def create_tasks(self, _request: Request, body: bytes) -> Response:
        new = _parse(body, NewTask)
        script, details = new.build_script(), new.build_details()
        return json_response({"tasks": [self._state.tasks.create(script, **details) for _ in range(new.count)]}, 201)

    def list_tasks(self, _request: Request, _body: bytes) -> Response:
        now = self._state.clock()
        return json_response({task.id: task.frame_at(now).status for task in self._state.tasks})

    def forget_all_tasks(self, _request: Request, _body: bytes) -> Response:
        self._state.tasks.forget_all()
        return _empty_response()

    def change_task(self, request: Request, body: bytes) -> Response:
        task, change = request.path_params["task"], _parse(body, TaskChange)
        if change.fields or change.remove:
            self._state.tasks.set(task, change.fields, change.remove)
        if change.hidden is not None:
            self._state.tasks.hide(task, change.hidden)
        if change.denied is not None:
            self._state.tasks.deny(task, change.denied)
        return _empty_response()

    def forget_task(self, request: Request, _body: bytes) -> Response:
        self._state.tasks.forget(request.path_params["task"])
        return _empty_response()

    def show_history(self, request: Request, _body: bytes) -> Response:
        return json_response({"states": self._state.tasks.history(request.path_params["task"])})

    def show_histories(self, _request: Request, _body: bytes) -> Response:
        return json_response(self._state.tasks.histories())

    def set_next_script(self, _request: Request, body: bytes) -> Response:
        next_script = _parse(body, NextScript)
        if next_script.always:
            self._state.next_scripts.default = next_script.build_script()
        else:
            self._state.next_scripts.queue.append(next_script.build_script())
        return _empty_response()

    # Faults

    def add_fault(self, _request: Request, body: bytes) -> Response:
        new = _parse(body, NewFault)
        names = ("operation", "path", "task", "provider", "return_all", "times", "for_s")
        matching = {name: getattr(new, name) for name in names}
        effect = _call_by_name(FAULTS, new.kind, new.arguments)
        return json_response({"fault": self._state.faults.add(effect, name=new.kind, **matching)}, 201)

    def list_faults(self, _request: Request, _body: bytes) -> Response:
        names = ("id", "name", "operation", "path", "task", "provider", "return_all", "left", "until")
        active = self._state.faults.active()
        return json_response({"faults": [{name: getattr(fault, name) for name in names} for fault in active]})

    def clear_faults(self, _request: Request, _body: bytes) -> Response:
        self._state.faults.clear()
        return _empty_response()

    def clear_fault(self, request: Request, _body: bytes) -> Response:
        self._state.faults.clear(request.path_params["fault"])
        return _empty_response()

    # Requests, sessions, options

    def show_requests(self, request: Request, _body: bytes) -> Response:
        log, query = self._state.request_log, request.query_params
        since = float(query.get("since", "-inf"))
        filters = {name: query[name] for name in ("operation", "task") if name in query}
        requests = [
            entry for entry in log.since(since) if all(getattr(entry, name) == value for name, value in filters.items())
        ]
        return json_response(
            {
                "requests": requests,
                "operations": log.operations,
                "looks": log.polls,
                "in_flight": log.in_flight,
                "most_in_flight": log.most_in_flight,
            }
        )

    def clear_requests(self, _request: Request, _body: bytes) -> Response:
        self._state.request_log.clear()
        return _empty_response()

    def show_sessions(self, _request: Request, _body: bytes) -> Response:
        sessions = self._state.sessions
        apis = {
            api: {"live": len(sessions.live_of(api)), **asdict(counts)} for api, counts in sessions.counts_of.items()
        }
        return json_response({"live": len(sessions.live), **asdict(sessions.counts), "apis": apis})

    def set_session_state(self, _request: Request, body: bytes) -> Response:
        change = _parse(body, SessionChange)
        self._state.sessions.set_state(change.state, change.api)
        return _empty_response()

    def invalidate_sessions(self, _request: Request, _body: bytes) -> Response:
        return json_response({"invalidated": self._state.sessions.invalidate()})

    def restart(self, _request: Request, body: bytes) -> Response:
        self._state.restart(forget=_parse(body, RestartRequest).forget)
        return _empty_response()

    def set_options(self, _request: Request, body: bytes) -> Response:
        changes, options = _parse(body, Fields), self._state.options
        changed = msgspec.convert({**msgspec.to_builtins(options), **changes}, Options)
        for name in changes:
            setattr(options, name, getattr(changed, name))
        return _empty_response()


def _build_route(method: str, path: str, answer: Callable[[Request, bytes], Response]) -> BaseRoute:
    async def endpoint(request: Request) -> Response:
        body = await request.body()
        try:
            return answer(request, body)
        except KeyError as missing:
            return json_response({"problem": f"{missing.args[0]} is not known"}, 404)
        except (TypeError, ValueError) as problem:
            return json_response({"problem": str(problem)}, 400)

    return Route(CONTROL + path, endpoint, methods=[method])


async def _refuse_unknown_path(request: Request) -> Response:
    return json_response({"problem": f"{request.method} {request.url.path} is not known"}, 404)


def _list_signatures(makers: Mapping[str, Callable[..., object]]) -> dict[str, str]:
    return {name: str(signature(make)) for name, make in makers.items()}


def _parse(body: bytes, kind: type[Parsed]) -> Parsed:
    return msgspec.json.decode(body or b"{}", type=kind)


def _call_by_name(makers: Mapping[str, Callable[..., Product]], name: str, arguments: dict[str, Any]) -> Product:
    if name not in makers:
        raise ValueError(f"there is no {name!r}; there are {', '.join(sorted(makers))}")
    return makers[name](**arguments)


def _empty_response() -> Response:
    return Response(status_code=204)
