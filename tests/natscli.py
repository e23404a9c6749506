"""What the nats CLI makes of the commands that `provision --print` prints, as far as these use it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from nats.aio.client import Client

_RETENTION = {"work": "workqueue"}
_NANOSECONDS = 1_000_000_000


async def run(client: Client, line: str) -> None:
    """Carries out one command; fails on an option that isn't known here."""
    words = shlex.split(line)
    assert words[0] == "nats"
    names = [word for word in words[1:] if not word.startswith("--")]
    options: dict[str, list[str]] = {}
    for word in (word for word in words if word.startswith("--")):
        name, _, value = word.partition("=")
        options.setdefault(name, []).append(value)
    options.pop("--defaults", None)
    subject, body = _MAKES[names[0]](names[2:], options)
    assert not options, f"unknown options: {options}"
    answer = json.loads((await client.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=5)).data)
    assert "error" not in answer, answer


def _stream(names: list[str], options: dict[str, list[str]]) -> tuple[str, Any]:
    config: dict[str, Any] = _common(names[0], options)
    retention = _one(options, "--retention")
    config |= {
        "subjects": options.pop("--subjects"),
        "retention": _RETENTION.get(retention, retention),
        "discard": _one(options, "--discard"),
        "max_msgs_per_subject": int(_one(options, "--max-msgs-per-subject") or -1),
        "discard_new_per_subject": options.pop("--discard-per-subject", None) is not None,
        "max_age": _nanoseconds(_one(options, "--max-age") or "0s"),
        "compression": _one(options, "--compression") or "none",
        "allow_direct": options.pop("--allow-direct", None) is not None,
    }
    options.pop("--no-allow-direct", None)
    for key, flag, target in (("subject_transform", "transform", "dest"), ("republish", "republish", "dest")):
        if source := _one(options, f"--{flag}-source"):
            config[key] = {"src": source, target: _one(options, f"--{flag}-destination")}
    return f"STREAM.CREATE.{names[0]}", config


def _consumer(names: list[str], options: dict[str, list[str]]) -> tuple[str, Any]:
    stream, durable = names
    assert options.pop("--pull") == [""]
    config = {
        "durable_name": durable,
        "ack_policy": _one(options, "--ack"),
        "ack_wait": _nanoseconds(_one(options, "--wait")),
        "max_deliver": int(_one(options, "--max-deliver")),
        "deliver_policy": _one(options, "--deliver"),
        "replay_policy": _one(options, "--replay"),
        "filter_subjects": options.pop("--filter", []),
    }
    if "--max-pending" in options:
        config["max_ack_pending"] = int(_one(options, "--max-pending"))
    return f"CONSUMER.DURABLE.CREATE.{stream}.{durable}", {"stream_name": stream, "config": config}


def _bucket(names: list[str], options: dict[str, list[str]]) -> tuple[str, Any]:
    config = _common(f"OBJ_{names[0]}", options)
    config |= {
        "subjects": [f"$O.{names[0]}.C.>", f"$O.{names[0]}.M.>"],
        "max_age": _nanoseconds(_one(options, "--ttl")),
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }
    return f"STREAM.CREATE.OBJ_{names[0]}", config


def _common(name: str, options: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "name": name,
        "description": _one(options, "--description"),
        "storage": _one(options, "--storage"),
        "num_replicas": int(_one(options, "--replicas")),
    }


def _one(options: dict[str, list[str]], name: str) -> str:
    (value,) = options.pop(name, [""])
    return value


def _nanoseconds(duration: str) -> int:
    return int(float(duration.removesuffix("s")) * _NANOSECONDS)


_MAKES = {"stream": _stream, "consumer": _consumer, "object": _bucket}
