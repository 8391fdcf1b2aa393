"""The metrics of the service, for Prometheus: https://prometheus.io/docs/practices/naming/.

If PROMETHEUS_MULTIPROC_DIR is set before this module is imported (messages_project/serve.py), all processes of an
instance count in files of that directory, and `registry` sums them. Labels have few values: routes are templates.
"""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from django.db import transaction
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

# The metrics of this process. With several, `registry` reads the files.
_OWN = CollectorRegistry()

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})

http_requests = Counter("messages_http_requests", "Requests answered.", ("route", "method", "status"), registry=_OWN)
http_request_duration = Histogram(
    "messages_http_request_duration_seconds",
    "Time from a request's arrival in the application to its answer.",
    ("route", "method"),
    registry=_OWN,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
sent = Counter("messages_sent", "Messages sent.", registry=_OWN)
marked = Counter("messages_marked", "Messages whose state was changed.", ("state",), registry=_OWN)
deleted = Counter("messages_deleted", "Messages deleted, expired ones included.", registry=_OWN)
idempotent_replays = Counter("messages_idempotent_replays", "Stored outcomes given again.", registry=_OWN)
rate_limited = Counter("messages_rate_limited", "Requests refused by a limit.", ("policy",), registry=_OWN)
database_retries = Counter(
    "messages_database_retries", "Transactions run again; without SQLSTATE after a lost connection.", ("sqlstate",),
    registry=_OWN,
)  # fmt: skip
replica_reads = Counter(
    "messages_replica_reads", "Reads that a replica could answer, by what happened.", ("outcome",), registry=_OWN
)
live_streams = Gauge(
    "messages_live_streams", "Streams and waits that are open.", registry=_OWN, multiprocess_mode="livesum"
)

# A series that begins with its first event hides that event from rate() and increase():
# https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics
for _counter, _values in (
    (marked, ("read", "unread")),
    (rate_limited, ("read", "write", "invalid_keys")),
    (database_retries, ("40001", "40P01", "")),
):
    for _value in _values:
        _counter.labels(_value)


def observe_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count one request. `route` is a template, never a path."""
    counter, histogram = _of_request(route, method if method in METHODS else "OTHER", status)
    counter.inc()
    histogram.observe(seconds)


@lru_cache(maxsize=1024)
def _of_request(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    # Cached, since `labels` takes three times as long as counting.
    return http_requests.labels(route, method, str(status)), http_request_duration.labels(route, method)


def count_after_commit(counter: Counter, amount: int) -> None:
    if amount:
        transaction.on_commit(lambda: counter.inc(amount))


def registry(more: Iterable[Collector] = ()) -> CollectorRegistry:
    """The metrics of all processes of this instance, and those of the collectors in `more`."""
    found = CollectorRegistry()
    for collector in (_Counted(), *more):
        found.register(collector)
    return found


class _Counted(Collector):
    """The metrics of all processes. A metric without samples is described too."""

    def collect(self) -> Iterator[Metric]:
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            yield from _OWN.collect()
            return
        _forget_dead_processes(Path(directory))
        counted = {metric.name: metric for metric in MultiProcessCollector(None, directory).collect()}  # type: ignore[no-untyped-call]
        for own in _OWN.collect():
            yield counted.get(own.name) or Metric(own.name, own.documentation, own.type)


def _forget_dead_processes(directory: Path) -> None:
    """Remove the gauges of processes that have ended. Their counters stay."""
    for file in directory.glob("gauge_live*_*.db"):
        process_id = int(file.stem.rpartition("_")[2])
        try:
            os.kill(process_id, 0)
        except (ProcessLookupError, PermissionError):  # gone; or the number is now that of another user's process
            mark_process_dead(process_id, str(directory))  # type: ignore[no-untyped-call]
