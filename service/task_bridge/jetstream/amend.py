"""Making what differs as the bridge would make it, setting by setting: what an operator set besides stays.

The configuration goes back to nats-server as it came, so that settings which nats-py doesn't know survive.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import nats.errors
from nats.js.api import ObjectStoreConfig

from ..domain.errors import NatsUnavailable
from .connect import denied_permission
from .provision import Difference, JetStreamConfig
from .streams import Streams

_FIXED = {"retention", "storage", "ack_policy"}
"""What no nats-server changes once it is there."""
_OF_BUCKETS = {"ttl": "max_age", "replicas": "num_replicas"}
"""What a bucket's settings are called in its stream."""
_Json = dict[str, Any]


class _Target(NamedTuple):
    """Where a configuration is read and written, what it is to be, and what goes around it in an update."""

    info: str
    update: str
    wanted: _Json
    around: _Json | None = None


def is_fixed(difference: Difference) -> bool:
    """Whether only making it anew could change it."""
    return difference.field in _FIXED


def how_to_replace(difference: Difference) -> str:
    """What an operator does about what can't be changed."""
    kind, name = difference.where.split(" ", 1)
    if kind == "consumer":
        return f"It can't be changed: `nats consumer rm {name.replace('/', ' ')}`, then provision again."
    stream = f"OBJ_{name}" if kind == "bucket" else name
    return (
        f"It can't be changed: stop the bridges, `nats stream rm {stream}`, and provision again. "
        "What lies in it is lost; `nats stream backup` keeps it."
    )


async def apply_differences(streams: Streams, what: JetStreamConfig, differences: Sequence[Difference]) -> list[str]:
    """Changes what can be, and returns why something couldn't, a line each. Raises NatsUnavailable."""
    targets, fields = _targets(streams.prefix, what), defaultdict(list)
    for difference in differences:
        if not is_fixed(difference) and difference.field != "missing":
            fields[difference.where].append(_OF_BUCKETS.get(difference.field, difference.field))
    problems = [await _amended(streams, where, targets[where], names) for where, names in fields.items()]
    return [problem for problem in problems if problem]


async def _amended(streams: Streams, where: str, target: _Target, fields: list[str]) -> str | None:
    config = (await _asked(streams, target.info, {}, where))["config"]
    for field in fields:
        if target.wanted.get(field) is None:
            config.pop(field, None)
        else:
            config[field] = target.wanted[field]
    body = {**target.around, "config": config} if target.around else config
    answer = await _asked(streams, target.update, body, where)
    error = answer.get("error")
    return f"{where}: nats-server refuses the change: {error.get('description', error)}" if error else None


async def _asked(streams: Streams, subject: str, body: _Json, where: str) -> _Json:
    try:
        answer = await streams.connection.request(subject, json.dumps(body).encode(), timeout=5)
    except (TimeoutError, nats.errors.Error) as error:
        told = denied_permission(streams.connection, subject) or error or "no answer in time; may this user change it?"
        raise NatsUnavailable(f"{where}: {told}") from error
    return dict(json.loads(answer.data))


def _targets(prefix: str, what: JetStreamConfig) -> dict[str, _Target]:
    """Everything that the bridge has in JetStream, by the name that differences call it."""
    found = {}
    for config, durable in what.streams:
        name = str(config.name)
        found[f"stream {name}"] = _stream(prefix, name, config.as_dict())
        if durable is not None:
            path = f"{name}.{durable.durable_name}"
            found[f"consumer {name}/{durable.durable_name}"] = _Target(
                f"{prefix}.CONSUMER.INFO.{path}",
                f"{prefix}.CONSUMER.DURABLE.CREATE.{path}",
                durable.as_dict(),
                {"stream_name": name},
            )
    found[f"bucket {what.bucket.bucket}"] = _stream(prefix, f"OBJ_{what.bucket.bucket}", _as_stream(what.bucket))
    return found


def _stream(prefix: str, name: str, wanted: _Json) -> _Target:
    return _Target(f"{prefix}.STREAM.INFO.{name}", f"{prefix}.STREAM.UPDATE.{name}", wanted)


def _as_stream(bucket: ObjectStoreConfig) -> _Json:
    config = bucket.as_dict()
    return {in_stream: config[name] for name, in_stream in _OF_BUCKETS.items()}
