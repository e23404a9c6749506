"""A short run of `make fuzz`, and the ten megabytes that NATS wouldn't carry."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fuzz.stage import attacked
from task_bridge.domain.errors import Refused
from task_bridge.domain.requests import WatchRequest, describe_rejected_request, parse_request


async def test_hostile_requests_are_answered_or_rejected_and_leak_nowhere(tmp_path: Path) -> None:
    async with attacked(tmp_path, seed=7) as attack:
        await attack.make(600)
        await attack.make_raw(400)
        await attack.settled(within_s=30)
        await attack.make_http(400)
        await attack.crowd(300)
        await attack.nothing_leaked()
    assert attack.outcomes["rejected"] > 50
    assert {"http 200", "http 400", "http 401", "http 404", "http 413"} <= attack.outcomes.keys()
    assert attack.outcomes["watch ok"] > 20


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000_000,
        b'{"a":' * 2_000_000,
        b'{"task":"' + b"x" * 10_000_000 + b'"}',
        b'{"task":"t","labels":{' + b",".join(b'"%d":"x"' % number for number in range(700_000)) + b"}}",
        b"\xff" * 10_000_000,
        b"9" * 10_000_000,
        b'{"task": 1' + b"0" * 10_000_000 + b"}",
    ],
    ids=["arrays", "objects", "string", "labels", "no text", "number", "number in it"],
)
def test_ten_megabytes_are_refused_at_once(body: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(Refused):
        parse_request(WatchRequest, body)
    assert len(describe_rejected_request(body)["request"].encode()) <= 8192
    assert time.monotonic() - began < 10
