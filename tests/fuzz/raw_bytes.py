"""Header blocks and subjects that nats-server takes from a raw socket, and that no client library would send."""

from __future__ import annotations

from random import Random

UNREADABLE = {
    "no NATS line": b"XX\r\n\r\n",
    "the line alone": b"NATS/1.0",
    "the line and half an end": b"NATS/1.0\r\n",
    "a space and nothing": b"NATS/1.0 ",
    "another protocol": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
    "zeros": b"\x00" * 20,
}
INLINE_BYTES = {
    "a status that is no text": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "a description that is no text": b"NATS/1.0 404 \xff\xfe\r\n\r\n",
}
"""Unreadable to the API; JetStream (2.15.1) delivers a stored message without them."""
ODD_BUT_READABLE = {
    "an inline status": b"NATS/1.0 404 No Messages\r\n\r\n",
    "a pull's end": b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 99999\r\n\r\n",
    "a consumer's end": b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    "a heartbeat": b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    "a header named Status": b"NATS/1.0\r\nStatus: 404\r\n\r\n",
    "no colon": b"NATS/1.0\r\nno colon here\r\n\r\n",
    "names and values that are no text": b"NATS/1.0\r\n\xff\xfe: \xfd\r\ntraceparent: \xff\r\n\r\n",
    "a name in other letters": b"NATS/1.0\r\nNats-Expected-Stream2: \x00\r\n\r\n",
}
ODD_SUBJECTS = {
    "vertical tab": b"a\x0bb",
    "form feed": b"a\x0cb",
    "not UTF-8": b"a\xff\xfeb",
    "a zero": b"a\x00b",
    "a long one": b"a" * 3000,
}

_HEADERS = (*UNREADABLE.values(), *INLINE_BYTES.values(), *ODD_BUT_READABLE.values())
_FRAGMENTS = (
    *(b"NATS/1.0", b"NATS/1.0 ", b"NATS/1.0 503", b"\r\n", b"\r", b"\n", b": ", b":", b" ", b"\t", b"\x00", b"\xff"),
    *(b"\x0b", b"traceparent", b"Status", b"Description", b"Bridge-Unreadable-Headers", b"Content-Type", b"x" * 2000),
)
_TOKEN_BYTES = [byte for byte in range(1, 256) if byte not in b"\t\n\r "]


def headers(random: Random) -> bytes | None:
    """A header block, a damaged one, or one of random parts; None for a message without."""
    kind = random.random()
    if kind < 0.1:
        return None
    if kind < 0.5:
        return random.choice(_HEADERS)
    if kind < 0.75:
        damaged = bytearray(random.choice(_HEADERS))
        for _ in range(random.randrange(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        return bytes(damaged)
    parts = b"".join(random.choices(_FRAGMENTS, k=random.randrange(1, 12)))
    return parts if random.random() < 0.3 else b"NATS/1.0\r\n" + parts + b"\r\n\r\n"


def token(random: Random) -> bytes:
    """A part of a subject without what nats-server takes for its end, or for an end of the line."""
    if random.random() < 0.5:
        return random.choice((*ODD_SUBJECTS.values(), b"*", b">", b"a..b", b".", b"$JS"))
    return bytes(random.choices(_TOKEN_BYTES, k=random.randrange(1, 20)))
