"""Traces for OpenTelemetry: a span for each request, and below it one for each statement. Needs the extra `otel`.

A span has no values: its route is a template, its statement has placeholders, and of an error it has the SQLSTATE,
since PostgreSQL's texts quote rows. Attributes follow https://opentelemetry.io/docs/specs/semconv/. The SDK reads its
variables itself: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.util import Finalize
from typing import Any

from cachetools import LRUCache, cached
from django.conf import settings
from django.db import Error, connections
from django.http import HttpRequest, HttpResponseBase
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from messages_project.middleware import GetResponse, route_of
from messaging.metrics import METHODS

_LAST_SECONDS = 2.0  # to send the last spans when the process ends
# Both would put the text of an error into the span.
_WITHOUT_TEXTS: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


@cached(LRUCache(1), condition=threading.Condition())
def tracer() -> Tracer:
    """The tracer. A thread of this process sends its spans, the last of them when the process ends.

    The first request makes it: a thread that was started before would not survive a fork.
    """
    version = str(settings.SPECTACULAR_SETTINGS["VERSION"])
    resource = Resource.create({SERVICE_VERSION: version})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "messages"}))
    # It would rely on atexit, which a process forked by multiprocessing runs only from Python 3.13 on.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    Finalize(None, _stop, [provider], exitpriority=0)
    return provider.get_tracer("messages", version)


def _stop(provider: TracerProvider) -> None:
    # The exporter would try for 10 seconds for each batch.
    last = threading.Thread(target=provider.shutdown, daemon=True)
    last.start()
    last.join(_LAST_SECONDS)


class TracingMiddleware:
    """Stands outermost, so that a span lasts as long as its request."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        method = request.method if request.method in METHODS else "_OTHER"
        attributes = {
            "http.request.method": str(method), "url.path": request.path, "url.scheme": request.scheme or "",
        }  # fmt: skip
        with ExitStack() as entered:
            span = entered.enter_context(
                tracer().start_as_current_span(
                    str(method), extract(request.headers), SpanKind.SERVER, attributes, **_WITHOUT_TEXTS
                )
            )
            for connection in connections.all():
                entered.enter_context(connection.execute_wrapper(self.statement))
            # The access log names this span, whatever OTEL_PROPAGATORS says.
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
            request.META["HTTP_TRACEPARENT"] = carrier.get("traceparent", "")
            response = self.get_response(request)
            route = route_of(request)
            span.update_name(f"{method} {route}")
            span.set_attributes({
                "http.route": route,
                "http.response.status_code": response.status_code,
                "http.response.header.x-request-id": [response.headers.get("X-Request-ID", "")],
            })  # fmt: skip
            if response.status_code >= 500:
                span.set_status(StatusCode.ERROR)
            return response

    def statement(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001 - Django's signature
        """Run a statement in a span of its own: https://docs.djangoproject.com/en/stable/topics/db/instrumentation/."""
        database = context["connection"].settings_dict
        attributes = {
            "db.system.name": "postgresql",
            "db.namespace": str(database["NAME"]),
            "db.query.text": sql,
            "server.address": str(database["HOST"]),  # the primary, or which replica
        }
        name = sql.split(maxsplit=1)[0].upper()
        with tracer().start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, **_WITHOUT_TEXTS
        ) as span:
            try:
                return execute(sql, params, many, context)
            except Error as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("db.response.status_code", getattr(error.__cause__, "sqlstate", None) or "")
                raise
