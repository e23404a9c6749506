"""What both doors for requests, the stream and the API, stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..domain.ports import TaskSource
from ..domain.requests import Routes
from ..domain.subjects import Names
from ..metrics import Metrics
from .journal import Journal
from .rejections import Rejections
from .streams import Streams
from .watch_store import Watches


class Ports(NamedTuple):
    """The rooms behind a request."""

    streams: Streams
    names: Names
    watches: Watches
    journal: Journal
    rejections: Rejections
    routes: Routes
    sources: Mapping[str, TaskSource]
    metrics: Metrics
    clock: Callable[[], float]
