"""`GET /metrics` for Prometheus: the counters of messaging/metrics.py, and gauges read from the database."""

from collections.abc import Iterator
from typing import Any, ClassVar

from django.db import Error
from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from rest_framework.request import Request
from rest_framework.views import APIView

from messaging import metrics, upkeep
from messaging.access import Scope
from messaging.database import fetch, read
from messaging.errors import DatabaseUnavailableError
from messaging.models import Observation

# Sessions of all instances with this database, by what they do.
_CONNECTIONS = """
SELECT CASE WHEN state IN ('active', 'idle', 'idle in transaction') THEN state ELSE 'other' END, count(*)
FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'messages' GROUP BY 1"""


class DatabaseCollector(Collector):
    """Gauges read from the database; only `messages_database_up` while it is unavailable."""

    def collect(self) -> Iterator[Metric]:
        try:
            found = list(self._gauges())
        except (Error, DatabaseUnavailableError):
            found = []
        up = GaugeMetricFamily("messages_database_up", "Whether the database answers.", value=1.0 if found else 0.0)
        yield from [up, *found]

    def _gauges(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "messages_database_connections", "Sessions with the database, of all instances.", labels=["state"]
        )
        for state, count in read(lambda: fetch(_CONNECTIONS)):
            connections.add_metric([state], count)
        yield connections
        backlog = GaugeMetricFamily(
            "messages_upkeep_backlog", f"Rows that upkeep has yet to delete, up to {upkeep.COUNTED}.", labels=["kind"]
        )
        for kind, rows in upkeep.backlog().items():
            backlog.add_metric([kind], rows)
        yield backlog
        run, check = Observation.last("upkeep"), Observation.last("mailbox_disagreements")
        for name, description, value in (
            ("messages_upkeep_last_run_timestamp_seconds", "When the last run of upkeep ended.",
             run.observed_at.timestamp() if run else None),
            ("messages_mailbox_disagreements", "Mailboxes that the last check found wrong.",
             check.value if check else None),
            ("messages_mailbox_check_timestamp_seconds", "When mailboxes were last checked.",
             check.observed_at.timestamp() if check else None),
        ):  # fmt: skip
            # Without a value, before the first run, it is described without a sample.
            yield GaugeMetricFamily(name, description, value=value)


class MetricsView(APIView):
    """`GET /metrics`. It needs the scope `metrics`, and is not part of the API's OpenAPI document."""

    http_method_names = ("get", "head")
    action = "list"
    scopes: ClassVar[dict[str, Scope]] = {"list": Scope.METRICS}

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:  # noqa: FBT001, FBT002 - DRF's
        """Ignore Accept, in which Prometheus names formats of its own. Refusals are problem documents."""
        return self.get_renderers()[0], "application/json"

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        """The metrics of this instance, in the text format of Prometheus or OpenMetrics."""
        encode, content_type = choose_encoder(request.META.get("HTTP_ACCEPT", ""))
        body = encode(metrics.registry([DatabaseCollector()]))
        return HttpResponse(body, content_type=content_type, headers={"Cache-Control": "no-store"})
