"""Judges a history: what was asked, what is stored and what the tasks really went through. Pure.

It knows the contract and nothing of the bridge's code, from which it imports nothing. `violations` is all there is
to call; every rule below is a function of the whole `Account`, and `test_checker.py` breaks each.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import quote

from chaos.account import Account, Asked, Stored, Truth, Was

CLOCK_S = 0.005
"""Times are written in milliseconds, by processes that read the same clock."""

STARTED = ("watching", "status", "progress", "stalled")
ENDINGS = ("completed", "abandoned")


class Event(NamedTuple):
    """A stored event, decoded."""

    stored: Stored
    body: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.body["data"]
        return data

    @property
    def watch(self) -> str:
        return str(self.data["watch"]["id"])

    @property
    def final(self) -> bool:
        return self.data["kind"] in ENDINGS

    @property
    def at(self) -> float:
        return seconds(self.body["time"])

    def __str__(self) -> str:
        return f"{self.data['kind']} {self.body['id']} (stream {self.stored.sequence})"


class Violation(NamedTuple):
    """A broken rule and where."""

    rule: str
    where: str


class Histories:
    """The events of an account, by task and by watch, in the order of the stream."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.rejections: list[Event] = []
        self.unreadable: list[Stored] = []
        self.by_task: dict[str, list[Event]] = defaultdict(list)
        self.by_watch: dict[str, list[Event]] = defaultdict(list)
        self.by_id: dict[str, Event] = {}
        for stored in account.stored:
            self._take(stored)

    def _take(self, stored: Stored) -> None:
        try:
            event = Event(stored, json.loads(stored.body))
            if stored.subject == f"{self.account.prefix}.rejected":
                self.rejections.append(event)
                return
            self.by_watch[event.watch].append(event)
            self.by_task[event.data["task"]].append(event)
            self.by_id[event.body["id"]] = event
        except (ValueError, KeyError, TypeError):
            self.unreadable.append(stored)

    def ending(self, watch: str) -> Event | None:
        return next((event for event in self.by_watch.get(watch, ()) if event.final), None)


def violations(account: Account) -> list[Violation]:
    """All that is wrong with the history; nothing when the promises held."""
    histories = Histories(account)
    return [Violation(rule.__name__.strip("_"), where) for rule in RULES for where in rule(histories)]


def seconds(time: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


# The stream: order, numbers, endings


def _readable(histories: Histories) -> Iterator[str]:
    for stored in histories.unreadable:
        yield f"stream {stored.sequence} on {stored.subject}"


def _in_place(histories: Histories) -> Iterator[str]:
    """Subject, headers and body say the same."""
    prefix = histories.account.prefix
    for event in (event for events in histories.by_task.values() for event in events):
        data, headers = event.data, event.stored.headers
        kind = f"{data['kind']}.{data['outcome']}" if event.final else data["kind"]
        token = quote(data["task"], safe="-_~:").replace(".", "%2E")
        wanted = (f"{prefix}.events.{data['vcenter']}.{token}.{kind}", event.watch, str(data["sequence"]), kind)
        found = (event.stored.subject, *(headers.get(f"Bridge-{name}") for name in ("Watch", "Sequence", "Kind")))
        if wanted != found:
            yield f"{event}: {found} instead of {wanted}"
        if event.body["id"] != f"{event.watch}/{data['sequence']}":
            yield f"{event}: its id"
        if not headers.get("Nats-Msg-Id", "").startswith(event.body["id"]):
            yield f"{event}: its Nats-Msg-Id"
        if (event.final, event.final) != (data["final"], "outcome" in event.body):
            yield f"{event}: final {data['final']}, outcome {event.body.get('outcome')}"


def _numbered(histories: Histories) -> Iterator[str]:
    """1, 2, 3… without gap or repeat, in the order of the stream."""
    for watch, events in histories.by_watch.items():
        numbers = [event.data["sequence"] for event in events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{watch}: {numbers}"


def _ended_once(histories: Histories) -> Iterator[str]:
    """Exactly one ending, the last event of its watch; only a watch that remains may be without."""
    remaining = {watch for watch, _ in histories.account.remains.watches}
    for watch, events in histories.by_watch.items():
        endings = [event.final for event in events]
        if not any(endings) and watch in remaining:
            continue
        if endings != [False] * (len(endings) - 1) + [True]:
            yield f"{watch}: {[event.data['kind'] for event in events]}"


def _begun_rightly(histories: Histories) -> Iterator[str]:
    """`watching` is the first event of what was ever seen, and no other is."""
    for watch, events in histories.by_watch.items():
        kinds = [event.data["kind"] for event in events]
        if kinds[0] not in ("watching", "abandoned") or "watching" in kinds[1:] or set(kinds) - {*STARTED, *ENDINGS}:
            yield f"{watch}: {kinds}"


def _one_watch_at_a_time(histories: Histories) -> Iterator[str]:
    for task, events in histories.by_task.items():
        for before, after in pairwise(events):
            if before.data["kind"] == "completed":
                yield f"{task}: {after} follows {before}"
            elif after.watch != before.watch and not before.final:
                yield f"{task}: {after} interrupts {before}"


def _same_throughout(histories: Histories) -> Iterator[str]:
    """The watch as its events show it never changes, and each names the status of the one before."""
    for watch, events in histories.by_watch.items():
        if any(event.data["watch"] != events[0].data["watch"] for event in events):
            yield f"{watch}: labels, since or timeout changed"
        told = [None, *(event.data["status"] for event in events)]
        for event, before in zip(events, told, strict=False):
            if event.data["previous_status"] != before:
                yield f"{event}: previous_status {event.data['previous_status']}, not {before}"


# The truth: what vCenter's tasks went through


def _follows_the_task(histories: Histories) -> Iterator[str]:
    """Each watch's states are those of the task, in order; some in between may be missing."""
    for task, events in histories.by_task.items():
        truth = histories.account.truths.get(task, Truth(()))
        at = 0
        for event in events:
            if event.data["status"] is None:
                continue
            found = _state_of(event, truth.states, at)
            if found is None:
                yield f"{task}: {event} tells {_told(event)} after {truth.states[at : at + 1]}"
                break
            at = found


def _state_of(event: Event, states: tuple[Was, ...], at: int) -> int | None:
    """Which of the states from `at` on the event tells; it can't tell what hadn't come yet."""
    for number in range(at, len(states)):
        state = states[number]
        if (state.status, state.progress) == _told(event) and state.at <= event.at + CLOCK_S:
            return number
    return None


def _told(event: Event) -> tuple[str, tuple[int, int] | None]:
    progress = event.data["progress"]
    return event.data["status"], progress and (progress["completed"], progress["total"])


def _ends_as_the_task(histories: Histories) -> Iterator[str]:
    for watch in histories.by_watch:
        ending = histories.ending(watch)
        if ending is not None and (wrong := _wrong_ending(histories.account, ending)):
            yield f"{ending} of {ending.data['task']}: {wrong}"


def _wrong_ending(account: Account, ending: Event) -> str | None:
    outcome, truth = ending.data["outcome"], account.truths.get(ending.data["task"], Truth((), 0.0))
    if ending.data["kind"] == "completed":
        return _wrong_completion(ending.data, truth.states[-1]) if truth.states else "there is no such task"
    gone = {"lost": truth.unseen_at, "denied": truth.denied_at}
    if outcome in gone:
        since = gone[outcome]
        return None if since is not None and since <= ending.at + CLOCK_S else "vCenter showed the task"
    if outcome == "watch_timed_out":
        deadline = ending.data["watch"]["timeout_at"]
        return None if deadline and seconds(deadline) <= ending.at + CLOCK_S else "its time wasn't up"
    if outcome == "unwatched":
        asked = any(one.verb == "unwatch" and one.task == ending.data["task"] for one in account.answered)
        return None if asked else "nobody asked for it"
    return f"there is no outcome {outcome}"


def _wrong_completion(data: dict[str, Any], last: Was) -> str | None:
    canceled = last.error == "CANCELED"
    wanted = "succeeded" if last.status == "SUCCEEDED" else "canceled" if canceled else "failed"
    if last.status not in ("SUCCEEDED", "FAILED") or data["outcome"] != wanted:
        return f"vCenter says {last.status}"
    if (data["error"] is None) != (wanted == "succeeded"):
        return "its error"
    wrong = {
        "inline": data["result"] != last.result,
        "none": last.result is not None or data["result"] is not None,
        "stored": data["result_ref"] is None or last.result is None,
        "unavailable": False,  # what can't be fetched any more can't be known to be none
    }
    return f"its result is {data['result_state']}" if wrong.get(data["result_state"], True) else None


# The askers: every request, every answer


def _requests_served(histories: Histories) -> Iterator[str]:
    """Each stored request is a watch that ended or goes on, or was served by another watch, or is rejected."""
    watches: dict[str, list[str]] = defaultdict(list)
    remaining = dict(histories.account.remains.watches)
    for watch in {**dict.fromkeys(histories.by_watch), **remaining}:
        watches[watch.rpartition("-")[2]].append(watch)
    rejected = Counter(str(event.body["id"]).rpartition("-")[2] for event in histories.rejections)
    for asked in histories.account.asked:
        own = watches[str(asked.sequence)]
        if rejected[str(asked.sequence)] != (not asked.valid):
            yield f"{asked}: {rejected[str(asked.sequence)]} rejections"
        elif len(own) > (1 if asked.valid else 0):
            yield f"{asked}: watches {own}"
        elif asked.valid and not own and not _served_by_another(histories, asked):
            yield f"{asked}: nothing came of it"


def _served_by_another(histories: Histories, asked: Asked) -> bool:
    if any(task == asked.task for _, task in histories.account.remains.watches):
        return True
    return any(
        event.data["kind"] == "completed" or (event.final and event.stored.stored_at >= asked.sent_at - CLOCK_S)
        for event in histories.by_task.get(asked.task, ())
    )


def _not_served_twice(histories: Histories) -> Iterator[str]:
    """A stored request that another watch of its task outlived begins none."""
    sequences = {str(asked.sequence) for asked in histories.account.asked}
    for events in histories.by_task.values():
        for before, after in pairwise(events):
            if after.watch == before.watch or after.watch.rpartition("-")[2] not in sequences:
                continue
            if seconds(after.data["watch"]["since"]) < before.stored.stored_at - CLOCK_S:
                yield f"{after} was asked for before {before}"


def _answers_true(histories: Histories) -> Iterator[str]:
    remaining = {watch for watch, _ in histories.account.remains.watches}
    for answer in histories.account.answered:
        event = histories.by_id.get(answer.last_event or "")
        known = {
            "accepted": answer.watch in histories.by_watch or answer.watch in remaining,
            "already_watching": answer.watch in histories.by_watch or answer.watch in remaining,
            "already_completed": event is not None and event.data["kind"] == "completed",
            "unwatched": event is not None and event.data["outcome"] == "unwatched",
            "already_ended": event is not None and event.final,
        }
        if not known.get(answer.outcome, True):
            yield str(answer)


def _one_winner(histories: Histories) -> Iterator[str]:
    """An unwatched watch was told so to at least one asker or its answer was lost, and to no more than one."""
    told = Counter(answer.last_event for answer in histories.account.answered if answer.outcome == "unwatched")
    for event, times in told.items():
        if times > 1:
            yield f"{event} was told {times} times"


# The listeners, and what is left


def _heard_what_is_stored(histories: Histories) -> Iterator[str]:
    """A plain subscriber gets what is stored, in order, and nothing else.

    A rejection may come twice; and so may an event that was the newest when a stream's leader was killed: the next
    leader republishes what it applies (nats-server 2.15, measured), with the same id.
    """
    account = histories.account
    rejected = f"{account.prefix}.rejected"
    stored = {message.sequence: (message.subject, message.body) for message in account.stored}
    heard = [message for message in account.heard if message.subject != rejected]
    for message in heard:
        if stored.get(message.sequence) != (message.subject, message.body):
            yield f"heard and not stored: {message.subject}, stream {message.sequence}"
    sequences = [message.sequence for message in heard]
    if account.heard_all and len(set(sequences)) != len(sequences):
        yield f"heard twice: {[n for n, times in Counter(sequences).items() if times > 1]}"
    first_heard = list(dict.fromkeys(sequences))
    if first_heard != sorted(first_heard):
        yield "heard in another order than stored"
    missing = {number for number, (subject, _) in stored.items() if subject != rejected} - set(sequences)
    if account.heard_all and missing:
        yield f"stored and not heard: {sorted(missing)}"


def _nothing_orphaned(histories: Histories) -> Iterator[str]:
    remains = histories.account.remains
    for watch, task in remains.watches:
        if ending := histories.ending(watch):
            yield f"the message of {watch} outlived {ending}"
        elif any(event.data["kind"] == "completed" for event in histories.by_task.get(task, ())):
            yield f"{watch} waits for {task}, which completed"
    if remains.held + remains.waiting != len(remains.watches):
        yield f"{len(remains.watches)} watches, {remains.held} held and {remains.waiting} waiting"
    if remains.requests:
        yield f"{remains.requests} requests are still stored"


def _sessions_closed(histories: Histories) -> Iterator[str]:
    remains = histories.account.remains
    if remains.sessions > remains.excused_sessions:
        yield f"{remains.sessions} sessions left, {remains.excused_sessions} of them excused"


RULES: tuple[Callable[[Histories], Iterator[str]], ...] = (
    _readable,
    _in_place,
    _numbered,
    _ended_once,
    _begun_rightly,
    _one_watch_at_a_time,
    _same_throughout,
    _follows_the_task,
    _ends_as_the_task,
    _requests_served,
    _not_served_twice,
    _answers_true,
    _one_winner,
    _heard_what_is_stored,
    _nothing_orphaned,
    _sessions_closed,
)
