"""Where a request's time goes: the product's layers in one process, each by the time that it spends itself.

`measure` runs in a process of its own, with the product's environment: `python -m benchmarks.layers KEY`. The layers
are functions that are replaced by timed ones, which adds about a microsecond to each call.
"""

import importlib
import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.contenders import Product, processor_seconds
from benchmarks.load import Request, run_wrk
from benchmarks.postgres import Server
from benchmarks.works import MAILBOXES, message

MEASURED, WARM_UP, SECONDS = 4_000, 500, 5
REQUESTS: dict[str, Callable[[int], tuple[str, ...]]] = {
    "counts": lambda number: ("GET", f"/mailbox?recipient=user-{number % MAILBOXES + 1}"),
    "send": lambda number: ("POST", "/messages/", json.dumps(message(f"user-{number % MAILBOXES + 1}"))),
}
PROCESSOR = "processor, all of these"
SERVED = "processor, behind gunicorn"
# Each function or method, by its module and name, and its layer. What is not named counts for what calls it.
LAYERS = (
    ("django.core.handlers.wsgi", "WSGIHandler.__call__", "Django's handler, its request and response"),
    ("messages_project.middleware", "RequestMiddleware.__call__", "middleware"),
    ("messages_project.logs", "log_access", "access log"),
    ("messaging.metrics", "observe_request", "metrics"),
    ("django.core.handlers.base", "BaseHandler._get_response", "URL dispatch"),
    ("messaging.api.viewsets", "ApiViewSet.dispatch", "REST framework's request, dispatch and response"),
    ("messaging.api.viewsets", "ApiViewSet.perform_authentication", "authentication"),
    ("messaging.api.viewsets", "ApiViewSet.check_throttles", "rate limit"),
    ("messaging.api.viewsets", "ApiViewSet.read_query", "parsing and validation"),
    ("messaging.api.parsers", "read_body", "parsing and validation"),
    ("messaging.api.parsers", "parse_json", "parsing and validation"),
    ("messaging.api.viewsets", "ApiViewSet.validated_body", "parsing and validation"),
    ("messaging.database", "fetch", "statement: Django's connection and psycopg"),
    ("messaging.postgresql.base", "Connection.wait", "statement: waiting for PostgreSQL"),
    ("messaging.api.answers", "answer", "rendering"),
)


class Stopwatch:
    """Adds up the time that each layer spends itself, without the layers that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]  # of each open call, the time of the layers that it called

    def timed(self, function: Callable[..., Any], layer: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                whole = time.perf_counter() - started
                self.seconds[layer] += whole - self._inner.pop()
                self._inner[-1] += whole

        return run

    def replace(self, module: str, name: str, layer: str) -> None:
        """Time a method in its class, or a function in every module that has imported it."""
        owner_name, _, attribute = name.rpartition(".")
        owner = importlib.import_module(module)
        if owner_name:
            kind = getattr(owner, owner_name)
            setattr(kind, attribute, self.timed(getattr(kind, attribute), layer))
            return
        function = getattr(owner, attribute)
        run = self.timed(function, layer)
        for known in [known for known in sys.modules.values() if getattr(known, attribute, None) is function]:
            setattr(known, attribute, run)


def environ(method: str, path: str, key: str, body: str = "") -> dict[str, Any]:
    """A request as a server passes it on (PEP 3333)."""
    route, _, query = path.partition("?")
    return {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": route, "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8000", "HTTP_AUTHORIZATION": f"Bearer {key}", "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body.encode()), "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": True,
    }  # fmt: skip


def measure(key: str) -> dict[str, dict[str, float]]:
    """Microseconds of each layer, by the name of the request."""
    import django

    django.setup()
    import messages_project.urls  # noqa: F401 - imports every module that is timed

    watch = Stopwatch()
    for layer in LAYERS:
        watch.replace(*layer)
    from messages_project.wsgi import application

    def ask(method: str, path: str, body: str = "") -> None:
        response = application(environ(method, path, key, body), lambda _status, _headers, _error=None: None)
        b"".join(response)
        response.close()

    found = {}
    for name, request in REQUESTS.items():
        for number in range(WARM_UP):
            ask(*request(number))
        watch.seconds.clear()
        spent = time.process_time()
        for number in range(MEASURED):
            ask(*request(number))
        watch.seconds[PROCESSOR] = time.process_time() - spent
        found[name] = {layer: seconds / MEASURED * 1e6 for layer, seconds in watch.seconds.items()}
    return found


def run(server: Server, *, rounds: int, say: Callable[[str], None]) -> None:
    """Prints medians of microseconds: of each layer, and of the processor for the whole request behind gunicorn."""
    product = Product("product", server)
    product.create()
    product.add_mailboxes([f"user-{number}" for number in range(1, MAILBOXES + 1)])
    product.add_messages("user-%", 20, days=30)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in REQUESTS}
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        unlimited = {"MESSAGES_RATE_LIMIT_READ": "1000000/s", "MESSAGES_RATE_LIMIT_WRITE": "1000000/s"}
        done = product.run_tool("-m", "benchmarks.layers", product.tokens[0], **unlimited)
        if done.returncode:
            raise SystemExit(done.stderr)
        for name, layers in json.loads(done.stdout.splitlines()[-1]).items():
            for layer, microseconds in layers.items():
                found[name][layer].append(microseconds)
        with product.serving():
            for name, request in REQUESTS.items():
                requests = [Request(*request(number)) for number in range(MAILBOXES)]
                for seconds in (1, SECONDS):  # the first warms up
                    spent = processor_seconds(product.pids())
                    answered = run_wrk(product, requests, seconds=seconds, again=True).requests
                    product.settle()
                    whole = (processor_seconds(product.pids()) - spent) / answered * 1e6
                found[name][SERVED].append(whole)
    for name, layers in found.items():
        print(f"\n{name}: microseconds a request, medians of {rounds} rounds")
        for layer in (*dict.fromkeys(layer for _, _, layer in LAYERS), PROCESSOR, SERVED):
            print(f"  {layer:48} {median(layers[layer]):6.0f}" if layer in layers else f"  {layer:48}      -")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
