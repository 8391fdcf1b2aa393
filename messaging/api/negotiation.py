"""Which media type a body and an answer have. There is one, so nearly every request is answered without a search."""

from collections.abc import Iterable

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

_TAKES_JSON = frozenset({"", "*/*", "application/json", "application/json, */*", "application/json, text/plain, */*"})


class JSONNegotiation(DefaultContentNegotiation):
    """DRF's negotiation, with the usual values of Accept and Content-Type answered at once."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """The parser of the body; None for a type that there is none for."""
        for parser in parsers:
            if parser.media_type == request.content_type:
                return parser
        found: BaseParser | None = super().select_parser(request, parsers)
        return found

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """The renderer and the media type.

        Raises:
            NotAcceptable: the client takes no JSON.
        """
        if request._request.META.get("HTTP_ACCEPT", "") in _TAKES_JSON:
            renderer = next(iter(renderers))
            return renderer, renderer.media_type
        chosen: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return chosen
