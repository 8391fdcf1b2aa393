"""Content negotiation for views with one media type."""

from collections.abc import Iterable

from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.utils.mediatypes import media_type_matches

from messaging.api.answers import PROBLEM_MEDIA_TYPE


class SingleTypeNegotiation(DefaultContentNegotiation):
    """For views with one renderer. Unlike DRF's, it does not parse the query string, which pagination.py validates."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        [renderer] = renderers
        if request._request.META.get("HTTP_ACCEPT", "") in {"*/*", ""}:
            return renderer, renderer.media_type  # without DRF's list, for which Django parses every header
        # A generated client accepts only the type of refusals for a call that returns no content.
        types = (renderer.media_type, PROBLEM_MEDIA_TYPE)
        accepted = self.get_accept_list(request)
        if not any(media_type_matches(each, one) for one in accepted for each in types):
            raise NotAcceptable(available_renderers=[renderer])
        return renderer, renderer.media_type
