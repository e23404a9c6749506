"""The simulated vCenter's own paths: its fates and faults by HTTP and JSON, from any language, without a login.

    GET    /simulator                      names and arguments of the fates and the faults
    POST   /simulator/tasks                {"fate": "succeeds", "with": {"after_s": 3}} -> 201 {"tasks": [id]}
                                           or {"script": {"steps": [{"after_s": 0, "changes": {"status": "RUNNING"},
                                           "removes": ["user"]}], "flavour": "vlcm", "appliance", "minimal"
                                           or "vim" (a classic task, shown at /sdk),
                                           "cancelable": true, "cancel_takes_s": 0.5}};
                                           beside it id, flavour, service, operation, description,
                                           target {"type", "id"}, user, parent, count
    GET    /simulator/tasks                {id: status}
    DELETE /simulator/tasks                forgets all: a restart of the service
    PATCH  /simulator/tasks/{id}           {"set": {field: value}, "remove": [field],
                                           "hidden": true, "denied": true}
    DELETE /simulator/tasks/{id}           forgets one
    GET    /simulator/tasks/{id}/history   {"states": [{"at", "status", "fields"}]}, of forgotten tasks too
    GET    /simulator/history              {id: states}
    POST   /simulator/next                 {"fate" or "script" as above}: for the next task that is made by
                                           `vmw-task=true`; with "always": true for all that follow
    POST   /simulator/faults               {"kind": "bad_gateway", "with": {}, "operation": "get", "path": "/api",
                                           "task": id, "times": 3, "for_s": 10} -> 201 {"fault": id}
    GET    /simulator/faults               what is active
    DELETE /simulator/faults               clears all; /simulator/faults/{id} one
    GET    /simulator/journal              requests, counts, concurrency; ?operation=list&task=id&since=seconds
    DELETE /simulator/journal              forgets
    GET    /simulator/sessions             {"live": n, counts}
    DELETE /simulator/sessions             invalidates all
    POST   /simulator/restart              all sessions end, with {"forget": true} all tasks too, numbers begin anew
    PATCH  /simulator/options              any of `options.Options` by name

What only does something answers 204. A mistake is 400 {"problem": text}, an unknown task, fault or path 404.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import ANY_METHOD, json_answer
from .bodies import CLUSTER, SimulatedTarget
from .faults import FAULTS
from .options import Options
from .scenarios import SCENARIOS
from .script import Fields, Flavour, Script

if TYPE_CHECKING:
    from .app import SimulatedVCenter

CONTROL = "/simulator"

Made = TypeVar("Made")
Wanted = TypeVar("Wanted")


class Fate(Struct, kw_only=True, forbid_unknown_fields=True):
    """A named fate, or a script. Without either it is `succeeds`."""

    fate: str = "succeeds"
    arguments: Fields = msgspec.field(name="with", default_factory=dict)
    script: Script | None = None

    def written(self) -> Script:
        return self.script or _made(SCENARIOS, self.fate, self.arguments)


class NewTask(Fate):
    id: str | None = None
    flavour: Flavour | None = None
    service: str | None = None
    operation: str | None = None
    description: str | None = None
    target: SimulatedTarget | None = CLUSTER
    user: str | None = "Administrator@VSPHERE.LOCAL"
    parent: str = ""
    count: int = 1


class NextFate(Fate):
    always: bool = False


class TaskChange(Struct, kw_only=True, forbid_unknown_fields=True):
    fields: Fields = msgspec.field(name="set", default_factory=dict)
    remove: tuple[str, ...] = ()
    hidden: bool | None = None
    denied: bool | None = None


class Restart(Struct, kw_only=True, forbid_unknown_fields=True):
    forget: bool = False


class NewFault(Struct, kw_only=True, forbid_unknown_fields=True):
    kind: str
    arguments: Fields = msgspec.field(name="with", default_factory=dict)
    operation: str | None = None
    path: str | None = None
    task: str | None = None
    times: int | None = None
    for_s: float | None = None


class Control:
    def __init__(self, vcenter: "SimulatedVCenter") -> None:
        self._vcenter = vcenter

    def routes(self) -> list[BaseRoute]:
        return [
            _route("GET", "", self._names),
            _route("POST", "/tasks", self._create),
            _route("GET", "/tasks", self._tasks),
            _route("DELETE", "/tasks", self._forget_all),
            _route("PATCH", "/tasks/{task}", self._change),
            _route("DELETE", "/tasks/{task}", self._forget),
            _route("GET", "/tasks/{task}/history", self._history),
            _route("GET", "/history", self._histories),
            _route("POST", "/next", self._next),
            _route("POST", "/faults", self._add_fault),
            _route("GET", "/faults", self._faults),
            _route("DELETE", "/faults", self._clear_faults),
            _route("DELETE", "/faults/{fault}", self._clear_fault),
            _route("GET", "/journal", self._journal),
            _route("DELETE", "/journal", self._clear_journal),
            _route("GET", "/sessions", self._sessions),
            _route("DELETE", "/sessions", self._invalidate_sessions),
            _route("POST", "/restart", self._restart),
            _route("PATCH", "/options", self._set_options),
            Route(CONTROL + "{path:path}", _nowhere, methods=ANY_METHOD),
        ]

    def _names(self, _request: Request, _body: bytes) -> Response:
        return json_answer({"fates": _signatures(SCENARIOS), "faults": _signatures(FAULTS)})

    # Tasks

    def _create(self, _request: Request, body: bytes) -> Response:
        wanted = _read(body, NewTask)
        script = wanted.written()
        about = {name: getattr(wanted, name) for name in NewTask.__annotations__ if name != "count"}
        return json_answer({"tasks": [self._vcenter.create(script, **about) for _ in range(wanted.count)]}, 201)

    def _tasks(self, _request: Request, _body: bytes) -> Response:
        now = self._vcenter.clock()
        return json_answer({task.id: task.at(now).status for task in self._vcenter.tasks})

    def _forget_all(self, _request: Request, _body: bytes) -> Response:
        self._vcenter.forget_all()
        return _done()

    def _change(self, request: Request, body: bytes) -> Response:
        task, wanted = request.path_params["task"], _read(body, TaskChange)
        if wanted.fields or wanted.remove:
            self._vcenter.set(task, *wanted.remove, **wanted.fields)
        if wanted.hidden is not None:
            self._vcenter.tasks.hide(task, wanted.hidden)
        if wanted.denied is not None:
            self._vcenter.tasks.deny(task, wanted.denied)
        return _done()

    def _forget(self, request: Request, _body: bytes) -> Response:
        self._vcenter.forget(request.path_params["task"])
        return _done()

    def _history(self, request: Request, _body: bytes) -> Response:
        return json_answer({"states": self._vcenter.history(request.path_params["task"])})

    def _histories(self, _request: Request, _body: bytes) -> Response:
        return json_answer(self._vcenter.histories())

    def _next(self, _request: Request, body: bytes) -> Response:
        wanted = _read(body, NextFate)
        if wanted.always:
            self._vcenter.default_script = wanted.written()
        else:
            self._vcenter.next_scripts.append(wanted.written())
        return _done()

    # Faults

    def _add_fault(self, _request: Request, body: bytes) -> Response:
        wanted = _read(body, NewFault)
        matching = {name: getattr(wanted, name) for name in ("operation", "path", "task", "times", "for_s")}
        effect = _made(FAULTS, wanted.kind, wanted.arguments)
        return json_answer({"fault": self._vcenter.faults.add(effect, name=wanted.kind, **matching)}, 201)

    def _faults(self, _request: Request, _body: bytes) -> Response:
        shown = ("id", "name", "operation", "path", "task", "left", "until")
        active = self._vcenter.faults.active()
        return json_answer({"faults": [{name: getattr(fault, name) for name in shown} for fault in active]})

    def _clear_faults(self, _request: Request, _body: bytes) -> Response:
        self._vcenter.faults.clear()
        return _done()

    def _clear_fault(self, request: Request, _body: bytes) -> Response:
        self._vcenter.faults.clear(request.path_params["fault"])
        return _done()

    # What happened

    def _journal(self, request: Request, _body: bytes) -> Response:
        journal, query = self._vcenter.request_log, request.query_params
        since = float(query.get("since", "-inf"))
        asked = {name: query[name] for name in ("operation", "task") if name in query}
        requests = [
            entry
            for entry in journal.since(since)
            if all(getattr(entry, name) == value for name, value in asked.items())
        ]
        return json_answer(
            {
                "requests": requests,
                "operations": journal.operations,
                "looks": journal.polls,
                "in_flight": journal.in_flight,
                "most_in_flight": journal.most_in_flight,
            }
        )

    def _clear_journal(self, _request: Request, _body: bytes) -> Response:
        self._vcenter.request_log.clear()
        return _done()

    def _sessions(self, _request: Request, _body: bytes) -> Response:
        sessions = self._vcenter.sessions
        return json_answer({"live": len(sessions.live), **asdict(sessions.counts)})

    def _invalidate_sessions(self, _request: Request, _body: bytes) -> Response:
        return json_answer({"invalidated": self._vcenter.invalidate_sessions()})

    def _restart(self, _request: Request, body: bytes) -> Response:
        self._vcenter.restart(forget=_read(body, Restart).forget)
        return _done()

    def _set_options(self, _request: Request, body: bytes) -> Response:
        changes, options = _read(body, Fields), self._vcenter.options
        changed = msgspec.convert({**msgspec.to_builtins(options), **changes}, Options)
        for name in changes:
            setattr(options, name, getattr(changed, name))
        return _done()


def _route(method: str, path: str, answer: Callable[[Request, bytes], Response]) -> BaseRoute:
    async def endpoint(request: Request) -> Response:
        body = await request.body()
        try:
            return answer(request, body)
        except KeyError as missing:
            return json_answer({"problem": f"{missing.args[0]} is not known"}, 404)
        except (TypeError, ValueError) as problem:
            return json_answer({"problem": str(problem)}, 400)

    return Route(CONTROL + path, endpoint, methods=[method])


async def _nowhere(request: Request) -> Response:
    return json_answer({"problem": f"{request.method} {request.url.path} is not known"}, 404)


def _signatures(makers: Mapping[str, Callable[..., object]]) -> dict[str, str]:
    return {name: str(signature(make)) for name, make in makers.items()}


def _read(body: bytes, wanted: type[Wanted]) -> Wanted:
    return msgspec.json.decode(body or b"{}", type=wanted)


def _made(makers: Mapping[str, Callable[..., Made]], name: str, arguments: dict[str, Any]) -> Made:
    if name not in makers:
        raise ValueError(f"there is no {name!r}; there are {', '.join(sorted(makers))}")
    return makers[name](**arguments)


def _done() -> Response:
    return Response(status_code=204)
