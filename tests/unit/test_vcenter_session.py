"""Logging in: when it is tried, when not, and what an answer does to the session."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from task_bridge import __version__
from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.metrics import Metrics
from task_bridge.vcenter.cis.session import CisSession
from task_bridge.vcenter.http import MAX_BODY_BYTES, AmbiguousFailure, Answer, AnswerTooLarge, VCenterHttp
from vcenter_lab import Given

CAPPED = {
    "error_type": "SERVICE_UNAVAILABLE",
    "messages": [
        {
            "id": "com.vmware.vapi.endpoint.failedToLoginMaxUserSessionCountReached",
            "default_message": "User session count is limited to 550.",
            "args": [],
        }
    ],
}
Answers = Callable[[httpx.Request], httpx.Response]


class Scripted:
    """A vCenter that answers by a function, a clock that is set, and what was asked as `METHOD /path`."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.secret = "right"
        self.asked: list[str] = []
        self.requests: list[httpx.Request] = []
        self.login: Answers = lambda _: httpx.Response(201, json=f"token-{self.asked.count('POST /api/session')}")
        self.answer: Answers = lambda _: httpx.Response(200, json={})
        self.metrics = Metrics()
        settings = Given("https://vcenter.test", secret=lambda: self.secret)
        self.http = VCenterHttp(settings, self.metrics, transport=httpx.MockTransport(self._handle))
        self.session = CisSession(self.http, settings, self.metrics, clock=lambda: self.now, rng=random.Random(1))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        self.requests.append(request)
        is_login = request.method == "POST" and request.url.path.endswith("/session") and not request.url.query
        return self.login(request) if is_login else self.answer(request)

    async def get(self) -> Answer:
        return await self.session.request("get", "GET", "/api/cis/tasks/a")

    def end_session(self, refusal: httpx.Response) -> None:
        """Answer the session that there is now by this refusal, and the next one well."""
        ended = self.requests[-1].headers["vmware-api-session-id"]

        def answer(request: httpx.Request) -> httpx.Response:
            is_over = request.headers["vmware-api-session-id"] == ended
            return refusal if is_over else httpx.Response(200, json={})

        self.answer = answer

    def logins(self, path: str = "/api/session") -> int:
        return self.asked.count(f"POST {path}")


@pytest.fixture
async def vcenter() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    yield scripted
    await scripted.http.close()


def once(first: httpx.Response, then: httpx.Response) -> Answers:
    answers = [first]
    return lambda _: answers.pop() if answers else then


async def test_the_login_sends_the_credentials_and_every_request_the_session(vcenter: Scripted) -> None:
    await vcenter.get()
    login, get = vcenter.requests
    expected = base64.b64encode(b"administrator@vsphere.local:right").decode()
    assert login.headers["authorization"] == f"Basic {expected}"
    assert get.headers["vmware-api-session-id"] == "token-1"
    assert "authorization" not in get.headers
    assert {request.headers["user-agent"] for request in (login, get)} == {f"vcenter-task-bridge/{__version__}"}


async def test_a_cookie_of_a_login_is_not_sent_beside_the_session(vcenter: Scripted) -> None:
    vcenter.login = lambda _: httpx.Response(
        200, json={"value": "t"}, headers={"set-cookie": "vmware-api-session-id=t; Path=/"}
    )
    await vcenter.get()
    assert "cookie" not in vcenter.requests[-1].headers


async def test_many_who_need_a_session_at_once_get_one(vcenter: Scripted) -> None:
    await asyncio.gather(*(vcenter.get() for _ in range(10)))
    assert vcenter.logins() == 1


async def test_who_stops_waiting_for_a_login_does_not_stop_it_for_others(vcenter: Scripted) -> None:
    first = asyncio.create_task(vcenter.get())
    second = asyncio.create_task(vcenter.get())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).ok
    assert vcenter.logins() == 1


@pytest.mark.parametrize("status", [404, 405])
async def test_where_there_is_no_modern_login_the_legacy_one_is_used_and_remembered(
    vcenter: Scripted, status: int
) -> None:
    def login(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/session":
            return httpx.Response(status, text="404 page not found")
        return httpx.Response(200, json={"value": f"legacy-{len(vcenter.asked)}"})

    vcenter.login = login
    assert (await vcenter.get()).ok
    assert vcenter.requests[-1].headers["vmware-api-session-id"] == "legacy-2"
    vcenter.end_session(httpx.Response(401))
    await vcenter.get()
    assert (vcenter.logins(), vcenter.logins("/rest/com/vmware/cis/session")) == (1, 3)  # two logins and a check
    assert await vcenter.session.check()
    assert vcenter.asked[-1] == "POST /rest/com/vmware/cis/session"
    await vcenter.session.close()
    assert vcenter.asked[-1] == "DELETE /rest/com/vmware/cis/session"


async def test_what_has_no_login_at_all_is_told_as_no_vcenter(vcenter: Scripted) -> None:
    vcenter.login = lambda _: httpx.Response(404, text="nothing here")
    with pytest.raises(VCenterUnavailable, match=r"has no login of a vCenter.*Check the URL"):
        await vcenter.get()


@pytest.mark.parametrize(
    "ended",
    [
        httpx.Response(401),
        httpx.Response(403, json={"error_type": "UNAUTHENTICATED", "messages": []}),
        httpx.Response(
            500, json={"type": "x", "value": {"messages": [{"default_message": "Not authenticated", "id": "x"}]}}
        ),
    ],
    ids=["401", "403", "500"],
)
async def test_a_request_whose_session_ended_is_repeated_with_a_new_one_once(
    vcenter: Scripted, ended: httpx.Response
) -> None:
    await vcenter.get()
    vcenter.end_session(ended)
    assert (await vcenter.get()).ok
    login = ["POST /api/session", "GET /api/cis/tasks/a"]
    assert vcenter.asked == [*login, "GET /api/cis/tasks/a", "GET /api/session", "DELETE /api/session", *login]


class TestDoubtfulSession:
    def refuse(self, vcenter: Scripted, check: httpx.Response) -> None:
        denied = httpx.Response(403, json={"error_type": "UNAUTHORIZED", "messages": []})
        vcenter.answer = lambda request: check if request.url.path == "/api/session" else denied

    async def test_a_403_after_a_silence_asks_whether_the_session_lives(self, vcenter: Scripted) -> None:
        await vcenter.get()
        self.refuse(vcenter, httpx.Response(401))
        vcenter.now += 60
        answer = await vcenter.get()
        assert answer.status == 403
        assert vcenter.asked[2:] == [
            "GET /api/cis/tasks/a",
            "GET /api/session",
            "DELETE /api/session",
            "POST /api/session",
            "GET /api/cis/tasks/a",
        ]

    async def test_a_403_is_vcenter_s_word_when_the_session_lives(self, vcenter: Scripted) -> None:
        await vcenter.get()
        self.refuse(vcenter, httpx.Response(200, json={}))
        vcenter.now += 60
        assert (await vcenter.get()).status == 403
        assert vcenter.logins() == 1

    async def test_a_403_right_after_a_good_answer_needs_no_check(self, vcenter: Scripted) -> None:
        await vcenter.get()
        self.refuse(vcenter, httpx.Response(200, json={}))
        assert (await vcenter.get()).status == 403
        assert "GET /api/session" not in vcenter.asked

    async def test_a_403_of_a_vcenter_that_can_not_tell_is_no_answer(self, vcenter: Scripted) -> None:
        await vcenter.get()
        self.refuse(vcenter, httpx.Response(503))
        vcenter.now += 60
        with pytest.raises(VCenterUnavailable, match="can't report on its session"):
            await vcenter.get()


class TestRefusedPassword:
    async def refused(self, vcenter: Scripted) -> None:
        vcenter.login = lambda _: httpx.Response(401)
        with pytest.raises(VCenterUnavailable, match="refuses the user name or the password"):
            await vcenter.get()

    async def test_it_is_not_tried_again_within_fifteen_minutes(self, vcenter: Scripted) -> None:
        for _ in range(5):
            await self.refused(vcenter)
        vcenter.now += 899
        await self.refused(vcenter)
        assert vcenter.logins() == 1
        vcenter.now += 900 * 0.25 + 1
        await self.refused(vcenter)
        assert vcenter.logins() == 2

    async def test_another_password_is_tried_at_once(self, vcenter: Scripted) -> None:
        await self.refused(vcenter)
        vcenter.secret = "also wrong"
        await self.refused(vcenter)
        await self.refused(vcenter)
        assert vcenter.logins() == 2

    async def test_its_words_hold_no_secret(self, vcenter: Scripted) -> None:
        vcenter.secret = "hunter2"
        vcenter.login = lambda _: httpx.Response(401)
        with pytest.raises(VCenterUnavailable) as error:
            await vcenter.get()
        assert "hunter2" not in str(error.value)
        assert "administrator" not in str(error.value)


class TestSessionLimit:
    async def test_it_is_tried_again_ever_more_seldom(self, vcenter: Scripted) -> None:
        vcenter.login = lambda _: httpx.Response(503, json=CAPPED)
        tried = []
        for _ in range(600):
            before = vcenter.logins()
            with pytest.raises(VCenterUnavailable, match="no session left"):
                await vcenter.get()
            if vcenter.logins() > before:
                tried.append(vcenter.now)
            vcenter.now += 5
        pauses = [after - before for before, after in itertools.pairwise(tried)]
        assert 10 <= pauses[0] <= 20
        assert 20 <= pauses[1] <= 30
        assert 300 <= pauses[-1] <= 380
        assert len(tried) < 20

    async def test_retry_after_is_honoured_and_a_session_ends_it(self, vcenter: Scripted) -> None:
        vcenter.login = lambda _: httpx.Response(503, json=CAPPED, headers={"retry-after": "120"})
        with pytest.raises(VCenterUnavailable):
            await vcenter.get()
        vcenter.login = lambda _: httpx.Response(201, json="token")
        vcenter.now += 119
        with pytest.raises(VCenterUnavailable):
            await vcenter.get()
        vcenter.now += 40
        assert (await vcenter.get()).ok
        value = vcenter.metrics.registry.get_sample_value
        labels = {"vcenter": "lab", "result": "session_limit"}
        assert value("task_bridge_vcenter_logins_total", labels) == 1


async def test_a_session_that_is_not_accepted_is_not_replaced_over_and_over(vcenter: Scripted) -> None:
    vcenter.answer = lambda _: httpx.Response(401)
    for _ in range(20):
        with pytest.raises(VCenterUnavailable, match="doesn't accept the session"):
            await vcenter.get()
    assert vcenter.logins() == 1
    vcenter.now += 3
    with pytest.raises(VCenterUnavailable, match="doesn't accept the session"):
        await vcenter.get()
    assert vcenter.logins() == 2
    assert vcenter.asked.count("DELETE /api/session") == 1
    vcenter.answer = lambda _: httpx.Response(200, json={})
    assert (await vcenter.get()).ok  # in the session that was rejected before
    assert vcenter.logins() == 2


async def test_a_login_that_fails_otherwise_is_tried_again_by_the_next_who_needs_it(vcenter: Scripted) -> None:
    vcenter.login = lambda _: httpx.Response(503, text="starting", headers={"retry-after": "7"})
    with pytest.raises(VCenterUnavailable, match=r"creates no session.*starting") as error:
        await vcenter.get()
    assert error.value.retry_after_s == 7
    vcenter.login = lambda _: httpx.Response(201, json="token")
    assert (await vcenter.get()).ok


async def test_leaving_logs_out_once_and_never_raises(vcenter: Scripted) -> None:
    await vcenter.get()

    def fails(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    vcenter.answer = fails
    await vcenter.session.close()
    await vcenter.session.close()
    assert vcenter.asked.count("DELETE /api/session") == 1
    with pytest.raises(VCenterUnavailable, match="is disconnecting"):
        await vcenter.get()


async def test_leaving_without_a_session_asks_nothing(vcenter: Scripted) -> None:
    await vcenter.session.close()
    assert vcenter.asked == []


class TestHttp:
    async def ask(self, vcenter: Scripted) -> Answer:
        return await vcenter.http.request("get", "GET", "/x", {})

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry-after": "12"}, 12),
            ({"retry-after": "0"}, 0),
            ({"retry-after": "999999999"}, 3_600),
            ({"retry-after": "soon"}, None),
            ({"retry-after": "-5"}, None),
            ({"retry-after": "nan"}, None),
            (
                {
                    "retry-after": "Tue, 24 Nov 2026 10:00:30 GMT",
                    "date": "Tue, 24 Nov 2026 10:00:00 GMT",  # its own clock, which may be hours off
                },
                30,
            ),
            ({"retry-after": "Tue, 24 Nov 2026 10:00:30 GMT"}, None),
            ({}, None),
        ],
    )
    async def test_retry_after_is_read_as_seconds(
        self, vcenter: Scripted, headers: dict[str, str], seconds: float | None
    ) -> None:
        vcenter.answer = lambda _: httpx.Response(503, headers=headers)
        assert (await self.ask(vcenter)).retry_after_s == seconds

    async def test_a_body_beyond_the_cap_is_not_taken_in(self, vcenter: Scripted) -> None:
        vcenter.answer = lambda _: httpx.Response(200, content=b" " * MAX_BODY_BYTES)
        assert len((await self.ask(vcenter)).body) == MAX_BODY_BYTES
        vcenter.answer = lambda _: httpx.Response(200, content=b" " * (MAX_BODY_BYTES + 1))
        with pytest.raises(AnswerTooLarge, match=r"more than the .* bytes that the bridge accepts"):
            await self.ask(vcenter)

    async def test_a_redirect_is_an_answer_and_not_followed(self, vcenter: Scripted) -> None:
        vcenter.answer = lambda _: httpx.Response(307, headers={"location": "https://elsewhere.test/"})
        assert (await self.ask(vcenter)).status == 307
        assert vcenter.asked == ["GET /x"]

    @pytest.mark.parametrize(
        ("error", "words", "doubtful"),
        [
            (httpx.ConnectTimeout("t"), "doesn't answer the connection attempt", False),
            (httpx.ReadTimeout("t"), "doesn't answer in time", True),
            (httpx.ProxyError("502"), "through the proxy", False),
            (httpx.ConnectError("no route to host"), "can't be reached: no route to host", False),
            (httpx.RemoteProtocolError("cut"), "closed the connection before the answer was complete: cut", True),
            (httpx.ReadError(""), "closed the connection before the answer was complete: ReadError", True),
        ],
    )
    async def test_trouble_on_the_way_is_told_in_a_sentence_and_counted(
        self, vcenter: Scripted, error: Exception, words: str, doubtful: bool
    ) -> None:
        def fails(_: httpx.Request) -> httpx.Response:
            raise error

        vcenter.answer = fails
        with pytest.raises(VCenterUnavailable, match=words) as raised:
            await self.ask(vcenter)
        assert str(raised.value).startswith("vCenter lab (https://vcenter.test) ")
        assert isinstance(raised.value, AmbiguousFailure) is doubtful
        labels = {"vcenter": "lab", "operation": "get", "code": "error"}
        asked = 2 if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) else 1  # once more when cut off
        assert vcenter.metrics.registry.get_sample_value("task_bridge_vcenter_requests_total", labels) == asked

    async def test_requests_are_counted_by_operation_and_status(self, vcenter: Scripted) -> None:
        await vcenter.get()
        value = vcenter.metrics.registry.get_sample_value
        for operation, code in (("login", "201"), ("get", "200")):
            labels = {"vcenter": "lab", "operation": operation, "code": code}
            assert value("task_bridge_vcenter_requests_total", labels) == 1
        assert json.loads(vcenter.requests[-1].content or b"null") is None
