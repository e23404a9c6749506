"""What proves that a task is gone, and what interrupts the proof: each row is what vCenter answers, in seconds."""

from __future__ import annotations

from typing import Literal

import pytest

from task_bridge.vcenter.absence import Absences
from task_bridge.vcenter.policy import Timeouts

GRACE_S, CONFIRM_S, MINUTE_S = 30.0, 5.0, 60.0
Step = tuple[float, Literal["gone", "denied", "unlisted", "other", "elsewhere", "failed", "outage"]]


def play(steps: list[Step], *, seen: bool = True, grace_s: float = GRACE_S) -> tuple[Absences, list[bool]]:
    """Plays what vCenter answers about task `a`. Returns which of its answers about `a` alone end the watch."""
    absences, over = Absences(grace_s, Timeouts()), []
    for now, what in steps:
        match what:
            case "gone" | "denied":
                absences.record_absent("a", "p", seen, now)
                over.append(absences.confirm_absent("a", what == "denied", now))
            case "unlisted":
                absences.record_absent("a", "p", seen, now)
            case "other":
                absences.record_shown("b", "p", now)
            case "elsewhere":
                absences.record_shown("c", "another", now)
            case "failed":
                absences.record_interruption("a", now)
            case "outage":
                absences.record_outage()
    return absences, over


def every(
    step_s: float, until: float, start: float = 0.0, what: Literal["gone", "denied", "unlisted"] = "gone"
) -> list[Step]:
    return [(start + step_s * count, what) for count in range(int((until - start) / step_s) + 1)]


@pytest.mark.parametrize("answer", ["gone", "denied"])
@pytest.mark.parametrize(
    ("steps", "over"),
    [
        pytest.param([(0, "x"), (4.9, "x"), (5, "x")], [False, False, False], id="nothing else is shown"),
        pytest.param([(0, "x"), (30, "x"), (59.9, "x")], [False, False, False], id="not for a minute"),
        pytest.param([(0, "x"), (30, "x"), (60, "x")], [False, False, True], id="for a minute"),
        pytest.param([(0, "other"), (0, "x"), (4.9, "x"), (5, "x")], [False, False, True], id="another shown before"),
        pytest.param([(0, "x"), (3, "other"), (5, "x")], [False, True], id="another shown meanwhile"),
        pytest.param([(0, "x"), (5, "x"), (6, "other"), (7, "x")], [False, False, True], id="another shown later"),
        pytest.param([(0, "other"), (55, "x"), (60, "x")], [False, True], id="another shown a minute ago"),
        pytest.param([(0, "other"), (55, "x"), (60.1, "x")], [False, False], id="another shown longer ago"),
        pytest.param([(0, "x"), (3, "elsewhere"), (5, "x")], [False, False], id="another provider's is shown"),
    ],
)
def test_a_task_that_was_seen_takes_proof_of_its_own_provider(
    answer: Literal["gone", "denied"], steps: list[tuple[float, str]], over: list[bool]
) -> None:
    played: list[Step] = [(at, answer if what == "x" else what) for at, what in steps]  # type: ignore[misc]
    assert play(played)[1] == over


@pytest.mark.parametrize("trouble", ["failed", "outage"])
def test_what_interrupts_the_answers_starts_the_minute_again(trouble: Literal["failed", "outage"]) -> None:
    steps: list[Step] = [*every(5, 50), (52, trouble), *every(5, 109, start=54)]
    assert not any(play(steps)[1])
    assert play([*steps, (114, "gone")])[1][-1]


def test_two_answers_with_a_failure_between_confirm_nothing_although_another_is_shown() -> None:
    steps: list[Step] = [(0, "gone"), (1, "other"), (3, "failed"), (6, "gone"), (10.9, "gone"), (11, "gone")]
    assert play(steps)[1] == [False, False, False, True]


def test_answers_too_far_apart_prove_nothing_about_the_time_between() -> None:
    assert play([(0, "gone"), (60, "gone")])[1] == [False, True]
    assert play([(0, "gone"), (60.1, "gone"), (120, "gone"), (120.1, "gone")])[1] == [False, False, False, True]


def test_lists_that_do_not_show_the_task_bridge_a_gap() -> None:
    assert play([(0, "gone"), (40, "unlisted"), (80, "gone")])[1] == [False, True]


def test_lists_alone_are_no_answer_about_the_task_alone() -> None:
    absences, over = play([*every(10, 60, what="unlisted"), (70, "gone")])
    assert over == [False]
    assert absences.confirm_at("a", 70) == 75


INTERRUPTED: list[Step] = [(0, "gone"), (20, "failed"), (25, "gone"), (54, "gone"), (55, "gone")]


@pytest.mark.parametrize(
    ("grace_s", "steps", "over"),
    [
        pytest.param(30, [(0, "gone"), (29.9, "gone"), (30, "gone")], [False, False, True], id="after the grace"),
        pytest.param(30, [(0, "other"), (1, "gone"), (6, "gone")], [False, False], id="not sooner by proof"),
        pytest.param(90, [(0, "gone"), (50, "gone"), (89, "gone"), (90, "gone")], [False] * 3 + [True], id="long"),
        pytest.param(0, [(0, "gone")], [True], id="no grace"),
        pytest.param(30, INTERRUPTED, [False, False, False, True], id="interrupted"),
        pytest.param(30, [(0, "denied"), (29, "denied"), (30, "denied")], [False, False, True], id="denied"),
        pytest.param(30, [(0, "denied"), (1, "other"), (5, "denied")], [False, True], id="denied with proof"),
        pytest.param(0, [(0, "denied"), (4, "denied"), (5, "denied")], [False, False, True], id="denied, no grace"),
        pytest.param(90, [(0, "denied"), (59, "denied"), (60, "denied")], [False, False, True], id="denied, long"),
    ],
)
def test_a_task_that_was_never_seen_takes_the_grace(grace_s: float, steps: list[Step], over: list[bool]) -> None:
    assert play(steps, seen=False, grace_s=grace_s)[1] == over


def test_what_vanished_with_a_task_was_shown_before_too_and_proves_nothing() -> None:
    absences = Absences(GRACE_S, Timeouts())
    for now in (0.0, 1.0):
        absences.record_shown("a", "p", now)
        absences.record_shown("b", "p", now)
    for task in ("a", "b"):
        absences.record_absent(task, "p", True, 2.0)
        absences.confirm_absent(task, False, 2.0)
    assert not absences.confirm_absent("a", False, 7.0)
    absences.forget("b")  # its watch ended on request; nobody knows whether it is there
    assert not absences.confirm_absent("a", False, 8.0)
    absences.record_shown("b", "p", 9.0)
    assert absences.confirm_absent("a", False, 9.0)


def test_of_many_that_are_shown_two_are_remembered_of_each_provider() -> None:
    absences = Absences(GRACE_S, Timeouts())
    for task in ("a", "b", "c"):
        absences.record_shown(task, "p", 0.0)
    absences.record_absent("c", "p", True, 1.0)
    assert not absences.confirm_absent("c", False, 1.0)
    assert absences.confirm_absent("c", False, 6.0)


def test_proofs_are_kept_of_a_bounded_number_of_providers() -> None:
    absences = Absences(GRACE_S, Timeouts())
    for number in range(5_000):
        absences.record_shown("b", f"p{number}", 0.0)
        absences.record_absent(f"a{number}", f"unknown{number}", False, 0.0)
    assert len(absences._shown) <= 1_000
    absences.record_absent("a", "p4999", True, 0.0)
    absences.confirm_absent("a", False, 0.0)
    assert absences.confirm_absent("a", False, 5.0)


class TestWhenToAsk:
    def test_a_task_that_lists_do_not_show_is_asked_about_at_once_and_then_every_five_seconds(self) -> None:
        absences, _ = play([(0, "unlisted")])
        assert absences.is_only_unlisted("a")
        assert absences.confirm_at("a", 0.5) == 0.5
        for now in (1.0, 6.0, 11.0):
            absences.confirm_absent("a", False, now)
            assert not absences.is_only_unlisted("a")
            assert absences.confirm_at("a", now) == now + CONFIRM_S

    def test_the_last_question_comes_when_it_can_end_the_watch(self) -> None:
        absences, _ = play([*every(5, 55), (58, "gone")])
        assert absences.confirm_at("a", 58) == MINUTE_S

    def test_with_proof_it_comes_five_seconds_after_the_first_answer(self) -> None:
        absences, _ = play([(0, "gone"), (3, "gone"), (3, "other")])
        assert absences.confirm_at("a", 3) == CONFIRM_S

    def test_after_an_interruption_it_comes_at_once(self) -> None:
        absences, _ = play([(0, "gone"), (3, "failed")])
        assert absences.confirm_at("a", 4) == 4
        assert not absences.is_only_unlisted("a")

    @pytest.mark.parametrize(("count", "asked_at"), [(10, CONFIRM_S), (11, GRACE_S)])
    def test_of_tasks_never_seen_only_few_are_asked_about_again_before_it_counts(
        self, count: int, asked_at: float
    ) -> None:
        absences = Absences(GRACE_S, Timeouts())
        for number in range(count):
            absences.record_absent(f"a{number}", "p", False, 0.0)
            absences.confirm_absent(f"a{number}", False, 0.0)
        assert absences.confirm_at("a0", 0.0) == asked_at

    def test_a_seen_one_among_many_never_seen_is_asked_about_again(self) -> None:
        absences = Absences(GRACE_S, Timeouts())
        for number in range(20):
            absences.record_absent(f"a{number}", "p", number == 0, 0.0)
            absences.confirm_absent(f"a{number}", False, 0.0)
        assert absences.confirm_at("a0", 0.0) == CONFIRM_S


class TestReplaced:
    """vCenter shows another task under the id."""

    def test_it_is_over_at_once(self) -> None:
        absences = Absences(GRACE_S, Timeouts())
        absences.record_replaced("a", "", 0.0)
        assert absences.confirm_absent("a", False, 0.0)
        assert absences.vanished_count == 0

    def test_it_is_over_while_tasks_that_vanished_are_held_and_no_longer_counts_as_one(self) -> None:
        absences = Absences(GRACE_S, Timeouts())
        for task in ("a", "b", "c"):
            absences.record_absent(task, "", True, 0.0)
            absences.confirm_absent(task, False, 0.0)
        absences.record_replaced("a", "", 1.0)
        assert absences.confirm_absent("a", False, 1.0)
        assert not absences.confirm_absent("b", False, 100.0)
        assert absences.vanished_count == 2

    def test_the_three_that_were_replaced_are_not_held(self) -> None:
        absences = Absences(GRACE_S, Timeouts())
        for task in ("a", "b", "c"):
            absences.record_replaced(task, "", 0.0)
        assert absences.vanished_reason is None
        absences.record_absent("a", "", True, 5.0)  # the other task is gone too
        assert absences.confirm_absent("a", False, 5.0)

    def test_it_counts_as_none_that_vanished_when_it_is_forgotten_either(self) -> None:
        absences = Absences(GRACE_S, Timeouts())
        absences.record_absent("b", "", True, 0.0)
        absences.record_replaced("a", "", 0.0)
        absences.forget("a")
        assert absences.vanished_count == 1


class TestAfterAHold:
    """Tasks that vanished together were held for ten minutes, and lists didn't show them."""

    def held(self, *, fails_at: float | None = None) -> Absences:
        absences = Absences(GRACE_S, Timeouts())
        for now in range(0, 601, 10):
            absences.record_answer(now)
            for task in ("a", "b", "c"):
                absences.record_absent(task, "p", True, now)
                if now == fails_at:
                    absences.record_interruption(task, now)
        assert absences.vanished_reason is None
        return absences

    def test_one_answer_about_each_ends_it(self) -> None:
        absences = self.held()
        assert absences.confirm_at("a", 600.0) == 600.0
        assert absences.confirm_absent("a", False, 600.0)

    def test_after_an_interruption_they_take_a_minute_again(self) -> None:
        absences = self.held(fails_at=580)
        assert absences.confirm_at("a", 600.0) == 650.0
        assert not absences.confirm_absent("a", False, 600.0)
        assert not absences.confirm_absent("a", False, 649.0)
        assert absences.confirm_absent("a", False, 650.0)

    def test_another_that_is_shown_makes_it_five_seconds(self) -> None:
        absences = self.held(fails_at=590)
        absences.record_shown("d", "p", 601.0)
        assert absences.confirm_at("a", 602.0) == 605.0
        assert not absences.confirm_absent("a", False, 604.0)
        assert absences.confirm_absent("a", False, 605.0)

    def test_those_interrupted_at_the_very_end_are_asked_about_later(self) -> None:
        absences = self.held(fails_at=600)
        assert absences.confirm_at("a", 600.0) == 660.0
        assert not absences.confirm_absent("a", False, 700.0)
