"""The expected configuration of the bridge's streams, consumers and bucket, and creating, verifying or changing them.

FastStream and nats-py can't do it: declaring a stream resets what an operator tuned, and they ignore the settings of an
existing durable. Here missing parts are created, differences are reported, and nothing is reset. `apply_differences`
changes single settings; it sends the configuration back to nats-server as it came, so settings that nats-py doesn't
know survive.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
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
from .infos import ConsumerInfo, StreamInfo
from .streams import Streams

MIN_SERVER_VERSION = (2, 12, 8)
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
_CONSUMER_SAFETY = ("ack_policy", "deliver_subject")
_CONSUMER_OTHERS = ("ack_wait", "max_deliver", "max_ack_pending")
_MUST_BE_UNSET = ("subject_transform", "republish", "deliver_subject")
_DURATIONS = ("max_age", "ack_wait", "ttl")
_NAME_IN_USE = 10058
_IMMUTABLE = {"retention", "storage", "ack_policy", "deliver_subject"}
"""Settings that no nats-server changes on an existing stream or consumer."""
_STREAM_SETTING_OF_BUCKET = {"ttl": "max_age", "replicas": "num_replicas"}
"""A bucket's settings and their names in its stream."""
_FILTERS = ("filter_subject", "filter_subjects")
"""Where a consumer has its filters: one of them, or several."""
_WORKER_ACK_WAIT_S = 60.0
_WORKER_MAX_DELIVER = 1000
"""Ends the tries of an event that no worker can handle; without acks after 16 hours, longer than most outages."""
_Json = dict[str, Any]
T = TypeVar("T")


class Difference(NamedTuple):
    """One setting, or a missing part, that isn't as expected. `unsafe`: the bridge can't keep its promises with it."""

    where: str
    field: str
    wanted: Any
    found: Any
    unsafe: bool

    def __str__(self) -> str:
        if self.field == "missing":
            return f"{self.where} is missing"
        found, wanted = _format_value(self.field, self.found), _format_value(self.field, self.wanted)
        return f"{self.where}: {self.field} is {found}, the bridge would make it {wanted}"


class JetStreamConfig(NamedTuple):
    """The streams, the durable consumer of each (or None), and the bucket.

    `late_subjects`: subjects that a stream of release 1.0 doesn't have. They are added when they are first needed, so
    that release can still be returned to. `follow_streams`: those that only follows, and subjects per vCenter, need.
    """

    streams: tuple[tuple[StreamConfig, ConsumerConfig | None], ...]
    bucket: ObjectStoreConfig
    late_subjects: frozenset[str] = frozenset()
    follow_streams: frozenset[str] = frozenset()

    def without_follows(self) -> JetStreamConfig:
        """Return the part that watches need, which release 1.0 has too."""
        return self._replace(streams=tuple(one for one in self.streams if one[0].name not in self.follow_streams))

    def only_follows(self) -> JetStreamConfig:
        """Return the part that only follows need."""
        streams = tuple(one for one in self.streams if one[0].name in self.follow_streams)
        return self._replace(streams=streams)

    def with_events_consumer(self, durable: ConsumerConfig) -> JetStreamConfig:
        """Return the same with a durable consumer of the events stream, which comes last."""
        *others, (events, _) = self.streams
        return self._replace(streams=(*others, (events, durable)))


def expected_config(
    names: SubjectNames, *, replicas: int, ack_wait_s: float, events_max_age_s: float
) -> JetStreamConfig:
    """Return the configuration of the bridge's part of JetStream. Pure."""
    durable = ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=-1,  # the default of 1,000 would silently limit the watches
    )
    requests = _work_queue(
        names.requests_stream, "Watch requests, until they are admitted or rejected", [names.requests], replicas
    )
    vcenter_requests = _work_queue(
        names.vcenter_requests_stream,
        "Watch requests whose subject names the vCenter, until they are admitted or rejected",
        [names.vcenter_requests],
        replicas,
    )
    watches = _work_queue(
        names.watches_stream,
        "Active watches, one message each, held by their owner",
        [f"{names.watches}.>"],
        replicas,
        max_msgs_per_subject=1,
        discard_new_per_subject=True,  # nats-server itself refuses a second watch of an active task
        allow_direct=True,
    )
    follow_requests = _work_queue(
        names.follow_requests_stream,
        "Requests to follow tasks, until they are admitted or rejected",
        [names.follow_requests, names.vcenter_follow_requests],
        replicas,
    )
    follows = _work_queue(
        names.follows_stream,
        "Follows, one message each, held by their owner",
        [f"{names.held_follows}.>"],
        replicas,
        discard=DiscardPolicy.OLD,
        max_msgs_per_subject=1,  # a follow that is requested otherwise replaces the one of its name
        allow_direct=True,
    )
    bucket = ObjectStoreConfig(
        bucket=names.results_bucket,
        description="Results too large for an event",
        ttl=events_max_age_s,
        storage=StorageType.FILE,
        replicas=replicas,
    )
    events = _events_stream(names, replicas, events_max_age_s)
    queues = (requests, vcenter_requests, watches, follow_requests, follows)
    streams = (*((queue, durable) for queue in queues), (events, None))
    return JetStreamConfig(
        streams,
        bucket,
        late_subjects=frozenset({follow_events(names), *delivery_subjects(names)}),
        follow_streams=frozenset({names.vcenter_requests_stream, names.follow_requests_stream, names.follows_stream}),
    )


def _work_queue(name: str, description: str, subjects: list[str], replicas: int, **more: Any) -> StreamConfig:
    """Return a stream that keeps each message until it is acknowledged. A full one refuses new ones by default."""
    config = StreamConfig(
        name=name,
        description=description,
        subjects=subjects,
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        num_replicas=replicas,
    )
    return config.evolve(**more)


def delivery_subjects(names: SubjectNames) -> tuple[str, str]:
    """Return the subjects in the events stream of what deliveries report, and of what they are to send again."""
    return f"{names.undelivered}.*", f"{names.redeliveries}.*"


def follow_events(names: SubjectNames) -> str:
    """Return the subject filter by which the events stream stores the events of follows."""
    return f"{names.follows}.>"


def worker_consumer(name: str, filters: Sequence[str]) -> ConsumerConfig:
    """Return a durable that workers pull events from, those stored from its creation on. Pure."""
    single = filters[0] if len(filters) == 1 else None
    return ConsumerConfig(
        durable_name=name,
        description="Events for workers, which ack each after the work",
        deliver_policy=DeliverPolicy.NEW,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=_WORKER_ACK_WAIT_S,
        max_deliver=_WORKER_MAX_DELIVER,
        filter_subject=single,
        filter_subjects=None if single else list(filters),
    )


def _events_stream(names: SubjectNames, replicas: int, max_age_s: float) -> StreamConfig:
    return StreamConfig(
        name=names.events_stream,
        description="Events of watched tasks, and rejections",
        subjects=[f"{names.put}.>", names.rejected, follow_events(names), *delivery_subjects(names)],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=max_age_s,
        compression=StoreCompression.S2,
        allow_direct=True,
        # Core subscribers of a subject also receive a publish that the fence refuses (measured). So events are
        # published on an internal subject, and only stored ones are republished.
        subject_transform=SubjectTransform(src=f"{names.put}.>", dest=f"{names.events}.>"),
        republish=RePublish(src=f"{names.events}.>", dest=f"{names.events}.>"),
        num_replicas=replicas,
    )


class Provisioned(NamedTuple):
    """The differences from what is expected, and what JetStream says about the parts that are there.

    `streams` by their names; `consumers` by those of their streams.
    """

    differences: list[Difference]
    streams: dict[str, StreamInfo]
    consumers: dict[str, ConsumerInfo]


async def provision(
    streams: Streams, expected: JetStreamConfig, *, create: bool, first_sequence: int | None = None
) -> Provisioned:
    """Create what is missing (if `create`) and return the differences from `expected`, missing parts included.

    `first_sequence`: that of a work queue that is created. Raises NatsUnavailable, and CannotStart where JetStream
    refuses to create.
    """
    found, differences_of_bucket = await asyncio.gather(
        provision_streams(streams, expected, create=create, first_sequence=first_sequence),
        _provision_bucket(streams, expected.bucket, create=create),
    )
    return Provisioned(found.differences + differences_of_bucket, found.streams, found.consumers)


async def provision_streams(
    streams: Streams, expected: JetStreamConfig, *, create: bool, first_sequence: int | None = None
) -> Provisioned:
    """Do the same without the bucket."""
    found, consumers = await _read_parts(streams, expected)
    differences: list[Difference] = []
    has_created = False
    for config, durable in expected.streams:
        name = str(config.name)
        if name in found:
            differences += _compare_stream(config, found[name].config, expected.late_subjects)
        elif create:
            queue = config.evolve(first_seq=first_sequence) if durable and first_sequence else config
            await _create_stream(streams, queue)
            has_created = True
        else:
            differences.append(missing_part(f"stream {name}"))
        if durable is None:
            continue
        if name in consumers:
            differences += _compare_consumer(name, durable, consumers[name].config)
        elif create:
            await _create_consumer(streams, name, durable)
            has_created = True
        else:
            differences.append(missing_part(f"consumer {name}/{durable.durable_name}"))
    if has_created:
        found, consumers = await _read_parts(streams, expected)
        for config, durable in expected.streams:
            if config.name not in found or (durable is not None and config.name not in consumers):
                raise NatsUnavailable(f"stream {config.name}: JetStream doesn't show yet what was created")
    return Provisioned(differences, found, consumers)


async def _read_parts(
    streams: Streams, expected: JetStreamConfig
) -> tuple[dict[str, StreamInfo], dict[str, ConsumerInfo]]:
    """Return what there is of the streams and of their consumers, by the streams' names. Asks about all at once."""
    names = [str(config.name) for config, _ in expected.streams]
    durables = {str(config.name): str(durable.durable_name) for config, durable in expected.streams if durable}
    of_streams, of_consumers = await asyncio.gather(
        asyncio.gather(*(_read_stream(streams, f"stream {name}", name) for name in names)),
        asyncio.gather(*(_read_consumer(streams, name, durable) for name, durable in durables.items())),
    )
    found = {name: info for name, info in zip(names, of_streams, strict=True) if info}
    consumers = {name: info for name, info in zip(durables, of_consumers, strict=True) if info}
    return found, consumers


def check_version(version: tuple[int, int, int]) -> None:
    """Raise CannotStart if nats-server is too old."""
    if version < MIN_SERVER_VERSION:
        minimum = ".".join(map(str, MIN_SERVER_VERSION))
        raise CannotStart(
            f"nats-server {'.'.join(map(str, version))} is too old: before {minimum} replicated streams lose or block "
            f"messages. Upgrade it to {minimum} or later."
        )


def _compare_stream(config: StreamConfig, found: StreamConfig, late_subjects: frozenset[str]) -> list[Difference]:
    differences = _compare(f"stream {config.name}", config, found, _STREAM_SAFETY, _STREAM_OTHERS)
    return [_excuse_late_subjects(difference, late_subjects) for difference in differences]


async def _create_stream(streams: Streams, config: StreamConfig) -> None:
    await _create(streams.js.add_stream(config), streams, f"stream {config.name}", f"STREAM.CREATE.{config.name}")


def _excuse_late_subjects(difference: Difference, late_subjects: frozenset[str]) -> Difference:
    """Return the difference as safe if all that a stream lacks are subjects that can be added later."""
    if difference.field != "subjects":
        return difference
    wanted, found = set(difference.wanted), set(difference.found or ())
    return difference._replace(unsafe=not (found <= wanted and wanted - found <= late_subjects))


def find_late_subjects(differences: Iterable[Difference], subjects: Collection[str]) -> list[Difference]:
    """Return the differences of existing streams that lack some of these subjects, and can be given them."""
    return [
        difference
        for difference in differences
        if difference.field == "subjects" and not difference.unsafe and not set(subjects) <= set(difference.found)
    ]


async def add_late_subject(streams: Streams, stream: str, subject: str, *, create: bool) -> None:
    """Let the stream store this subject too, unless it does. Raises NatsUnavailable, also if `create` is off."""
    where = f"stream {stream}"
    info_subject, update_subject = (f"{streams.prefix}.STREAM.{verb}.{stream}" for verb in ("INFO", "UPDATE"))
    answer = await _request(streams, info_subject, {}, where)
    config = answer.get("config")
    if config is None:
        raise NatsUnavailable(f"{where}: {answer.get('error', {}).get('description', 'no answer')}")
    if subject in config.get("subjects", ()):
        return
    if not create:
        raise NatsUnavailable(f"{where} doesn't store {subject} yet: run `task-bridge provision`")
    config["subjects"] = [*config.get("subjects", ()), subject]
    error = (await _request(streams, update_subject, config, where)).get("error")
    if error:
        raise NatsUnavailable(f"{where}: nats-server refuses to add {subject}: {error.get('description', error)}")


def _compare_consumer(stream: str, config: ConsumerConfig, found: ConsumerConfig) -> list[Difference]:
    where = f"consumer {stream}/{config.durable_name}"
    differences = list(_compare(where, config, found, _CONSUMER_SAFETY, _CONSUMER_OTHERS))
    wanted, filters = _read_filters(config), _read_filters(found)
    if wanted and wanted != filters:
        differences.append(Difference(where, "filters", wanted, filters, unsafe=False))
    return differences


async def _create_consumer(streams: Streams, stream: str, config: ConsumerConfig) -> None:
    path = f"{stream}.{config.durable_name}"
    where = f"consumer {stream}/{config.durable_name}"
    await _create(streams.js.add_consumer(stream, config), streams, where, f"CONSUMER.DURABLE.CREATE.{path}")


def _read_filters(config: ConsumerConfig) -> list[str]:
    return sorted(config.filter_subjects or filter(None, [config.filter_subject]))


async def _provision_bucket(streams: Streams, config: ObjectStoreConfig, *, create: bool) -> list[Difference]:
    where, stream = f"bucket {config.bucket}", f"OBJ_{config.bucket}"
    info = await _read_stream(streams, where, stream)
    if info is not None:
        found = ObjectStoreConfig(ttl=info.config.max_age, replicas=info.config.num_replicas or 1)
        return list(_compare(where, config, found, (), tuple(_STREAM_SETTING_OF_BUCKET)))
    if not create:
        return [missing_part(where)]
    call = streams.js.create_object_store(str(config.bucket), config)
    await _create(call, streams, where, f"STREAM.CREATE.{stream}")
    return []


def missing_part(where: str) -> Difference:
    """Return the difference of a part that doesn't exist."""
    return Difference(where, "missing", None, None, unsafe=True)


async def _read_stream(streams: Streams, where: str, stream: str) -> StreamInfo | None:
    return await _explain_failure(streams.infos.read_stream(stream), streams, where, f"STREAM.INFO.{stream}")


async def _read_consumer(streams: Streams, stream: str, durable: str) -> ConsumerInfo | None:
    call, path = streams.infos.read_consumer(stream, durable), f"{stream}.{durable}"
    return await _explain_failure(call, streams, f"consumer {stream}/{durable}", f"CONSUMER.INFO.{path}")


async def _explain_failure(call: Awaitable[T], streams: Streams, where: str, subject: str) -> T:
    """Return the answer of `call`. Raises NatsUnavailable with the reason."""
    try:
        return await call
    except (TimeoutError, nats.errors.Error, msgspec.DecodeError) as error:
        raise NatsUnavailable(f"{where}: {_failure_reason(error, streams, subject)}") from error


async def _create(call: Awaitable[Any], streams: Streams, where: str, subject: str) -> None:
    try:
        await call
    except (TimeoutError, nats.errors.Error) as error:
        if isinstance(error, nats.js.errors.APIError) and error.err_code == _NAME_IN_USE:
            return  # another replica has created it just now; the next check compares it
        if not isinstance(error, nats.js.errors.APIError) or isinstance(error, nats.js.errors.ServiceUnavailableError):
            raise NatsUnavailable(f"{where}: {_failure_reason(error, streams, subject)}") from error
        raise CannotStart(
            f"JetStream refuses to create the {where}: {error.description}. Make room for it, or create it as "
            "`task-bridge provision --print` says."
        ) from error


def _failure_reason(error: BaseException, streams: Streams, subject: str) -> str:
    denied = denied_permission(streams.connection, f"{streams.prefix}.{subject}")
    if denied and isinstance(error, TimeoutError):
        return f"{denied}; give this user the permission, as deploy/nats does"
    if isinstance(error, nats.js.errors.APIError) and error.description:
        return error.description
    if isinstance(error, nats.js.errors.ServiceUnavailableError | nats.errors.NoRespondersError):
        return "JetStream doesn't answer; is it enabled (nats-server -js) and for this account?"
    return str(error) or "no answer in time; may this user use the JetStream API?"


def _compare(
    where: str, expected: Any, found: Any, safety: tuple[str, ...], others: tuple[str, ...]
) -> Iterator[Difference]:
    for field in safety + others:
        expected_value, found_value = _comparable(getattr(expected, field)), _comparable(getattr(found, field))
        if expected_value is not None and expected_value != found_value:
            yield Difference(where, field, expected_value, found_value, unsafe=field in safety)
        elif expected_value is None and field in _MUST_BE_UNSET and found_value is not None:
            yield Difference(where, field, expected_value, found_value, unsafe=True)


def _comparable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, SubjectTransform | RePublish):
        return (value.src, value.dest)
    return value


def _format_value(field: str, value: Any) -> str:
    if field in _DURATIONS and value is not None:
        return f"{value:.10g} s"
    if isinstance(value, list):
        return ", ".join(value) or "unset"
    return "unset" if value is None else str(value)


def is_immutable(difference: Difference) -> bool:
    """Return whether the part must be deleted and created again to change this."""
    return difference.field in _IMMUTABLE


def explain_replacement(difference: Difference) -> str:
    """Return what an operator can do about an immutable difference."""
    kind, name = difference.where.split(" ", 1)
    if kind == "consumer":
        return f"It can't be changed: `nats consumer rm {name.replace('/', ' ')}`, then provision again."
    stream = f"OBJ_{name}" if kind == "bucket" else name
    return (
        f"It can't be changed: stop the bridges, `nats stream rm {stream}`, and provision again. "
        "Its messages are lost then; `nats stream backup` saves them."
    )


async def apply_differences(
    streams: Streams, expected: JetStreamConfig, differences: Sequence[Difference]
) -> list[str]:
    """Change what can be changed, and return one line for each part that nats-server refused to change.

    Raises NatsUnavailable.
    """
    updates, fields = _updates(streams.prefix, expected), defaultdict[str, list[str]](list)
    for difference in differences:
        if not is_immutable(difference) and difference.field != "missing":
            field = _STREAM_SETTING_OF_BUCKET.get(difference.field, difference.field)
            fields[difference.where] += _FILTERS if field == "filters" else (field,)
    problems = [await _apply_update(streams, where, updates[where], names) for where, names in fields.items()]
    return [problem for problem in problems if problem]


class _Update(NamedTuple):
    """Subjects to read and to write one configuration, the expected one, and what surrounds it in the request."""

    info_subject: str
    update_subject: str
    expected: _Json
    envelope: _Json | None = None


async def _apply_update(streams: Streams, where: str, update: _Update, fields: list[str]) -> str | None:
    config = (await _request(streams, update.info_subject, {}, where))["config"]
    for field in fields:
        if update.expected.get(field) is None:
            config.pop(field, None)
        else:
            config[field] = update.expected[field]
    body = {**update.envelope, "config": config} if update.envelope else config
    error = (await _request(streams, update.update_subject, body, where)).get("error")
    return f"{where}: nats-server refuses the change: {error.get('description', error)}" if error else None


async def _request(streams: Streams, subject: str, body: _Json, where: str) -> _Json:
    try:
        answer = await streams.connection.request(subject, json.dumps(body).encode(), timeout=5)
    except (TimeoutError, nats.errors.Error) as error:
        denied = denied_permission(streams.connection, subject)
        reason = denied or error or "no answer in time; may this user change it?"
        raise NatsUnavailable(f"{where}: {reason}") from error
    return dict(json.loads(answer.data))


def _updates(prefix: str, expected: JetStreamConfig) -> dict[str, _Update]:
    """Return how to change each part, by the `where` of its differences."""

    def stream_update(name: str, config: _Json) -> _Update:
        return _Update(f"{prefix}.STREAM.INFO.{name}", f"{prefix}.STREAM.UPDATE.{name}", config)

    updates = {}
    for config, durable in expected.streams:
        name = str(config.name)
        updates[f"stream {name}"] = stream_update(name, config.as_dict())
        if durable is not None:
            path = f"{name}.{durable.durable_name}"
            updates[f"consumer {name}/{durable.durable_name}"] = _Update(
                f"{prefix}.CONSUMER.INFO.{path}",
                f"{prefix}.CONSUMER.DURABLE.CREATE.{path}",
                durable.as_dict(),
                {"stream_name": name},
            )
    bucket = expected.bucket.as_dict()
    settings = {in_stream: bucket[name] for name, in_stream in _STREAM_SETTING_OF_BUCKET.items()}
    updates[f"bucket {expected.bucket.bucket}"] = stream_update(f"OBJ_{expected.bucket.bucket}", settings)
    return updates
