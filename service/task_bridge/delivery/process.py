"""`task-bridge deliver`: the deliveries in a process of their own, which needs NATS and no vCenter."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import structlog
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..domain.clock import ServerClock
from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.subjects import SubjectNames
from ..jetstream.connection import Connection
from ..jetstream.nats_py_workarounds import cancel_and_wait
from ..jetstream.streams import Streams
from ..settings import Settings
from ..web.health import build_delivery_status
from ..web.scrape import build_scrape
from ..web.server import WebServer
from .deliveries import Deliveries
from .metrics import DeliveryMetrics

log = structlog.get_logger(__name__)

_CLOCK_S = 30.0


class DeliveryProcess:
    """A process that only delivers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        self._metrics = DeliveryMetrics(self._registry, settings.deliveries)
        self._connection = Connection(settings.nats, f"task-bridge deliver {__version__}")
        self._deliveries: Deliveries | None = None
        routes = [Route("/livez", self._livez), Route("/readyz", self._readyz), Route("/metrics", self._serve_metrics)]
        self.web = WebServer(Starlette(routes=routes), settings.http_listen)

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set. Raises CannotStart."""
        settings, clock, names = (
            self._settings,
            ServerClock(time.time, time.monotonic),
            SubjectNames(self._settings.subject_prefix),
        )
        await self.web.start()
        try:
            streams = Streams(await self._connection.open(), settings.nats.js_domain)
            measuring = asyncio.create_task(_measure_clock(streams, names.events_stream, clock))
            deliveries = self._deliveries = Deliveries(
                settings.deliveries, streams, names, self._metrics, clock.now, create=settings.provision == "auto"
            )
            self._connection.on_reconnect(deliveries.reset)
            await deliveries.start()
            log.info("ready", deliveries=sorted(settings.deliveries))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((stopped, self._connection.closed), return_when=asyncio.FIRST_COMPLETED)
            await cancel_and_wait(stopped, measuring)
            log.info("stopping")
            await deliveries.stop()
            if not stop.is_set():
                raise CannotStart("the connection to NATS has ended for good; see the log above. Start deliver again.")
        finally:
            await self._connection.close()
            await self.web.stop()
        log.info("stopped")

    async def _livez(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        """Answer 503 only while NATS is away: a target that is away is no reason to restart this process."""
        reports = [] if self._deliveries is None else self._deliveries.reports()
        is_ready = self._deliveries is not None and self._connection.reason is None
        body = {
            "status": "unready" if not is_ready else "degraded" if any(one.is_troubled for one in reports) else "ok",
            "nats": {"connected": self._connection.reason is None, "reason": self._connection.reason},
            "deliveries": [build_delivery_status(report) for report in reports],
        }
        return JSONResponse(body, 200 if is_ready else 503)

    async def _serve_metrics(self, request: Request) -> Response:
        if self._deliveries is not None:
            self._deliveries.update_metrics()
        return build_scrape(self._registry, request.headers)


async def _measure_clock(streams: Streams, stream: str, clock: ServerClock) -> None:
    """Measure nats-server's clock, without end: events are given up by it."""
    while True:
        with contextlib.suppress(NatsUnavailable):
            await streams.measure_clock(stream, clock)
        await asyncio.sleep(_CLOCK_S)


async def deliver(settings: Settings) -> None:
    """Deliver until SIGTERM or SIGINT. Raises CannotStart."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for warning in settings.warnings:
        log.warning("setting", problem=warning)
    log.info("starting", version=__version__, **settings.describe())
    await DeliveryProcess(settings).run(stop)
