"""Traces: a request, its job's wait in the queue and its attempts as one, sent where OTEL_EXPORTER_OTLP_ENDPOINT says.

Without that variable, or without the extra ``otel``, every function here does nothing. The trace context travels as
the ``traceparent`` of W3C Trace Context: on the job's row, in its claim, and with its attempt to the worker.
"""

import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("zhub.tracing")

EXPORT_TIMEOUT_S = 3.0  # a collector that is away must not keep a process that ends
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Attribute = str | int | float | bool


class _Otel:
    """What of OpenTelemetry is used, imported only where it is wanted."""

    def __init__(self, service: str) -> None:
        """Raises ImportError where the extra ``otel`` is not installed."""
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self.trace: Any = importlib.import_module("opentelemetry.trace")
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
        provider = sdk.TracerProvider(resource=resources.Resource.create(named))
        timeout_s = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_TIMEOUT_S
        provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter(timeout=timeout_s)))
        self.trace.set_tracer_provider(provider)
        self.tracer: Any = self.trace.get_tracer("zhub")
        self._propagator: Any = propagation.TraceContextTextMapPropagator()

    def context(self, traceparent: str | None) -> Any:
        """Of a span with this parent; None: of one that continues the current span."""
        return None if traceparent is None else self._propagator.extract({"traceparent": traceparent})

    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")


_otel: _Otel | None = None


def start_tracing(service: str) -> bool:
    """Send the spans of this process from now on if the environment asks for it; whether it does.

    ``service`` names the process, unless OTEL_SERVICE_NAME does.
    """
    global _otel
    if _otel is None and any(os.environ.get(name) for name in ENDPOINTS):
        try:
            _otel = _Otel(service)
        except ImportError as exc:
            log.warning(
                "%s is set, and nothing is traced, because %s is not installed. Run `pip install 'zhub[otel]'`.",
                ENDPOINTS[0],
                exc.name,
                extra={"action": "tracing_impossible"},
            )
    return _otel is not None


def traceparent() -> str | None:
    """The current span, for whoever is to continue it elsewhere."""
    return None if _otel is None else _otel.traceparent()


def trace_id() -> str | None:
    """Of the current span, as its 32 hexadecimal digits."""
    current = traceparent()
    return None if current is None else current.split("-")[1]


@contextmanager
def span(name: str, *, parent: str | None = None, **attributes: Attribute) -> Iterator[None]:
    """A span as long as the context lasts, below ``parent``, a traceparent, or else the current span."""
    if _otel is None:
        yield
        return
    with _otel.tracer.start_as_current_span(name, context=_otel.context(parent), attributes=_named(attributes)):
        yield


def note_span(
    name: str, duration_s: float, *, ended_s_ago: float = 0.0, parent: str | None = None, **attributes: Attribute
) -> None:
    """A span of something that is over."""
    if _otel is None:
        return
    end = time.time_ns() - int(ended_s_ago * 1e9)
    start = end - int(duration_s * 1e9)
    made = _otel.tracer.start_span(name, context=_otel.context(parent), start_time=start, attributes=_named(attributes))
    made.end(end_time=end)


def note_failure(error: BaseException) -> None:
    """The current span is of something that failed with this."""
    if _otel is None:
        return
    current = _otel.trace.get_current_span()
    current.record_exception(error)
    current.set_status(_otel.trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"zhub.{name}": value for name, value in attributes.items()}
