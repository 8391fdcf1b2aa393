"""The whole URL map. Every path answers with and without its trailing slash, and never redirects between the two."""

from django.contrib import admin
from django.urls import path, re_path

import messaging.api.urls
from messages_project import docs, health, pages
from messaging.admin.overview import overview
from messaging.api.metrics import MetricsView

urlpatterns = [
    # First, since each request tries the patterns in turn; and not by include(), which is one more turn.
    *messaging.api.urls.urlpatterns,
    path("", pages.root, name="root"),
    re_path(r"^health/?$", health.health, name="health"),
    re_path(r"^livez/?$", health.livez, name="livez"),
    re_path(r"^readyz/?$", health.readyz, name="readyz"),
    re_path(r"^metrics/?$", MetricsView.as_view(), name="metrics"),
    re_path(r"^openapi\.json/?$", docs.openapi, name="openapi"),
    re_path(r"^docs/?$", docs.swagger, name="docs"),
    re_path(r"^redoc/?$", docs.redoc, name="redoc"),
    path("redoc/redoc.js", docs.redoc_script, name="redoc-script"),
    re_path(r"^inbox/?$", pages.inbox, name="inbox"),
    path("admin", admin.site.admin_view(admin.site.index)),
    re_path(r"^admin/overview/?$", admin.site.admin_view(overview), name="overview"),
    path("admin/", admin.site.urls),
]

handler400 = "messaging.api.problems.bad_request"
handler404 = "messaging.api.problems.page_not_found"
handler500 = "messaging.api.problems.server_error"
