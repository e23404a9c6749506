"""Commands of the `nats` CLI that create what the bridge needs, for operators who provision by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from enum import Enum
from typing import Any

from nats.js.api import ConsumerConfig, ObjectStoreConfig, StreamConfig

from .provision import JetStreamConfig

_RETENTION = {"workqueue": "work"}


def nats_commands(expected: JetStreamConfig, domain: str | None = None) -> Iterator[str]:
    """Yield the commands in the order to run them in. `domain` is JetStream's."""
    nats = ["nats", f"--js-domain={domain}"] if domain else ["nats"]
    for config, durable in expected.streams:
        yield shlex.join([*nats, "stream", "add", str(config.name), *_stream_options(config), "--defaults"])
        if durable is not None:
            names = [str(config.name), str(durable.durable_name)]
            yield shlex.join([*nats, "consumer", "add", *names, *_consumer_options(durable), "--defaults"])
    yield shlex.join([*nats, "object", "add", str(expected.bucket.bucket), *_bucket_options(expected.bucket)])


def _stream_options(config: StreamConfig) -> Iterator[str]:
    yield f"--description={config.description}"
    for subject in config.subjects or ():
        yield f"--subjects={subject}"
    yield f"--retention={_RETENTION.get(_value(config.retention), _value(config.retention))}"
    yield f"--storage={_value(config.storage)}"
    yield f"--discard={_value(config.discard)}"
    yield f"--replicas={config.num_replicas}"
    if config.max_msgs_per_subject > 0:
        yield f"--max-msgs-per-subject={config.max_msgs_per_subject}"
    if config.discard_new_per_subject:
        yield "--discard-per-subject"
    if config.max_age:
        yield f"--max-age={_seconds(config.max_age)}"
    if config.compression:
        yield f"--compression={_value(config.compression)}"
    yield "--allow-direct" if config.allow_direct else "--no-allow-direct"
    if config.subject_transform:
        yield f"--transform-source={config.subject_transform.src}"
        yield f"--transform-destination={config.subject_transform.dest}"
    if config.republish:
        yield f"--republish-source={config.republish.src}"
        yield f"--republish-destination={config.republish.dest}"


def _consumer_options(config: ConsumerConfig) -> Iterator[str]:
    yield "--pull"
    yield f"--ack={_value(config.ack_policy)}"
    yield f"--wait={_seconds(config.ack_wait or 0)}"
    yield f"--max-deliver={config.max_deliver}"
    if config.max_ack_pending:
        yield f"--max-pending={config.max_ack_pending}"
    for subject in config.filter_subjects or filter(None, [config.filter_subject]):
        yield f"--filter={subject}"
    yield f"--deliver={_value(config.deliver_policy or 'all')}"
    yield "--replay=instant"


def _bucket_options(config: ObjectStoreConfig) -> Iterator[str]:
    yield f"--description={config.description}"
    yield f"--ttl={_seconds(config.ttl or 0)}"
    yield f"--storage={_value(config.storage)}"
    yield f"--replicas={config.replicas}"


def _value(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _seconds(seconds: float) -> str:
    return f"{seconds:g}s" if seconds < 1e6 else f"{seconds:.0f}s"
