"""Requests over HTTP that no client library would send: sizes, framing, headers, paths and guessed tokens."""

from __future__ import annotations

from random import Random

from fuzz import hostile

TOKEN = "fuzz-secret"
_PATHS = (
    *("/v1/watch", "/v1/get", "/v1/list", "/v1/unwatch", "/v1/cancel", "/v1/follow", "/v1/unfollow", "/v1/follows"),
    *("/v1", "/v1/", "/v1//watch", "/v1/watch/", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/watch%2f..%2fcancel"),
    *("/v1/watch;x=y", "/v1/watch%00", "/v1/%ff", "/v1/stop", "/v1/_stream_events", "/V1/watch", "//v1/watch", "*"),
    *("/v1/events?kind=completd", "/v1/events?since=1e999", "/v1/events?watch=%0d%0a", "/v1/openapi.json", "/"),
    *("http://localhost/v1/watch", "http://evil/v1/watch", "/" + "a" * 20_000, "/v1/watch?" + "x=y&" * 5_000),
)
_METHODS = (*("POST",) * 25, "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "POST\x00", "p", "")
_GUESSES = (
    *("", "Bearer", "Bearer ", "Bearer *", "Bearer null", "Basic ZnV6ejpzZWNyZXQ=", "Bearer fuzz-secre", "bearer\tx"),
    *(
        "Bearer fuzz-secret2",
        "Bearer FUZZ-SECRET",
        "Bearer " + "a" * 60_000,
        "Bearer \xff\xfe",
        "Bearer fuzz-secret\x00",
    ),
    *("Digest username=fuzz", "Bearer fuzz-secret, Bearer fuzz-secret"),
)
_ODD_HEADERS = (
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Transfer-Encoding : chunked", "Content-Length: 0"),
    *("Content-Length: 999999999999", "Content-Length: -1", "Content-Length: 5, 5", "Content-Length: 0x10"),
    *(
        "Expect: 100-continue",
        "Expect: x",
        "Upgrade: websocket\r\nConnection: upgrade",
        "Upgrade: h2c",
        "Connection: close",
    ),
    *("Host: evil.example", "Authorization: Bearer fuzz-secret", "X: a\r\n folded", "no colon", ": no name", "X:\x00"),
    *("X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: cancel", "Content-Encoding: gzip", "Last-Event-ID: -1"),
    *(
        "Bridge-Unreadable-Headers: 1",
        'Nats-Request-Info: {"acc":"OPERATORS"}',
        "traceparent: \xff",
        "Y: " + "z" * 9_000,
    ),
)


def request(random: Random, task: str) -> bytes:
    """A request to the API over HTTP, mostly with the right token, or a damaged one."""
    body = hostile.body(random, task)[:100_000] if random.random() < 0.9 else b"x" * random.randrange(2 * 1024 * 1024)
    headers = ["Host: localhost"] if random.random() < 0.97 else []
    headers += [f"Authorization: Bearer {TOKEN}"] if random.random() < 0.7 else []
    headers += [f"Authorization: {random.choice(_GUESSES)}"] if random.random() < 0.2 else []
    headers += random.choices(_ODD_HEADERS, k=random.choice((0, 0, 0, 0, 0, 1, 2)))
    if random.random() < 0.9:
        headers.append(f"Content-Length: {len(body)}")
    random.shuffle(headers)
    version = random.choice((*("1.1",) * 20, "1.0", "2.0", "9"))
    start = f"{random.choice(_METHODS)} {random.choice(_PATHS)} HTTP/{version}"
    sent = "\r\n".join((start, *headers, "", "")).encode("latin-1") + body
    if random.random() < 0.1:
        damaged = bytearray(sent)
        for _ in range(random.randrange(1, 4)):
            damaged[random.randrange(min(len(damaged), 300))] = random.randrange(256)
        return bytes(damaged)
    return sent
