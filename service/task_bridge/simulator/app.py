"""A vCenter that isn't there: sessions, CIS tasks and classic ones as far as HTTP shows them.

    vcenter = SimulatedVCenter()
    task = vcenter.create(scenarios.succeeds(after_s=0.3))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter")

Everything can be done from within the process by the methods here, and from outside by HTTP (`control.py`).
What the documentation of vSphere leaves open is answered the stricter way.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import scenarios
from .answers import ConnectionDroppedError, until_left
from .bodies import CLUSTER, DESCRIPTIONS, OPERATIONS, SERVICES, About, SimulatedTarget
from .clock import Clock, Sleep
from .control import CONTROL, Control
from .faults import Faults
from .options import Options
from .request_log import RequestLog
from .routes import SimulatorRoutes
from .script import Flavour, Script
from .sdk import Sdk
from .sessions import Sessions, SimulatedSession
from .tasks_service import TasksService, TaskState, provider_of


class SimulatedVCenter:
    """`app` is what is served; `faults`, `journal`, `sessions`, `tasks`, `options` may be looked at and turned.

    `locked`: ids of objects at `/sdk` that nobody reads until they are out of it, as vcsim keeps the VM of a task.
    """

    def __init__(
        self, options: Options | None = None, *, clock: Clock = time.time, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.options = options or Options()
        self.clock = clock
        self.sleep = sleep
        self.tasks = TasksService(self.options, clock)
        self.sessions = Sessions(self.options, clock)
        self.faults = Faults(clock)
        self.request_log = RequestLog(clock, self.options.remembered_requests)
        self.default_script = scenarios.succeeds()
        self.next_scripts: deque[Script] = deque()
        self.locked: set[str] = set()
        self.sdk = Sdk(self)
        self._router = Router([*Control(self).routes(), *self.sdk.routes(), *SimulatorRoutes(self).all()])

    @property
    def app(self) -> ASGIApp:
        return self

    def create(
        self,
        script: Script,
        *,
        id: str | None = None,  # noqa: A002 - vSphere's word
        flavour: Flavour | None = None,
        service: str | None = None,
        operation: str | None = None,
        description: str | None = None,
        target: SimulatedTarget | None = CLUSTER,
        user: str | None = "Administrator@VSPHERE.LOCAL",
        parent: str = "",
    ) -> str:
        """Starts a task now and returns its id. A given id's suffix is its service, unless that is given too.

        A classic task (flavour `vim`) is about a VM of its own where no target is given.
        """
        flavour = flavour or script.flavour
        if flavour == "vim":
            id = id or self.tasks.new_id(flavour, "")  # noqa: A001
            target = SimulatedTarget("VirtualMachine", id.replace("task", "vm")) if target is CLUSTER else target
        about = About(
            flavour,
            service or provider_of(id or "") or SERVICES[flavour],
            operation or OPERATIONS[flavour],
            description or DESCRIPTIONS[flavour],
            target,
            user,
            parent,
            flavour != "appliance" if script.cancelable is None else script.cancelable,
            f"name of {target.id}" if flavour == "vim" and target else None,
        )
        return self.tasks.create(script, about, id)

    def next_script(self) -> Script:
        """What becomes of the next task that a client creates over vCenter's own API."""
        return self.next_scripts.popleft() if self.next_scripts else self.default_script

    def next_vim_script(self) -> Script:
        """The same of a classic task made by CreateTask, which otherwise waits for its owner to set its state."""
        return self.next_scripts.popleft() if self.next_scripts else scenarios.stays_pending()

    def set(self, task: str, *removes: str, **fields: Any) -> None:
        """Changes the task now: `vcenter.set(task, "end_time", status="FAILED")` fails it without an end_time."""
        self.tasks.set(task, fields, removes)

    def forget(self, task: str) -> None:
        self.tasks.forget(task)

    def forget_all(self) -> None:
        """A restart of the service: no task is known any more; sessions stay."""
        self.tasks.forget_all()

    def retire(self, task: str) -> None:
        """A classic task's object goes, as it does some time after its end; its history stays."""
        self.tasks.forget(task, retired=True)

    def restart(self, *, forget: bool = True) -> None:
        """All sessions end with what belongs to them; with `forget`, no task is known and numbers begin anew."""
        self.sessions.invalidate()
        self.sdk.forget_collectors()
        if forget:
            self.tasks.forget_all()
            self.tasks.reuse_ids()

    def hide(self, task: str) -> None:
        """404 until `unhide`, and missing in lists."""
        self.tasks.hide(task)

    def unhide(self, task: str) -> None:
        self.tasks.hide(task, False)

    def deny(self, task: str) -> None:
        """403 until `allow`, and missing in lists."""
        self.tasks.deny(task)

    def allow(self, task: str) -> None:
        self.tasks.deny(task, False)

    def invalidate_sessions(self, matches: Callable[[SimulatedSession], bool] = lambda _: True) -> int:
        return self.sessions.invalidate(matches)

    def history(self, task: str) -> list[TaskState]:
        """What the task really went through; forgotten tasks are remembered."""
        return list(self.tasks.known(task).history(self.clock()))

    def histories(self) -> dict[str, list[TaskState]]:
        now = self.clock()
        return {task.id: list(task.history(now)) for task in self.tasks.everything()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL):
            await self._router(scope, receive, send)
            return
        entry = self.request_log.begin(scope["method"], scope["path"], scope["query_string"].decode("latin-1"))

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            await self._router({**scope, "simulator.entry": entry}, receive, noting)
        except ConnectionDroppedError:
            await _drop(receive, send)
        except ClientDisconnect:
            pass  # who asked was killed in the middle of it, and nobody waits for an answer
        finally:
            self.request_log.finish(entry)


async def _drop(receive: Receive, send: Send) -> None:
    """A reset of the connection under uvicorn; in process there is none, and the caller gets the exception."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionDroppedError("the simulated vCenter dropped the connection")
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await until_left(receive)
