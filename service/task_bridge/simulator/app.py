"""A simulated vCenter: sessions, CIS tasks and classic tasks, as far as HTTP shows them.

    vcenter = SimulatedVCenter()
    task = vcenter.create(scenarios.succeeds(after_s=0.3))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter")

Use the methods here within the process, and the control API (`control.py`) from outside. Where vSphere's documentation
leaves something open, the simulator does what is stricter for clients.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Unpack
from wsgiref.handlers import format_date_time

from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .control import CONTROL, ControlApi
from .options import Clock, Options, Sleep
from .responses import ConnectionDroppedError, wait_until_disconnect
from .routes import VCenterRoutes
from .script import Script
from .sdk import SdkEndpoint
from .sessions import SimulatedSession
from .simulated_task import TaskState
from .state import VCenterState
from .task_attributes import TaskDetails


class SimulatedVCenter:
    """A vCenter's state together with its endpoints; `app` serves them.

    Tests may read and change `options`, `tasks`, `sessions`, `faults`, `request_log`, `next_scripts`, `locked` and
    `entities` (see `VCenterState`).
    """

    def __init__(
        self, options: Options | None = None, *, clock: Clock = time.time, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._state = state = VCenterState(options or Options(), clock, sleep)
        self.options, self.clock = state.options, clock
        self.tasks, self.sessions, self.faults = state.tasks, state.sessions, state.faults
        self.request_log, self.next_scripts = state.request_log, state.next_scripts
        self.locked, self.entities = state.locked, state.entities
        endpoints = ControlApi(state), SdkEndpoint(state), VCenterRoutes(state)
        self._router = Router([route for endpoint in endpoints for route in endpoint.build_routes()])

    @property
    def app(self) -> ASGIApp:
        return self

    def create(self, script: Script, **details: Unpack[TaskDetails]) -> str:
        """Start a task now and return its id."""
        return self.tasks.create(script, **details)

    def set(self, task: str, *removes: str, **fields: Any) -> None:
        """Change the task now: `vcenter.set(task, "end_time", status="FAILED")` fails it without an end_time."""
        self.tasks.set(task, fields, removes)

    def forget(self, task: str) -> None:
        self.tasks.forget(task)

    def forget_all(self) -> None:
        """Forget every task, as a restart of the service does; sessions stay."""
        self.tasks.forget_all()

    def retire(self, task: str) -> None:
        """Remove a classic task's object, as vCenter does some time after its end; its history stays."""
        self.tasks.forget(task, retired=True)

    def restart(self, *, forget: bool = True) -> None:
        """End all sessions and what belongs to them. With `forget`, forget all tasks and number new ones from 101."""
        self._state.restart(forget=forget)

    def hide(self, task: str) -> None:
        """Answer 404 for the task until `unhide`, and leave it out of lists."""
        self.tasks.hide(task)

    def unhide(self, task: str) -> None:
        self.tasks.hide(task, False)

    def deny(self, task: str) -> None:
        """Answer 403 for the task until `allow`, and leave it out of lists."""
        self.tasks.deny(task)

    def allow(self, task: str) -> None:
        self.tasks.deny(task, False)

    def invalidate_sessions(self, matches: Callable[[SimulatedSession], bool] = lambda _: True) -> int:
        return self.sessions.invalidate(matches)

    def history(self, task: str) -> list[TaskState]:
        """Return the states that the task really had, even if it is forgotten."""
        return self.tasks.history(task)

    def histories(self) -> dict[str, list[TaskState]]:
        return self.tasks.histories()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL):
            await self._router(scope, receive, send)
            return
        entry = self.request_log.begin(scope["method"], scope["path"], scope["query_string"].decode("latin-1"))

        async def log_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                date = format_date_time(self.clock() + self.options.timestamps.skew_s)
                message = {**message, "headers": [*message.get("headers", ()), (b"date", date.encode())]}
            await send(message)

        try:
            await self._router({**scope, "simulator.entry": entry}, receive, log_status)
        except ConnectionDroppedError:
            await _drop_connection(receive, send)
        except ClientDisconnect:
            pass  # the client was killed while it sent the request, so nobody waits for a response
        finally:
            self.request_log.finish(entry)


async def _drop_connection(receive: Receive, send: Send) -> None:
    """Reset the connection under uvicorn. In process there is none, and the caller gets the exception."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionDroppedError("the simulated vCenter dropped the connection")
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await wait_until_disconnect(receive)
