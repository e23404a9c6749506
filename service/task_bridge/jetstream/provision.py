"""What the bridge's streams, consumers and bucket must be, and making or verifying them.

FastStream and nats-py can't be left to it: declaring a stream resets what an operator tuned, and an existing
durable's settings are ignored. Here what is missing is created, what differs is told, and nothing is reset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    ObjectStoreConfig,
    RePublish,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
    SubjectTransform,
)

from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.subjects import CONSUMER, SubjectNames
from .connect import denied_permission
from .streams import Streams

LEAST_SERVER = (2, 12, 8)
_STREAM_SAFETY = (
    "subjects",
    "retention",
    "discard",
    "max_msgs_per_subject",
    "discard_new_per_subject",
    "subject_transform",
    "republish",
)
_STREAM_OTHERS = ("storage", "num_replicas", "max_age", "compression", "allow_direct", "max_msgs", "max_bytes")
_CONSUMER_SAFETY = ("ack_policy",)
_CONSUMER_OTHERS = ("ack_wait", "max_deliver", "max_ack_pending")
_DURATIONS = ("max_age", "ack_wait", "ttl")


class Difference(NamedTuple):
    """One thing that isn't as the bridge would make it. `unsafe`: the bridge can't keep its promises on it."""

    where: str
    field: str
    wanted: Any
    found: Any
    unsafe: bool

    def __str__(self) -> str:
        if self.field == "missing":
            return f"{self.where} is missing"
        found, wanted = _shown(self.field, self.found), _shown(self.field, self.wanted)
        return f"{self.where}: {self.field} is {found}, the bridge would make it {wanted}"


class JetStreamConfig(NamedTuple):
    """The streams, the durable consumer of each (or None), and the bucket."""

    streams: tuple[tuple[StreamConfig, ConsumerConfig | None], ...]
    bucket: ObjectStoreConfig


def expected_config(
    names: SubjectNames, *, replicas: int, ack_wait_s: float, events_max_age_s: float
) -> JetStreamConfig:
    """What the bridge's part of JetStream is to be. Pure."""
    durable = ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=-1,  # the default of 1,000 would silently be the ceiling of watches
    )
    requests = StreamConfig(
        name=names.requests_stream,
        description="Watch requests, until they are admitted or rejected",
        subjects=[names.requests],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        num_replicas=replicas,
    )
    watches = StreamConfig(
        name=names.watches_stream,
        description="Active watches, one message each, held by their owner",
        subjects=[f"{names.watches}.>"],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        discard_new_per_subject=True,  # a second watch on an active task is refused by the server itself
        allow_direct=True,
        num_replicas=replicas,
    )
    bucket = ObjectStoreConfig(
        bucket=names.results_bucket,
        description="Results too large for an event",
        ttl=events_max_age_s,
        storage=StorageType.FILE,
        replicas=replicas,
    )
    return JetStreamConfig(
        ((requests, durable), (watches, durable), (_events(names, replicas, events_max_age_s), None)), bucket
    )


def _events(names: SubjectNames, replicas: int, max_age_s: float) -> StreamConfig:
    return StreamConfig(
        name=names.events_stream,
        description="Events of watched tasks, and rejections",
        subjects=[f"{names.put}.>", names.rejected],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=max_age_s,
        compression=StoreCompression.S2,
        allow_direct=True,
        # A publish that the fence refuses reaches core subscribers of its subject all the same (measured), so
        # events are put on an internal subject, and only what was stored is republished.
        subject_transform=SubjectTransform(src=f"{names.put}.>", dest=f"{names.events}.>"),
        republish=RePublish(src=f"{names.events}.>", dest=f"{names.events}.>"),
        num_replicas=replicas,
    )


async def provision(streams: Streams, what: JetStreamConfig, *, create: bool) -> list[Difference]:
    """Creates what is missing (if `create`) and returns what differs from `what`, what is still missing included.

    Raises NatsUnavailable, and CannotStart where JetStream refuses to create.
    """
    differences: list[Difference] = []
    for config, durable in what.streams:
        differences += await _stream(streams, config, create=create)
        if durable is not None:
            differences += await _consumer(streams, str(config.name), durable, create=create)
    return differences + await _bucket(streams, what.bucket, create=create)


def check_version(found: tuple[int, int, int]) -> None:
    """Raises CannotStart for a nats-server that is too old."""
    if found < LEAST_SERVER:
        least = ".".join(map(str, LEAST_SERVER))
        raise CannotStart(
            f"nats-server {'.'.join(map(str, found))} is too old: before {least} replicated streams lose or block "
            f"messages. Upgrade it to {least} or later."
        )


async def _stream(streams: Streams, config: StreamConfig, *, create: bool) -> list[Difference]:
    where = f"stream {config.name}"
    info = await _found(streams.js.stream_info(str(config.name)), streams, where, f"STREAM.INFO.{config.name}")
    if info is None:
        if not create:
            return [Difference(where, "missing", None, None, unsafe=True)]
        await _created(streams.js.add_stream(config), streams, where, f"STREAM.CREATE.{config.name}")
        return []
    return list(_compared(where, config, info.config, _STREAM_SAFETY, _STREAM_OTHERS))


async def _consumer(streams: Streams, stream: str, config: ConsumerConfig, *, create: bool) -> list[Difference]:
    where = f"consumer {stream}/{config.durable_name}"
    name = f"{stream}.{config.durable_name}"
    call = streams.js.consumer_info(stream, str(config.durable_name))
    info = await _found(call, streams, where, f"CONSUMER.INFO.{name}")
    if info is None:
        if not create:
            return [Difference(where, "missing", None, None, unsafe=True)]
        await _created(streams.js.add_consumer(stream, config), streams, where, f"CONSUMER.DURABLE.CREATE.{name}")
        return []
    return list(_compared(where, config, info.config, _CONSUMER_SAFETY, _CONSUMER_OTHERS))


async def _bucket(streams: Streams, config: ObjectStoreConfig, *, create: bool) -> list[Difference]:
    where, stream = f"bucket {config.bucket}", f"OBJ_{config.bucket}"
    info = await _found(streams.js.stream_info(stream), streams, where, f"STREAM.INFO.{stream}")
    if info is None:
        if not create:
            return [Difference(where, "missing", None, None, unsafe=True)]
        call = streams.js.create_object_store(str(config.bucket), config)
        await _created(call, streams, where, f"STREAM.CREATE.{stream}")
        return []
    found = ObjectStoreConfig(ttl=info.config.max_age, replicas=info.config.num_replicas or 1)
    return list(_compared(where, config, found, (), ("ttl", "replicas")))


async def _found(call: Awaitable[Any], streams: Streams, where: str, subject: str) -> Any:
    try:
        return await call
    except nats.js.errors.NotFoundError:
        return None
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsUnavailable(f"{where}: {_reason(error, streams, subject)}") from error


async def _created(call: Awaitable[Any], streams: Streams, where: str, subject: str) -> None:
    try:
        await call
    except nats.js.errors.ServiceUnavailableError as error:
        raise NatsUnavailable(f"{where}: {_reason(error, streams, subject)}") from error
    except nats.js.errors.APIError as error:
        raise CannotStart(
            f"JetStream refuses to create the {where}: {error.description}. Make room for it, or create it as "
            "`task-bridge provision --print` says."
        ) from error
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsUnavailable(f"{where}: {_reason(error, streams, subject)}") from error


def _reason(error: BaseException, streams: Streams, subject: str) -> str:
    told = denied_permission(streams.connection, f"{streams.prefix}.{subject}")
    if told and isinstance(error, TimeoutError):
        return f"{told}; let this user do it, as deploy/nats does"
    if isinstance(error, nats.js.errors.APIError) and error.description:
        return error.description
    if isinstance(error, nats.js.errors.ServiceUnavailableError | nats.errors.NoRespondersError):
        return "JetStream doesn't answer; is it enabled (nats-server -js) and for this account?"
    return str(error) or "no answer in time; may this user use the JetStream API?"


def _compared(
    where: str, want: Any, found: Any, safety: tuple[str, ...], others: tuple[str, ...]
) -> Iterator[Difference]:
    for field in safety + others:
        wanted_value, found_value = _plain(getattr(want, field)), _plain(getattr(found, field))
        if wanted_value is not None and wanted_value != found_value:
            yield Difference(where, field, wanted_value, found_value, unsafe=field in safety)
        elif wanted_value is None and field in ("subject_transform", "republish") and found_value is not None:
            yield Difference(where, field, wanted_value, found_value, unsafe=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, SubjectTransform | RePublish):
        return (value.src, value.dest)
    return value


def _shown(field: str, value: Any) -> str:
    if field in _DURATIONS and value is not None:
        return f"{value:.10g} s"
    return "unset" if value is None else str(value)
