"""What both doors for requests, the stream and the API, stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..domain.ports import TaskSource
from ..domain.requests import VCenterRouting
from ..domain.subjects import SubjectNames
from ..metrics import Metrics
from .journal import JetStreamJournal
from .rejections import Rejections
from .streams import Streams
from .watch_store import WatchStore


class RequestContext(NamedTuple):
    """The rooms behind a request."""

    streams: Streams
    names: SubjectNames
    watches: WatchStore
    journal: JetStreamJournal
    rejections: Rejections
    routes: VCenterRouting
    sources: Mapping[str, TaskSource]
    metrics: Metrics
    clock: Callable[[], float]
