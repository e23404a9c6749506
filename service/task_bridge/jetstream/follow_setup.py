"""Whether NATS is prepared for follows: the streams, consumers and permissions that only they need.

The stream and the subjects of requests that name their vCenter in the subject count as theirs: both came with 1.1.

A NATS that was prepared for release 1.0 has none of them. Its watches are served all the same, follows are off and say
why, and what is missing is looked for again and again. Each look that NATS forbids leaves a line in nats-server's log,
so it is seldom, and ends at the first right that is missing.
"""

from __future__ import annotations

import asyncio
import math
import time

import structlog

from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.subjects import FOLLOW_VERBS, VERBS, SubjectNames
from ..logs import FailureLog
from .permissions import Right, creation_rights, find_missing_right, follow_rights, subscribe_to_follows
from .provision import JetStreamConfig, Provisioned, provision, provision_streams
from .streams import Streams

log = structlog.get_logger(__name__)

RECHECK_S = 15.0
_ALLOW = "give the bridge's NATS user the lines for follows of deploy/nats/accounts.conf"
_PROVISION = "run `task-bridge provision`"


class FollowsOff(NatsUnavailable):
    """NATS isn't prepared for follows. The message has the reason and the cure."""


class FollowSetup:
    """Whether follows work. `off_reason` says why not, with the cure; None if they do."""

    def __init__(self, streams: Streams, names: SubjectNames, expected: JetStreamConfig, *, create: bool) -> None:
        self._streams = streams
        self._names = names
        self._expected = expected
        self._create = create
        self._subjects = _list_subjects(names)
        self._is_denied = False
        self._is_verb_denied = False
        self._checked_at = -math.inf
        self._log = FailureLog(log, "follows_off", "follows_on")
        self._on, self._off = asyncio.Event(), asyncio.Event()
        self.off_reason: str | None = "follows are off: NATS isn't checked yet"

    def require_on(self) -> None:
        """Raise FollowsOff unless follows work."""
        if self.off_reason is not None:
            raise FollowsOff(self.off_reason)

    async def wait_until_on(self) -> None:
        await self._on.wait()

    async def wait_until_off(self) -> None:
        await self._off.wait()

    def note_denied(self, message: str) -> bool:
        """Turn follows off if NATS forbids what only they need. Return whether this violation is of that kind."""
        text = message.lower()
        if not any(subject in text for subject in self._subjects):
            return False
        self._is_denied = True
        self._is_verb_denied |= f'subscription to "{self._names.api}.'.lower() in text
        self._turn_off(f"NATS says: {message}", _ALLOW)
        return True

    async def check(self, first_sequence: int | None = None) -> Provisioned | None:
        """Look whether follows work, and create what is missing if that is allowed. While they are off, look seldom.

        Return what there is if they work, else None. Raises NatsUnavailable when JetStream is away.
        """
        if self.off_reason is not None:
            if time.monotonic() - self._checked_at < RECHECK_S:
                return None
            self._checked_at = time.monotonic()
        try:
            return await self._check(first_sequence)
        except NatsUnavailable:
            if not self._is_denied:  # else `note_denied` has turned follows off
                self._checked_at = -math.inf
                raise
            return None

    async def _check(self, first_sequence: int | None) -> Provisioned | None:
        if self.off_reason is not None:
            right = await find_missing_right(self._streams.connection, await self._list_rights())
            if right is not None:
                self._turn_off(f"NATS doesn't let the bridge {right}", _ALLOW)
                return None
            self._is_denied = False
        expected = self._expected.only_follows()
        try:
            provisioned = await provision_streams(
                self._streams, expected, create=self._create, first_sequence=first_sequence
            )
        except CannotStart as error:
            self._turn_off(str(error), _PROVISION)
            return None
        unsafe = [str(difference) for difference in provisioned.differences if difference.unsafe]
        if unsafe:
            self._turn_off("; ".join(unsafe), _PROVISION)
        elif not self._is_denied:
            await self._turn_on()
        return provisioned if self.off_reason is None else None

    async def _list_rights(self) -> list[Right]:
        """Return the rights to try: after a violation all, before only one that release 1.0 doesn't have.

        Trying a right to publish leaves a line in nats-server's log even if the user has it.
        """
        if not self._is_denied:
            return [subscribe_to_follows(self._names)]
        rights = follow_rights(self._names, self._streams.prefix)
        if not self._create:
            return rights
        provisioned = await provision(self._streams, self._expected, create=False)
        return rights + creation_rights(self._names, self._streams.prefix, provisioned.differences)

    def _turn_off(self, reason: str, cure: str) -> None:
        self.off_reason = f"follows are off: {reason}; {cure}"
        self._log.report_failure(reason=reason, cure=cure)
        self._on.clear()
        self._off.set()

    async def _turn_on(self) -> None:
        if self.off_reason is None:
            return
        if self._is_verb_denied:
            self._is_verb_denied = False
            await self._streams.connection.force_reconnect()  # nats-server refuses a subscription once for all
        self.off_reason = None
        self._log.report_recovery()
        self._off.clear()
        self._on.set()


def _list_subjects(names: SubjectNames) -> list[str]:
    """Return the parts of subjects, in lower case, that show a violation to be about follows."""
    queues = names.vcenter_requests_stream, names.follow_requests_stream, names.follows_stream
    subjects = [
        f'"{names.follows}.',
        f'"{names.held_follows}.',
        *(f'"{names.api}.{verb}"' for verb in FOLLOW_VERBS),
        *(f'"{names.api}.{verb}.*"' for verb in VERBS),
        *(f".{stream}{end}" for stream in queues for end in ('"', ".")),
        f'.STREAM.UPDATE.{names.events_stream}"',
    ]
    return [subject.lower() for subject in subjects]
