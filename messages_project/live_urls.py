"""The routes of the live process."""

from django.urls import include, path, re_path

from messages_project import health
from messaging.api.metrics import MetricsView

handler400 = "messaging.api.problems.bad_request"
handler404 = "messaging.api.problems.page_not_found"
handler500 = "messaging.api.problems.server_error"

urlpatterns = [
    re_path(r"^health/?$", health.health),
    re_path(r"^livez/?$", health.livez),
    re_path(r"^readyz/?$", health.readyz),
    re_path(r"^metrics/?$", MetricsView.as_view()),
    path("", include("messaging.live.urls")),
]
