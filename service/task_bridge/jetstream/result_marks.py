"""Marks of results that are being read, in the stream of the bucket for results, so that they outlive a replica.

A mark is a chunk of no object, so clients of the bucket don't see it. The bridge has all rights to it, and it ages out
like results. Its body is how many owners of the watch have begun to read the result.
"""

from __future__ import annotations

import nats.errors
import nats.js.errors

from ..domain.errors import NatsUnavailable
from ..domain.ports import ResultMarks
from ..domain.subjects import SubjectNames, task_token
from .streams import Streams


class JetStreamResultMarks:
    """Marks by watch id. Each method raises NatsUnavailable."""

    def __init__(self, streams: Streams, names: SubjectNames) -> None:
        self._streams = streams
        self._stream = f"OBJ_{names.results_bucket}"
        self._prefix = f"$O.{names.results_bucket}.C.reading"

    async def read(self, watch_id: str) -> int:
        """Return how many owners have begun to read the watch's result and haven't cleared that."""
        stored = await self._streams.read_last(self._stream, self._subject(watch_id), leader=True)
        return int(stored.body) if stored is not None and stored.body.isdigit() else 0

    async def write(self, watch_id: str, readers: int) -> None:
        """Set how many owners have begun to read it; 0 removes the mark."""
        subject = self._subject(watch_id)
        if readers:
            await self._streams.publish(self._stream, subject, b"%d" % readers, {"Nats-Rollup": "sub"})
            return
        try:
            await self._streams.js.purge_stream(self._stream, subject=subject)
        except (nats.errors.Error, OSError) as error:
            raise NatsUnavailable(f"{self._stream}: {error or type(error).__name__}") from error

    def _subject(self, watch_id: str) -> str:
        return f"{self._prefix}.{task_token(watch_id)}"


_MARKS_ARE_RESULT_MARKS: type[ResultMarks] = JetStreamResultMarks
