"""HTTP responses: JSON, standard errors, and responses changed by a fault."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import REST_STATUS, STATUS, StandardError
from .faults import Fault
from .options import Sleep
from .renderings import Rendering, render_rest_error

ANY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class ConnectionDroppedError(ConnectionResetError):
    """The response ends here, and the connection with it."""


def json_response(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_response(error: StandardError, rendering: Rendering) -> Response:
    if rendering == "rest":
        return json_response(render_rest_error(error.body), REST_STATUS[error.error_type])
    return json_response(error.body, STATUS[error.error_type])


async def respond_with_fault(
    fault: Fault, answer: Callable[[], Awaitable[Response]], rendering: Rendering, sleep: Sleep
) -> Response:
    """Return the response of `answer` as the fault changes it. A proxy's answer replaces it: vCenter isn't called."""
    effect = fault.effect
    if effect.delay_s:
        await sleep(effect.delay_s)
    original = Response() if effect.replaces_answer else await answer()
    if effect.error:
        original = error_response(effect.error(), rendering)
    content = bytes(original.body) if effect.body is None else effect.body
    content = effect.reshape(content) if effect.reshape else content
    headers = {**dict(original.headers), **dict(effect.headers)}
    if effect.body == b"":
        headers.pop("content-type", None)
    headers.pop("content-length", None)
    return FaultyResponse(content, effect.status or original.status_code, headers, fault, sleep)


async def wait_until_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects. The server may first deliver the request's own messages."""
    while (await receive())["type"] != "http.disconnect":
        pass


class FaultyResponse(Response):
    """A response whose body may stall, or whose connection may drop."""

    def __init__(self, content: bytes, status: int, headers: dict[str, str], fault: Fault, sleep: Sleep) -> None:
        super().__init__(content, status, headers)
        self._fault = fault
        self._sleep = sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        effect = self._fault.effect
        if effect.holds:
            await self._stall(receive)
        if effect.sends is None:
            if effect.drops:
                raise ConnectionDroppedError
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: effect.sends], "more_body": True})
        if effect.drops:
            raise ConnectionDroppedError
        if len(self.body) > effect.sends:
            await self._stall(receive)
        await send({"type": "http.response.body", "body": self.body[effect.sends :]})

    async def _stall(self, receive: Receive) -> None:
        """Wait for the fault's time; without one, until the fault is cleared or the client disconnects."""
        if self._fault.effect.stall_s is not None:
            await self._sleep(self._fault.effect.stall_s)
            return
        waits = {
            asyncio.ensure_future(self._fault.cleared.wait()),
            asyncio.ensure_future(wait_until_disconnect(receive)),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
