"""Traces: a request, its job's wait in the queue and its attempts as one, sent where OTEL_EXPORTER_OTLP_ENDPOINT says.

Without that variable, or without the extra ``otel``, the spans are those of OpenTelemetry's API alone: nothing is
recorded or sent. The trace context travels as the ``traceparent`` of W3C Trace Context: on the job's row, in its
claim, and with its attempt to the worker.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger("zhub.tracing")

EXPORT_TIMEOUT_S = 3.0  # a collector that is away must not keep a process that ends
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Attribute = str | int | float | bool

# Does nothing until a provider is set.
_tracer = trace.get_tracer("zhub")
_propagator = TraceContextTextMapPropagator()
_sends_spans = False


def start_tracing(service: str) -> bool:
    """Send the spans of this process from now on if the environment asks for it; whether it does.

    ``service`` names the process, unless OTEL_SERVICE_NAME does.
    """
    global _sends_spans
    if not _sends_spans and any(os.environ.get(name) for name in ENDPOINTS):
        try:
            _set_provider(service)
            _sends_spans = True
        except ImportError as exc:
            log.warning(
                "%s is set, and nothing is traced, because %s is not installed. Run `pip install 'zhub[otel]'`.",
                ENDPOINTS[0],
                exc.name,
                extra={"action": "tracing_impossible"},
            )
    return _sends_spans


def _set_provider(service: str) -> None:
    """Raises ImportError where the extra ``otel`` is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    timeout_s = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_TIMEOUT_S
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=timeout_s)))
    trace.set_tracer_provider(provider)


def traceparent() -> str | None:
    """The current span, for the process that continues its trace; None where this process sends no spans."""
    if not _sends_spans:
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def trace_id() -> str | None:
    """The trace of the current span, as 32 hexadecimal digits; None where this process sends no spans."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if _sends_spans and current.is_valid else None


@contextmanager
def span(name: str, *, parent: str | None = None, **attributes: Attribute) -> Iterator[None]:
    """A span as long as the context lasts, below ``parent``, a traceparent, or else the current span."""
    with _tracer.start_as_current_span(name, context=_context(parent), attributes=_named(attributes)):
        yield


def note_span(
    name: str, duration_s: float, *, ended_s_ago: float = 0.0, parent: str | None = None, **attributes: Attribute
) -> None:
    """Record a span of something that is over."""
    end = time.time_ns() - int(ended_s_ago * 1e9)
    start = end - int(duration_s * 1e9)
    over = _tracer.start_span(name, context=_context(parent), start_time=start, attributes=_named(attributes))
    over.end(end_time=end)


def note_failure(error: BaseException) -> None:
    """Record that what the current span is about failed with ``error``."""
    current = trace.get_current_span()
    current.record_exception(error)
    current.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _context(traceparent: str | None) -> Context | None:
    """The context of a span with this parent; None: of one that continues the current span."""
    return None if traceparent is None else _propagator.extract({"traceparent": traceparent})


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"zhub.{name}": value for name, value in attributes.items()}
