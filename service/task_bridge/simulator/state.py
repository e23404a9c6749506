"""The state of a simulated vCenter. Its endpoints share it; it knows none of them."""

from collections import deque
from collections.abc import Callable

from .entities import Entities
from .faults import Faults
from .options import Clock, Options, Sleep
from .request_log import RequestLog
from .scenarios import succeeds
from .script import Script
from .sessions import Sessions
from .tasks_service import TasksService


class NextScripts:
    """Scripts for the tasks that clients start through vCenter's own APIs: those in `queue`, then `default`."""

    def __init__(self) -> None:
        self.queue: deque[Script] = deque()
        self.default: Script = succeeds()

    def take(self, default: Script | None = None) -> Script:
        """Return the next script; `default` replaces the usual one."""
        return self.queue.popleft() if self.queue else default or self.default


class VCenterState:
    """Everything that a simulated vCenter knows.

    `locked` contains the ids of objects that `/sdk` can't read until a test removes them, as vcsim locks the VM of a
    task. `entities` are the objects of the inventory. `on_restart` is called at a restart, after the sessions have
    ended.
    """

    def __init__(self, options: Options, clock: Clock, sleep: Sleep) -> None:
        self.options = options
        self.clock = clock
        self.sleep = sleep
        self.tasks = TasksService(options, clock)
        self.sessions = Sessions(options, clock)
        self.faults = Faults(clock)
        self.request_log = RequestLog(clock, options.remembered_requests)
        self.next_scripts = NextScripts()
        self.locked: set[str] = set()
        self.entities = Entities()
        self.on_restart: Callable[[], None] = lambda: None

    def restart(self, *, forget: bool) -> None:
        """End all sessions and what belongs to them. With `forget`, forget all tasks and number new ones from 101."""
        self.sessions.invalidate()
        self.on_restart()
        if forget:
            self.tasks.forget_all()
            self.tasks.reuse_ids()
