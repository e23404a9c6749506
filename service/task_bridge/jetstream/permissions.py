"""What the bridge's NATS user must be allowed, and finding out, changing nothing, what it isn't.

nats-server looks whether a user may publish to a subject, and then whether the reply subject is one of its own. So
a message with such a reply is refused either way, told apart by the words, and never reaches anybody (2.12, 2.15).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client

from ..domain.errors import NatsUnavailable
from ..domain.subjects import CONSUMER, VERBS, SubjectNames
from .connect import last_permission_violation
from .nats_py_workarounds import flush_and_wait
from .provision import Difference

REFUSED_REPLY = "_R_.task-bridge-check"
_PUBLISH, _SUBSCRIBE = "publish", "subscribe"


class Right(NamedTuple):
    """To publish or subscribe to `subject`, as `deploy/nats` says it; `probe` is a subject that the bridge uses."""

    verb: str
    subject: str
    probe: str

    def __str__(self) -> str:
        return f"{self.verb} to {self.subject}"


def required_rights(names: SubjectNames, api: str, inbox: str) -> list[Right]:
    """What the bridge can't do without. `api` is JetStream's prefix, `inbox` one of the connection's own."""
    heard = [Right(_SUBSCRIBE, f"{inbox.rpartition('.')[0]}.>", inbox)]
    heard += [_subscribe(f"{names.api}.{verb}") for verb in VERBS]
    heard += [_subscribe(f"{names.events}.*.*.abandoned.unwatched"), _subscribe(names.replicas)]
    heard += [Right(_SUBSCRIBE, "$SRV.>", "$SRV.PING")]
    return [*heard, *_messages(names), *_infos(names, api), *_consuming(names, api), *_reading(names, api)]


def creation_rights(names: SubjectNames, api: str, missing: Iterable[Difference]) -> list[Right]:
    """What `serve` needs besides to create what is missing."""
    return [_publish(f"{api}.{_creation(names, *difference.where.split(' ', 1))}") for difference in missing]


def _creation(names: SubjectNames, kind: str, name: str) -> str:
    if kind == "consumer":
        return f"CONSUMER.DURABLE.CREATE.{name.replace('/', '.')}"
    return f"STREAM.CREATE.{name if kind == 'stream' else _bucket_stream(names)}"


def reply_rights() -> list[Right]:
    """Answers to the bridge's own account and to others: `allow_responses` allows them in another way."""
    return [_publish("_INBOX.>", "_INBOX.check"), _publish("_R_.>", "_R_.check")]


def board_rights(names: SubjectNames, api: str) -> list[Right]:
    """What the board follows the events with."""
    create = _publish(f"{api}.CONSUMER.CREATE.{names.events_stream}")
    return [create, _publish("$JS.FC.>", f"$JS.FC.{names.events_stream}.check")]


def _messages(names: SubjectNames) -> list[Right]:
    objects = f"$O.{names.results_bucket}"
    return [
        _publish(f"{names.watches}.>", names.watch_subject("check", "check")),
        _publish(f"{names.put}.>", names.put_subject("check", "check", "completed.succeeded")),
        _publish(names.rejected),
        _publish(names.replicas),
        _publish(f"{objects}.C.>", f"{objects}.C.check"),
        _publish(f"{objects}.M.>", f"{objects}.M.check"),
    ]


def _infos(names: SubjectNames, api: str) -> list[Right]:
    streams = (names.requests_stream, names.watches_stream, names.events_stream, _bucket_stream(names))
    return [_publish(f"{api}.STREAM.INFO.{stream}") for stream in streams]


def _consuming(names: SubjectNames, api: str) -> list[Right]:
    found = []
    for consumer in (f"{stream}.{CONSUMER}" for stream in (names.requests_stream, names.watches_stream)):
        found += [_publish(f"{api}.CONSUMER.{what}.{consumer}") for what in ("INFO", "MSG.NEXT")]
        found.append(_publish(f"$JS.ACK.{consumer}.>", f"$JS.ACK.{consumer}.1.1.1.1.0"))
    return found


def _reading(names: SubjectNames, api: str) -> list[Right]:
    watches, events, objects = names.watches_stream, names.events_stream, _bucket_stream(names)
    direct = f"{api}.DIRECT.GET.{events}"
    return [
        *(_publish(f"{api}.STREAM.MSG.GET.{stream}") for stream in (watches, events, objects)),
        *(_publish(f"{api}.DIRECT.GET.{stream}") for stream in (watches, events)),
        _publish(f"{direct}.>", f"{direct}.{names.event_filter('check', 'check')}"),
        _publish(f"{api}.STREAM.MSG.DELETE.{watches}"),
        _publish(f"{api}.STREAM.PURGE.{objects}"),
    ]


def _bucket_stream(names: SubjectNames) -> str:
    return f"OBJ_{names.results_bucket}"


def _publish(subject: str, probe: str = "") -> Right:
    return Right(_PUBLISH, subject, probe or subject)


def _subscribe(subject: str) -> Right:
    return Right(_SUBSCRIBE, subject, subject)


async def find_missing_rights(client: Client, wanted: Iterable[Right]) -> list[Right]:
    """Those of `wanted` that the user hasn't. Raises NatsUnavailable when nats-server doesn't tell."""
    try:
        await _may_publish(client, client.new_inbox())  # a server that let it pass would have harmed nobody yet
        return [right for right in wanted if not await _has(client, right)]
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsUnavailable(f"nats-server doesn't tell what is permitted: {error}") from error


async def _has(client: Client, right: Right) -> bool:
    if right.verb == _PUBLISH:
        return await _may_publish(client, right.probe)
    before = client.last_error
    subscription = await client.subscribe(right.probe)
    try:
        return await _told(client, before) is None
    finally:
        await subscription.unsubscribe()


async def _may_publish(client: Client, subject: str) -> bool:
    before = client.last_error
    await client.publish(subject, b"", REFUSED_REPLY)
    told = await _told(client, before)
    if told is None:
        raise NatsUnavailable("nats-server doesn't tell what is permitted: it took a reply subject of its own.")
    return "with reply" in told


async def _told(client: Client, before: Exception | None) -> str | None:
    """What nats-server forbade since `before`, the last error until then."""
    await flush_and_wait(client)
    return None if client.last_error is before else last_permission_violation(client)
