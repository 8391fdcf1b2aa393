"""Traces: what a collector receives from the real service, with either server."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from django.db import DatabaseError, connection
from django.http import HttpResponse
from django.test import RequestFactory
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from messages_project import tracing
from messages_project.tracing import TracingMiddleware
from tests.conftest import MakeKey
from tests.servers import PROJECT_DIR, RunningServer, free_port

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes what is sent by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def exports(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Span]:
        return [
            span
            for export in self.exports()
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_parts: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as receiving:
        Thread(target=receiving.serve_forever, daemon=True).start()
        yield receiving
        receiving.shutdown()


def attributes_of(span: Span | Resource) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@pytest.mark.process
def test_each_request_is_a_span_above_those_of_its_statements(
    run_server: Callable[..., RunningServer], make_key: MakeKey, collector: Collector
) -> None:
    # What is left is sent when a worker ends: until then nothing is.
    server = run_server(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="600000", LOG_FORMAT="json")
    api = server.api(make_key())
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    sent = (
        api.post("/messages/", {"recipient": "zebedee", "content": "a private letter"}, headers=traced).expect(201).json
    )
    api.get(f"/messages/{sent['id']}").expect(200)
    api.get("/messages/?recipient=zebedee&sender=ottokar").expect(200)
    missing = api.get("/messages/019b5c3e-7a10-7c32-9d5e-0b8f4a6d2c91").expect(404)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: server.api(api.key).get("/mailbox?recipient=zebedee").expect(200), range(40)))
    assert collector.bodies == []
    assert server.stop() == 0

    spans = collector.spans()
    requests = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER and "/readyz" not in span.name]
    names = [span.name for span in requests]
    assert len(names) == 44
    assert set(names) == {"POST /messages", "GET /messages/{id}", "GET /messages", "GET /mailbox"}
    [post] = [span for span in requests if span.name == "POST /messages"]
    assert (post.trace_id.hex(), post.parent_span_id.hex()) == (TRACE, PARENT)
    assert len({span.trace_id for span in requests}) == 44
    for request in requests:
        statements = [span for span in spans if span.parent_span_id == request.span_id]
        assert {span.trace_id for span in statements} == {request.trace_id}
        servers = {
            (attributes_of(each)["db.system.name"], attributes_of(each)["server.address"]) for each in statements
        }
        assert servers == {("postgresql", connection.settings_dict["HOST"])}
    [insert] = [
        span for span in spans if "INSERT INTO messaging_message" in str(attributes_of(span).get("db.query.text"))
    ]
    assert (insert.parent_span_id, insert.kind) == (post.span_id, Span.SPAN_KIND_CLIENT)
    statuses = {request.trace_id: attributes_of(request)["http.response.status_code"] for request in requests}
    assert statuses[post.trace_id] == 201
    assert sorted(statuses.values())[-2:] == [201, 404]

    # No value of a parameter, and the log names the same spans.
    received = b"".join(collector.bodies)
    assert b"private letter" not in received
    assert b"zebedee" not in received
    assert b"ottokar" not in received
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line.get("request_id") == missing.headers["X-Request-ID"]]
    [request] = [span for span in requests if span.span_id.hex() == line["span_id"]]
    assert (request.name, request.trace_id.hex()) == ("GET /messages/{id}", line["trace_id"])
    resources = [attributes_of(each.resource) for export in collector.exports() for each in export.resource_spans]
    assert {resource["service.name"] for resource in resources} == {"messages"}


@pytest.mark.process
def test_an_unavailable_collector_delays_no_request(
    run_server: Callable[..., RunningServer], make_key: MakeKey
) -> None:
    # It would be tried for a minute.
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    server = run_server(**away)
    server.api(make_key()).send("ada")
    started = time.monotonic()
    assert server.stop() == 0
    # The workers ended by themselves: after GRACEFUL_TIMEOUT_SECONDS they would have been killed.
    assert time.monotonic() - started < 20


def test_a_span_has_no_text_of_an_error(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_request: object) -> HttpResponse:
        with connection.cursor() as cursor, pytest.raises(DatabaseError, match="private"):
            cursor.execute("SELECT %s::int", ["a private letter"])
        return HttpResponse(status=500)

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    TracingMiddleware(fail)(RequestFactory().get("/messages/?recipient=ada"))
    statement, request = exporter.get_finished_spans()
    assert statement.parent == request.context
    assert dict(statement.attributes or {})["db.response.status_code"] == "22P02"
    assert "private" not in statement.to_json()
    assert "private" not in request.to_json()
    assert not request.status.is_ok


def test_a_disabled_sdk_leaves_requests_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    middleware = TracingMiddleware(lambda request: HttpResponse(request.META["HTTP_TRACEPARENT"]))
    monkeypatch.setattr(tracing, "tracer", lambda: TracerProvider(shutdown_on_exit=False).get_tracer("test"))
    theirs = f"00-{TRACE}-{PARENT}-01"
    for given in ({}, {"traceparent": theirs}):
        assert middleware(RequestFactory().get("/", headers=given)).getvalue() == given.get("traceparent", "").encode()


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, messages_project.wsgi; from django.urls import get_resolver; get_resolver().url_patterns;"
        "sys.exit([name for name in sys.modules if 'opentelemetry' in name or name.endswith('.tracing')] or 0)"
    )
    environment = {"PATH": "/usr/bin:/bin", "PLAIN_HTTP": "true"}
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, env=environment, check=True)
