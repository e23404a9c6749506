"""The simulator against vSphere's published description of sessions and CIS tasks, 8.0.2, as tables.

Where the description is known to be wrong about real vCenters, the tables go by those: a task's `error` is an
object and its `result` any JSON, and a cancel that comes too late is NOT_ALLOWED_IN_CURRENT_STATE.
"""

from collections.abc import AsyncIterator, Set
from typing import Any

import httpx
import pytest

from task_bridge.simulator import ManualClock, SimulatedVCenter, faults, scenarios
from task_bridge.simulator.faults import Effect

AUTH = ("administrator@vsphere.local", "simulated")
LEGACY = "/rest/com/vmware/cis/session"
TASK = "52a0c1d2-0000-e000-3000-000000000001:com.vmware.esx.settings.clusters.software"
ENDED = TASK.replace("0001:", "0002:")

# Fields of each structure: those that are required, then those that may be there.
INFO = (
    {"description", "service", "operation", "status", "cancelable"},
    {"parent", "target", "error", "start_time", "end_time", "user", "progress", "result"},
)
PROGRESS: tuple[set[str], set[str]] = ({"total", "completed", "message"}, set())
MESSAGE = ({"id", "default_message", "args"}, {"params", "localized"})
SESSION: tuple[set[str], set[str]] = ({"user", "created_time", "last_accessed_time"}, set())
ERROR = ({"messages"}, {"error_type", "data", "challenge"})

# By status: what a task's body must have beyond the required fields.
BY_STATUS = {
    "PENDING": set[str](),
    "RUNNING": {"progress", "start_time"},
    "BLOCKED": {"progress", "start_time"},
    "SUCCEEDED": {"progress", "start_time", "end_time"},
    "FAILED": {"progress", "start_time", "end_time"},
}

# What vLCM sends beyond Info.
VLCM = {"last_update_time", "notifications"}

SUCCESSES = [
    ("POST", "/api/session", 201, "string"),
    ("GET", "/api/session", 200, "session"),
    ("DELETE", "/api/session", 204, "nothing"),
    ("GET", f"/api/cis/tasks/{TASK}", 200, "info"),
    ("POST", "/api/cis/tasks?action=list", 200, "map of info"),
    ("POST", f"/api/cis/tasks/{TASK}?action=cancel", 204, "nothing"),
    ("POST", LEGACY, 200, "value: string"),
    ("POST", f"{LEGACY}?~action=get", 200, "value: session"),
    ("DELETE", LEGACY, 200, "nothing"),
    ("GET", f"/rest/cis/tasks/{TASK}", 200, "value: info"),
    ("GET", f"/rest/cis/tasks?filter_spec.tasks={TASK}", 200, "value: map of info"),
    ("POST", f"/rest/cis/tasks/{TASK}?action=cancel", 200, "nothing"),
]

# operation, what leads to the error, status on /api, status on /rest, error type
ERRORS: list[tuple[str, Effect | str, int, int, str]] = [
    ("get", faults.unauthenticated(), 401, 401, "UNAUTHENTICATED"),
    ("get", faults.unauthorized(), 403, 403, "UNAUTHORIZED"),
    ("get", "unknown", 404, 404, "NOT_FOUND"),
    ("get", faults.resource_inaccessible(), 500, 400, "RESOURCE_INACCESSIBLE"),
    ("get", faults.service_unavailable(), 503, 503, "SERVICE_UNAVAILABLE"),
    ("list", "nothing named", 400, 400, "INVALID_ARGUMENT"),
    ("list", faults.unauthenticated(), 401, 401, "UNAUTHENTICATED"),
    ("list", faults.unauthorized(), 403, 403, "UNAUTHORIZED"),
    ("list", faults.resource_inaccessible(), 500, 400, "RESOURCE_INACCESSIBLE"),
    ("list", faults.service_unavailable(), 503, 503, "SERVICE_UNAVAILABLE"),
    ("cancel", "not cancelable", 400, 400, "UNSUPPORTED"),
    ("cancel", "ended", 400, 400, "NOT_ALLOWED_IN_CURRENT_STATE"),
    ("cancel", faults.unauthenticated(), 401, 401, "UNAUTHENTICATED"),
    ("cancel", faults.unauthorized(), 403, 403, "UNAUTHORIZED"),
    ("cancel", "unknown", 404, 404, "NOT_FOUND"),
    ("cancel", faults.resource_inaccessible(), 500, 400, "RESOURCE_INACCESSIBLE"),
    ("cancel", faults.service_unavailable(), 503, 503, "SERVICE_UNAVAILABLE"),
    ("login", "wrong password", 401, 401, "UNAUTHENTICATED"),
    ("login", "too many", 503, 503, "SERVICE_UNAVAILABLE"),
    ("session", faults.unauthenticated(), 401, 401, "UNAUTHENTICATED"),
    ("session", faults.service_unavailable(), 503, 503, "SERVICE_UNAVAILABLE"),
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vcenter(clock: ManualClock) -> SimulatedVCenter:
    vcenter = SimulatedVCenter(clock=clock)
    vcenter.create(scenarios.runs_forever(), id=TASK)
    vcenter.create(scenarios.succeeds_at_once(), id=ENDED)
    return vcenter


@pytest.fixture
async def client(vcenter: SimulatedVCenter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter") as client:
        login = await client.post("/api/session", auth=AUTH)
        client.headers["vmware-api-session-id"] = login.json()
        yield client


def assert_fits(value: Any, structure: tuple[set[str], set[str]], beyond: Set[str] = frozenset()) -> None:
    required, optional = structure
    assert required <= value.keys() <= required | optional | beyond


def assert_is_info(info: dict[str, Any]) -> None:
    assert_fits(info, INFO, VLCM)
    assert BY_STATUS[info["status"]] <= info.keys()
    assert isinstance(info["cancelable"], bool)
    assert_fits(info["description"], MESSAGE)
    assert_fits(info["target"], ({"type", "id"}, set()))
    if "progress" in info:
        assert_fits(info["progress"], PROGRESS)
        assert_fits(info["progress"]["message"], MESSAGE)
    if "error" in info:
        assert_fits(info["error"], ERROR)


def assert_is(kind: str, answer: httpx.Response) -> None:
    if kind == "nothing":
        assert answer.content == b""
        return
    assert answer.headers["content-type"] == "application/json"
    value, legacy = answer.json(), kind.startswith("value: ")
    if legacy:
        assert value.keys() == {"value"}
        value = value["value"]
    match kind.removeprefix("value: "):
        case "string":
            assert isinstance(value, str)
        case "session":
            assert_fits(value, SESSION)
        case "info":
            assert_is_info(value)
        case "map of info":
            entries = {entry["key"]: entry["value"] for entry in value} if legacy else value
            assert entries.keys() == {TASK}
            assert_is_info(entries[TASK])


async def ask(client: httpx.AsyncClient, method: str, path: str, auth: tuple[str, str] = AUTH) -> httpx.Response:
    body = {"filter_spec": {"tasks": [TASK]}} if "action=list" in path else None
    login = method == "POST" and path in ("/api/session", LEGACY)
    return await client.request(method, path, json=body, auth=auth if login else None)


@pytest.mark.parametrize(("method", "path", "status", "kind"), SUCCESSES)
async def test_a_success_is_answered_as_described(
    client: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    answer = await ask(client, method, path)
    assert answer.status_code == status
    assert_is(kind, answer)


@pytest.mark.parametrize("rendering", ["api", "rest"])
@pytest.mark.parametrize(("operation", "cause", "status", "legacy_status", "error_type"), ERRORS)
async def test_an_error_is_answered_as_described(
    client: httpx.AsyncClient,
    vcenter: SimulatedVCenter,
    rendering: str,
    operation: str,
    cause: Effect | str,
    status: int,
    legacy_status: int,
    error_type: str,
) -> None:
    answer = await provoked(client, vcenter, rendering, operation, cause)
    error = answer.json()
    if rendering == "rest":
        assert answer.status_code == legacy_status
        assert error["type"] == f"com.vmware.vapi.std.errors.{error_type.lower()}"
        error = error["value"]
    else:
        assert (answer.status_code, error["error_type"]) == (status, error_type)
    assert_fits(error, ERROR)
    for message in error["messages"]:
        assert_fits(message, MESSAGE)


async def provoked(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter, rendering: str, operation: str, cause: Effect | str
) -> httpx.Response:
    if isinstance(cause, Effect):
        vcenter.faults.add(cause, operation=operation)
    elif cause == "too many":
        vcenter.options.max_sessions_per_user = 1
    elif cause == "not cancelable":
        vcenter.set(TASK, cancelable=False)
    task = {"unknown": "0:gone", "ended": ENDED}.get(str(cause), TASK)
    named = cause != "nothing named"
    listed = "?action=list" if rendering == "api" else f"?filter_spec.tasks={task}" if named else ""
    session = "/api/session" if rendering == "api" else LEGACY
    method, path = {
        "get": ("GET", f"/{rendering}/cis/tasks/{task}"),
        "list": ("POST" if rendering == "api" else "GET", f"/{rendering}/cis/tasks{listed}"),
        "cancel": ("POST", f"/{rendering}/cis/tasks/{task}?action=cancel"),
        "login": ("POST", session),
        "session": ("GET", session) if rendering == "api" else ("POST", f"{session}?~action=get"),
    }[operation]
    if not named and rendering == "api":
        return await client.post(path, json={"filter_spec": {}})
    return await ask(client, method, path, (AUTH[0], "wrong") if cause == "wrong password" else AUTH)


@pytest.mark.parametrize("name", sorted(set(scenarios.SCENARIOS) - {"bare_success", "unknown_status"}))
async def test_every_fate_is_described_at_every_step(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock, name: str
) -> None:
    script = scenarios.SCENARIOS[name]() if name != "large_result" else scenarios.large_result(100)
    task = vcenter.create(script)
    left_out = {"without_end_time": {"end_time"}, "without_progress": {"progress"}}.get(name, set())
    for step in (0.0, *(step.after_s for step in script.steps)):
        clock.advance(max(0.0, vcenter.tasks[task].created_at + step - clock.now))
        info = (await client.get(f"/api/cis/tasks/{task}")).json()
        assert BY_STATUS[info["status"]] - info.keys() <= left_out
        assert_fits(info, INFO, VLCM)
