"""The permissions that the bridge's NATS user needs, and a way to find missing ones that changes nothing.

nats-server first checks whether the user may publish to a subject, then whether the reply subject is one of its own.
A message with such a reply is always refused and never reaches anybody; the error's text says which check refused it
(2.12, 2.15).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client

from ..domain.errors import NatsUnavailable
from ..domain.subjects import CONSUMER, FOLLOW_VERBS, VERBS, SubjectNames
from .connect import last_permission_violation
from .nats_py_workarounds import flush_and_wait
from .provision import Difference

REFUSED_REPLY = "_R_.task-bridge-check"
_PUBLISH, _SUBSCRIBE = "publish", "subscribe"


class Right(NamedTuple):
    """The permission to publish or subscribe to `subject`, as in `deploy/nats`; `probe` is a subject to try."""

    verb: str
    subject: str
    probe: str

    def __str__(self) -> str:
        return f"{self.verb} to {self.subject}"


def required_rights(names: SubjectNames, api: str, inbox: str) -> list[Right]:
    """Return the rights that the bridge needs, but for follows. `api`: JetStream's prefix; `inbox`: one of its own."""
    subscriptions = [Right(_SUBSCRIBE, f"{inbox.rpartition('.')[0]}.>", inbox)]
    subscriptions += [_subscribe(f"{names.api}.{verb}") for verb in VERBS if verb not in FOLLOW_VERBS]
    subscriptions += [_subscribe(f"{names.events}.*.*.abandoned.unwatched"), _subscribe(names.replicas)]
    subscriptions += [Right(_SUBSCRIBE, "$SRV.>", "$SRV.PING")]
    return [
        *subscriptions,
        *_publish_rights(names),
        *_consumer_rights((names.requests_stream, names.watches_stream), api),
        *_read_rights(names, api),
    ]


def follow_rights(names: SubjectNames, api: str) -> list[Right]:
    """Return the additional rights that follows, and subjects per vCenter, need.

    Subscriptions come first, then reads, then what stores something.
    """
    queues = (names.vcenter_requests_stream, names.follow_requests_stream, names.follows_stream)
    held = names.follows_stream
    return [
        subscribe_to_follows(names),
        *(_subscribe(f"{names.api}.{verb}") for verb in FOLLOW_VERBS),
        *(_subscribe(f"{names.api}.{verb}.*") for verb in VERBS),
        *(_publish(f"{api}.STREAM.INFO.{stream}") for stream in queues),
        *_consumer_rights(queues, api),
        _publish(f"{api}.STREAM.MSG.GET.{held}"),
        _publish(f"{api}.DIRECT.GET.{held}"),
        _publish(f"{api}.STREAM.MSG.DELETE.{held}"),
        _publish(f"{names.held_follows}.>", names.held_follow_subject("check", "check")),
        _publish(f"{names.follows}.>", names.follow_event_subject("check", "check", "following")),
    ]


def subscribe_to_follows(names: SubjectNames) -> Right:
    """Return the right to read the events of follows as they come."""
    return _subscribe(f"{names.follows}.>")


def creation_rights(names: SubjectNames, api: str, differences: Iterable[Difference]) -> list[Right]:
    """Return the additional rights that `serve` needs to create what is missing, and to add a late subject."""
    rights = []
    for difference in differences:
        kind, name = difference.where.split(" ", 1)
        if difference.field == "subjects" and not difference.unsafe:
            rights.append(_publish(f"{api}.STREAM.UPDATE.{name}"))
        if difference.field != "missing":
            continue
        if kind == "consumer":
            rights.append(_publish(f"{api}.CONSUMER.DURABLE.CREATE.{name.replace('/', '.')}"))
        else:
            rights.append(_publish(f"{api}.STREAM.CREATE.{name if kind == 'stream' else _bucket_stream(names)}"))
    return rights


def delivery_rights(names: SubjectNames, api: str, deliveries: Iterable[str]) -> list[Right]:
    """Return the additional rights that deliveries need, but for those to create what they lack."""
    stream = names.events_stream
    rights = [_subscribe(names.deliveries)]
    for delivery in deliveries:
        consumer = f"{stream}.deliver-{delivery}"
        rights += [_publish(f"{api}.CONSUMER.{request}.{consumer}") for request in ("INFO", "MSG.NEXT", "UNPIN")]
        rights.append(_publish(f"$JS.ACK.{consumer}.>", f"$JS.ACK.{consumer}.1.1.1.1.0"))
        rights.append(_publish(f"{names.undelivered}.{delivery}"))
    return rights if len(rights) > 1 else []


def reply_rights() -> list[Right]:
    """Return the rights to answer requests of any account; `allow_responses` is another way to allow answers."""
    return [_publish("_INBOX.>", "_INBOX.check"), _publish("_R_.>", "_R_.check")]


def _publish_rights(names: SubjectNames) -> list[Right]:
    objects = f"$O.{names.results_bucket}"
    return [
        _publish(f"{names.watches}.>", names.watch_subject("check", "check")),
        _publish(f"{names.put}.>", names.put_subject("check", "check", "completed.succeeded")),
        _publish(names.rejected),
        _publish(names.replicas),
        _publish(f"{objects}.C.>", f"{objects}.C.check"),
        _publish(f"{objects}.M.>", f"{objects}.M.check"),
    ]


def _consumer_rights(queues: Iterable[str], api: str) -> list[Right]:
    rights = []
    for consumer in (f"{stream}.{CONSUMER}" for stream in queues):
        rights += [_publish(f"{api}.CONSUMER.{request}.{consumer}") for request in ("INFO", "MSG.NEXT")]
        rights.append(_publish(f"$JS.ACK.{consumer}.>", f"$JS.ACK.{consumer}.1.1.1.1.0"))
    return rights


def _read_rights(names: SubjectNames, api: str) -> list[Right]:
    events, objects = names.events_stream, _bucket_stream(names)
    requests, watches = names.requests_stream, names.watches_stream
    direct = f"{api}.DIRECT.GET.{events}"
    return [
        *(_publish(f"{api}.STREAM.INFO.{stream}") for stream in (requests, watches, events, objects)),
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


async def find_missing_rights(client: Client, rights: Iterable[Right]) -> list[Right]:
    """Return those of `rights` that the user lacks. Raises NatsUnavailable when nats-server doesn't say."""
    try:
        await _may_publish(client, client.new_inbox())  # try a harmless subject first: a server might let it pass
        return [right for right in rights if not await _has_right(client, right)]
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsUnavailable(f"nats-server doesn't say which permissions are missing: {error}") from error


async def find_missing_right(client: Client, rights: Iterable[Right]) -> Right | None:
    """Return the first of `rights` that the user lacks, and try no others. Raises NatsUnavailable."""
    try:
        for right in rights:
            if not await _has_right(client, right):
                return right
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsUnavailable(f"nats-server doesn't say which permissions are missing: {error}") from error
    return None


async def _has_right(client: Client, right: Right) -> bool:
    if right.verb == _PUBLISH:
        return await _may_publish(client, right.probe)
    error_before = client.last_error
    subscription = await client.subscribe(right.probe)
    try:
        return await _read_violation(client, error_before) is None
    finally:
        await subscription.unsubscribe()


async def _may_publish(client: Client, subject: str) -> bool:
    error_before = client.last_error
    await client.publish(subject, b"", REFUSED_REPLY)
    violation = await _read_violation(client, error_before)
    if violation is None:
        raise NatsUnavailable(
            "nats-server doesn't say which permissions are missing: it accepted a reply subject of its own."
        )
    return "with reply" in violation


async def _read_violation(client: Client, error_before: Exception | None) -> str | None:
    """Return the permission violation that nats-server has reported since `error_before` was the last error."""
    await flush_and_wait(client)
    return None if client.last_error is error_before else last_permission_violation(client)
