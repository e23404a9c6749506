"""Sessions of the simulated vCenter: how they begin and end, and what is counted."""

from collections.abc import AsyncIterator

import httpx
import pytest

from task_bridge.simulator import ManualClock, Options, SimulatedVCenter, faults, scenarios

AUTH = ("administrator@vsphere.local", "simulated")
HEADER = "vmware-api-session-id"
LEGACY = "/rest/com/vmware/cis/session"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vcenter(clock: ManualClock) -> SimulatedVCenter:
    return SimulatedVCenter(Options(idle_timeout_s=60, session_lifetime_s=600), clock=clock)


@pytest.fixture
async def client(vcenter: SimulatedVCenter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter") as client:
        yield client


async def logged_in(client: httpx.AsyncClient) -> dict[str, str]:
    return {HEADER: (await client.post("/api/session", auth=AUTH)).json()}


async def is_let_in(client: httpx.AsyncClient, session: dict[str, str]) -> bool:
    return (await client.get("/api/cis/tasks/never:seen", headers=session)).status_code != 401


async def test_a_session_begins_tells_and_ends(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    login = await client.post("/api/session", auth=AUTH)
    assert (login.status_code, len(login.json())) == (201, 32)
    session = {HEADER: login.json()}
    told = await client.get("/api/session", headers=session)
    assert (told.status_code, told.json()) == (
        200,
        {
            "user": AUTH[0],
            "created_time": "2025-11-24T16:00:00.000Z",
            "last_accessed_time": "2025-11-24T16:00:00.000Z",
        },
    )
    logout = await client.delete("/api/session", headers=session)
    assert (logout.status_code, logout.content) == (204, b"")
    assert not await is_let_in(client, session)
    assert (vcenter.sessions.counts.logins, vcenter.sessions.counts.logouts) == (1, 1)
    assert vcenter.sessions.live == []


@pytest.mark.parametrize("auth", [(AUTH[0], "wrong"), ("nobody", AUTH[1]), ("", "")])
@pytest.mark.parametrize("path", ["/api/session", LEGACY])
async def test_wrong_credentials_are_counted_and_not_explained(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter, path: str, auth: tuple[str, str]
) -> None:
    answer = await client.post(path, auth=auth)
    error = answer.json().get("value", answer.json())
    assert answer.status_code == 401
    assert error["challenge"].startswith("Basic realm=")
    assert error["messages"][0]["id"] == "com.vmware.vapi.endpoint.method.authentication.required"
    assert (vcenter.sessions.counts.failed_logins, vcenter.sessions.counts.logins) == (1, 0)


@pytest.mark.parametrize("value", ["", "Basic ???", "Bearer x", "Basic /w==", "Basic"])
async def test_broken_credentials_are_wrong_ones(client: httpx.AsyncClient, value: str) -> None:
    assert (await client.post("/api/session", headers={"authorization": value})).status_code == 401


async def test_a_session_dies_of_idleness_and_lives_by_being_used(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
) -> None:
    session = await logged_in(client)
    for _ in range(3):
        clock.advance(59)
        assert await is_let_in(client, session)
    clock.advance(60)
    assert not await is_let_in(client, session)
    assert vcenter.sessions.counts.expired == 1


async def test_a_session_ends_at_its_lifetime_however_busy(client: httpx.AsyncClient, clock: ManualClock) -> None:
    session = await logged_in(client)
    for _ in range(11):
        clock.advance(50)
        assert await is_let_in(client, session)
    clock.advance(50)
    assert not await is_let_in(client, session)


async def test_sessions_can_be_invalidated_while_tasks_go_on(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter
) -> None:
    task = vcenter.create(scenarios.runs_forever())
    session = await logged_in(client)
    assert vcenter.invalidate_sessions() == 1
    assert not await is_let_in(client, session)
    again = await client.get(f"/api/cis/tasks/{task}", headers=await logged_in(client))
    assert again.json()["status"] == "RUNNING"
    assert vcenter.sessions.counts.invalidated == 1


async def test_a_user_at_the_cap_can_not_log_in(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    vcenter.options.max_sessions_per_user = 2
    sessions = [await logged_in(client) for _ in range(2)]
    refused = await client.post("/api/session", auth=AUTH)
    cap = "com.vmware.vapi.endpoint.failedToLoginMaxUserSessionCountReached"
    assert (refused.status_code, refused.json()["messages"][0]["id"]) == (503, cap)
    await client.delete("/api/session", headers=sessions[0])
    assert (await client.post("/api/session", auth=AUTH)).status_code == 201
    counts = vcenter.sessions.counts
    assert (counts.refused_logins, counts.logins, counts.most_live) == (1, 3, 2)


async def test_the_password_can_be_changed(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    session = await logged_in(client)
    vcenter.options.password = "rotated"
    assert (await client.post("/api/session", auth=AUTH)).status_code == 401
    assert (await client.post("/api/session", auth=(AUTH[0], "rotated"))).status_code == 201
    assert await is_let_in(client, session)


class TestLegacy:
    async def test_a_session_begins_tells_and_ends(self, client: httpx.AsyncClient) -> None:
        login = await client.post(LEGACY, auth=AUTH)
        assert login.status_code == 200
        assert login.cookies[HEADER] == login.json()["value"]
        assert "Path=/rest" in login.headers["set-cookie"]
        told = await client.post(f"{LEGACY}?~action=get")
        assert told.json()["value"]["user"] == AUTH[0]
        assert (await client.delete(LEGACY)).status_code == 200
        assert (await client.post(f"{LEGACY}?~action=get")).status_code == 401

    async def test_the_cookie_can_be_declined(self, client: httpx.AsyncClient) -> None:
        login = await client.post(LEGACY, auth=AUTH, headers={"vmware-use-header-authn": "true"})
        assert "set-cookie" not in login.headers
        assert await is_let_in(client, {HEADER: login.json()["value"]})


class TestVersions:
    async def test_an_old_vcenter_has_no_modern_login(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        vcenter.options.renderings = "rest"
        missing = await client.post("/api/session", auth=AUTH)
        assert (missing.status_code, missing.json()["name"]) == (404, "com.vmware.vapi.rest.httpNotFound")
        assert (await client.post(LEGACY, auth=AUTH)).status_code == 200
        assert (await client.get("/rest/cis/tasks/1:s")).status_code == 404

    async def test_a_future_vcenter_has_no_legacy_login(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        vcenter.options.renderings = "api"
        assert (await client.post(LEGACY, auth=AUTH)).status_code == 404
        assert (await client.post("/api/session", auth=AUTH)).status_code == 201

    async def test_vcsim_has_the_legacy_login_and_the_modern_tasks(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        vcenter.options.renderings = "vcsim"
        task = vcenter.create(scenarios.bare_success())
        missing = await client.post("/api/session", auth=AUTH)
        assert (missing.status_code, missing.headers["content-type"]) == (404, "text/plain; charset=utf-8")
        refused = await client.get(f"/api/cis/tasks/{task}")
        assert (refused.status_code, refused.content) == (401, b"")
        session = {HEADER: (await client.post(LEGACY, auth=AUTH)).json()["value"]}
        assert (await client.get(f"/api/cis/tasks/{task}", headers=session)).json() == {"status": "SUCCEEDED"}


async def test_a_session_can_be_given_and_refused_and_is_live_until_its_logout(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter
) -> None:
    vcenter.options.refused_sessions = ("cis",)
    session = await logged_in(client)
    assert not await is_let_in(client, session)
    assert (await client.get("/api/session", headers=session)).status_code == 401
    assert len(vcenter.sessions.live_of("cis")) == 1
    assert (await client.delete("/api/session", headers=session)).status_code == 204
    assert vcenter.sessions.live == []


async def test_a_right_password_can_be_refused_once(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    vcenter.options.false_refusals = {"cis": 1}
    assert [(await client.post("/api/session", auth=AUTH)).status_code for _ in range(2)] == [401, 201]
    counts = vcenter.sessions.counts_of
    assert (counts["cis"].failed_logins, counts["cis"].logins, counts["vim"].failed_logins) == (1, 1, 0)


async def test_sessions_can_fail_until_a_new_login_and_are_counted_by_api(client: httpx.AsyncClient) -> None:
    session = await logged_in(client)
    change = {"state": "failing", "api": "cis"}
    assert (await client.patch("/simulator/sessions", json=change)).status_code == 204
    assert (await client.get("/api/cis/tasks/never:seen", headers=session)).status_code == 500
    assert (await client.get("/api/cis/tasks/never:seen", headers=await logged_in(client))).status_code == 404
    assert (await client.delete("/api/session", headers=session)).status_code == 204
    counted = (await client.get("/simulator/sessions")).json()
    cis = counted["apis"]["cis"]
    assert (cis["live"], cis["logins"], cis["logouts"], cis["most_live"]) == (1, 2, 1, 2)
    assert (counted["live"], counted["logins"], counted["apis"]["vim"]["logins"]) == (1, 2, 0)


async def test_a_401_names_the_schemes_that_a_test_wants(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    for effect in (faults.unauthenticated(challenge="SIGN realm=x"), faults.unauthenticated(True, "Bearer")):
        vcenter.faults.add(effect, operation="login", times=1)
    by_body, by_header = [await client.post("/api/session", auth=AUTH) for _ in range(2)]
    assert by_body.json()["challenge"] == "SIGN realm=x"
    assert (by_header.content, by_header.headers["www-authenticate"]) == (b"", "Bearer")
