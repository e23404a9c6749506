"""What strangers may send: requests that are nearly right, and everything that has ever broken a parser.

Made by a seeded `random.Random`, so that a seed is a run.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

MARK = "<script>alert(1)</script>"
"""Comes out escaped, wherever it comes out."""
_NASTY = (
    *("*", ">", ".", "..", "a.b", "a.>", "$JS.API.>", "_INBOX.x", "vcenter.tasks.events.lab.t.completed.succeeded"),
    *(
        "\r\nPUB forged 0\r\n\r\n",
        "a\nb",
        "a\rb",
        "\x00",
        "a\x00b",
        "\x1b[31mred",
        "\t",
        " ",
        "a b",
        "\x85",
        "\u2028",
    ),
    *(
        "\u202eesrever",
        "\u2066isolated",
        "\ufeffbom",
        "\u0301",
        "\ud800",
        "\udfff",
        "\U0001f4a9",
        "\uff54\uff41\uff53\uff4b",
        "İ",
        "ß",
    ),
    *(
        MARK,
        '"><img src=x onerror=1>',
        "{{7*7}}",
        "${jndi:ldap://x}",
        "%s%n%d",
        "%2e%2e%2f",
        "../../etc/passwd",
        "a/../b",
    ),
    *(
        "a?b=c",
        "a#b",
        "task-1",
        "Task:task-1",
        "-" * 256,
        "a" * 257,
        "é" * 128,
        "é" * 129,
        "",
        "null",
        "'; DROP TABLE--",
    ),
    *(
        "{}",
        "[]",
        "\\",
        '"',
        "1e999",
        "NaN",
        "toString",
        "__proto__",
        "constructor",
        "com.vmware.vapi.rest.httpNotFound",
    ),
)
_RAW = (
    *(
        b"",
        b" ",
        b"null",
        b"true",
        b"[]",
        b"[[",
        b"{",
        b'"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"NaN",
        b"-Infinity",
    ),
    *(
        b'{"task": NaN}',
        b'{"task": "t", "timeout": 1e999}',
        b'{"task": "t", "timeout": -0}',
        b'{"a":1}{"b":2}',
        b"1" * 5000,
    ),
    *(
        b'{"task": "a", "task": "b"}',
        b'{"task": "a", "labels": {"k": "1", "k": "2"}}',
        b'{"task": "\\ud800"}',
        b"{'task': 1}",
    ),
    *(
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"labels":' * 9_000 + b"{}" + b"}" * 9_000,
        b'"' + b"a" * 700_000 + b'"',
    ),
    *(
        b'{"task":"' + b"x" * 600_000 + b'"}',
        b'{"labels":{"' + b"\\u0001" * 100_000 + b'":"b"},"task":"t"}',
        b"\x80" * 300_000,
    ),
)
_DURATIONS: tuple[Any, ...] = (
    "1s",
    "PT2H",
    "PT-1S",
    "1 fortnight",
    "0",
    "1e400",
    "9" * 400,
    "366d",
    "\u0661s",
    0,
    -1,
    1e308,
    True,
    None,
    [],
    {},
)
TRACES = (
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-" + "0" * 32 + "-" + "0" * 16 + "-00",
    "zz",
    "00-é",
    "x" * 4000,
)


def text(random: Random) -> str:
    """A string out of nasty parts, mostly short."""
    parts = random.choices(_NASTY, k=random.choice((1, 1, 1, 2, 3)))
    if random.random() < 0.2:
        parts.append("".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(1, 40))))
    return "".join(parts)


def value(random: Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kinds = 6 if depth < 3 else 4
    match random.randrange(kinds):
        case 0:
            return text(random)
        case 1:
            return random.choice((0, 1, -1, 2**63, 2**64, -(2**70), 1.5, 1e300, float("nan"), float("inf")))
        case 2:
            return random.choice((True, False, None))
        case 3:
            return random.choice(_DURATIONS)
        case 4:
            return [value(random, depth + 1) for _ in range(random.randrange(4))]
        case _:
            return {text(random): value(random, depth + 1) for _ in range(random.randrange(4))}


def body(random: Random, task: str) -> bytes:
    """A request: raw bytes, any JSON, an object of the right fields, or a good one that was damaged."""
    kind = random.random()
    if kind < 0.02:
        return random.choice(_RAW)
    if kind < 0.15:
        return _written(value(random))
    fields = _fields(random, task)
    if kind < 0.3:
        fields[random.choice((*fields, text(random)))] = value(random)
    written = bytearray(_written(fields))
    if kind > 0.9 and written:
        for _ in range(random.randrange(1, 4)):
            written[random.randrange(len(written))] = random.randrange(256)
    return bytes(written)


def _fields(random: Random, task: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"task": task if random.random() < 0.7 else text(random)}
    if random.random() < 0.3:
        fields["vcenter"] = random.choice(("lab", "other", text(random), "*", "l" * 64))
    if random.random() < 0.3:
        fields["timeout"] = random.choice(_DURATIONS)
    if random.random() < 0.2:
        fields["stalled_after"] = random.choice(_DURATIONS)
    if random.random() < 0.3:
        fields["labels"] = {text(random): text(random) for _ in range(random.choice((1, 2, 17)))}
    if random.random() < 0.1:
        fields["limit"], fields["cursor"] = value(random), value(random)
    return fields


def _written(given: Any) -> bytes:
    return json.dumps(given, ensure_ascii=False).encode("utf-8", "surrogatepass")
