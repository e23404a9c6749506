"""The parts of a replica that need NATS: how they start, run, and hand the watches over at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .delivery.deliveries import Deliveries
from .domain.clock import ServerClock
from .domain.errors import CannotStart, NatsUnavailable
from .domain.follows.order import Follow
from .domain.subjects import SubjectNames
from .domain.watch import Watch
from .follower import Follower
from .jetstream.api import Api
from .jetstream.api_service import ApiService
from .jetstream.connection import Connection
from .jetstream.follow_setup import FollowSetup
from .jetstream.monitor import Monitor
from .jetstream.nats_py_workarounds import cancel_and_wait, flush_and_wait
from .jetstream.ownership import Ownership
from .jetstream.pull_consumer import PullConsumer
from .jetstream.replicas import Replicas
from .jetstream.request_consumer import RequestConsumer, RequestContext
from .jetstream.watch_store import WatchStore, end_timed_out_watches
from .watcher import Watcher

FINISH_S = 1.5


class ReplicaParts(NamedTuple):
    """The parts of a replica that need NATS."""

    client: Client
    context: RequestContext
    instance: str
    monitor: Monitor
    follow_setup: FollowSetup
    names: SubjectNames
    clock: ServerClock
    watches: WatchStore
    watcher: Watcher
    requests: RequestConsumer
    vcenter_requests: RequestConsumer
    follow_requests: RequestConsumer
    api: Api
    api_service: ApiService
    ownership: Ownership[Watch]
    follower: Follower
    follow_ownership: Ownership[Follow]
    replicas: Replicas
    deliveries: Deliveries

    @property
    def pulls(self) -> tuple[PullConsumer, ...]:
        requests = (consumer.pull for consumer in self.request_consumers)
        return (*requests, self.ownership.pull, self.follow_ownership.pull)

    @property
    def request_consumers(self) -> tuple[RequestConsumer, ...]:
        return self.requests, self.vcenter_requests, self.follow_requests

    async def start(self, connection: Connection, names: SubjectNames) -> None:
        """Subscribe, and return when nats-server has taken the subscriptions."""
        for consumer in self.request_consumers:
            consumer.subscribe(connection.broker)
        await connection.broker.start()
        await self._subscribe_to_unwatched(names)
        await self.api_service.start()
        with contextlib.suppress(nats.errors.Error, OSError):
            await flush_and_wait(self.client)  # so that a request sent after "ready" is received
        held, held_follows = self.replicas.held_count, self.replicas.held_follow_count
        self.monitor.set_pulls(*self.pulls, held=held, held_follows=held_follows)

    async def _subscribe_to_unwatched(self, names: SubjectNames) -> None:
        """Subscribe to endings by request, which any replica may publish; without this hint the next publish fails."""

        async def check_ownership(message: Msg) -> None:
            with contextlib.suppress(NatsUnavailable):
                await self.watcher.check_ownership(*names.parse_event_subject(message.subject))

        await self.client.subscribe(f"{names.events}.*.*.abandoned.unwatched", cb=check_ownership)

    async def _run_follows(self) -> None:
        """Run what follows need whenever NATS is prepared for them, without end."""
        while True:
            await self.follow_setup.wait_until_on()
            subscription = await self._subscribe_to_follows(self.names)
            try:
                async with asyncio.TaskGroup() as group:
                    loops = (
                        self.vcenter_requests.run(),
                        self.follow_requests.run(),
                        self.follow_ownership.run(),
                        self.follower.sweep_ownership(),
                    )
                    running = [group.create_task(loop) for loop in loops]
                    await self.follow_setup.wait_until_off()
                    for task in running:
                        task.cancel()
            finally:
                if not self.client.is_closed:
                    await subscription.unsubscribe()
            await self.follower.stop(must_store=False)
            await self.follow_ownership.hand_all_back()

    async def _subscribe_to_follows(self, names: SubjectNames) -> Subscription:
        """Subscribe to the events of follows: a final one, or another replica's, may end a follow here."""

        async def check_ownership(message: Msg) -> None:
            is_own = (message.headers or {}).get("Bridge-Instance") == self.instance
            if not is_own or message.subject.endswith(".unfollowed"):
                with contextlib.suppress(NatsUnavailable):
                    await self.follower.check_ownership(*names.parse_follow_event_subject(message.subject))

        return await self.client.subscribe(f"{names.follows}.>", cb=check_ownership)

    def start_loops(self, failed: asyncio.Future[None]) -> list[asyncio.Task[None]]:
        """Start everything that must never end; if one does, the replica fails."""
        timing_out = end_timed_out_watches(self.watches, self._has_unheld_watches, self.clock.now)
        loops = {
            "the watcher": self.watcher.run(),
            "the ownership of watches": self.ownership.run(),
            "the intake of requests": self.requests.run(),
            "the follows": self._run_follows(),
            "the monitor of JetStream": self.monitor.run(),
            "the exchange with other replicas": self.replicas.run(),
            "the sweep of the watches": self.watcher.sweep_ownership(),
            "the check of the watches' memories": self.watcher.check_memories(lambda: self.monitor.events_contents),
            "the end of timed-out watches": timing_out,
        }
        return [_start_loop(loop, name, failed) for name, loop in loops.items()]

    def _has_unheld_watches(self) -> bool:
        return bool(self.monitor.unheld_count)

    async def hand_over(self, loops: list[asyncio.Task[None]]) -> None:
        """Take no more, finish what is in flight, and nak the watches, so that other replicas get them at once."""
        await cancel_and_wait(*loops)
        finishing = [
            asyncio.create_task(part)
            for part in (
                self.api_service.stop(),
                *(consumer.drain() for consumer in self.request_consumers),
                self.follower.stop(),
                self.deliveries.stop(),
                self.watcher.stop(),
            )
        ]
        await asyncio.wait(finishing, timeout=FINISH_S)
        await cancel_and_wait(*finishing)
        await self.replicas.announce_leaving()
        await self.ownership.hand_all_back()
        await self.follow_ownership.hand_all_back()


def _start_loop(loop: Coroutine[Any, Any, None], name: str, failed: asyncio.Future[None]) -> asyncio.Task[None]:
    task = asyncio.create_task(loop, name=name)
    task.add_done_callback(lambda task: fail_because_ended(name, failed, task))
    return task


def fail_with_error_of(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    """Fail with the error of a task that has ended, if it has one."""
    if not task.cancelled() and (error := task.exception()) and not failed.done():
        failed.set_exception(error)


def fail_because_ended(what: str, failed: asyncio.Future[None], task: asyncio.Task[None] | None = None) -> None:
    """Fail because something that must never end has ended: a restart is better than a process that hears nothing."""
    if task is not None:
        if task.cancelled():
            return
        fail_with_error_of(task, failed)
    if not failed.done():
        failed.set_exception(CannotStart(f"{what} has ended for good; see the log above. Start the bridge again."))
