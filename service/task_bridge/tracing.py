"""Spans by OpenTelemetry, where the extra `otel` is installed and an OTLP endpoint is set; else they cost nothing.

The variables are OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …). What belongs to a
request is a child of its sender's span; a look, which is at many tasks at once, begins a trace of its own.
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
    """What is imported only when it is wanted. Raises ImportError."""

    def __init__(self) -> None:
        self._trace: Any = importlib.import_module("opentelemetry.trace")
        self._propagation: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        ours = resources.Resource({"service.name": SERVICE_NAME, "service.version": __version__})
        given = resources.OTELResourceDetector().detect()
        self._provider = sdk.TracerProvider(resource=ours.merge(given), shutdown_on_exit=False)
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

    def end(self) -> None:
        # A collector that is away must not hold up the end of the process.
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(_LAST_EXPORT_S)


def begin() -> None:
    """Switches spans on where the environment asks for them; a missing extra is told, and is no reason to end."""
    global _tracing
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(os.environ.get, _ENDPOINTS)):
        return
    try:
        _tracing = _Tracing()
    except ImportError as error:
        log.warning("tracing_off", reason=str(error), cure="install vcenter-task-bridge[otel]")


def end() -> None:
    """Sends the last spans, for a second at most."""
    global _tracing
    if _tracing is not None:
        _tracing.end()
        _tracing = None


def span(
    name: str, kind: str = "INTERNAL", *, parent: str | None = None, **attributes: Any
) -> AbstractContextManager[Any]:
    """A span around what happens within. `kind` is OpenTelemetry's word; `parent` a W3C traceparent.

    Entering gives the span, None while spans are off. Attributes that are None are left out.
    """
    return _OFF if _tracing is None else _tracing.span(name, kind, parent, attributes)
