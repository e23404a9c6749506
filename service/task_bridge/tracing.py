"""OpenTelemetry spans. They cost nothing unless the extra `otel` is installed and an OTLP endpoint is set.

The variables are OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …). Spans of a request
are children of its sender's span. A poll covers many tasks, so it starts a trace of its own.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog

from . import __version__

log = structlog.get_logger(__name__)

SERVICE_NAME = "vcenter-task-bridge"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LAST_EXPORT_S = 1.0
_OFF = nullcontext()
_tracing: _Tracing | None = None


class _Tracing:
    """The OpenTelemetry SDK, imported only if tracing is on. Raises ImportError."""

    def __init__(self) -> None:
        self._trace: Any = importlib.import_module("opentelemetry.trace")
        self._propagation: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        ours = resources.Resource({"service.name": SERVICE_NAME, "service.version": __version__})
        from_environment = resources.OTELResourceDetector().detect()
        self._provider = sdk.TracerProvider(resource=ours.merge(from_environment), shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)

    def span(self, name: str, kind: str, parent: str | None, attributes: Mapping[str, Any]) -> Any:
        carrier = {"traceparent": parent} if parent else {}
        return self._tracer.start_as_current_span(
            name,
            context=self._propagation.TraceContextTextMapPropagator().extract(carrier) if carrier else None,
            kind=self._trace.SpanKind[kind],
            attributes={key: value for key, value in attributes.items() if value is not None},
        )

    def shut_down(self) -> None:
        # An unreachable collector must not delay the exit of the process.
        exporter = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        exporter.start()
        exporter.join(_LAST_EXPORT_S)


def start() -> None:
    """Turn spans on if the environment asks for them. A missing extra is logged and doesn't stop the process."""
    global _tracing
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(os.environ.get, _ENDPOINTS)):
        return
    try:
        _tracing = _Tracing()
    except ImportError as error:
        log.warning("tracing_off", reason=str(error), cure="install vcenter-task-bridge[otel]")


def stop() -> None:
    """Export the last spans, within a second."""
    global _tracing
    if _tracing is not None:
        _tracing.shut_down()
        _tracing = None


def span(
    name: str, kind: str = "INTERNAL", *, parent: str | None = None, **attributes: Any
) -> AbstractContextManager[Any]:
    """Return a context manager that runs its block in a span. `kind` is OpenTelemetry's; `parent` is a W3C traceparent.

    It yields the span, or None while spans are off. Attributes that are None are omitted.
    """
    return _OFF if _tracing is None else _tracing.span(name, kind, parent, attributes)
