"""From what vCenter has to say to HTTP, by way of whatever fault the request met."""

import asyncio
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .clock import Sleep
from .errors import REST_STATUS, STATUS, StandardError
from .faults import Fault
from .renderings import Rendering, rest_error

ANY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class ConnectionDroppedError(ConnectionResetError):
    """The answer ends here, and the connection with it."""


def json_answer(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_answer(error: StandardError, rendering: Rendering) -> Response:
    if rendering == "rest":
        return json_answer(rest_error(error.body), REST_STATUS[error.error_type])
    return json_answer(error.body, STATUS[error.error_type])


def faulted(genuine: Response, fault: Fault, rendering: Rendering, sleep: Sleep) -> Response:
    """The genuine answer as the fault makes it."""
    effect = fault.effect
    base = error_answer(effect.error(), rendering) if effect.error else genuine
    content = bytes(base.body) if effect.body is None else effect.body
    content = effect.reshape(content) if effect.reshape else content
    headers = {**dict(base.headers), **dict(effect.headers)}
    if effect.body == b"":
        headers.pop("content-type", None)
    headers.pop("content-length", None)
    return FaultyAnswer(content, effect.status or base.status_code, headers, fault, sleep)


async def until_left(receive: Receive) -> None:
    """Until the client has gone. The server may have the request's own messages to hand over first."""
    while (await receive())["type"] != "http.disconnect":
        pass


class FaultyAnswer(Response):
    """An answer whose body may stop, or whose connection may end."""

    def __init__(self, content: bytes, status: int, headers: dict[str, str], fault: Fault, sleep: Sleep) -> None:
        super().__init__(content, status, headers)
        self._fault = fault
        self._sleep = sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        effect = self._fault.effect
        if effect.sends is None:
            if effect.drops:
                raise ConnectionDroppedError
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: effect.sends], "more_body": True})
        if effect.drops:
            raise ConnectionDroppedError
        await self._stall(receive)
        await send({"type": "http.response.body", "body": self.body[effect.sends :]})

    async def _stall(self, receive: Receive) -> None:
        if self._fault.effect.stall_s is not None:
            await self._sleep(self._fault.effect.stall_s)
            return
        ways_out = {asyncio.ensure_future(self._fault.cleared.wait()), asyncio.ensure_future(until_left(receive))}
        try:
            await asyncio.wait(ways_out, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways_out:
                way.cancel()
            await asyncio.gather(*ways_out, return_exceptions=True)
