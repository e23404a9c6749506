"""The only place that chooses real things: wires the rooms, runs them, and hands over on the way out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from . import __version__, tracing
from .domain.errors import CannotStart, NatsUnavailable
from .domain.requests import VCenterRouting
from .domain.subjects import SubjectNames
from .domain.watch import Policy
from .jetstream.api import Api
from .jetstream.board_reader import BoardReader
from .jetstream.connection import Connection, cancel_and_wait, server_version
from .jetstream.journal import JetStreamJournal
from .jetstream.monitor import Monitor
from .jetstream.overdue import OverdueWatches
from .jetstream.ownership import Ownership
from .jetstream.provision import check_version, expected_config
from .jetstream.rejections import Rejections
from .jetstream.replicas import Replicas, ReplicaStatus
from .jetstream.request_consumer import RequestConsumer
from .jetstream.request_context import RequestContext
from .jetstream.streams import Streams
from .jetstream.unreadable_watches import UnreadableWatches
from .jetstream.watch_store import WatchStore
from .metrics import Metrics
from .settings import Settings
from .status import Status
from .vcenter.cis import PollPolicy
from .vcenter.source import VCenterTaskSource
from .watcher import Watcher
from .web.routes import build_web
from .web.server import WebServer
from .web.watchdog import Watchdog

log = structlog.get_logger(__name__)

FINISH_S = 1.5


class Bridge:
    """One replica: `async with bridge.running() as failed:` runs it, leaving hands its watches over.

    It is ready when NATS is there and the streams are as they must be; before that it waits, and tells.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = SubjectNames(settings.subject_prefix)
        self._metrics = Metrics()
        looks = PollPolicy(settings.poll_min_s, settings.poll_max_s, settings.not_found_grace_s)
        self._sources = {name: VCenterTaskSource(of, looks, self._metrics) for name, of in settings.vcenters.items()}
        without_vim = frozenset(name for name, of in settings.vcenters.items() if of.vim == "off")
        urls = {name: of.url for name, of in settings.vcenters.items()}
        self._routes = VCenterRouting(urls, _default(settings), without_vim)
        self._watchdog = Watchdog(self._metrics.event_loop_lag)
        self.status = Status(settings.capacity, self._names, self._sources, self._metrics, lambda: self._watchdog.lag_s)
        self._feed = BoardReader(settings.nats, self._names)
        self.web = WebServer(build_web(self.status, self._feed), settings.http_listen)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Future[None]]:
        """Runs the bridge. The future fails when the bridge can't go on. Raises CannotStart."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            self._watchdog.start()
            stack.push_async_callback(self._watchdog.stop)
            await self.web.start()
            stack.push_async_callback(self.web.stop)
            stack.push_async_callback(self._feed.close)
            await self._follow(stack)
            starting = asyncio.create_task(self._start(stack, failed))
            starting.add_done_callback(lambda task: _fails_with(failed, task))
            stack.push_async_callback(cancel_and_wait, starting)
            try:
                yield failed
            finally:
                self.status.stopping = True

    async def _follow(self, stack: AsyncExitStack) -> None:
        """Enters every vCenter. They are left together: each that hangs is given time to end its session."""
        leaving = [AsyncExitStack() for _ in self._sources]

        async def leave() -> None:
            await asyncio.gather(*(one.aclose() for one in leaving))

        stack.push_async_callback(leave)
        for one, source in zip(leaving, self._sources.values(), strict=True):
            await one.enter_async_context(source)

    async def _start(self, stack: AsyncExitStack, failed: asyncio.Future[None]) -> None:
        """Connects, provisions, and only then consumes: waiting for NATS is no error."""
        connection = self.status.connection = Connection(self._settings.nats, f"task-bridge {__version__}")
        stack.push_async_callback(connection.close)
        client = await connection.open()
        connection.closed.add_done_callback(lambda _: _fails_at_end(failed, "the connection to NATS"))
        check_version(server_version(client))
        streams = Streams(client, self._settings.nats.js_domain)
        await streams.open()
        monitor = self.status.monitor = self._monitor(streams)
        await monitor.begin()
        await self._consume(connection, streams, monitor, stack, failed)
        log.info("ready", capacity=self._settings.capacity, vcenters=sorted(self._sources))

    def _monitor(self, streams: Streams) -> Monitor:
        settings = self._settings
        what = expected_config(
            self._names,
            replicas=settings.stream_replicas,
            ack_wait_s=settings.ack_wait_s,
            events_max_age_s=settings.events_max_age_s,
        )
        return Monitor(streams, self._names, what, create=settings.provision == "auto")

    async def _consume(
        self,
        connection: Connection,
        streams: Streams,
        monitor: Monitor,
        stack: AsyncExitStack,
        failed: asyncio.Future[None],
    ) -> None:
        settings, names, metrics = self._settings, self._names, self._metrics
        journal = JetStreamJournal(streams, names, metrics, time.time)
        watches = WatchStore(streams, names, journal, self._policy_of, self._sources, time.time)
        watcher = Watcher(self._sources, journal, self._policy_of, metrics, time.time)
        rejections = Rejections(streams, names, self._routes, time.time)
        ports = RequestContext(
            streams, names, watches, journal, rejections, self._routes, self._sources, metrics, time.time
        )
        intake = RequestConsumer(ports, stalled_after_s=settings.stalled_after_s)
        api = Api(ports, stalled_after_s=settings.stalled_after_s, allow_cancel=settings.allow_cancel)
        ownership = Ownership(
            streams,
            names,
            metrics,
            capacity=settings.capacity,
            ack_wait_s=monitor.ack_wait_s,
            take=watcher.take_over,
            put_aside=UnreadableWatches(ports).quarantine,
        )
        neighbours = Replicas(
            streams.connection,
            names.replicas,
            ReplicaStatus(journal.instance, 0, settings.capacity),
            ownership,
            watcher,
            self._sources,
            ack_wait_s=monitor.ack_wait_s,
        )
        self.status.watcher, self.status.instance = watcher, journal.instance
        intake.subscribe(connection.broker)
        await connection.broker.start()
        await _hear_of_unwatched(streams.connection, names, watcher)
        await api.start()
        with contextlib.suppress(NatsUnavailable):
            # A round trip behind the subscriptions, so that who is told "ready" is heard: nats-py's flush()
            # overtakes them (2.16, measured).
            await monitor.read()
        monitor.report_pull(intake.pull, ownership.pull, held=neighbours.held_count)
        for pull in (intake.pull, ownership.pull):
            connection.on_return(pull.reset)
        endless = {
            "the watcher": watcher.run(),
            "the ownership of watches": ownership.run(),
            "the intake of requests": intake.pull.run(),
            "the monitor of JetStream": monitor.run(),
            "the talk with other replicas": neighbours.run(),
            "the sweep of the watches": watcher.sweep_ownership(),
            "the end of overdue watches": OverdueWatches(watches, monitor, time.time).run(),
        }
        loops = [_begun(loop, name, failed) for name, loop in endless.items()]
        stack.push_async_callback(_hand_over, loops, api, intake, watcher, ownership, neighbours)
        self.status.consuming = True

    def _policy_of(self, vcenter: str) -> Policy:
        """What decides about events of `vcenter`, configured or not any more."""
        max_age_s = self.status.monitor.events_max_age_s if self.status.monitor else 0
        return Policy(self._routes.urls.get(vcenter), self._settings.progress_interval_s, max_age_s or math.inf)


def _begun(loop: Coroutine[Any, Any, None], name: str, failed: asyncio.Future[None]) -> asyncio.Task[None]:
    """Something that must never end, begun."""
    task = asyncio.create_task(loop, name=name)
    task.add_done_callback(lambda task: _fails_at_end(failed, name, task))
    return task


async def _hear_of_unwatched(client: Client, names: SubjectNames, watcher: Watcher) -> None:
    """A hint from whatever replica ended a watch on request to its owner; without it the next publish tells."""

    async def heard(message: Msg) -> None:
        with contextlib.suppress(NatsUnavailable):
            await watcher.check_ownership(*names.parse_event_subject(message.subject))

    await client.subscribe(f"{names.events}.*.*.abandoned.unwatched", cb=heard)


async def _hand_over(
    loops: list[asyncio.Task[None]],
    api: Api,
    intake: RequestConsumer,
    watcher: Watcher,
    ownership: Ownership,
    neighbours: Replicas,
) -> None:
    """Takes no more, finishes what is in flight, and naks the watches, so that others have them at once."""
    await cancel_and_wait(*loops)
    finishing = [asyncio.create_task(part) for part in (api.stop(), intake.drain(), watcher.stop())]
    await asyncio.wait(finishing, timeout=FINISH_S)
    await cancel_and_wait(*finishing)
    await neighbours.announce_departure()
    await ownership.hand_all_back()


def _fails_with(failed: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) and not failed.done():
        failed.set_exception(error)


def _fails_at_end(failed: asyncio.Future[None], what: str, task: asyncio.Task[None] | None = None) -> None:
    """What must never end has ended: better a restart than a process that lives on deaf."""
    if task is not None:
        if task.cancelled():
            return
        _fails_with(failed, task)
    if not failed.done():
        failed.set_exception(CannotStart(f"{what} has ended for good; see the log above. Start the bridge again."))


def _default(settings: Settings) -> str | None:
    names = list(settings.vcenters)
    return settings.default_vcenter or (names[0] if len(names) == 1 else None)


async def serve(settings: Settings) -> None:
    """Runs a replica until SIGTERM or SIGINT. Raises CannotStart, or whatever ended it."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for warning in settings.warnings:
        log.warning("setting", problem=warning)
    log.info("starting", version=__version__, **settings.describe())
    asked = asyncio.create_task(stop.wait())
    tracing.start()
    try:
        async with Bridge(settings).running() as failed:
            await asyncio.wait((asked, failed), return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping")
    finally:
        tracing.stop()
    asked.cancel()
    if failed.done():
        failed.result()
    log.info("stopped")
