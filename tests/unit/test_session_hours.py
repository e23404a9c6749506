"""Hours of trouble with sessions, by a clock that is set: how many logins and live sessions each API costs vCenter."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.metrics import Metrics
from task_bridge.simulator import ManualClock, Options, SimulatedVCenter, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.vcenter.cis import CisSource
from task_bridge.vcenter.login_rules import Api
from task_bridge.vcenter.vim import api
from task_bridge.vcenter.vim.session import SessionEnded, VimSession
from unit.test_login_rules import most_in
from vcenter_lab import POLICY, Given

STEP_S, HOUR_S = 10.0, 3_600.0
Trouble = Callable[[SimulatedVCenter], None]


class Vcenter:
    """A simulated vCenter, both sessions of a bridge, and the times of their logins.

    A step lets some seconds pass and then polls as the bridge's loops do: while all is well every step, and no more
    often while it isn't.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.simulated = SimulatedVCenter(Options(idle_timeout_s=None), clock=self.clock)
        self.password = "simulated"
        settings = Given("https://vcenter.test", secret=lambda: self.password, max_requests_per_second=1_000_000.0)
        transport = httpx.ASGITransport(self.simulated.app)
        source = CisSource(
            settings, POLICY, Metrics(), monotonic=self.clock, rng=random.Random(1), http_transport=transport
        )
        self.http, self.cis = source.shared.http, source._session
        self.vim = VimSession(source.shared, settings)
        self.modern = self.simulated.create(scenarios.runs_forever())
        self.classic = self.simulated.create(scenarios.runs_forever(), flavour="vim")
        self.polls_cis = self._get_modern
        self._labels_of = 0
        self.kills = False
        self.logins: dict[Api, list[float]] = {"cis": [], "vim": []}
        self.refusals: list[float] = []
        self.reasons: dict[Api, str | None] = {"cis": None, "vim": None}

    async def _get_modern(self) -> None:
        answer = await self.cis.request("get", "GET", f"/api/cis/tasks/{self.modern}")
        if not answer.ok:
            raise VCenterUnavailable(f"HTTP {answer.status}")

    async def check(self) -> None:
        if not await self.cis.check():
            raise VCenterUnavailable("no session")

    async def poll_vim(self) -> None:
        try:
            await self._poll_vim_once()
        except SessionEnded:
            await self._poll_vim_once()

    async def _poll_vim_once(self) -> None:
        await self.vim.ensure_logged_in()
        if self._labels_of != self.vim.number:
            await api.fetch_labels(self.vim)
            collector = await api.create_collector(self.vim)
            await api.create_filter(self.vim, collector, await api.create_view(self.vim))
            self._labels_of = self.vim.number
            if self.kills:
                self.simulated.sessions.invalidate(lambda session: session.api == "vim")
        await api.fetch_objects(self.vim, [self.classic])

    async def step(self) -> None:
        self.clock.advance(STEP_S)
        polls: list[tuple[Api, Callable[[], object]]] = [("cis", self.polls_cis), ("vim", self.poll_vim)]
        for name, poll in polls:
            counts = self.simulated.sessions.counts_of[name]
            logins, refused = counts.logins, counts.failed_logins
            try:
                await poll()  # type: ignore[misc]
                self.reasons[name] = None
            except VCenterUnavailable as error:
                self.reasons[name] = str(error)
            self.logins[name] += [self.clock()] * (counts.logins - logins)
            self.refusals += [self.clock()] * (counts.failed_logins - refused)

    async def steps(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            await self.step()

    def is_well(self) -> bool:
        return self.reasons == {"cis": None, "vim": None}


@pytest.fixture
async def vcenter() -> AsyncIterator[Vcenter]:
    async with bridge_in_front() as it:
        yield it


@asynccontextmanager
async def bridge_in_front() -> AsyncIterator[Vcenter]:
    """Both sessions of a bridge; in the end it has logged out of all that it ever had."""
    it = Vcenter()
    yield it
    await it.vim.close_for_good()
    await it.cis.close()
    await it.http.close()
    assert it.simulated.sessions.live == []


def refuse_sessions(*apis: Api) -> Trouble:
    def begin(vcenter: SimulatedVCenter) -> None:
        vcenter.options.refused_sessions = apis
        for one in apis:
            vcenter.sessions.set_state("refused", one)

    return begin


def answer(*effects: tuple[Effect, dict[str, Any]]) -> Trouble:
    def begin(vcenter: SimulatedVCenter) -> None:
        for effect, matching in effects:
            vcenter.faults.add(effect, **matching)

    return begin


NOT_AUTHENTICATED = faults.soap_fault("NotAuthenticated", "The session is not authenticated.")
MISSING = b'<missingSet><path>info.state</path><fault><fault xsi:type="NotAuthenticated"/></fault></missingSet>'
TASKS, CHECK, PULL = {"path": "/cis/tasks"}, {"operation": "session"}, {"operation": "RetrievePropertiesEx"}


def withhold(body: bytes) -> bytes:
    """Withhold every property of every object."""
    return re.sub(rb"<propSet>.*?</propSet>", b"", body).replace(b"</objects>", MISSING + b"</objects>")


TROUBLES: dict[str, tuple[Trouble, bool, bool]] = {
    # The trouble; whether CIS tasks and classic tasks can't be polled meanwhile.
    "cis refused": (refuse_sessions("cis"), True, False),
    "vim refused": (refuse_sessions("vim"), False, True),
    "both refused": (refuse_sessions("cis", "vim"), True, True),
    "tasks 401, check good": (answer((faults.unauthenticated(), TASKS)), True, False),
    "tasks 403, check 401": (answer((faults.unauthenticated(), CHECK), (faults.unauthorized(), TASKS)), True, False),
    "tasks 403, check 403": (answer((faults.unauthorized(), CHECK), (faults.unauthorized(), TASKS)), True, False),
    "pull refused by fault": (answer((NOT_AUTHENTICATED, PULL)), False, True),
    "pull refused by missing properties": (answer((Effect(reshape=withhold), PULL)), False, True),
    "views refused": (answer((NOT_AUTHENTICATED, {"operation": "CreateListView"})), False, True),
    "sdk 401": (answer((faults.unauthenticated(empty=True), PULL)), False, True),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_an_hour_of_trouble_costs_at_most_twenty_logins_and_two_sessions(vcenter: Vcenter, trouble: str) -> None:
    begin, stops_cis, stops_vim = TROUBLES[trouble]
    await vcenter.steps(60)
    assert vcenter.is_well()
    begin(vcenter.simulated)
    await vcenter.steps(1.5 * HOUR_S)
    assert ((vcenter.reasons["cis"] is not None), (vcenter.reasons["vim"] is not None)) in (
        (stops_cis, stops_vim),
        (stops_cis, False),  # where only a new session would meet the trouble
    )
    for name, counts in vcenter.simulated.sessions.counts_of.items():
        assert most_in(vcenter.logins[name], HOUR_S) <= 20
        assert counts.most_live <= 2
    assert most_in(sorted(vcenter.logins["cis"] + vcenter.logins["vim"]), HOUR_S) <= 22

    vcenter.simulated.faults.clear()
    vcenter.simulated.options.refused_sessions = ()
    vcenter.simulated.sessions.set_state("good")
    await vcenter.step()
    assert vcenter.is_well()  # in the sessions that there are: no login has to be waited for
    assert len(vcenter.simulated.sessions.live) == 2


async def test_sessions_that_end_before_the_first_poll_count_as_rejected(vcenter: Vcenter) -> None:
    await vcenter.steps(60)
    vcenter.kills = True
    vcenter.simulated.sessions.invalidate()
    await vcenter.steps(1.5 * HOUR_S)
    assert 10 <= most_in(vcenter.logins["vim"], HOUR_S) <= 20
    assert len(vcenter.logins["cis"]) == 2
    vcenter.kills = False
    await vcenter.steps(400)
    assert vcenter.is_well()


async def test_the_first_good_poll_resets_the_pauses(vcenter: Vcenter) -> None:
    for _ in range(2):
        refuse_sessions("cis", "vim")(vcenter.simulated)
        before = [len(times) for times in vcenter.logins.values()]
        await vcenter.steps(60)
        assert [len(times) - count for times, count in zip(vcenter.logins.values(), before, strict=True)] >= [1, 1]
        assert sum(len(times) for times in vcenter.logins.values()) - sum(before) >= 4
        vcenter.simulated.options.refused_sessions = ()
        vcenter.simulated.sessions.set_state("good")
        await vcenter.step()
        assert vcenter.is_well()


async def test_a_denied_session_check_is_no_reason_for_another_login(vcenter: Vcenter) -> None:
    vcenter.simulated.faults.add(faults.unauthorized(), operation="session")
    vcenter.polls_cis = vcenter.check
    await vcenter.steps(HOUR_S)
    assert vcenter.is_well()
    vcenter.polls_cis = vcenter._get_modern
    vcenter.simulated.deny(vcenter.modern)
    await vcenter.steps(HOUR_S)
    assert vcenter.reasons["cis"] == "HTTP 403"
    assert {name: len(times) for name, times in vcenter.logins.items()} == {"cis": 1, "vim": 1}


async def test_a_session_check_that_is_denied_does_not_hide_that_the_session_ended(vcenter: Vcenter) -> None:
    vcenter.simulated.faults.add(faults.unauthorized(), operation="session")
    for number in range(1, 5):
        await vcenter.steps(60)
        assert vcenter.is_well()
        assert {name: len(times) for name, times in vcenter.logins.items()} == {"cis": number, "vim": number}
        vcenter.simulated.sessions.invalidate()


@pytest.mark.parametrize("effect", [faults.unauthenticated(), faults.answer(500, '{"error_type": "UNAUTHENTICATED"}')])
async def test_one_task_that_is_always_refused_costs_six_logins_an_hour(vcenter: Vcenter, effect: Effect) -> None:
    """Other tasks get good answers in the same session."""
    vcenter.simulated.faults.add(effect, task="odd:one")

    async def poll() -> None:
        with suppress(VCenterUnavailable):
            await vcenter.cis.request("get", "GET", "/api/cis/tasks/odd:one")
        await vcenter._get_modern()

    vcenter.polls_cis = poll
    for _ in range(int(HOUR_S / STEP_S)):
        await vcenter.step()
        assert vcenter.is_well()
    assert most_in(vcenter.logins["cis"], HOUR_S) <= 7


class TestFailingSession:
    @pytest.mark.parametrize("name", ["cis", "vim"])
    async def test_a_session_that_only_fails_is_replaced_after_three_minutes(self, vcenter: Vcenter, name: Api) -> None:
        await vcenter.steps(60)
        vcenter.simulated.sessions.set_state("failing", name)
        await vcenter.steps(170)
        assert vcenter.reasons[name]
        assert len(vcenter.logins[name]) == 1
        await vcenter.steps(20)
        assert vcenter.is_well()
        assert len(vcenter.logins[name]) == 2
        assert len(vcenter.simulated.sessions.live_of(name)) == 1

    @pytest.mark.parametrize("name", ["cis", "vim"])
    @pytest.mark.parametrize("effect", [faults.soap_fault(), faults.html_error()], ids=["fault", "page"])
    async def test_it_is_replaced_every_ten_minutes_while_that_does_not_help(
        self, vcenter: Vcenter, name: Api, effect: Effect
    ) -> None:
        await vcenter.steps(60)
        if name == "cis":
            vcenter.simulated.faults.add(effect, path="/cis/tasks")
        else:
            vcenter.simulated.faults.add(effect, operation="RetrievePropertiesEx")
        await vcenter.steps(HOUR_S)
        assert most_in(vcenter.logins[name][1:], HOUR_S) == 6
        assert vcenter.simulated.sessions.counts_of[name].most_live == 1

    @pytest.mark.parametrize("effect", [faults.bad_gateway(), faults.connection_reset(), faults.service_unavailable()])
    async def test_a_vcenter_that_does_not_answer_gets_no_login(self, vcenter: Vcenter, effect: Effect) -> None:
        await vcenter.steps(60)
        vcenter.simulated.faults.add(effect)
        await vcenter.steps(HOUR_S)
        vcenter.simulated.faults.clear()
        await vcenter.step()
        assert {name: len(times) for name, times in vcenter.logins.items()} == {"cis": 1, "vim": 1}


class TestRefusedPassword:
    @pytest.mark.parametrize("name", ["cis", "vim"])
    async def test_one_false_refusal_costs_three_minutes_of_one_api(self, vcenter: Vcenter, name: Api) -> None:
        await vcenter.steps(60)
        vcenter.simulated.options.false_refusals = {name: 1}
        vcenter.simulated.sessions.invalidate()
        await vcenter.steps(10)
        other: Api = "vim" if name == "cis" else "cis"
        assert "refuses the user name or the password" in (vcenter.reasons[name] or "")
        assert vcenter.reasons[other] is None
        await vcenter.steps(150)
        assert vcenter.reasons[name]
        await vcenter.steps(80)
        assert vcenter.is_well()
        assert len(vcenter.refusals) == 1
        assert {name: len(times) for name, times in vcenter.logins.items()} == {"cis": 2, "vim": 2}

    async def test_a_password_that_was_changed_at_vcenter_is_refused_three_times_in_fifteen_minutes(
        self, vcenter: Vcenter
    ) -> None:
        await vcenter.steps(60)
        vcenter.simulated.options.password = "changed"
        vcenter.simulated.sessions.invalidate()
        await vcenter.steps(2 * HOUR_S)
        assert most_in(vcenter.refusals, 900.0) == 3
        vcenter.password = "changed"
        await vcenter.step()
        assert vcenter.is_well()

    async def test_a_password_that_never_worked_is_tried_once_in_fifteen_minutes_over_both_apis(
        self, vcenter: Vcenter
    ) -> None:
        vcenter.password = "wrong"
        await vcenter.steps(2 * HOUR_S)
        assert most_in(vcenter.refusals, 900.0) == 1
        assert len(vcenter.refusals) >= 6
        assert vcenter.simulated.sessions.counts.logins == 0
        vcenter.password = "simulated"
        await vcenter.step()
        assert vcenter.is_well()
