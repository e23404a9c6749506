"""The composition root: builds a replica and its parts, and runs it."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from . import __version__, schemas, tracing
from .delivery.deliveries import Deliveries
from .delivery.metrics import DeliveryMetrics
from .domain.clock import ServerClock
from .domain.errors import NatsUnavailable
from .domain.requests import VCenterRouting
from .domain.subjects import SubjectNames
from .domain.vcenter_state import VCenterReport
from .domain.watch import Policy
from .follower import Follower
from .jetstream.api import Api
from .jetstream.api_service import ApiService
from .jetstream.board_reader import BoardReader
from .jetstream.connection import Connection, server_version
from .jetstream.event_feed import JetStreamEventFeed
from .jetstream.follow_journal import FollowJournal
from .jetstream.follow_requests import admit_follow_request, follow_as_configured
from .jetstream.follow_setup import FollowSetup
from .jetstream.follow_store import FollowStore, hold_follows, quarantine_unreadable_follow
from .jetstream.journal import JetStreamJournal
from .jetstream.lost_memories import LostMemories
from .jetstream.monitor import Monitor
from .jetstream.nats_py_workarounds import cancel_and_wait
from .jetstream.ownership import Ownership
from .jetstream.provision import check_version, expected_config
from .jetstream.rejections import Rejections
from .jetstream.replicas import Replicas, ReplicaStatus
from .jetstream.request_consumer import (
    RequestConsumer,
    RequestContext,
    RequestQueue,
    admit_watch_request,
    quarantine_unreadable_watch,
    report_first_take_over,
)
from .jetstream.result_marks import JetStreamResultMarks
from .jetstream.streams import Streams
from .jetstream.watch_store import WatchStore, hold_watches
from .logs import FailureLog
from .metrics import Metrics
from .replica import ReplicaParts, fail_because_ended, fail_with_error_of
from .result_reads import ResultReads
from .schemas.openapi import build_openapi
from .settings import Settings
from .status import BridgeStatus
from .vcenter.policy import TIMEOUTS, PollPolicy, Timeouts
from .vcenter.source import VCenterTaskSource
from .watcher import Watcher
from .web.gate import Gate, TokensFile
from .web.health import BoardSource
from .web.routes import build_web
from .web.server import WebServer
from .web.tls import ServerCertificate
from .web.v1 import HttpApi
from .web.watchdog import Watchdog

log = structlog.get_logger(__name__)

_BOARD_READER_IS_A_BOARD_SOURCE: type[BoardSource] = BoardReader

RETRY_S = 2.0
MAX_FOLLOWS = 1_000
"""Follows that one replica runs."""


class Bridge:
    """One replica. `async with bridge.running() as failed:` runs it; leaving it hands its watches over.

    It is ready once NATS is connected and the streams are verified; until then it waits and reports why.
    """

    def __init__(self, settings: Settings, timeouts: Timeouts = TIMEOUTS) -> None:
        self._settings = settings
        self._names = SubjectNames(settings.subject_prefix)
        self._clock = ServerClock(time.time, time.monotonic)
        self._metrics = Metrics()
        policy = PollPolicy(settings.poll_min_s, settings.poll_max_s, settings.not_found_grace_s)
        self._sources = {
            name: VCenterTaskSource(vcenter, policy, self._metrics, self._clock.now, timeouts)
            for name, vcenter in settings.vcenters.items()
        }
        self._routing = _build_routing(settings)
        self._watchdog = Watchdog(self._metrics.event_loop_lag)
        self.status = BridgeStatus(
            settings.capacity,
            self._names,
            self._sources,
            self._metrics,
            self._clock,
            lambda: self._watchdog.lag_s,
            follows_are_configured=any(vcenter.follow for vcenter in settings.vcenters.values()),
        )
        self._board_reader = BoardReader(settings.nats, self._names)
        self._http_api = self._build_http_api()
        web = build_web(self.status, self._board_reader, *filter(None, (self._http_api,)))
        self.web = WebServer(web, settings.http_listen, _build_certificate(settings))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Future[None]]:
        """Run the bridge. The future fails when the bridge can't go on. Raises CannotStart."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            self._watchdog.start()
            stack.callback(self._watchdog.stop)
            await self.web.start()
            stack.push_async_callback(self.web.stop)
            stack.push_async_callback(self._board_reader.close)
            await self._enter_sources(stack)
            starting = asyncio.create_task(self._start(stack, failed))
            starting.add_done_callback(lambda task: fail_with_error_of(task, failed))
            stack.push_async_callback(cancel_and_wait, starting)
            try:
                yield failed
            finally:
                self.status.stopping = True
                if self._http_api is not None:
                    self._http_api.stop()

    async def _enter_sources(self, stack: AsyncExitStack) -> None:
        """Enter the source of every vCenter. All are left at once, so each has its own time to log out."""
        exits = [AsyncExitStack() for _ in self._sources]

        async def leave_all() -> None:
            await asyncio.gather(*(source_exit.aclose() for source_exit in exits))

        stack.push_async_callback(leave_all)
        for source_exit, source in zip(exits, self._sources.values(), strict=True):
            await source_exit.enter_async_context(source)

    async def _start(self, stack: AsyncExitStack, failed: asyncio.Future[None]) -> None:
        """Connect, verify the streams, then consume. Waiting for NATS is no error."""
        settings = self._settings
        connection = self.status.connection = Connection(settings.nats, f"task-bridge {__version__}")
        stack.push_async_callback(connection.close)
        client = await connection.open()
        connection.closed.add_done_callback(lambda _: fail_because_ended("the connection to NATS", failed))
        check_version(server_version(client))
        streams = Streams(client, settings.nats.js_domain)
        config = expected_config(
            self._names,
            replicas=settings.stream_replicas,
            ack_wait_s=settings.ack_wait_s,
            events_max_age_s=settings.events_max_age_s,
        )
        lost_memories = LostMemories(self._metrics, self._names.events_stream)
        may_create = settings.provision == "auto"
        follow_setup = self.status.follow_setup = FollowSetup(streams, self._names, config, create=may_create)
        connection.on_denied(follow_setup.note_denied)
        monitor = self.status.monitor = Monitor(
            streams, self._names, config, follow_setup, self._clock, lost_memories, create=may_create
        )
        await monitor.start()
        parts = self._build_parts(streams, monitor, follow_setup, lost_memories)
        self.status.watcher, self.status.instance = parts.watcher, parts.instance
        self.status.follower, self.status.replicas = parts.follower, parts.replicas
        await parts.start(connection, self._names)
        self.status.deliveries = parts.deliveries
        await parts.deliveries.start()
        connection.on_reconnect(parts.deliveries.reset)
        for pull in parts.pulls:
            connection.on_reconnect(pull.reset)
        stack.push_async_callback(parts.hand_over, parts.start_loops(failed))
        self.status.consuming = True
        if self._http_api is not None:
            self._http_api.handler = parts.api
        log.info("ready", capacity=settings.capacity, vcenters=sorted(self._sources))
        await self._follow_as_configured(parts.context, follow_setup)

    def _build_http_api(self) -> HttpApi | None:
        settings = self._settings
        if settings.http_tokens_file is None:
            return None
        tokens = TokensFile(settings.http_tokens_file)
        tokens.read()  # so that mistakes in it are reported at the start
        gate = Gate(tokens, insecure=settings.http_insecure_tokens)
        feed = JetStreamEventFeed(settings.nats, self._names, self._clock.now)
        return HttpApi(gate, feed, settings.vcenters, schemas.format_document(build_openapi()).encode(), self._metrics)

    async def _follow_as_configured(self, context: RequestContext, setup: FollowSetup) -> None:
        configured = {name: vcenter.follow for name, vcenter in self._settings.vcenters.items()}
        while True:
            await setup.wait_until_on()
            try:
                await follow_as_configured(context, configured, self._settings.stalled_after_s)
            except NatsUnavailable as error:
                log.warning("configured_follows_not_started", reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _build_parts(
        self, streams: Streams, monitor: Monitor, follow_setup: FollowSetup, lost_memories: LostMemories
    ) -> ReplicaParts:
        settings, names, metrics, now = self._settings, self._names, self._metrics, self._clock.now
        stalled_after_s = settings.stalled_after_s
        journal = JetStreamJournal(streams, names, metrics, now, lost_memories=lost_memories)
        watches = WatchStore(streams, names, journal, self._policy_of, self._sources, now)
        follow_journal = FollowJournal(streams, names, journal.instance)
        may_create = settings.provision == "auto"
        follows = FollowStore(follow_setup, streams, names, follow_journal, self._source_of, now, create=may_create)
        follower = Follower(
            self._sources, follow_journal, watches, self._source_of, metrics, now, max_rate=settings.follow_max_rate
        )
        reads = ResultReads(JetStreamResultMarks(streams, names))
        watcher = Watcher(
            self._sources, journal, self._policy_of, metrics, self._clock, reads, ack_wait_s=lambda: monitor.ack_wait_s
        )
        rejections = Rejections(streams, names, self._routing, now)
        context = RequestContext(
            streams, names, watches, follows, journal, rejections, self._routing, self._sources, metrics, now
        )
        ownership = Ownership(
            streams,
            hold_watches(names),
            metrics,
            capacity=settings.capacity,
            ack_wait_s=lambda: monitor.ack_wait_s,
            take_over=watcher.take_over,
            report_outcome=partial(report_first_take_over, context),
            quarantine=partial(quarantine_unreadable_watch, context),
            failures=FailureLog(log, "watches_not_taken_up", "watches_taken_up_again"),
        )
        replicas = Replicas(
            streams.connection,
            names.replicas,
            ReplicaStatus(journal.instance, 0, settings.capacity, vcenters=sorted(self._sources)),
            ownership,
            watcher,
            self._sources,
            own_follows=follower.reports,
            own_state=self._own_state,
            ack_wait_s=lambda: monitor.ack_wait_s,
        )
        follow_ownership = Ownership(
            streams,
            hold_follows(names),
            metrics,
            capacity=MAX_FOLLOWS,
            ack_wait_s=lambda: monitor.ack_wait_s,
            take_over=follower.take_over,
            report_outcome=lambda *_: None,
            quarantine=quarantine_unreadable_follow,
            failures=FailureLog(log, "follows_not_taken_up", "follows_taken_up_again"),
        )
        follow_ownership.belongs_elsewhere = replicas.is_known_elsewhere
        api = Api(context, replicas, stalled_after_s=stalled_after_s, allow_cancel=settings.allow_cancel)
        delivery_metrics = DeliveryMetrics(metrics.registry, settings.deliveries)
        deliveries = Deliveries(settings.deliveries, streams, names, delivery_metrics, now, create=may_create)
        consume = partial(RequestConsumer, context, replicas, ack_wait_s=monitor.ack_wait_s)
        return ReplicaParts(
            client=streams.connection,
            context=context,
            instance=journal.instance,
            monitor=monitor,
            follow_setup=follow_setup,
            names=names,
            clock=self._clock,
            watches=watches,
            watcher=watcher,
            requests=consume(
                RequestQueue(
                    names.requests_stream, names.requests, partial(admit_watch_request, context, stalled_after_s, "")
                )
            ),
            vcenter_requests=consume(
                RequestQueue(
                    names.vcenter_requests_stream,
                    names.vcenter_requests,
                    partial(admit_watch_request, context, stalled_after_s, "v"),
                    mark="v",
                )
            ),
            follow_requests=consume(
                RequestQueue(
                    names.follow_requests_stream,
                    names.follow_requests,
                    partial(admit_follow_request, context, stalled_after_s),
                    mark="f",
                )
            ),
            api=api,
            api_service=ApiService(api, streams.connection, names),
            ownership=ownership,
            follower=follower,
            follow_ownership=follow_ownership,
            replicas=replicas,
            deliveries=deliveries,
        )

    def _own_state(self, vcenter: str) -> VCenterReport | None:
        source = self._sources.get(vcenter)
        return None if source is None else source.report_state()

    def _source_of(self, vcenter: str) -> str:
        """Return what events carry as their source: the vCenter's URL."""
        return self._routing.urls.get(vcenter, f"urn:vcenter:{vcenter}")

    def _policy_of(self, vcenter: str) -> Policy:
        """Return the settings that decide about events of `vcenter`, also if it is no longer configured."""
        max_age_s = self.status.monitor.events_max_age_s if self.status.monitor else 0
        return Policy(self._routing.urls.get(vcenter), self._settings.progress_interval_s, max_age_s or math.inf)


def _build_certificate(settings: Settings) -> ServerCertificate | None:
    certificate, key = settings.http_tls_cert_file, settings.http_tls_key_file
    return ServerCertificate(certificate, key) if certificate and key else None


def _build_routing(settings: Settings) -> VCenterRouting:
    vcenters = settings.vcenters
    return VCenterRouting(
        urls={name: vcenter.url for name, vcenter in vcenters.items()},
        default=settings.default_vcenter or (next(iter(vcenters)) if len(vcenters) == 1 else None),
        without_vim=frozenset(name for name, vcenter in vcenters.items() if vcenter.vim == "off"),
    )


async def serve(settings: Settings) -> None:
    """Run a replica until SIGTERM or SIGINT. Raises CannotStart, or the error that ended it."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for warning in settings.warnings:
        log.warning("setting", problem=warning)
    log.info("starting", version=__version__, **settings.describe())
    stop_requested = asyncio.create_task(stop.wait())
    tracing.start()
    try:
        async with Bridge(settings).running() as failed:
            await asyncio.wait((stop_requested, failed), return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping")
    finally:
        tracing.stop()
    stop_requested.cancel()
    if failed.done():
        failed.result()
    log.info("stopped")
