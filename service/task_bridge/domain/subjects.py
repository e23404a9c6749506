"""Every NATS name of the bridge, in one place. Pure.

A task id becomes one subject token by percent-encoding, so that no id can leave its token, and reversibly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

CONSUMER = "bridge"
SERVICE = "vcenter-task-bridge"
VERBS = ("watch", "unwatch", "get", "list", "cancel")

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_VCENTER = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*", re.ASCII)


def is_prefix(text: str) -> bool:
    """Whether `text` can be the subject prefix: tokens of letters, digits, `-` and `_`."""
    return len(text) <= 64 and _PREFIX.fullmatch(text) is not None


def is_vcenter_name(text: str) -> bool:
    """Whether `text` can name a vCenter: it is a subject token and half of an environment variable."""
    return len(text) <= 63 and _VCENTER.fullmatch(text) is not None


@lru_cache(maxsize=1024)  # asked some five times in a row of the same task
def task_token(task: str) -> str:
    """The subject token of a task id: everything but `A-Z a-z 0-9 - _ ~ :` percent-encoded as UTF-8."""
    # quote() never encodes the dot, which would split the token.
    return quote(task, safe="-_~:").replace(".", "%2E")


def decode_task_token(token: str) -> str:
    """The task id that `task_token` made `token` of."""
    return unquote(token, errors="strict")


@dataclass(frozen=True, slots=True)
class SubjectNames:
    """The subjects, streams and bucket of one bridge; everything follows from `prefix`."""

    prefix: str

    @property
    def requests(self) -> str:
        return f"{self.prefix}.watch"

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
    def replicas(self) -> str:
        """Where replicas tell each other how they are."""
        return f"{self.prefix}.internal.replicas"

    def watch_subject(self, vcenter: str, task: str) -> str:
        """Where the one watch message of a task lies."""
        return f"{self.watches}.{vcenter}.{task_token(task)}"

    def put_subject(self, vcenter: str, task: str, kind: str) -> str:
        """Where an event is published to; JetStream stores it as `events_of` with `kind` (`completed.failed`)."""
        return f"{self.put}.{vcenter}.{task_token(task)}.{kind}"

    def event_filter(self, vcenter: str, task: str) -> str:
        """All events of a task: what a consumer filters by, and the fence.

        nats-server keys its check of the expected sequence by this very text: two spellings let two writers
        both store (measured), so no other function may spell it.
        """
        return f"{self.events}.{vcenter}.{task_token(task)}.>"

    def parse_event_subject(self, subject: str) -> tuple[str, str]:
        """(vCenter, task id) of an event's subject."""
        vcenter, token, *_ = subject.removeprefix(self.events + ".").split(".")
        return vcenter, decode_task_token(token)

    def parse_watch_subject(self, subject: str) -> tuple[str, str] | None:
        """(vCenter, task id) of a watch message's subject, None when it isn't the bridge's own making."""
        tokens = subject.removeprefix(self.watches + ".").split(".")
        if len(tokens) != 2 or not is_vcenter_name(tokens[0]):
            return None
        try:
            task = decode_task_token(tokens[1])
        except UnicodeDecodeError:
            return None
        return (tokens[0], task) if task_token(task) == tokens[1] else None

    @property
    def _upper(self) -> str:
        return self.prefix.upper().replace(".", "_")

    @property
    def requests_stream(self) -> str:
        return f"{self._upper}_REQUESTS"

    @property
    def watches_stream(self) -> str:
        return f"{self._upper}_WATCHES"

    @property
    def events_stream(self) -> str:
        return f"{self._upper}_EVENTS"

    @property
    def results_bucket(self) -> str:
        return f"{self._upper}_RESULTS"
