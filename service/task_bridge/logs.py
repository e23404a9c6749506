"""The log: all lines of the process in one form on stderr, also those of uvicorn, FastStream, nats-py and Python.

The code writes `structlog.get_logger(__name__).info("watch_accepted", vcenter="lab", task=task)`.
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

_REPEAT_AFTER_S = 3600.0
_FIRST_KEYS = ("timestamp", "level", "event", "logger")
_MINIMUM_LEVELS = {
    "uvicorn": logging.WARNING,  # the bridge logs its start and stop
    "httpx": logging.WARNING,  # it logs a line per request
    "httpcore": logging.INFO,  # its debug lines show response headers, which may carry a session
    "pydantic_settings": logging.INFO,  # its debug lines may show the environment
}


def configure(log_format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send every log line of the process, from `level` on, to `stream` (default: stderr).

    `json`: one JSON object per line, with timestamp, level, event, logger and further keys; `console`: text for
    people; `auto`: console on a terminal, else json.
    """
    stream = stream or sys.stderr
    on_terminal = stream.isatty()
    handler = logging.StreamHandler(stream)
    handler.addFilter(_ExporterFilter())
    renderers = _json_renderers() if is_json(log_format, stream) else _console_renderers(on_terminal)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED_PROCESSORS,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _order_keys, *renderers],
        )
    )
    _install_handler(handler, level.upper())
    # The bridge's own lines go straight to the stream: through logging each would cost 90 µs instead of 30.
    structlog.configure(
        processors=[
            *_SHARED_PROCESSORS,
            _order_keys,
            *renderers,
            _encode_line,
        ],
        logger_factory=structlog.BytesLoggerFactory(stream.buffer),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def is_json(log_format: LogFormat, stream: TextIO) -> bool:
    """Return whether the lines that go to `stream` in this format are JSON."""
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


class _ExporterFilter(logging.Filter):
    """Lets each message of OpenTelemetry through once per hour: it logs every try while its collector is away."""

    def __init__(self) -> None:
        super().__init__()
        self._next_times: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry."):
            return True
        due = record.created >= self._next_times.get(record.msg, 0.0)
        if due:
            self._next_times[record.msg] = record.created + _REPEAT_AFTER_S
        return due


class FailureLog:
    """Logs a failure once, however often it is reported, as the event `failure`, and its end once as `recovery`."""

    def __init__(self, logger: Any, failure: str, recovery: str) -> None:
        self._logger = logger
        self._failure = failure
        self._recovery = recovery
        self._logged = False

    def report_failure(self, **keys: object) -> None:
        """Log the failure, unless it is logged already."""
        if not self._logged:
            self._logged = True
            self._logger.warning(self._failure, **keys)

    def report_recovery(self, **keys: object) -> None:
        """Log the recovery, if the failure was logged."""
        if self._logged:
            self._logged = False
            self._logger.info(self._recovery, **keys)


def _install_handler(handler: logging.Handler, level: str) -> None:
    """Make `handler` the only handler; remove those that libraries have installed."""
    # The import of FastStream installs a handler of its own, so it can only be removed afterwards.
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
    for name, minimum in _MINIMUM_LEVELS.items():
        logging.getLogger(name).setLevel(max(minimum, root.level))


def _json_renderers() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dump_json)]


def _console_renderers(on_terminal: bool) -> list[Processor]:
    colors = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        repr_native_str=True,  # a line break in a value must not split the line
        exception_formatter=structlog.dev.plain_traceback,  # rich's shows local variables, which include secrets
    )
    return [renderer]


def _dump_json(event: Mapping[str, Any], **options: Any) -> str:
    try:
        return json.dumps(event, allow_nan=False, **options)
    except (TypeError, ValueError):  # log the line even if JSON can't carry a value
        return json.dumps({str(key): value if isinstance(value, str) else repr(value) for key, value in event.items()})


def _encode_line(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


def _add_timestamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    event["timestamp"] = rfc3339(record.created if record else time.time())
    return event


def _order_keys(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in _FIRST_KEYS if key in event}
    return {**first, **event}


def _shorten_known_failure(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the traceback of the bridge's own errors by their message, which is enough."""
    error = _find_exception(event.get("exc_info"))
    if error is not None and all(isinstance(one, BridgeError) for one in _iterate_leaves(error)):
        del event["exc_info"]
        event.setdefault("error", "; ".join(str(one).replace("\n", "; ") for one in _iterate_leaves(error)))
    return event


def _find_exception(exc_info: object) -> BaseException | None:
    if exc_info is True:
        return sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _iterate_leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _iterate_leaves(one)
    else:
        yield error


_SHARED_PROCESSORS: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    _add_timestamp,
    _shorten_known_failure,
]


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__package__).critical("process_failed", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        name = args.thread.name if args.thread else "?"
        logging.getLogger(__package__).critical("thread_failed: %s", name, exc_info=args.exc_value)
