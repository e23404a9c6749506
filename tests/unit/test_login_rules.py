"""The rules of logins, by tables and over hours of a clock that is set."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from task_bridge.vcenter.login_rules import (
    Api,
    RefusedLogins,
    SessionBreaker,
    SessionRecord,
    Verdict,
    doubling_pause_s,
)

HOUR_S = 3_600.0
GOOD, OTHER = 1, 2


def rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


class Shortest(random.Random):
    """Adds nothing to any pause."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


@pytest.mark.parametrize(("times", "pause_s"), [(1, 10), (2, 20), (5, 160), (6, 300), (10_000, 300)])
def test_a_pause_doubles_up_to_five_minutes(times: int, pause_s: float) -> None:
    assert doubling_pause_s(times, 10.0) == pause_s


def most_in(times: list[float], window_s: float) -> int:
    return max((sum(1 for at in times if begin <= at < begin + window_s) for begin in times), default=0)


class TestBreaker:
    def logins(self, apis: tuple[Api, ...], *, for_s: float, rng: random.Random) -> dict[Api, list[float]]:
        """The times of the logins of APIs whose sessions are all rejected, each asked for again every second."""
        breaker = SessionBreaker(rng)
        logins: dict[Api, list[float]] = {api: [0.0] for api in apis}
        for api in apis:
            breaker.record_rejection(api, "tasks", 0.0)
        order = random.Random(3)
        for second in range(1, int(for_s)):
            for api in order.sample(apis, len(apis)):
                if not breaker.wait_s(api, second):
                    breaker.record_login(api, second)
                    breaker.record_rejection(api, "tasks", second)
                    logins[api].append(second)
        return logins

    def test_the_pause_doubles_from_two_seconds_to_five_minutes(self) -> None:
        times = self.logins(("cis",), for_s=1_500, rng=Shortest())["cis"]
        assert [after - before for before, after in pairwise(times)] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]

    @pytest.mark.parametrize("apis", [("cis",), ("vim",), ("cis", "vim")])
    @pytest.mark.parametrize("rng", [Shortest(), rng(1), rng(2)], ids=["shortest", "1", "2"])
    def test_an_hour_has_at_most_twenty_logins_over_all_apis(self, apis: tuple[Api, ...], rng: random.Random) -> None:
        logins = self.logins(apis, for_s=6 * HOUR_S, rng=rng)
        together = sorted(at for times in logins.values() for at in times)
        assert 10 <= most_in(together, HOUR_S) <= 20

    def test_each_of_two_apis_in_trouble_gets_a_login_now_and_then(self) -> None:
        logins = self.logins(("cis", "vim"), for_s=6 * HOUR_S, rng=rng())
        assert min(map(len, logins.values())) > 10

    def test_an_api_without_trouble_does_not_wait_and_does_not_end_the_trouble_of_the_other(self) -> None:
        breaker = SessionBreaker(Shortest())
        for _ in range(5):
            breaker.record_rejection("vim", "pull", 100.0)
        assert breaker.wait_s("cis", 100.0) == 0
        breaker.record_login("cis", 100.0)
        breaker.record_good_answer("cis", "tasks")
        assert breaker.wait_s("vim", 100.0) == 32

    @pytest.mark.parametrize(("kind", "wait_s"), [("wait", 32), ("pull", 0)])
    def test_a_good_answer_to_what_was_rejected_ends_it(self, kind: str, wait_s: float) -> None:
        breaker = SessionBreaker(Shortest())
        for _ in range(5):
            breaker.record_rejection("vim", "pull", 100.0)
        breaker.record_good_answer("vim", kind)
        assert breaker.wait_s("vim", 100.0) == wait_s
        breaker.record_rejection("vim", "pull", 200.0)
        assert breaker.wait_s("vim", 200.0) == (64 if wait_s else 2)

    def test_the_first_good_answer_lets_the_other_api_in_trouble_log_in(self) -> None:
        breaker = SessionBreaker(Shortest())
        for api in ("cis", "vim"):
            breaker.record_rejection(api, "tasks", 100.0)
        breaker.record_good_answer("cis", "tasks")
        assert breaker.wait_s("vim", 100.0) == 0
        breaker.record_login("vim", 100.0)
        assert breaker.wait_s("vim", 100.0) == 0

    def test_one_login_passes_after_each_pause(self) -> None:
        breaker = SessionBreaker(Shortest())
        for api in ("cis", "vim"):
            breaker.record_rejection(api, "tasks", 100.0)
        assert breaker.wait_s("vim", 104.0) == 0
        breaker.record_login("cis", 104.0)
        assert breaker.wait_s("vim", 104.0) == 4

    @pytest.mark.parametrize("seed", range(5))
    def test_jitter_only_makes_pauses_longer(self, seed: int) -> None:
        breaker = SessionBreaker(rng(seed))
        breaker.record_rejection("cis", "tasks", 100.0)
        assert 2.0 <= breaker.wait_s("cis", 100.0) <= 2.5

    def test_trouble_that_nothing_showed_the_end_of_is_forgotten(self) -> None:
        breaker = SessionBreaker(Shortest())
        for _ in range(9):
            breaker.record_rejection("vim", "history", 100.0)
        breaker.record_rejection("vim", "pull", 100.0 + 901)
        assert breaker.wait_s("vim", 100.0 + 901) == 2
        breaker.record_good_answer("vim", "pull")
        assert breaker.wait_s("vim", 100.0 + 901) == 0


class TestSession:
    @pytest.mark.parametrize(
        ("good", "refused", "is_alive", "verdicts"),
        [
            # Nothing was answered well yet: the session is rejected.
            ([], "tasks", False, [Verdict.WAIT, Verdict.WAIT]),
            ([], "check", False, [Verdict.WAIT, Verdict.WAIT]),
            # It has ended.
            (["tasks", "check"], "tasks", False, [Verdict.REPLACE]),
            (["check"], "tasks", False, [Verdict.REPLACE]),
            (["wait"], "pull", False, [Verdict.REPLACE]),
            (["cancel"], "cancel", False, [Verdict.REPLACE]),
            # It has ended before the first poll.
            (["labels", "push", "modify"], "pull", False, [Verdict.WAIT, Verdict.WAIT]),
            # It is alive, but not accepted for this.
            (["check"], "tasks", True, [Verdict.WAIT, Verdict.WAIT]),
            (["wait", "push"], "pull", True, [Verdict.WAIT, Verdict.WAIT]),
            # It is alive and was accepted for this: a new one may help, once in a while.
            (["tasks", "check"], "tasks", True, [Verdict.REPLACE]),
        ],
    )
    def test_what_follows_from_a_refusal(
        self, good: list[str], refused: str, is_alive: bool, verdicts: list[Verdict]
    ) -> None:
        record = SessionRecord("cis", SessionBreaker(Shortest()))
        record.begin(0.0)
        for kind in good:
            record.record_good_answer(kind)
        assert [record.record_refusal(refused, 1.0, is_alive=is_alive) for _ in verdicts] == verdicts

    def test_a_rejected_session_is_replaced_when_the_breaker_allows_it(self) -> None:
        record = SessionRecord("cis", SessionBreaker(Shortest()))
        record.begin(0.0)
        seen = [record.record_refusal("tasks", at, is_alive=False) for at in (0.0, 1.9, 2.0)]
        assert seen == [Verdict.WAIT, Verdict.WAIT, Verdict.REPLACE]

    def test_a_new_session_has_to_be_accepted_itself(self) -> None:
        record = SessionRecord("cis", SessionBreaker(Shortest()))
        record.begin(0.0)
        record.record_good_answer("tasks")
        record.begin(1.0)
        assert not record.is_accepted
        assert record.record_refusal("tasks", 2.0, is_alive=False) is Verdict.WAIT

    def test_a_good_answer_lets_pauses_start_from_the_shortest(self) -> None:
        record = SessionRecord("cis", SessionBreaker(Shortest()))
        for start in (0.0, 100.0):
            record.begin(start)
            assert record.record_refusal("tasks", start, is_alive=False) is Verdict.WAIT
            record.record_good_answer("tasks")
        record.begin(200.0)
        seen = [record.record_refusal("tasks", at, is_alive=False) for at in (200.0, 202.0)]
        assert seen == [Verdict.WAIT, Verdict.REPLACE]

    def test_a_login_of_one_api_in_trouble_makes_the_other_wait(self) -> None:
        breaker = SessionBreaker(Shortest())
        cis, vim = SessionRecord("cis", breaker), SessionRecord("vim", breaker)
        for record in (cis, vim):
            record.begin(0.0)
            assert record.record_refusal("session", 0.0, is_alive=False) is Verdict.WAIT
        cis.begin(4.0)
        assert vim.record_refusal("session", 4.0, is_alive=False) is Verdict.WAIT

    def test_a_second_refusal_without_a_good_answer_between_is_no_longer_this_request_s_alone(self) -> None:
        record = SessionRecord("cis", SessionBreaker(Shortest()))
        record.begin(0.0)
        seen = []
        for second in range(3):
            record.record_good_answer("check")
            if second != 2:
                record.record_good_answer("tasks")
            seen.append(record.record_refusal("tasks", second, is_alive=True))
        assert seen == [Verdict.REPLACE, Verdict.KEEP, Verdict.WAIT]

    def test_one_request_that_is_always_refused_costs_a_login_in_ten_minutes(self) -> None:
        """The others get good answers in the same session all the time."""
        record = SessionRecord("cis", SessionBreaker(rng()))
        record.begin(0.0)
        verdicts = []
        for second in range(int(HOUR_S)):
            record.record_good_answer("tasks")
            verdicts.append(record.record_refusal("tasks", second, is_alive=True))
            if verdicts[-1] is Verdict.REPLACE:
                record.begin(second)
        assert verdicts.count(Verdict.REPLACE) == 6
        assert Verdict.WAIT not in verdicts

    def test_a_session_that_is_refused_everything_while_it_is_alive_is_replaced_by_the_breaker(self) -> None:
        record = SessionRecord("cis", SessionBreaker(rng()))
        record.begin(0.0)
        record.record_good_answer("tasks")
        logins = []
        for second in range(int(HOUR_S)):
            if record.record_refusal("tasks", second, is_alive=True) is Verdict.REPLACE:
                logins.append(second)
                record.begin(second)
                record.record_good_answer("check")
        assert logins[1] < 10
        assert 10 <= len(logins) <= 20

    def test_a_session_that_no_longer_serves_is_replaced_after_three_minutes_and_then_every_ten(self) -> None:
        record = SessionRecord("vim", SessionBreaker(rng()))
        record.begin(0.0)
        record.record_good_answer("pull")
        renewed = [second for second in range(2_000) if record.record_failure("pull", second)]
        assert renewed == [180, 780, 1_380, 1_980]

    @pytest.mark.parametrize(
        ("between", "failing"),
        [
            ("tasks", "tasks"),
            ("pull", "push"),
            ("wait", "pull"),
            ("check", "check"),
            (None, "tasks"),  # no answer, or another one
        ],
    )
    def test_every_poll_must_fail(self, between: str | None, failing: str) -> None:
        record = SessionRecord("vim", SessionBreaker(rng()))
        record.begin(0.0)
        record.record_good_answer("pull")
        for second in range(2_000):
            if second % 100 == 99 and between:
                record.record_good_answer(between)
            elif second % 100 == 99:
                record.record_other_answer()
            assert not record.record_failure(failing, second)

    def test_a_good_check_between_says_nothing_about_the_polls(self) -> None:
        record = SessionRecord("cis", SessionBreaker(rng()))
        record.begin(0.0)
        record.record_good_answer("tasks")
        renewed = []
        for second in range(200):
            record.record_good_answer("check")
            if record.record_failure("tasks", second):
                renewed.append(second)
        assert renewed == [180]

    def test_a_vcenter_that_was_never_good_gets_no_other_session(self) -> None:
        record = SessionRecord("cis", SessionBreaker(rng()))
        record.begin(0.0)
        assert not any(record.record_failure("tasks", second) for second in range(2_000))


class TestRefusals:
    def tries(
        self, *, worked: bool, apis: tuple[Api, ...] = ("cis",), for_s: float = 2 * HOUR_S, rng: random.Random
    ) -> dict[Api, list[float]]:
        """The times of refused logins, each tried as soon as it may be."""
        refused = RefusedLogins(rng)
        if worked:
            refused.record_login("cis", GOOD)
        tries: dict[Api, list[float]] = {api: [] for api in apis}
        for second in range(int(for_s)):
            for api in apis:
                if not refused.wait_s(api, GOOD, second):
                    tries[api].append(second)
                    refused.record_refusal(api, GOOD, second)
        return tries

    @pytest.mark.parametrize(
        ("worked", "pauses"), [(True, [180, 360, 720, 900, 900, 900]), (False, [900, 900, 900, 900])]
    )
    def test_the_pauses_of_credentials(self, worked: bool, pauses: list[float]) -> None:
        times = self.tries(worked=worked, rng=Shortest())["cis"]
        assert [after - before for before, after in pairwise(times)][: len(pauses)] == pauses

    @pytest.mark.parametrize("seed", range(5))
    def test_jitter_only_makes_them_longer(self, seed: int) -> None:
        times = self.tries(worked=True, rng=rng(seed))["cis"]
        for (before, after), pause_s in zip(pairwise(times), [180, 360, 720, 900, 900], strict=False):
            assert pause_s <= after - before <= 1.25 * pause_s + 1

    @pytest.mark.parametrize("rng", [Shortest(), rng(1), rng(2)], ids=["shortest", "1", "2"])
    @pytest.mark.parametrize("worked", [True, False])
    def test_fifteen_minutes_have_at_most_three_over_both_apis(self, worked: bool, rng: random.Random) -> None:
        tries = self.tries(worked=worked, apis=("cis", "vim"), for_s=6 * HOUR_S, rng=rng)
        together = sorted(at for times in tries.values() for at in times)
        assert most_in(together, 900.0) == (3 if worked else 1)

    def test_one_api_does_not_close_the_other_for_credentials_that_worked(self) -> None:
        refused = RefusedLogins(rng())
        refused.record_login("cis", GOOD)
        refused.record_refusal("vim", GOOD, 10.0)
        assert refused.wait_s("cis", GOOD, 10.0) == 0
        assert refused.wait_s("vim", GOOD, 10.0) >= 180
        assert refused.is_any_closed
        refused.record_login("vim", GOOD)
        assert not refused.is_any_closed

    def test_one_api_closes_the_other_for_credentials_that_never_worked(self) -> None:
        refused = RefusedLogins(rng())
        refused.record_refusal("vim", GOOD, 10.0)
        assert refused.wait_s("cis", GOOD, 10.0) >= 900
        refused.record_login("vim", GOOD)
        assert refused.wait_s("cis", GOOD, 10.0) == 0

    def test_other_credentials_may_be_tried_at_once_and_have_a_count_of_their_own(self) -> None:
        refused = RefusedLogins(Shortest())
        refused.record_login("cis", GOOD)
        for _ in range(3):
            refused.record_refusal("cis", GOOD, 10.0)
        assert refused.wait_s("cis", OTHER, 10.0) == 0
        assert refused.record_refusal("cis", OTHER, 10.0) == 900
        assert refused.wait_s("cis", GOOD, 10.0) == 0  # back to those before
        assert refused.record_refusal("cis", GOOD, 10.0) == 180

    def test_other_credentials_that_worked_are_open_to_an_api_that_refused_those_before(self) -> None:
        refused = RefusedLogins(Shortest())
        for credentials in (GOOD, OTHER):
            refused.record_login("cis", credentials)
        refused.record_refusal("vim", GOOD, 10.0)
        refused.record_refusal("cis", OTHER, 10.0)
        assert refused.wait_s("vim", OTHER, 10.0) == 0

    def test_a_login_lets_pauses_start_from_the_shortest(self) -> None:
        refused = RefusedLogins(Shortest())
        refused.record_login("cis", GOOD)
        assert [refused.record_refusal("cis", GOOD, at) for at in (0.0, 1_000.0)] == [180, 360]
        refused.record_login("cis", GOOD)
        assert refused.record_refusal("cis", GOOD, 2_000.0) == 180

    def test_a_login_between_does_not_allow_more_refusals(self) -> None:
        refused = RefusedLogins(Shortest())
        refused.record_login("cis", GOOD)
        for second in (0.0, 200.0, 400.0):
            refused.record_refusal("cis", GOOD, second)
            refused.record_login("cis", GOOD)
        assert refused.wait_s("cis", GOOD, 401.0) == 900 - 401
        assert refused.wait_s("vim", GOOD, 401.0) == 900 - 401
