"""Finds the newest messages of some subjects without reading all that are older."""

from __future__ import annotations

import asyncio
import itertools

from .streams import Streams


async def count_messages(streams: Streams, stream: str, subjects: str, after: int = 0) -> int:
    """Return how many messages of `subjects` the stream has behind sequence `after`. Raises NatsUnavailable."""
    page, remaining = await streams.read_page(stream, subjects, after, 1)
    return len(page) + remaining


async def find_newest(streams: Streams, stream: str, subjects: str, wanted: int, first: int, last: int) -> int:
    """Return a sequence behind which the newest `wanted` messages are, and few others. Raises NatsUnavailable.

    `first` and `last` are the stream's sequences. Several positions are tried at once: first far apart, then between
    the two that enclose the oldest wanted one.
    """
    start, end = first - 1, last
    for choose_positions in (_positions_further_back, _positions_between):
        positions = choose_positions(start, end)
        counting = (count_messages(streams, stream, subjects, position) for position in positions)
        counts = await asyncio.gather(*counting)
        for position, count in zip(positions, counts, strict=True):
            if count >= wanted:
                start = max(start, position)
            else:
                end = min(end, position)
    return start


def _positions_further_back(start: int, end: int) -> list[int]:
    """Return positions at growing distances before `end`."""
    distances = itertools.takewhile(lambda distance: end - distance > start, (64 * 4**n for n in itertools.count()))
    return [end - distance for distance in distances]


def _positions_between(start: int, end: int) -> list[int]:
    return [start + (end - start) * part // 8 for part in range(1, 8)]
