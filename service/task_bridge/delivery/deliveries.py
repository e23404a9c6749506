"""All deliveries of a process: inside `serve`, or alone in `task-bridge deliver`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog
from nats.aio.msg import Msg

from ..domain.deliveries import DeliveryReport
from ..domain.errors import CannotStart
from ..domain.subjects import SubjectNames
from ..jetstream.nats_py_workarounds import cancel_and_wait
from ..jetstream.streams import Streams
from ..settings import DeliverySettings
from .deliverer import Deliverer
from .metrics import DeliveryMetrics
from .rendering import RenderingFailed

log = structlog.get_logger(__name__)


class Deliveries:
    """The deliveries of this process. Raises CannotStart if a secret or a template can't be right."""

    def __init__(
        self,
        settings: Mapping[str, DeliverySettings],
        streams: Streams,
        names: SubjectNames,
        metrics: DeliveryMetrics,
        clock: Callable[[], float],
        *,
        create: bool,
    ) -> None:
        self._streams = streams
        self._names = names
        self._metrics = metrics
        self._deliverers: dict[str, Deliverer] = {}
        self._loops: list[asyncio.Task[None]] = []
        for name, one in settings.items():
            try:
                self._deliverers[name] = Deliverer(one, streams, names, metrics, clock, create=create)
            except (ValueError, RenderingFailed, OSError) as error:
                raise CannotStart(f"BRIDGE_DELIVERIES__{name.upper()}: {error}", exit_code=2) from error

    def reports(self) -> list[DeliveryReport]:
        """Return how each delivery is at this replica."""
        return [deliverer.report() for deliverer in self._deliverers.values()]

    def update_metrics(self) -> None:
        """Set the gauges that are ages."""
        for report in self.reports():
            self._metrics.oldest.labels(report.delivery).set(report.oldest_s or 0.0)

    async def start(self) -> None:
        """Begin to deliver, and answer how the deliveries are."""
        self._loops = [
            asyncio.create_task(deliverer.run(), name=f"the delivery {name}")
            for name, deliverer in self._deliverers.items()
        ]
        if self._deliverers:
            await self._streams.connection.subscribe(self._names.deliveries, cb=self._answer)

    async def _answer(self, message: Msg) -> None:
        if message.reply:
            await message.respond(msgspec.json.encode(self.reports()))

    def reset(self) -> None:
        """Ask again after the connection to NATS was lost."""
        for deliverer in self._deliverers.values():
            deliverer.reset()

    async def stop(self) -> None:
        """Finish what is being sent; another replica gets the rest."""
        await cancel_and_wait(*self._loops)
        await asyncio.gather(*(deliverer.stop() for deliverer in self._deliverers.values()), return_exceptions=True)
