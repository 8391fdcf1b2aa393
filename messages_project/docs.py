"""The OpenAPI document, Swagger UI and Redoc: views of drf-spectacular, with all assets served by this service."""

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles import finders
from django.http import HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response, set_response_etag
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer2
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularRedocView, SpectacularSwaggerSplitView

from messages_project.health import read_only

_REDOC_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
_NO_LOGO = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


class CachedSchemaGenerator(SchemaGenerator):
    """Generates the document once in each process, since that takes tenths of a second."""

    def get_schema(self, request: Any = None, public: bool = False) -> Any:  # noqa: FBT001, FBT002 - the base's
        return _schema(settings.MESSAGES_ACCESS)


@cache
def _schema(access: str) -> Any:
    found = SchemaGenerator().get_schema(request=None, public=True)
    if access == "open":
        for operation in (operation for item in found["paths"].values() for operation in item.values()):
            if operation["security"]:
                operation["security"] = [*filter(None, operation["security"]), {}]  # a key is optional
    return found


@read_only
def redoc_script(_request: HttpRequest) -> HttpResponse:
    """Redoc's script from the sidecar, without its logo, which another host would serve."""
    path = finders.find("drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js")
    assert isinstance(path, str)
    script = Path(path).read_text().replace(_REDOC_LOGO, _NO_LOGO)
    return HttpResponse(
        script, content_type="text/javascript; charset=utf-8", headers={"Cache-Control": "max-age=3600"}
    )


_PUBLIC: dict[str, Any] = {"throttle_classes": (), "http_method_names": ["get", "head"]}
_openapi = SpectacularJSONAPIView.as_view(
    generator_class=CachedSchemaGenerator, renderer_classes=[OpenApiJsonRenderer2], **_PUBLIC
)


def openapi(request: HttpRequest) -> Any:
    """The document, with its ETag for GET and HEAD. Django's conditional_page leaves HEAD out."""
    response: Any = _openapi(request)
    if response.status_code != HTTPStatus.OK:
        return response
    set_response_etag(response.render())
    return get_conditional_response(request, etag=response.headers["ETag"], response=response)


swagger = SpectacularSwaggerSplitView.as_view(url_name="openapi", **_PUBLIC)
redoc = SpectacularRedocView.as_view(url_name="openapi", template_name="messages_project/redoc.html", **_PUBLIC)
