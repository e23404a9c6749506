"""The log: every line of the process in one form on stderr, those of uvicorn, FastStream, nats-py and Python too.

`structlog.get_logger(__name__).info("watch_accepted", vcenter="lab", task=task)` is what the code writes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from .domain.durations import rfc3339
from .domain.errors import BridgeError

LogFormat = Literal["auto", "console", "json"]

_SELDOM_S = 3600.0
_FIRST = ("timestamp", "level", "event", "logger")
_QUIETER = {
    "uvicorn": logging.WARNING,  # its start and stop are told by the bridge
    "httpx": logging.WARNING,  # a line a request
    "httpcore": logging.INFO,  # its debug lines show response headers, and they may carry a session
    "pydantic_settings": logging.INFO,  # its debug lines may show what is in the environment
}


def configure(log_format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (stderr), from `level` on.

    `json`: one JSON object a line, with timestamp, level, event, logger and key-values; `console`: for people;
    `auto`: console on a terminal, else json.
    """
    stream = stream or sys.stderr
    on_terminal = stream.isatty()
    for_people = log_format == "console" or (log_format == "auto" and on_terminal)
    handler = logging.StreamHandler(stream)
    handler.addFilter(_Seldom())
    handler.setFormatter(_formatter(_console(on_terminal) if for_people else _json()))
    _take_over(handler, level.upper())
    # The bridge's own lines go straight to the stream: through logging each would cost 90 µs instead of 30.
    structlog.configure(
        processors=[*_SHARED, _in_order, *(_console(on_terminal) if for_people else _json()), _encoded],
        logger_factory=structlog.BytesLoggerFactory(stream.buffer),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


class _Seldom(logging.Filter):
    """OpenTelemetry tells of each try while its collector is away: each of its sentences comes once an hour."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry."):
            return True
        due = record.created >= self._told.get(record.msg, 0.0)
        if due:
            self._told[record.msg] = record.created + _SELDOM_S
        return due


class FailureLog:
    """A failure that many things may meet at once: told once by the name `begins`, and its end once by `ends`."""

    def __init__(self, logger: Any, begins: str, ends: str) -> None:
        self._logger = logger
        self._begins = begins
        self._ends = ends
        self._told = False

    def report_failure(self, **keys: object) -> None:
        """Tells that it has begun, unless that is told already."""
        if not self._told:
            self._told = True
            self._logger.warning(self._begins, **keys)

    def report_recovery(self, **keys: object) -> None:
        """Tells that it is over, if it was told."""
        if self._told:
            self._told = False
            self._logger.info(self._ends, **keys)


def _take_over(handler: logging.Handler, level: str) -> None:
    """Makes `handler` the only one. Libraries that bring their own lose it."""
    # FastStream's import gives its logger a handler of its own: not before then can it be taken away.
    importlib.import_module("faststream")
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name, quieter in _QUIETER.items():
        logging.getLogger(name).setLevel(max(quieter, root.level))


def _formatter(renderers: list[Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _in_order, *renderers],
    )


def _json() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]


def _console(on_terminal: bool) -> list[Processor]:
    colors = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        repr_native_str=True,  # a line break in a value must not break the line
        exception_formatter=structlog.dev.plain_traceback,  # rich's shows local variables, secrets among them
    )
    return [renderer]


def _dumps(event: Mapping[str, Any], **options: Any) -> str:
    try:
        return json.dumps(event, allow_nan=False, **options)
    except (TypeError, ValueError):  # a value that JSON can't carry must not cost the line
        return json.dumps({str(key): value if isinstance(value, str) else repr(value) for key, value in event.items()})


def _encoded(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


def _timestamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    event["timestamp"] = rfc3339(record.created if record else time.time())
    return event


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in _FIRST if key in event}
    return {**first, **event}


def _known_failure(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A failure that the bridge knows is told by its words; where it was raised helps nobody."""
    error = _exception(event.get("exc_info"))
    if error is not None and all(isinstance(one, BridgeError) for one in _leaves(error)):
        del event["exc_info"]
        event.setdefault("error", "; ".join(str(one).replace("\n", "; ") for one in _leaves(error)))
    return event


def _exception(exc_info: object) -> BaseException | None:
    if exc_info is True:
        return sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


_SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    _timestamp,
    _known_failure,
]


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__package__).critical("process_failed", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        name = args.thread.name if args.thread else "?"
        logging.getLogger(__package__).critical("thread_failed: %s", name, exc_info=args.exc_value)
