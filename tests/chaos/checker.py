"""Judges a history: what was asked, what is stored and what the tasks really went through. Pure.

It knows the contract and nothing of the bridge's code, from which it imports nothing. `violations` is all there is
to call; every rule below is a function of the whole `Account`, and `test_checker.py` breaks each.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import quote

from chaos.account import CLOCK_S, Account, Asked, Stored, Truth, Was

FIRST_AFTER_A_LOSS = 10**12
"""A watch that goes on without its memory is numbered by the time in milliseconds."""
LATE_S = 60.0
"""How long an event may wait for a stream that takes it."""
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

    def may_follow_loss_of(self, before: Event) -> bool:
        """Whether the event before may have gone from the stream when this one was stored."""
        return before.stored.there_at <= self.stored.stored_at + CLOCK_S

    @property
    def has_gone_at_once(self) -> bool:
        """Whether it was evicted while others may have been about to write the same."""
        return self.stored.gone_at - self.stored.stored_at < 0.5

    def is_blind_first(self, earlier: Sequence[Event]) -> bool:
        """Whether it is the first event of an owner that was cut off until all that another one wrote had gone."""
        instances = {event.stored.headers.get("Bridge-Instance") for event in earlier}
        is_other = self.stored.headers.get("Bridge-Instance") not in instances
        return self.data["sequence"] == 1 and is_other and all(map(self.may_follow_loss_of, earlier))

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
        self.of_follows: list[Event] = []
        self.unreadable: list[Stored] = []
        self.by_task: dict[str, list[Event]] = defaultdict(list)
        self.by_watch: dict[str, list[Event]] = defaultdict(list)
        self.by_id: dict[str, Event] = {}
        self.lost_watches = dict(account.lost.watches)
        for stored in account.stored:
            self._take(stored)

    def _take(self, stored: Stored) -> None:
        try:
            event = Event(stored, json.loads(stored.body))
            if stored.subject == f"{self.account.prefix}.rejected":
                self.rejections.append(event)
                return
            if stored.subject.startswith(f"{self.account.prefix}.follows."):
                self.of_follows.append(event)
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
    """1, 2, 3… without gap or repeat, in the order of the stream; a jump only where the event before had gone.

    One that had no event when it was cut off can't know that another owner's have gone: it begins with 1. And the very
    same event may be stored again if it had gone before its confirmation came.
    """
    first_loss = histories.account.lost.events_at
    for watch, events in histories.by_watch.items():
        numbers = [event.data["sequence"] for event in events]
        if numbers[0] != 1 and not (numbers[0] >= FIRST_AFTER_A_LOSS and events[0].stored.stored_at >= first_loss):
            yield f"{watch}: {numbers}"
        for place, (before, after) in enumerate(pairwise(events), 1):
            number = after.data["sequence"]
            jumps = number >= FIRST_AFTER_A_LOSS and number > before.data["sequence"]
            # A nats-server that was killed has again what a cap had evicted just before: then the fence holds.
            is_fenced_by = after.stored.headers.get("Nats-Expected-Last-Subject-Sequence") == str(
                before.stored.sequence
            )
            had_gone = before.stored.gone_at <= after.stored.stored_at - CLOCK_S and not is_fenced_by
            if number == before.data["sequence"] + 1:
                if had_gone:
                    yield f"{after} hides that {before} had gone"
            elif not (
                (jumps or after.body == before.body) and after.may_follow_loss_of(before)
            ) and not after.is_blind_first(events[:place]):
                yield f"{watch}: {numbers}"


def _losses_reported(histories: Histories) -> Iterator[str]:
    """Where memory was lost a bridge said so."""
    jumped = [
        str(after)
        for events in histories.by_watch.values()
        for before, after in pairwise(events)
        if after.data["sequence"] != before.data["sequence"] + 1
    ]
    if jumped and not histories.account.reported_losses:
        yield f"nobody reported the loss before {jumped}"


def _ended_once(histories: Histories) -> Iterator[str]:
    """Exactly one ending, the last event of its watch.

    Only one that remains, or was removed, may be without; and nobody can know of an ending that was removed before
    the watch's message was. An ending may be stored again if it had gone before its confirmation came.
    """
    without = {watch for watch, _ in histories.account.remains.watches} | histories.lost_watches.keys()
    unacked = histories.account.lost.unacked
    for watch, events in histories.by_watch.items():
        goes_on = any(
            before.final
            and not (
                (watch in unacked or after.body == before.body or before.has_gone_at_once)
                and after.may_follow_loss_of(before)
            )
            for before, after in pairwise(events)
        )
        if goes_on or not (events[-1].final or watch in without):
            yield f"{watch}: {[event.data['kind'] for event in events]}"


def _begun_rightly(histories: Histories) -> Iterator[str]:
    """`watching` is the first event of what was ever seen, and no other is but after the one before had gone."""
    for watch, events in histories.by_watch.items():
        kinds = [event.data["kind"] for event in events]
        if kinds[0] not in ("watching", "abandoned") or set(kinds) - {*STARTED, *ENDINGS}:
            yield f"{watch}: {kinds}"
        for before, after in pairwise(events):
            if after.data["kind"] == "watching" and not after.may_follow_loss_of(before):
                yield f"{watch}: {kinds}"


def _one_watch_at_a_time(histories: Histories) -> Iterator[str]:
    """One follows the other. One that was removed may be interrupted; then it is over."""
    for task, events in histories.by_task.items():
        interrupted = set()
        for before, after in pairwise(events):
            if before.data["kind"] == "completed" and not after.may_follow_loss_of(before):
                yield f"{task}: {after} follows {before}"
            elif after.watch != before.watch and not before.final and before.watch not in histories.lost_watches:
                yield f"{task}: {after} interrupts {before}"
            if after.watch != before.watch:
                interrupted.add(before.watch)
            if after.watch in interrupted:
                yield f"{task}: {after} comes after another watch"


def _same_throughout(histories: Histories) -> Iterator[str]:
    """The watch as its events show it never changes, and each names the status of the one before.

    Where that had gone it may be an earlier one, which is all that a second owner remembers, or none.
    """
    for watch, events in histories.by_watch.items():
        # Release 1.0 doesn't write `follow`; what this one writes there of a watch of 1.0 is null.
        if any(
            {"follow": None} | event.data["watch"] != {"follow": None} | events[0].data["watch"] for event in events
        ):
            yield f"{watch}: labels, since or timeout changed"
        if events[0].data["previous_status"] is not None:
            yield f"{events[0]}: previous_status {events[0].data['previous_status']}"
        earlier = {None}
        for before, event in pairwise(events):
            told, wanted = event.data["previous_status"], before.data["status"]
            if told != wanted and not (told in earlier and event.may_follow_loss_of(before)):
                yield f"{event}: previous_status {told}, not {wanted}"
            earlier.add(wanted)


# The truth: what vCenter's tasks went through


def _follows_the_task(histories: Histories) -> Iterator[str]:
    """Each watch's states are those of the task, in order; some in between may be missing.

    Without the event before nothing keeps a second owner from telling what it saw longer ago.
    """
    for task, events in histories.by_task.items():
        truth = histories.account.truths.get(task, Truth(()))
        at = 0
        for before, event in zip([None, *events], events, strict=False):
            if event.data["status"] is None:
                continue
            if before is not None and event.may_follow_loss_of(before):
                at = 0
            elif before is not None and before.watch != event.watch and _is_classic_blocked(task, truth.states[at:]):
                at -= 1  # only the first poll of a watch shows which VM's question it has to read
            found = _state_of(event, truth.states, at, histories.account.clock_s)
            if found is not None:
                at = found
            elif not _tells_the_answer_alone(task, event, truth.states[at : at + 2], histories.account.clock_s):
                yield f"{task}: {event} tells {_told(event)} after {truth.states[at : at + 1]}"


def _is_classic_blocked(task: str, states: Sequence[Was]) -> bool:
    return task.startswith("task-") and bool(states) and states[0].status == "BLOCKED"


def _tells_the_answer_alone(task: str, event: Event, states: Sequence[Was], clock_s: float) -> bool:
    """Whether the event tells that a VM's question was answered, and not yet what became of its task's progress."""
    if not _is_classic_blocked(task, states) or len(states) < 2 or states[1].at > event.at + clock_s:
        return False
    return _told(event) == ("RUNNING", states[0].progress) and states[1].status == "RUNNING"


def _state_of(event: Event, states: tuple[Was, ...], at: int, clock_s: float) -> int | None:
    """Which of the states from `at` on the event tells; it can't tell what hadn't come yet."""
    for number in range(at, len(states)):
        state = states[number]
        if (state.status, state.progress) == _told(event) and state.at <= event.at + clock_s:
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
    latest = ending.at + account.clock_s
    if ending.data["kind"] == "completed":
        return _wrong_completion(ending.data, truth.states[-1]) if truth.states else "there is no such task"
    gone = {"lost": truth.unseen_at, "denied": truth.denied_at}
    if outcome in gone:
        since = gone[outcome]
        return None if since is not None and since <= latest else "vCenter showed the task"
    if outcome == "watch_timed_out":
        deadline = ending.data["watch"]["timeout_at"]
        return None if deadline and seconds(deadline) <= latest else "its time wasn't up"
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


def _told_in_time(histories: Histories) -> Iterator[str]:
    """Times are those of nats-server, whatever the clocks of the bridges' hosts say."""
    clock_s = histories.account.clock_s
    for watch, events in histories.by_watch.items():
        for event in events:
            if not -clock_s <= event.stored.stored_at - event.at <= LATE_S:
                yield f"{event}: its time is {event.body['time']}, it was stored at {event.stored.stored_at}"
        since = seconds(events[0].data["watch"]["since"])
        if since > events[0].stored.stored_at + clock_s:
            yield f"{watch}: it is said to have begun after its first event"


# The askers: every request, every answer


def _requests_served(histories: Histories) -> Iterator[str]:
    """Each stored request is a watch that ended or goes on, or was served by another watch, or is rejected.

    What was removed from the queues, or whose watch was, may have come to nothing.
    """
    watches = {**dict.fromkeys(histories.by_watch), **dict(histories.account.remains.watches)}
    for asked in histories.account.asked:
        own = [watch for watch in watches if _is_begun_by(watch, asked)]
        rejections = [event for event in histories.rejections if _is_begun_by(event.body["id"], asked)]
        rejected = len(rejections) - sum(after.may_follow_loss_of(before) for before, after in pairwise(rejections))
        is_lost = asked.task in histories.lost_watches.values() or any(
            _is_stored_as(asked, *request) for request in histories.account.lost.requests
        )
        if rejected != (not asked.valid) and not (is_lost and not rejected):
            yield f"{asked}: {rejected} rejections"
        elif len(own) > (1 if asked.valid else 0):
            yield f"{asked}: watches {own}"
        elif asked.valid and not own and not is_lost and not _served_by_another(histories, asked):
            yield f"{asked}: nothing came of it"


def _is_begun_by(key: str, asked: Asked) -> bool:
    """Whether a watch or a rejection has the id that this request gives it."""
    stored_ms, _, sequence = key.partition("-")
    return sequence == str(asked.sequence) and _is_stored_as(asked, asked.sequence, int(stored_ms) / 1000)


def _is_stored_as(asked: Asked, sequence: int, stored_at: float) -> bool:
    return sequence == asked.sequence and asked.sent_at - CLOCK_S <= stored_at <= asked.confirmed_at + CLOCK_S


def _served_by_another(histories: Histories, asked: Asked) -> bool:
    if any(task == asked.task for _, task in histories.account.remains.watches):
        return True
    return any(
        (event.data["kind"] == "completed" and event.stored.gone_at > asked.sent_at)
        or (event.final and event.stored.stored_at >= asked.sent_at - CLOCK_S)
        for event in histories.by_task.get(asked.task, ())
    )


def _not_served_twice(histories: Histories) -> Iterator[str]:
    """A stored request that another watch of its task outlived begins none."""
    sequences = {str(asked.sequence) for asked in histories.account.asked}
    for events in histories.by_task.values():
        for before, after in pairwise(events):
            if after.watch == before.watch or after.watch.rpartition("-")[2] not in sequences:
                continue
            is_earlier = seconds(after.data["watch"]["since"]) < before.stored.stored_at - CLOCK_S
            if is_earlier and not after.may_follow_loss_of(before) and before.watch not in histories.lost_watches:
                yield f"{after} was asked for before {before}"


def _answers_true(histories: Histories) -> Iterator[str]:
    """What is said to be watched is, or is answered by a watch whose message was removed and that goes on."""
    remaining = {watch for watch, _ in histories.account.remains.watches} | histories.lost_watches.keys()
    for answer in histories.account.answered:
        event = histories.by_id.get(answer.last_event or "")
        known = {
            "accepted": answer.watch in histories.by_watch or answer.watch in remaining,
            "already_watching": answer.watch in histories.by_watch or answer.watch in remaining,
            "already_completed": event is not None and event.data["kind"] == "completed",
            "unwatched": event is not None and event.data["outcome"] == "unwatched",
            "already_ended": event is not None and event.final,
        }
        is_excused = (
            answer.outcome in ("accepted", "already_watching") and answer.task in histories.lost_watches.values()
        )
        if not known.get(answer.outcome, True) and not is_excused:
            yield str(answer)


def _one_winner(histories: Histories) -> Iterator[str]:
    """An unwatched watch was told so to at least one asker or its answer was lost, and to no more than one.

    Nobody knows who ended it once its event was removed before the confirmation came.
    """
    answers = [answer for answer in histories.account.answered if answer.verb == "unwatch"]
    told = Counter(answer.last_event for answer in answers if answer.outcome == "unwatched")
    for event, times in told.items():
        if times > 1:
            yield f"{event} was told {times} times"
    for task, events in histories.by_task.items():
        outcomes = {answer.outcome for answer in answers if answer.task == task}
        if outcomes <= {"unwatched", "already_ended", "not_watched"}:
            unwatched = (
                event for event in events if event.data["outcome"] == "unwatched" and event.stored.gone_at == math.inf
            )
            yield from (f"{event} was told to nobody" for event in unwatched if event.body["id"] not in told)


# Follows: every task, without anybody asking


def _followed_completely(histories: Histories) -> Iterator[str]:
    """Every task that was queued since a follow was in force has one watch and one ending, or a gap covers it."""
    account = histories.account
    gaps = [event.data for event in histories.of_follows if event.data["kind"] == "gap"]
    spans = [(seconds(gap["from"]) - CLOCK_S, seconds(gap["to"]) + CLOCK_S) for gap in gaps]
    for task, truth in account.truths.items():
        queued_at = truth.states[0].at
        if queued_at < account.followed_from or truth.unseen_at is not None:
            continue
        events = histories.by_task.get(task, [])
        watches, endings = {event.watch for event in events}, sum(event.final for event in events)
        if not events and any(begin <= queued_at <= end for begin, end in spans):
            continue
        if (len(watches), endings) != (1, 1):
            yield f"{task}: {len(watches)} watches, {endings} endings"


def _follows_numbered(histories: Histories) -> Iterator[str]:
    """The events of a follow are numbered without gaps."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for event in histories.of_follows:
        numbers[event.data["follow"]["id"]].append(event.data["sequence"])
    for follow, found in numbers.items():
        if found != list(range(1, len(found) + 1)):
            yield f"{follow}: {found}"


# The listeners, and what is left


def _heard_what_is_stored(histories: Histories) -> Iterator[str]:
    """A plain subscriber gets what is stored, in order, and nothing else.

    A rejection may come twice; and so may an event that was the newest when a stream's leader was killed: the next
    leader republishes what it applies (nats-server 2.15, measured), with the same id.
    """
    account = histories.account
    rejected = f"{account.prefix}.rejected"
    stored = [message for message in account.stored if message.subject.startswith(f"{account.prefix}.events.")]
    place = {(message.sequence, message.subject, message.body): number for number, message in enumerate(stored)}
    heard = [message for message in account.heard if message.subject != rejected]
    places = [place.get((message.sequence, message.subject, message.body)) for message in heard]
    for message, number in zip(heard, places, strict=True):
        if number is None:
            yield f"heard and not stored: {message.subject}, stream {message.sequence}"
    known = [number for number in places if number is not None]
    if account.heard_all and len(set(known)) != len(known):
        yield f"heard twice: {[stored[n].sequence for n, times in Counter(known).items() if times > 1]}"
    first_heard = list(dict.fromkeys(known))
    if first_heard != sorted(first_heard):
        yield "heard in another order than stored"
    missing = [message.sequence for number, message in enumerate(stored) if number not in set(known)]
    if account.heard_all and missing:
        yield f"stored and not heard: {missing}"


def _nothing_orphaned(histories: Histories) -> Iterator[str]:
    remains = histories.account.remains
    for watch, task in remains.watches:
        if ending := histories.ending(watch):
            yield f"the message of {watch} outlived {ending}"
        elif any(_is_completed(event) for event in histories.by_task.get(task, ())):
            yield f"{watch} waits for {task}, which completed"
    if remains.held + remains.waiting != len(remains.watches):
        yield f"{len(remains.watches)} watches, {remains.held} held and {remains.waiting} waiting"
    if remains.requests:
        yield f"{remains.requests} requests are still stored"


def _is_completed(event: Event) -> bool:
    return event.data["kind"] == "completed" and event.stored.gone_at == math.inf


def _sessions_closed(histories: Histories) -> Iterator[str]:
    remains = histories.account.remains
    if remains.sessions > remains.excused_sessions:
        yield f"{remains.sessions} sessions left, {remains.excused_sessions} of them excused"


RULES: tuple[Callable[[Histories], Iterator[str]], ...] = (
    _readable,
    _in_place,
    _numbered,
    _losses_reported,
    _ended_once,
    _begun_rightly,
    _one_watch_at_a_time,
    _same_throughout,
    _follows_the_task,
    _ends_as_the_task,
    _told_in_time,
    _requests_served,
    _not_served_twice,
    _answers_true,
    _one_winner,
    _followed_completely,
    _follows_numbered,
    _heard_what_is_stored,
    _nothing_orphaned,
    _sessions_closed,
)
