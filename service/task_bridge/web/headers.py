"""Headers that every answer has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class WithHeaders:
    """Pass requests on to `app`, and add to each answer what `build` returns then. It replaces headers of `app`."""

    def __init__(self, app: ASGIApp, build: Callable[[], Mapping[str, str]]) -> None:
        self._app = app
        self._build = build

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._build())
            await send(message)

        await self._app(scope, receive, send_with_headers)
