"""The routes of the live process, and their endpoints in the OpenAPI document, which the process of the API serves."""

from typing import Any

from rest_framework.routers import SimpleRouter
from rest_framework.schemas.generators import EndpointEnumerator

from messaging.live.views import LiveViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("mailbox", LiveViewSet, basename="live")

urlpatterns = router.urls


def add_live_endpoints(endpoints: list[Any]) -> list[Any]:
    """drf-spectacular's first step: the endpoints of the API's URLs, and those of the live process's."""
    live = EndpointEnumerator(urlpatterns).get_api_endpoints()
    found = [*endpoints, *((path, path, method, view) for path, method, view in live)]
    # By path as enumerated, then by method: the enumerator has the methods of an action in a set.
    places = {endpoint[0]: place for place, endpoint in enumerate(found)}
    return sorted(found, key=lambda endpoint: (places[endpoint[0]], endpoint[2]))
