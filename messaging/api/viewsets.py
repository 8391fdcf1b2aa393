"""The base class of all endpoints: caller, conditional requests, limits, and headers of responses."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.http import HttpResponse
from rest_framework.exceptions import Throttled, UnsupportedMediaType
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from messaging.access import Caller, Scope
from messaging.api.answers import empty_answer, version_headers
from messaging.api.authentication import caller_of
from messaging.api.pagination import query_parameters
from messaging.api.parameters import named_as_parameters
from messaging.api.parsers import BATCH_BODY_FACTOR, BodyTooLarge, read_body
from messaging.api.serializers import StrictSerializer, serializer
from messaging.api.throttling import charge_extra
from messaging.database import read
from messaging.errors import Fault, InvalidInputError
from messaging.queries import mailbox_of
from messaging.records import MailboxRecord, version_from

T = TypeVar("T")


class ApiViewSet(GenericViewSet[Any]):
    """A ViewSet of this API. `scopes` says for each action which scope it needs."""

    scopes: ClassVar[dict[str, Scope]] = {}
    caller: Caller  # who asks
    given: dict[str, str]  # the query parameters as they were sent
    parameters: dict[str, Any]  # those that the call's serializer declares, validated
    # A conditional request that is not counted yet: a 304 is free, any other response counts.
    _is_uncounted = False

    @property
    def default_response_headers(self) -> dict[str, str]:
        """The header Allow for 405 and OPTIONS only. DRF would compute it for every response."""
        return {} if self.action else {"Allow": ", ".join(self.allowed_methods)}

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the request, then break its reference cycles."""
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            # DRF's request and view refer to each other. This cycle would keep a body of megabytes in memory until the
            # next garbage collection.
            self.request.parser_context.clear()
            vars(self).clear()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Authenticate, check the scope and the limit, then read the body."""
        super().initial(request, *args, **kwargs)
        # Without an action the method is not allowed, and the body does not matter.
        if request.method not in SAFE_METHODS and self.action:
            limit = settings.MESSAGES_MAX_BODY_BYTES * (BATCH_BODY_FACTOR if self.action == "batch" else 1)
            try:
                read_body(request._request, limit)
            except BodyTooLarge:
                if not self.get_content_negotiator().select_parser(request, self.get_parsers()):
                    raise UnsupportedMediaType(request.content_type) from None
                raise
            self._charge_items(request)

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return empty_answer(HTTPStatus.NO_CONTENT, {"Allow": ", ".join(self.allowed_methods)})

    def perform_authentication(self, request: Request) -> None:
        self.caller = caller_of(request)

    def check_throttles(self, request: Request) -> None:
        """Count the request against the limit; a conditional one only once it is known not to be a 304."""
        self._is_uncounted = self.is_conditional
        if not self._is_uncounted:
            super().check_throttles(request)

    def _count(self) -> None:
        self._is_uncounted = False
        super().check_throttles(self.request)

    def handle_exception(self, exc: Exception) -> Any:
        """Handle a refusal. It counts against the limit, even for a conditional request."""
        if self._is_uncounted:
            try:
                self._count()
            except Throttled as throttled:
                exc = throttled
        return super().handle_exception(exc)

    @property
    def is_conditional(self) -> bool:
        """Whether the response may be a 304."""
        http = self.request._request
        return "HTTP_IF_NONE_MATCH" in http.META and http.method in {"GET", "HEAD"}

    @property
    def _tags(self) -> list[str]:
        return [tag.strip().removeprefix("W/") for tag in self.request.META.get("HTTP_IF_NONE_MATCH", "").split(",")]

    def _charge_items(self, request: Request) -> None:
        # Before the action, whose transaction may be rolled back.
        body = request.data if isinstance(request.data, dict) else {}
        items = body.get("messages" if self.action == "batch" else "ids")
        if isinstance(items, list):
            charge_extra(request, min(len(items), settings.MESSAGES_MAX_BULK))

    def validated_body(self, kind: type[StrictSerializer]) -> Any:
        return serializer(kind, self.caller).run_validation(self.request.data)

    def read_query(self, kind: type[StrictSerializer] = StrictSerializer, *filters: str) -> None:
        """Validate the query parameters: those of a serializer, and the names of the filters.

        Raises:
            InvalidInputError, ValidationError: naming each parameter that is malformed, unknown or repeated.
        """
        declared = serializer(kind, self.caller)
        self.given = query_parameters(self.request._request, *declared.fields, *filters)
        with named_as_parameters():
            self.parameters = declared.run_validation(
                {name: value for name, value in self.given.items() if name not in filters}
            )

    def read(self, work: Callable[[], T], mailbox: Callable[[T], MailboxRecord], *, at_least: int | None = None) -> T:
        """The result of `work`. A replica may answer if the request says which version of the mailbox is new enough.

        That is the version in Messages-Min-Version, in an entity tag of If-None-Match, or `at_least`, which a call has
        from its own parameters. `mailbox` takes the mailbox from a result.

        Raises:
            InvalidInputError: Messages-Min-Version is no version.
        """
        given = self.request._request.META.get("HTTP_MESSAGES_MIN_VERSION")
        if given is not None:
            if (version := version_from(given)) is None:
                detail = "Messages-Min-Version must be a version of the mailbox: a whole number, 0 for any."
                raise InvalidInputError([Fault("", "invalid_min_version", detail)])
            at_least = max(version, at_least or 0)
        elif at_least is None and not self.is_conditional:
            return read(work)

        def is_new_enough(found: T) -> bool:
            answered = mailbox(found)
            seen = [version for tag in self._tags if (version := answered.version_of(tag)) is not None]
            seen += [] if at_least is None else [at_least]
            return bool(seen) and answered.version >= max(seen)

        return read(work, is_new_enough=is_new_enough)

    def unmodified(self, recipient: str) -> MailboxRecord | None:
        """The mailbox, if If-None-Match names its current version; else None.

        Costs one index lookup for a conditional request and nothing for any other.
        """
        if not self.is_conditional:
            return None
        mailbox = self.read(lambda: mailbox_of(recipient), lambda found: found)
        return mailbox if self.is_known(mailbox) else None

    def is_known(self, mailbox: MailboxRecord) -> bool:
        """Whether If-None-Match names this version (RFC 9110, 13.1.2).

        If not, the request counts from here on; so does one with `*`, which knows no version.
        """
        if not self.is_conditional:
            return False
        tags = self._tags
        if mailbox.etag in tags:
            return True
        if self._is_uncounted:
            self._count()
        return "*" in tags

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the headers of every response: caching and rate limit."""
        response = super().finalize_response(request, response, *args, **kwargs)
        headers = response.headers
        # A response is for one caller only, and a mailbox may change at any time.
        headers["Cache-Control"] = "private, no-cache" if "ETag" in headers else "no-store"
        headers["Vary"] = "Accept, Authorization"
        for name, value in getattr(request._request, "rate_limit_headers", {}).items():
            headers[name] = value
        return response


def not_modified(mailbox: MailboxRecord) -> HttpResponse:
    """304 for a client that has this version of the mailbox."""
    return empty_answer(HTTPStatus.NOT_MODIFIED, version_headers(mailbox))
