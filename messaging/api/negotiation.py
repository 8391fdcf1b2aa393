"""Which media type an answer has: the one that there is, where the client takes it."""

from collections.abc import Iterable

from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.utils.mediatypes import media_type_matches

from messaging.api.answers import PROBLEM_MEDIA_TYPE


class SingleTypeNegotiation(DefaultContentNegotiation):
    """For views with one renderer. DRF's own would parse the query string, which is parsed strictly elsewhere."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """The renderer and its media type.

        Raises:
            NotAcceptable: the client does not take that type.
        """
        [renderer] = renderers
        # A generated client asks only for the one type that a call without content documents: that of its refusals.
        types = (renderer.media_type, PROBLEM_MEDIA_TYPE)
        accepted = self.get_accept_list(request)
        if not any(media_type_matches(each, one) for one in accepted for each in types):
            raise NotAcceptable(available_renderers=[renderer])
        return renderer, renderer.media_type
