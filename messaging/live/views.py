"""The endpoints of the live process. Their docstrings are the public text of the API.

A view checks access; application.py keeps the connection open afterwards.
"""

from http import HTTPStatus
from typing import Any

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from messaging.access import Caller, Scope
from messaging.api import examples, parameters
from messaging.api.answers import MEDIA_TYPE, answer
from messaging.api.authentication import INVALID, BearerAuthentication
from messaging.api.serializers import MailboxParameters
from messaging.api.viewsets import ApiViewSet
from messaging.auth import keys, tickets
from messaging.database import read
from messaging.live.followers import Following, event
from messaging.queries import mailbox_of
from messaging.records import MailboxRecord, version_from

DEFAULT_WAIT_SECONDS = 25
MAX_WAIT_SECONDS = 50  # below the 60 s after which common proxies give up

_ENDED_TICKET = "This ticket is not valid, or no longer valid. POST /mailbox/ticket creates a new one."
# A ticket is a parameter and no security scheme: some generated clients send the same credential by all schemes, and a
# URL must not have a key.
_AUTH: Any = [{"bearer": []}, {}]
_LAST_EVENT_ID = OpenApiParameter(
    "Last-Event-ID",
    OpenApiTypes.INT64,
    OpenApiParameter.HEADER,
    description="The version that the client has: the first event is then the next one.",
    examples=[OpenApiExample("Version", 12)],
)


class EventsParameters(MailboxParameters):
    """Which mailbox; and a ticket, which TicketAuthentication has validated."""

    ticket = parameters.TicketField(
        required=False, help_text="What `POST /mailbox/ticket` answered: in place of the header."
    )


class WaitParameters(EventsParameters):
    """Which version the client has, and how long to wait for another."""

    version = parameters.WholeNumberField(help_text="The version that you have; 0 for none.")
    seconds = parameters.WholeNumberField(
        default=DEFAULT_WAIT_SECONDS,
        help_text=f"How long to wait. More than {MAX_WAIT_SECONDS} are lowered to it.",
    )


class FollowResponse(HttpResponse):
    """A response whose body application.py sends."""

    def __init__(self, following: Following, **options: Any) -> None:
        super().__init__(**options)
        self.following = following


class TicketAuthentication(BearerAuthentication):
    """`?ticket=`, for an EventSource; without it, the header."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        ticket = request.query_params.get("ticket")
        if ticket is None:
            return super().authenticate(request)
        caller = tickets.caller_of(ticket)
        if caller is None:
            raise AuthenticationFailed(_ENDED_TICKET, code="invalid_key")
        http: Any = request._request
        http.caller_name = caller.identity  # for the access log
        return caller, None


class EventStreamRenderer(JSONRenderer):
    """For content negotiation only: application.py sends the events."""

    media_type = "text/event-stream"


class LiveViewSet(ApiViewSet):
    authentication_classes = [TicketAuthentication]
    content_negotiation_class = DefaultContentNegotiation  # the API's allows only JSON
    scopes = {"events": Scope.READ, "wait": Scope.READ}
    is_conditional = False  # no 304 here, so each request counts at once

    @extend_schema(
        operation_id="followMailbox",
        tags=["Live"],
        auth=_AUTH,
        parameters=[EventsParameters, _LAST_EVENT_ID],
        responses={
            (HTTPStatus.OK, EventStreamRenderer.media_type): OpenApiResponse(
                OpenApiTypes.STR,
                "Events `mailbox`, until the stream ends.",
                [OpenApiExample("Event", event(MailboxRecord(**examples.MAILBOX)).decode())],
            )
        },
    )
    @action(detail=False, renderer_classes=[EventStreamRenderer, JSONRenderer])
    def events(self, request: Request) -> HttpResponseBase:
        """Follow a mailbox by server-sent events.

        Served by the live process. The `id` of an event is the version of the mailbox, its `data` the mailbox. The
        first event comes at once, unless `Last-Event-ID` is the version already; then one whenever the version has
        changed, at most four a second, the newest wins. A comment comes every 15 seconds. The stream ends after about
        ten minutes, and when its key or token ends, or that of its ticket. Reconnect with `Last-Event-ID` after the
        time in `retry`.
        """
        self.read_query(EventsParameters)
        mailbox = self._mailbox()
        # Any other value may come from a proxy or another service, and counts as no version.
        version = version_from(request.headers.get("Last-Event-ID", ""))
        headers = {"Content-Type": EventStreamRenderer.media_type, "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return StreamingHttpResponse(headers=headers)  # no Content-Length: the stream of a GET has none either
        return self._follow(Following(self.caller, mailbox, version), headers=headers)

    @extend_schema(
        operation_id="waitForMailbox",
        tags=["Live"],
        auth=_AUTH,
        parameters=[WaitParameters],
        responses={200: MailboxRecord},
    )
    @action(detail=False)
    def wait(self, request: Request) -> HttpResponse:
        """Wait until a mailbox has another version (long poll).

        Served by the live process, for networks that do not let event streams through.
        """
        self.read_query(WaitParameters)
        mailbox = self._mailbox()
        version, seconds = self.parameters["version"], min(self.parameters["seconds"], MAX_WAIT_SECONDS)
        if mailbox.version != version or not seconds or request.method == "HEAD":
            return answer(mailbox)
        return self._follow(Following(self.caller, mailbox, version, seconds), headers={"Content-Type": MEDIA_TYPE})

    def _mailbox(self) -> MailboxRecord:
        recipient = self.parameters["recipient"]
        self.caller.require_reach(recipient)
        return read(lambda: mailbox_of(recipient))

    def _follow(self, following: Following, headers: dict[str, str]) -> FollowResponse:
        # Authentication caches keys for some seconds. A client whose stream has just ended because its key was revoked
        # must not open another one.
        prefix = keys.prefix_of(following.caller)
        if prefix is not None and keys.ended([prefix]):
            raise AuthenticationFailed(INVALID, code="invalid_key")
        http: Any = self.request._request
        http.places.take(following)
        return FollowResponse(following, headers=headers)
