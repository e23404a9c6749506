"""The checker accepts what is right and rejects what isn't: a table of broken histories, and mutations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.account import Account, Answered, Asked, Heard, Lost, Remains, Stored, Truth, Was
from chaos.checker import RULES, violations

PREFIX, BEGAN = "vcenter.tasks", 1_764_000_000.0
RUNNING, DONE, FAILED = Was(BEGAN, "RUNNING", (1, 4)), Was(BEGAN + 9, "SUCCEEDED", (4, 4), {"ok": 1}), "FAILED"
TASK, OTHER = "one:vlcm", "o.ther:vlcm"


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Writer:
    """Writes right histories, event by event, as the bridge would."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        self.last: dict[str, dict[str, Any]] = {}

    def event(self, watch: str, task: str, kind: str, state: Was | None, at: float, **more: Any) -> None:
        before = self.last.get(watch)
        name, _, outcome = kind.partition(".")
        data: dict[str, Any] = {
            "vcenter": "lab",
            "task": task,
            "watch": {
                "id": watch,
                "since": rfc3339(int(watch.split("-")[0]) / 1000),
                "timeout_at": None,
                "labels": {},
            },
            "kind": name,
            "outcome": outcome or None,
            "final": bool(outcome),
            "sequence": before["sequence"] + 1 if before else 1,
            "status": state and state.status,
            "previous_status": before["status"] if before else None,
            "progress": None,
            "error": None if outcome in ("", "succeeded") else {"type": "X"},
            "result": None,
            "result_state": "none",
            "result_ref": None,
        }
        if state and state.progress:
            data["progress"] = {"completed": state.progress[0], "total": state.progress[1]}
        if name == "completed" and state and state.result is not None:
            data |= {"result": state.result, "result_state": "inline"}
        data |= more
        self.last[watch] = data
        body = {"id": f"{watch}/{data['sequence']}", "time": rfc3339(at), "data": data}
        self._store(task, kind, at, body | ({"outcome": outcome} if outcome else {}))

    def _store(self, task: str, kind: str, at: float, body: dict[str, Any]) -> None:
        data = body["data"]
        headers = {
            "Nats-Msg-Id": body["id"],
            "Bridge-Watch": data["watch"]["id"],
            "Bridge-Sequence": str(data["sequence"]),
            "Bridge-Kind": kind,
        }
        subject = f"{PREFIX}.events.lab.{task.replace('.', '%2E')}.{kind}"
        self.stored.append(Stored(subject, len(self.stored) + 1, at, headers, json.dumps(body).encode()))

    def rejection(self, sequence: int, at: float) -> None:
        body = json.dumps({"id": f"{at * 1000:.0f}-{sequence}", "data": {"error": {}}}).encode()
        self.stored.append(Stored(f"{PREFIX}.rejected", len(self.stored) + 1, at, {}, body))


def a_watch(sequence: int | str, at: float) -> str:
    return f"{at * 1000:.0f}-{sequence}"


def right() -> Account:
    """Two tasks: one ended after an earlier watch was given up on request, one is still watched."""
    first, second, third = a_watch(1, BEGAN + 1), a_watch("aff", BEGAN + 4), a_watch(3, BEGAN + 2)
    writer = Writer()
    writer.event(first, TASK, "watching", Was(BEGAN, "PENDING"), BEGAN + 1)
    writer.event(first, TASK, "status", RUNNING, BEGAN + 2)
    writer.event(third, OTHER, "watching", RUNNING, BEGAN + 2.5)
    writer.event(first, TASK, "abandoned.unwatched", RUNNING, BEGAN + 3)
    writer.event(second, TASK, "watching", RUNNING, BEGAN + 5)
    writer.rejection(4, BEGAN + 5)
    writer.event(second, TASK, "progress", RUNNING._replace(progress=(2, 4)), BEGAN + 7)
    writer.event(second, TASK, "completed.succeeded", DONE, BEGAN + 9.5)
    states = (Was(BEGAN, "PENDING"), RUNNING, Was(BEGAN + 6, "RUNNING", (2, 4)), Was(BEGAN + 8, "BLOCKED"), DONE)
    return Account(
        prefix=PREFIX,
        stored=tuple(writer.stored),
        asked=(
            Asked(1, TASK, BEGAN + 1),
            Asked(2, TASK, BEGAN + 2),
            Asked(3, OTHER, BEGAN + 2),
            Asked(4, "task-1", BEGAN + 5, valid=False),
        ),
        answered=(
            Answered("watch", TASK, "accepted", second),
            Answered("watch", TASK, "already_completed", second, f"{second}/3"),
            Answered("unwatch", TASK, "unwatched", first, f"{first}/3"),
            Answered("unwatch", TASK, "already_ended", None, f"{second}/3"),
            Answered("unwatch", TASK, "unavailable"),
        ),
        truths={TASK: Truth(states), OTHER: Truth((RUNNING, DONE))},
        heard=tuple(Heard(message.subject, message.sequence, message.body) for message in writer.stored),
        remains=Remains(watches=((third, OTHER),), held=1),
    )


def test_a_right_history_is_accepted() -> None:
    assert violations(right()) == []


def altered(account: Account, number: int, **data: Any) -> Account:
    """The account with other `data` in the event at this place of the stream, told and heard alike."""
    stored = list(account.stored)
    body = json.loads(stored[number].body)
    body["data"] |= data
    stored[number] = stored[number]._replace(body=json.dumps(body).encode())
    return heard(account._replace(stored=tuple(stored)))


def heard(account: Account) -> Account:
    """The account whose listener heard all that is stored."""
    return account._replace(heard=tuple(Heard(m.subject, m.sequence, m.body) for m in account.stored))


def placed(account: Account, *order: int) -> Account:
    """The account with the stored events of these places, in this order, one behind the other."""
    stored = [account.stored[place]._replace(sequence=n + 1) for n, place in enumerate(order)]
    return heard(account._replace(stored=tuple(stored)))


def ending_as(account: Account, status: str, **more: Any) -> Account:
    """The account whose ended task went another way in truth."""
    truth = account.truths[TASK]
    last = truth.states[-1]._replace(status=status, **more)
    return account._replace(truths={**account.truths, TASK: Truth((*truth.states[:-1], last))})


def remaining(account: Account, **changes: Any) -> Account:
    return account._replace(remains=account.remains._replace(**changes))


def asking(account: Account, *asked: Asked) -> Account:
    return account._replace(asked=(*account.asked, *asked))


def answering(account: Account, *answered: Answered) -> Account:
    return account._replace(answered=(*account.answered, *answered))


def given_up(outcome: str, **data: Any) -> Account:
    """The account whose first watch ended with another outcome."""
    account = altered(right(), 3, outcome=outcome, **data)
    body = json.loads(account.stored[3].body) | {"outcome": outcome}
    subject = account.stored[3].subject.replace("unwatched", outcome)
    headers = {**account.stored[3].headers, "Bridge-Kind": f"abandoned.{outcome}"}
    message = account.stored[3]._replace(body=json.dumps(body).encode(), subject=subject, headers=headers)
    stored = (*account.stored[:3], message, *account.stored[4:])
    return heard(account._replace(stored=stored, answered=account.answered[:2]))


def numbered(account: Account, numbers: dict[int, int], **data: Any) -> Account:
    """The account in which the events at these places have other numbers; `data` is other in the first of them."""
    stored, answered = list(account.stored), account.answered
    for place, number in numbers.items():
        body = json.loads(stored[place].body)
        old, new = body["id"], f"{body['data']['watch']['id']}/{number}"
        answered = tuple(answer._replace(last_event=new) if answer.last_event == old else answer for answer in answered)
        body["data"] |= {"sequence": number, **(data if place == min(numbers) else {})}
        body["id"] = new
        headers = {**stored[place].headers, "Bridge-Sequence": str(number), "Nats-Msg-Id": new}
        stored[place] = stored[place]._replace(body=json.dumps(body).encode(), headers=headers)
    return heard(account._replace(stored=tuple(stored), answered=answered))


def timed(account: Account, place: int, at: float) -> Account:
    """The account in which the event at this place names another time."""
    message = account.stored[place]
    body = json.dumps(json.loads(message.body) | {"time": rfc3339(at)}).encode()
    stored = (*account.stored[:place], message._replace(body=body), *account.stored[place + 1 :])
    return heard(account._replace(stored=stored))


def purged(account: Account, *places: int, at: float, reports: int = 1) -> Account:
    """The account whose events at these places were removed at that time, which bridges reported so often."""
    stored = list(account.stored)
    for place in places:
        stored[place] = stored[place]._replace(there_at=at - 0.1, gone_at=at)
    return account._replace(stored=tuple(stored), reported_losses=reports)


def of_kind(account: Account, place: int, kind: str) -> Account:
    """The account in which the event at this place is of another kind."""
    message = altered(account, place, kind=kind).stored[place]
    subject = f"{message.subject.rpartition('.')[0]}.{kind}"
    message = message._replace(subject=subject, headers={**message.headers, "Bridge-Kind": kind})
    return heard(account._replace(stored=(*account.stored[:place], message, *account.stored[place + 1 :])))


def restated(reports: int = 1) -> Account:
    """The second watch lost its first event at BEGAN + 6, and its owner went on."""
    return purged(numbered(right(), {6: JUMP, 7: JUMP + 1}), 4, at=BEGAN + 6, reports=reports)


def begun_again() -> Account:
    """The same, but another replica took the watch over without any memory of it."""
    account = numbered(right(), {6: JUMP, 7: JUMP + 1}, previous_status=None)
    return purged(of_kind(account, 6, "watching"), 4, at=BEGAN + 6)


def watched_anew() -> Account:
    """The first task completed, that event was removed, and it was asked for and watched again."""
    account = right()
    writer = Writer()
    writer.stored = list(account.stored)
    third = a_watch("afe", BEGAN + 11)
    writer.event(third, TASK, "watching", DONE, BEGAN + 12)
    writer.event(third, TASK, "completed.succeeded", DONE, BEGAN + 12.1)
    return heard(account._replace(stored=tuple(writer.stored)))


def lost_watch() -> Account:
    """The message of the second watch was removed before it ended; nobody hears of it again."""
    account = placed(right(), 0, 1, 2, 3, 4, 5, 6)
    lost = Lost(watches=((SECOND, TASK),))
    return account._replace(answered=account.answered[2:3], lost=lost)


def replaced_watch() -> Account:
    """The message of the second watch was removed; another one was begun by the next request."""
    account = lost_watch()
    writer = Writer()
    writer.stored = list(account.stored)
    third = a_watch("afe", BEGAN + 8)
    writer.event(third, TASK, "watching", RUNNING._replace(progress=(2, 4)), BEGAN + 8)
    writer.event(third, TASK, "completed.succeeded", DONE, BEGAN + 9.5)
    return heard(account._replace(stored=tuple(writer.stored)))


def ended_again() -> Account:
    """The final event of the second watch was removed, and another replica ended the watch again."""
    account = right()
    writer = Writer()
    writer.stored = list(account.stored)
    writer.event(SECOND, TASK, "watching", DONE, BEGAN + 11)
    writer.event(SECOND, TASK, "completed.succeeded", DONE, BEGAN + 11.1)
    account = numbered(heard(account._replace(stored=tuple(writer.stored))), {8: JUMP + 9_000, 9: JUMP + 9_001})
    return purged(account, 7, at=BEGAN + 10)


def without_winner() -> Account:
    """Whoever asked for the end of the first watch was told that it had ended already."""
    answered = right().answered
    return right()._replace(answered=(*answered[:2], answered[2]._replace(outcome="already_ended")))


def blind_first(**instance: str) -> Account:
    """The whole second watch was removed, and an owner that knew nothing of it ended it with number 1."""
    account = right()
    writer = Writer()
    writer.stored = list(account.stored)
    writer.event(SECOND, TASK, "completed.succeeded", DONE, BEGAN + 11)
    writer.stored[-1] = writer.stored[-1]._replace(headers={**writer.stored[-1].headers, **instance})
    return purged(heard(account._replace(stored=tuple(writer.stored))), 4, 6, 7, at=BEGAN + 10)


SECOND, JUMP = a_watch("aff", BEGAN + 4), int(BEGAN * 1000) + 7_000
EXCUSED: dict[str, Account] = {
    "a watch that goes on without its memory": restated(),
    "a watch that is taken over without its memory": begun_again(),
    "a watch whose completed event was removed before": purged(watched_anew(), 7, at=BEGAN + 10),
    "a watch whose message was removed": lost_watch(),
    "a watch that replaces one that was removed": replaced_watch(),
    "an ending that was removed before the watch's message was": ended_again()._replace(
        lost=Lost(unacked=frozenset([SECOND]))
    ),
    "a state of before, told without memory": altered(
        restated(), 6, status="RUNNING", progress={"completed": 1, "total": 4}
    ),
    "a jump at the beginning after a loss": numbered(right(), {4: JUMP, 6: JUMP + 1, 7: JUMP + 2})._replace(
        lost=Lost(events_at=BEGAN + 4)
    ),
    "the same event again, since it had gone unconfirmed": purged(
        placed(right(), 0, 1, 2, 3, 4, 4, 5, 6, 7), 4, at=BEGAN + 4
    ),
    "the same ending again, since it had gone unconfirmed": purged(
        placed(right(), 0, 1, 2, 3, 4, 5, 6, 7, 7), 7, at=BEGAN + 8
    ),
    "no winner, since the end was removed unconfirmed": purged(without_winner(), 3, at=BEGAN + 3.5),
    "a request that was removed": asking(right(), Asked(9, "no:where", BEGAN))._replace(
        lost=Lost(requests=((9, BEGAN + 0.1),))
    ),
    "a watch that the end of a removed one answers": answering(
        right(), Answered("watch", TASK, "accepted", "1-a9"), Answered("watch", TASK, "already_watching", "1-a9")
    )._replace(lost=Lost(watches=(("1-a1", TASK),))),
    "an owner that was cut off before its first event until all of another's had gone": blind_first(
        **{"Bridge-Instance": "other"}
    )._replace(lost=Lost(unacked=frozenset([SECOND]))),
    "a request whose watch was removed": asking(right(), Asked(9, "no:where", BEGAN))._replace(
        lost=Lost(watches=(("1-9", "no:where"),))
    ),
    "a rejection that was removed and repeated": purged(placed(right(), 0, 1, 2, 3, 4, 5, 5, 6, 7), 5, at=BEGAN + 5),
    "requests of one number in two streams": asking(right(), Asked(1, "bad", BEGAN + 20, False, BEGAN + 21))._replace(
        lost=Lost(requests=((1, BEGAN + 20.5),))
    ),
    "times that differ as clocks may": timed(right(), 6, BEGAN + 8.5)._replace(clock_s=2.0),
}


@pytest.mark.parametrize("account", EXCUSED.values(), ids=EXCUSED)
def test_what_a_fault_excuses_is_accepted(account: Account) -> None:
    assert violations(account) == []


def blocked(task: str, statuses: list[str], again: list[str], *later: Was) -> Account:
    """The statuses that the events of two watches tell of a task that is BLOCKED, and what it is later."""
    first, second, writer = a_watch(1, BEGAN + 1), a_watch(2, BEGAN + 4), Writer()
    states = (RUNNING, RUNNING._replace(at=BEGAN + 1, status="BLOCKED"), *later)
    for watch, told, at in ((first, statuses, BEGAN + 2), (second, again, BEGAN + 5)):
        for place, status in enumerate(told):
            kind = "status" if place else "watching"
            writer.event(watch, task, kind, RUNNING._replace(status=status), at + place / 10)
        writer.event(watch, task, "abandoned.unwatched", RUNNING._replace(status=told[-1]), at + 1)
    asked = (Asked(1, task, BEGAN + 1), Asked(2, task, BEGAN + 4))
    answered = tuple(
        Answered("unwatch", task, "unwatched", None, f"{watch}/{number}")
        for watch, number in ((first, len(statuses) + 1), (second, len(again) + 1))
    )
    return heard(Account(PREFIX, tuple(writer.stored), asked, answered, {task: Truth(states)}))


def test_a_new_watch_may_see_a_classic_task_run_before_it_sees_its_vms_question() -> None:
    assert violations(blocked("task-1", ["RUNNING", "BLOCKED"], ["RUNNING", "BLOCKED"])) == []


def answered_at(at: float) -> Was:
    """Its VM's question is answered at this time, and its progress goes on in the same moment."""
    return RUNNING._replace(at=at, progress=(3, 4))


def test_the_answer_to_a_vms_question_may_be_told_before_the_progress_of_its_task() -> None:
    assert violations(blocked("task-1", ["BLOCKED", "RUNNING"], ["RUNNING"], answered_at(BEGAN + 2))) == []


def test_nobody_may_tell_the_answer_to_a_vms_question_before_it_was_given() -> None:
    too_early = blocked("task-1", ["BLOCKED", "RUNNING"], ["BLOCKED"], answered_at(BEGAN + 5.2))
    assert {one.rule for one in violations(too_early)} == {"follows_the_task"}


@pytest.mark.parametrize(
    ("task", "statuses", "again"),
    [
        ("task-1", ["BLOCKED", "RUNNING"], ["BLOCKED"]),
        ("task-1", ["BLOCKED"], ["BLOCKED", "RUNNING"]),
        (TASK, ["BLOCKED"], ["RUNNING", "BLOCKED"]),
    ],
    ids=["later in a watch", "later in the second watch", "a CIS task"],
)
def test_no_other_event_may_tell_that_a_blocked_task_runs(task: str, statuses: list[str], again: list[str]) -> None:
    assert {one.rule for one in violations(blocked(task, statuses, again))} == {"follows_the_task"}


def followed(*events: tuple[str, float, float], first: int = 1) -> Account:
    """A right history of one watch, with a task that nobody found, and the events of a follow: kinds and spans."""
    writer, watch = Writer(), a_watch("fab", BEGAN + 1)
    writer.event(watch, TASK, "watching", RUNNING, BEGAN + 1)
    writer.event(watch, TASK, "completed.succeeded", DONE, BEGAN + 9.5)
    for number, (kind, begin, end) in enumerate(events, first):
        span = {"from": rfc3339(begin), "to": rfc3339(end)}
        body = {"data": {"kind": kind, "follow": {"id": "1-1"}, "sequence": number, **span}}
        subject = f"{PREFIX}.follows.lab.all.{kind}"
        writer.stored.append(Stored(subject, len(writer.stored) + 1, BEGAN, {}, json.dumps(body).encode()))
    told = tuple(Heard(m.subject, m.sequence, m.body) for m in writer.stored[:2])
    truths = {TASK: Truth((RUNNING, DONE)), OTHER: Truth((RUNNING._replace(at=BEGAN + 5), DONE))}
    return Account(PREFIX, tuple(writer.stored), truths=truths, heard=told, followed_from=BEGAN)


FOLLOWING = ("following", BEGAN, BEGAN)


def test_a_task_that_a_follow_did_not_find_is_accepted_within_a_gap_and_before_the_follow() -> None:
    assert violations(followed(FOLLOWING, ("gap", BEGAN + 4, BEGAN + 6))) == []
    assert violations(followed(FOLLOWING)._replace(followed_from=BEGAN + 6)) == []
    lost = {**followed().truths, OTHER: Truth((RUNNING,), unseen_at=BEGAN + 7)}
    assert violations(followed(FOLLOWING)._replace(truths=lost)) == []


BROKEN: dict[str, tuple[str, Account]] = {
    "a task that a follow missed": ("followed_completely", followed(FOLLOWING)),
    "a gap elsewhere": ("followed_completely", followed(FOLLOWING, ("gap", BEGAN + 6, BEGAN + 8))),
    "a task that was watched twice": ("followed_completely", right()._replace(followed_from=BEGAN)),
    "a follow that lost an event": ("follows_numbered", followed(FOLLOWING, first=2)),
    "a gap": ("numbered", placed(right(), 0, 2, 3, 4, 5, 6, 7)),
    "a repeat": ("numbered", placed(right(), 0, 1, 1, 2, 3, 4, 5, 6, 7)),
    "two swapped": ("numbered", placed(right(), 1, 0, 2, 3, 4, 5, 6, 7)),
    "no ending": ("ended_once", placed(right(), 0, 1, 2, 3, 4, 5, 6)),
    "two endings": ("ended_once", altered(right(), 6, kind="completed", final=True)),
    "an event after the ending": ("ended_once", placed(right(), 0, 1, 2, 3, 4, 5, 7, 6)),
    "a watch after completed": ("one_watch_at_a_time", placed(right(), 4, 5, 6, 7, 0, 1, 2, 3)),
    "two watches at once": ("one_watch_at_a_time", placed(right(), 0, 1, 2, 4, 3, 5, 6, 7)),
    "not begun by watching": ("begun_rightly", altered(right(), 4, kind="status")),
    "begun twice": ("begun_rightly", altered(right(), 6, kind="watching")),
    "an unknown kind": ("begun_rightly", altered(right(), 6, kind="moved")),
    "no JSON": ("readable", heard(right()._replace(stored=(*right().stored, Stored("x", 9, 0.0, {}, b"{"))))),
    "a body without data": (
        "readable",
        heard(right()._replace(stored=(*right().stored, Stored("x", 9, 0.0, {}, b"{}")))),
    ),
    "another kind in the subject": ("in_place", altered(right(), 1, kind="progress")),
    "another task in the subject": ("in_place", altered(right(), 1, task="else:where")),
    "another number in the header": (
        "in_place",
        right()._replace(stored=(right().stored[0]._replace(headers={}), *right().stored[1:])),
    ),
    "final untold": ("in_place", altered(right(), 7, final=False)),
    "other labels": (
        "same_throughout",
        altered(right(), 1, watch={"id": a_watch(1, BEGAN + 1), "since": rfc3339(BEGAN)}),
    ),
    "a wrong previous status": ("same_throughout", altered(right(), 1, previous_status="BLOCKED")),
    "a number 1 again by the same owner": ("numbered", blind_first()),
    "an ending again by another owner": ("ended_once", blind_first(**{"Bridge-Instance": "other"})),
    "a state that never was": ("follows_the_task", altered(right(), 6, status="SUSPENDED")),
    "a progress that never was": ("follows_the_task", altered(right(), 6, progress={"completed": 3, "total": 4})),
    "a state from before": ("follows_the_task", altered(right(), 6, status="PENDING", progress=None)),
    "a state that was still to come": (
        "follows_the_task",
        right()._replace(truths={**right().truths, OTHER: Truth((RUNNING._replace(at=BEGAN + 3), DONE))}),
    ),
    "an event of no task": ("follows_the_task", right()._replace(truths={TASK: right().truths[TASK]})),
    "completed while it runs": ("ends_as_the_task", ending_as(right(), "RUNNING")),
    "success told of a failure": ("ends_as_the_task", ending_as(right(), FAILED)),
    "failure told of a success": ("ends_as_the_task", altered(right(), 7, outcome="failed")),
    "an error beside success": ("ends_as_the_task", altered(right(), 7, error={"type": "X"})),
    "another result": ("ends_as_the_task", altered(right(), 7, result={"ok": 2})),
    "a result left out": ("ends_as_the_task", altered(right(), 7, result=None, result_state="none")),
    "a stored result without a place": (
        "ends_as_the_task",
        altered(right(), 7, result=None, result_state="stored"),
    ),
    "lost and there": ("ends_as_the_task", given_up("lost")),
    "denied and shown": ("ends_as_the_task", given_up("denied")),
    "timed out without a timeout": ("ends_as_the_task", given_up("watch_timed_out")),
    "unwatched by nobody": ("ends_as_the_task", right()._replace(answered=right().answered[:2])),
    "an outcome of no contract": ("ends_as_the_task", given_up("forgotten")),
    "a request without a trace": ("requests_served", asking(right(), Asked(9, "no:where", BEGAN))),
    "a request after the last ending": (
        "requests_served",
        placed(asking(right(), Asked(9, TASK, BEGAN + 4)), 0, 1, 2, 3, 5),
    ),
    "a request that became two watches": (
        "requests_served",
        remaining(right(), watches=((a_watch(3, BEGAN + 2), OTHER), (a_watch(3, BEGAN + 3), OTHER)), held=2),
    ),
    "a good request rejected": ("requests_served", right()._replace(asked=(Asked(4, TASK, BEGAN),))),
    "a bad request not rejected": ("requests_served", asking(right(), Asked(8, "task-2", BEGAN, valid=False))),
    "rejected twice": ("requests_served", placed(right(), 0, 1, 2, 3, 4, 5, 5, 6, 7)),
    "a bad request watched": ("requests_served", asking(right(), Asked(3, OTHER, BEGAN, valid=False))),
    "served twice": (
        "not_served_twice",
        asking(
            altered(
                altered(right(), 4, watch={"id": a_watch(2, BEGAN + 2), "since": rfc3339(BEGAN + 2)}),
                6,
                watch={"id": a_watch(2, BEGAN + 2), "since": rfc3339(BEGAN + 2)},
            ),
        ),
    ),
    "accepted for nothing though another task's watch was removed": (
        "answers_true",
        answering(right(), Answered("watch", TASK, "accepted", "1-a2"))._replace(lost=Lost(watches=(("1-a1", OTHER),))),
    ),
    "accepted for nothing": ("answers_true", answering(right(), Answered("watch", TASK, "accepted", "1-a2"))),
    "watched by nobody": ("answers_true", answering(right(), Answered("watch", TASK, "already_watching", "1-a2"))),
    "completed and not stored": (
        "answers_true",
        answering(right(), Answered("watch", TASK, "already_completed", SECOND, f"{SECOND}/9")),
    ),
    "unwatched and not stored": (
        "answers_true",
        answering(right(), Answered("unwatch", TASK, "unwatched", "1-2", "1-2/1")),
    ),
    "ended and not stored": (
        "answers_true",
        answering(right(), Answered("unwatch", TASK, "already_ended", None, "1-2/1")),
    ),
    "no winner": ("one_winner", without_winner()),
    "two winners": ("one_winner", answering(right(), right().answered[2])),
    "heard and not stored": (
        "heard_what_is_stored",
        right()._replace(heard=(*right().heard, Heard("x", 99, b"{}"))),
    ),
    "heard otherwise": (
        "heard_what_is_stored",
        right()._replace(heard=(right().heard[0]._replace(body=b"{}"), *right().heard[1:])),
    ),
    "heard twice": ("heard_what_is_stored", right()._replace(heard=(*right().heard, right().heard[-1]))),
    "heard in another order": ("heard_what_is_stored", right()._replace(heard=right().heard[::-1])),
    "not heard": ("heard_what_is_stored", right()._replace(heard=right().heard[1:])),
    "a message of an ended watch": ("nothing_orphaned", remaining(right(), watches=((SECOND, TASK),))),
    "a watch that waits for what completed": (
        "nothing_orphaned",
        remaining(right(), watches=((a_watch(3, BEGAN + 2), OTHER), ("1-77", TASK)), held=2),
    ),
    "a watch that nobody is to get": ("nothing_orphaned", remaining(right(), held=0)),
    "held without a message": ("nothing_orphaned", remaining(right(), held=2)),
    "a request left": ("nothing_orphaned", remaining(right(), requests=1)),
    # What operators removed excuses some things, and no others.
    "a jump without a loss": ("numbered", numbered(right(), {6: JUMP, 7: JUMP + 1})),
    "a jump at the beginning without a loss": ("numbered", numbered(right(), {4: JUMP, 6: JUMP + 1, 7: JUMP + 2})),
    "a jump at the beginning before a loss": (
        "numbered",
        numbered(right(), {4: JUMP, 6: JUMP + 1, 7: JUMP + 2})._replace(lost=Lost(events_at=BEGAN + 6)),
    ),
    "the same event again while it is there": ("numbered", placed(right(), 0, 1, 2, 3, 4, 4, 5, 6, 7)),
    "a jump before the loss": ("numbered", purged(numbered(right(), {6: JUMP, 7: JUMP + 1}), 4, at=BEGAN + 8)),
    "a jump while the last event is there": (
        "numbered",
        purged(numbered(right(), {7: JUMP}), 4, at=BEGAN + 6),
    ),
    "a jump back": ("numbered", purged(numbered(right(), {6: JUMP, 7: 1}), 4, 6, at=BEGAN + 6)),
    "an id used again after a loss": ("numbered", purged(numbered(right(), {6: 1, 7: 2}), 4, at=BEGAN + 6)),
    "a loss that the numbers hide": ("numbered", purged(right(), 4, at=BEGAN + 6)),
    "a loss that nobody reports": ("losses_reported", restated(reports=0)),
    "a second ending after the first was removed with its watch": ("ended_once", ended_again()),
    "a second ending while the first is there": (
        "ended_once",
        purged(ended_again(), 7, at=BEGAN + 20)._replace(lost=Lost(unacked=frozenset([SECOND]))),
    ),
    "begun again while the last event is there": ("begun_rightly", of_kind(numbered(right(), {6: 2}), 6, "watching")),
    "forgetful while the last event is there": ("same_throughout", altered(right(), 6, previous_status=None)),
    "a status from nowhere": ("same_throughout", altered(right(), 4, previous_status="RUNNING")),
    "a watch after a completed that is there": ("one_watch_at_a_time", watched_anew()),
    "a watch that was removed and comes again": (
        "one_watch_at_a_time",
        placed(replaced_watch(), 0, 1, 2, 3, 4, 5, 7, 6, 8),
    ),
    "a watch interrupted that was not removed": ("one_watch_at_a_time", replaced_watch()._replace(lost=Lost())),
    "a watch that was removed and ended twice": (
        "ended_once",
        placed(right(), 0, 1, 2, 3, 4, 5, 6, 7, 7)._replace(lost=Lost(watches=((SECOND, TASK),))),
    ),
    "another request than the removed one": (
        "requests_served",
        asking(right(), Asked(9, "no:where", BEGAN))._replace(lost=Lost(requests=((8, BEGAN + 0.1), (9, BEGAN - 5)))),
    ),
    "a rejection repeated before it was removed": (
        "requests_served",
        purged(placed(right(), 0, 1, 2, 3, 4, 5, 5, 6, 7), 5, at=BEGAN + 9),
    ),
    "completed and removed before it was asked for": (
        "requests_served",
        purged(asking(right(), Asked(9, TASK, BEGAN + 11)), 7, at=BEGAN + 10),
    ),
    "a time an hour ahead": ("told_in_time", timed(right(), 6, BEGAN + 7 + 3_600)._replace(clock_s=2.0)),
    "a time an hour behind": ("told_in_time", timed(right(), 6, BEGAN + 7 - 3_600)._replace(clock_s=2.0)),
    "begun after its first event": (
        "told_in_time",
        remaining(
            altered(right(), 2, watch={"id": a_watch(3, BEGAN + 2), "since": rfc3339(BEGAN + 3_600)}),
        ),
    ),
    "a session left": ("sessions_closed", remaining(right(), sessions=2, excused_sessions=1)),
}


@pytest.mark.parametrize(("rule", "account"), BROKEN.values(), ids=BROKEN)
def test_a_broken_history_is_rejected(rule: str, account: Account) -> None:
    assert rule in {violation.rule for violation in violations(account)}


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert {rule.__name__.strip("_") for rule in RULES} == {rule for rule, _ in BROKEN.values()}


def generated(chance: random.Random) -> Account:
    """A right history of some watches, interleaved as chance has it; every one of them ended."""
    writer, truths, asked, pending = Writer(), {}, [], []
    for number in range(chance.randint(1, 5)):
        task, at = f"t{number}:vlcm", BEGAN + number
        states = [Was(at, "PENDING"), *(Was(at + n, "RUNNING", (n, 9)) for n in range(1, chance.randint(2, 7)))]
        states.append(Was(at + 8, "SUCCEEDED", (9, 9), {"n": number}))
        truths[task] = Truth(tuple(states))
        seen = sorted(chance.sample(range(len(states) - 1), chance.randint(1, len(states) - 1)))
        watch = a_watch(number + 1, at)
        asked.append(Asked(number + 1, task, at))
        steps = [(watch, task, "progress" if n else "watching", states[place]) for n, place in enumerate(seen)]
        pending.append([*steps, (watch, task, "completed.succeeded", states[-1])])
    while any(pending):
        watch, task, kind, state = chance.choice([steps for steps in pending if steps]).pop(0)
        writer.event(watch, task, kind, state, state.at + 1)
    return heard(Account(PREFIX, tuple(writer.stored), tuple(asked), (), truths))


def _left_out(account: Account, place: int) -> Account:
    return placed(account, *(n for n in range(len(account.stored)) if n != place))


def _repeated(account: Account, place: int) -> Account:
    return placed(account, *range(place + 1), *range(place, len(account.stored)))


def _moved_to_the_end(account: Account, place: int) -> Account:
    """Behind the ending of its own watch, where it isn't that ending itself."""
    return placed(account, *(n for n in range(len(account.stored)) if n != place), place)


def _renumbered(account: Account, place: int) -> Account:
    return altered(account, place, sequence=json.loads(account.stored[place].body)["data"]["sequence"] + 1)


def _of_another_status(account: Account, place: int) -> Account:
    return altered(account, place, status="BLOCKED")


def _unheard(account: Account, place: int) -> Account:
    return account._replace(heard=(*account.heard[:place], *account.heard[place + 1 :]))


def _request_forgotten(account: Account, place: int) -> Account:
    watch = account.stored[place].headers["Bridge-Watch"]
    return placed(account, *(n for n, m in enumerate(account.stored) if m.headers["Bridge-Watch"] != watch))


MUTATIONS = [_left_out, _repeated, _renumbered, _of_another_status, _unheard, _request_forgotten]


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), mutate=st.sampled_from(MUTATIONS), where=st.floats(0, 0.999))
def test_whatever_is_changed_in_a_right_history_is_found(
    seed: int, mutate: Callable[[Account, int], Account], where: float
) -> None:
    account = generated(random.Random(seed))
    assert violations(account) == []
    assert violations(mutate(account, int(where * len(account.stored))))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), where=st.floats(0, 0.999))
def test_an_event_behind_its_watchs_ending_is_found(seed: int, where: float) -> None:
    account = generated(random.Random(seed))
    place = int(where * len(account.stored))
    ends = account.stored[place].headers["Bridge-Kind"] == "completed.succeeded"
    assert ends or violations(_moved_to_the_end(account, place))
