"""All NATS names of the bridge. Pure.

A task id becomes one subject token by percent-encoding: reversible, and no id can leave its token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

CONSUMER = "bridge"
SERVICE = "vcenter-task-bridge"
VERBS = ("watch", "unwatch", "get", "list", "cancel", "follow", "unfollow", "follows")

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_CONSUMER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_FILTER = re.compile(r"([^\s.*>]+|\*)(\.([^\s.*>]+|\*))*(\.>)?")
_VCENTER = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*", re.ASCII)
_FOLLOW = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


def is_prefix(text: str) -> bool:
    """Return whether `text` is a valid subject prefix: tokens of letters, digits, `-` and `_`."""
    return len(text) <= 64 and _PREFIX.fullmatch(text) is not None


def is_consumer_name(text: str) -> bool:
    """Return whether `text` is a valid name of a consumer, which becomes a subject token."""
    return _CONSUMER_NAME.fullmatch(text) is not None


def is_vcenter_name(text: str) -> bool:
    """Return whether `text` is a valid vCenter name: it becomes a subject token and part of environment variables."""
    return len(text) <= 63 and _VCENTER.fullmatch(text) is not None


def is_follow_name(text: str) -> bool:
    """Return whether `text` is a valid name of a follow: it becomes a subject token."""
    return len(text) <= 63 and _FOLLOW.fullmatch(text) is not None


@lru_cache(maxsize=1024)  # called some five times in a row for the same task
def task_token(task: str) -> str:
    """Encode a task id as a subject token: everything but `A-Z a-z 0-9 - _ ~ :` percent-encoded as UTF-8."""
    # quote() never encodes the dot, which would split the token.
    return quote(task, safe="-_~:").replace(".", "%2E")


def decode_task_token(token: str) -> str:
    """Decode a subject token that `task_token` made."""
    return unquote(token, errors="strict")


@dataclass(frozen=True, slots=True)
class SubjectNames:
    """The subjects, streams and bucket of one bridge, all derived from `prefix`."""

    prefix: str

    @property
    def requests(self) -> str:
        return f"{self.prefix}.watch"

    @property
    def vcenter_requests(self) -> str:
        """Subjects of watch requests that name their vCenter, so that permissions can say who may ask for which."""
        return f"{self.requests}.*"

    @property
    def api(self) -> str:
        return f"{self.prefix}.api"

    @property
    def rejected(self) -> str:
        return f"{self.prefix}.rejected"

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def watches(self) -> str:
        return f"{self.prefix}.internal.watches"

    @property
    def put(self) -> str:
        return f"{self.prefix}.internal.put"

    @property
    def follow_requests(self) -> str:
        return f"{self.prefix}.follow"

    @property
    def vcenter_follow_requests(self) -> str:
        return f"{self.follow_requests}.*"

    @property
    def follows(self) -> str:
        """Root of the subjects of follows' events."""
        return f"{self.prefix}.follows"

    @property
    def held_follows(self) -> str:
        return f"{self.prefix}.internal.follows"

    @property
    def replicas(self) -> str:
        """Subject on which each replica reports its status to the others."""
        return f"{self.prefix}.internal.replicas"

    def watch_subject(self, vcenter: str, task: str) -> str:
        """Return the subject of a task's one watch message."""
        return f"{self.watches}.{vcenter}.{task_token(task)}"

    def put_subject(self, vcenter: str, task: str, kind: str) -> str:
        """Return the subject to publish an event to; JetStream stores it below `events`. `kind`: `completed.failed`."""
        return f"{self.put}.{vcenter}.{task_token(task)}.{kind}"

    def event_filter(self, vcenter: str, task: str) -> str:
        """Return the subject filter of all events of a task: consumers filter by it, and it is the fence.

        nats-server keys its check of the expected sequence by this exact text. With two spellings both of two writers
        were stored (measured), so no other function may spell it.
        """
        return f"{self.events}.{vcenter}.{task_token(task)}.>"

    def is_filter_of_stored(self, subject: str) -> bool:
        """Return whether `subject` (wildcards allowed) is a filter of events of tasks or follows, or of rejections."""
        is_of_events = subject.startswith((f"{self.events}.", f"{self.follows}.")) and _FILTER.fullmatch(subject)
        return bool(is_of_events) or subject == self.rejected

    def parse_named_vcenter(self, subject: str) -> str | None:
        """Return the vCenter that the subject of a request names, None if it names none."""
        for root in (self.requests, self.follow_requests, *(f"{self.api}.{verb}" for verb in VERBS)):
            if subject.startswith(f"{root}."):
                return subject[len(root) + 1 :]
        return None

    def parse_event_subject(self, subject: str) -> tuple[str, str]:
        """Return (vCenter, task id) of an event's subject."""
        vcenter, token, *_ = subject.removeprefix(self.events + ".").split(".")
        return vcenter, decode_task_token(token)

    def parse_follow_event_subject(self, subject: str) -> tuple[str, str]:
        """Return (vCenter, name) of the subject of a follow's event."""
        vcenter, name, *_ = subject.removeprefix(self.follows + ".").split(".")
        return vcenter, name

    def parse_watch_subject(self, subject: str) -> tuple[str, str] | None:
        """Return (vCenter, task id) of a watch message's subject, None if the bridge didn't make it."""
        tokens = subject.removeprefix(self.watches + ".").split(".")
        if len(tokens) != 2 or not is_vcenter_name(tokens[0]):
            return None
        try:
            task = decode_task_token(tokens[1])
        except UnicodeDecodeError:
            return None
        return (tokens[0], task) if task_token(task) == tokens[1] else None

    def held_follow_subject(self, vcenter: str, name: str) -> str:
        """Return the subject of a follow's one message."""
        return f"{self.held_follows}.{vcenter}.{name}"

    def follow_event_subject(self, vcenter: str, name: str, kind: str) -> str:
        return f"{self.follows}.{vcenter}.{name}.{kind}"

    def follow_event_filter(self, vcenter: str, name: str) -> str:
        """Return the subject filter of all events of a follow, which is also the fence (see `event_filter`)."""
        return f"{self.follows}.{vcenter}.{name}.>"

    @property
    def _upper(self) -> str:
        return self.prefix.upper().replace(".", "_")

    @property
    def requests_stream(self) -> str:
        return f"{self._upper}_REQUESTS"

    @property
    def vcenter_requests_stream(self) -> str:
        """Stream of `vcenter_requests`. Release 1.0 refuses to work on a requests stream with more subjects."""
        return f"{self._upper}_VCENTER_REQUESTS"

    @property
    def watches_stream(self) -> str:
        return f"{self._upper}_WATCHES"

    @property
    def follow_requests_stream(self) -> str:
        return f"{self._upper}_FOLLOW_REQUESTS"

    @property
    def follows_stream(self) -> str:
        return f"{self._upper}_FOLLOWS"

    @property
    def events_stream(self) -> str:
        return f"{self._upper}_EVENTS"

    @property
    def results_bucket(self) -> str:
        return f"{self._upper}_RESULTS"
