"""What the tests of the API over HTTP share: a file of tokens, a client, a reader of server-sent events."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

TOKENS = {"all": "*", "reader": "get,list,follows,events", "asker": "watch"}


def line(name: str, verbs: str = "*", vcenters: str = "*", secret: str | None = None) -> str:
    """A line of the file of tokens; the token is `<name>-secret` unless told otherwise."""
    digest = hashlib.sha256((secret or f"{name}-secret").encode()).hexdigest()
    return f"{name} {digest} {verbs} {vcenters}\n"


def write_tokens(directory: Path, *lines: str) -> Path:
    """The file of tokens, with these lines, else with one for each of TOKENS."""
    file = directory / "tokens"
    file.write_text("".join(lines or [line(name, verbs) for name, verbs in TOKENS.items()]))
    return file


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-secret"}


class Message(NamedTuple):
    """One server-sent event."""

    id: int
    event: dict[str, Any]

    @property
    def kind(self) -> str:
        data = self.event["data"]
        return f"{data['kind']}.{data['outcome']}" if data["final"] else str(data["kind"])


class EventReader:
    """Reads a stream as EventSource does."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self, within_s: float = 20.0) -> Message | None:
        """The next message, None at the end."""
        number, data = "", ""
        async with asyncio.timeout(within_s):
            async for text in self._lines:
                if text.startswith("id: "):
                    number = text[4:]
                elif text.startswith("data: "):
                    data += text[6:]
                elif not text and data:
                    return Message(int(number), json.loads(data))
        return None

    async def take(self, count: int) -> list[Message]:
        found = []
        for _ in range(count):
            message = await self.next()
            assert message is not None
            found.append(message)
        return found

    async def rest(self) -> list[Message]:
        """All messages up to the end of the stream."""
        found = []
        while message := await self.next():
            found.append(message)
        return found


@asynccontextmanager
async def reading(
    http: httpx.AsyncClient, query: dict[str, str] | None = None, by: str = "all", after: int | None = None
) -> AsyncIterator[EventReader]:
    headers = bearer(by) | ({} if after is None else {"Last-Event-ID": str(after)})
    async with http.stream("GET", "/v1/events", params=query, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield EventReader(answer)
