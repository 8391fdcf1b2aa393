"""The endpoints of mailboxes: their state, their changes, tickets to follow them. views.py has those of messages."""

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request

from messaging import changes
from messaging.access import Scope
from messaging.api.answers import ChangesAnswer, TicketAnswer, answer, version_headers
from messaging.api.idempotency import idempotent
from messaging.api.pagination import Cursors, query_parameters, url_of
from messaging.api.parameters import named_as_parameters
from messaging.api.serializers import ChangesParameters, MailboxParameters, TicketSerializer, serializer
from messaging.api.viewsets import ApiViewSet, not_modified
from messaging.auth import tickets
from messaging.errors import Fault, InvalidInputError
from messaging.models import Mailbox
from messaging.queries import mailbox_of
from messaging.records import MailboxRecord, instant_text

_CURSORS = Cursors(b"changes", ">qqqq", hash_bytes=9)  # of a changes.Position


class MailboxViewSet(ApiViewSet):
    queryset = Mailbox.objects.all()
    scopes = {"list": Scope.READ, "ticket": Scope.READ}

    @extend_schema(operation_id="getMailbox", parameters=[MailboxParameters], responses={200: MailboxRecord})
    def list(self, request: Request) -> HttpResponse:
        """Get a recipient's mailbox: its version and its exact counts.

        One index lookup, whatever the mailbox's size. A recipient that nobody has sent to has an empty mailbox
        at version 0.
        """
        self.read_query(MailboxParameters)
        recipient = self.parameters["recipient"]
        self.caller.require_reach(recipient)
        mailbox = self.read(lambda: mailbox_of(recipient), lambda found: found)
        if self.is_known(mailbox):
            return not_modified(mailbox)
        return answer(mailbox, headers=version_headers(mailbox))

    @extend_schema(
        operation_id="createTicket",
        parameters=[MailboxParameters],
        request=TicketSerializer,
        responses={200: TicketAnswer},
    )
    @action(detail=False, methods=["post"])
    @idempotent
    def ticket(self, request: Request) -> HttpResponse:
        """Create a ticket, with which a browser's EventSource follows a mailbox.

        An EventSource cannot send a header, so it sends the ticket as `?ticket=`. For 60 seconds the ticket opens
        `GET /mailbox/events` and `GET /mailbox/wait` of one mailbox. It ends with the key or token that created it, and
        so do the streams opened with it.
        """
        query = query_parameters(request._request, "recipient")
        body = request.data if request._request.body else {}
        declared = serializer(TicketSerializer, self.caller)
        # The recipient may be in the query, as in other reads of a mailbox, or in the body, where null is no value.
        if query:
            with named_as_parameters():
                declared.run_validation(query)
            if isinstance(body, dict) and body.get("recipient") is None:
                body = body | query
        recipient = declared.run_validation(body)["recipient"]
        if recipient != query.get("recipient", recipient):
            raise InvalidInputError([Fault("?recipient", "repeated_parameter", "The body names another recipient.")])
        self.caller.require_reach(recipient)
        ticket, expires_at = tickets.create(recipient=recipient, caller=self.caller)
        return answer(TicketAnswer(ticket, instant_text(expires_at)))


class ChangesViewSet(ApiViewSet):
    queryset = Mailbox.objects.all()
    scopes = {"list": Scope.READ}

    @extend_schema(operation_id="listChanges", parameters=[ChangesParameters], responses={200: ChangesAnswer})
    def list(self, request: Request) -> HttpResponse:
        """Get what has changed in a mailbox since a version.

        To keep a copy: start with `since=0`, apply each response to the copy (replace by id, remove by id) while `next`
        is a URL, and use the last `until` as the next `since`. A message may be returned more than once; the last one
        counts. 410 `changes_expired`: deletions from so long ago are no longer known, or the mailbox was restored to an
        older version. Then start again with `since=0`, or with a walk through the pages.
        """
        self.read_query(ChangesParameters)
        recipient, since = self.parameters["recipient"], self.parameters["since"]
        self.caller.require_reach(recipient)
        asked = (recipient, since)
        position = changes.start(since)
        if "cursor" in self.parameters:
            position = changes.Position(*_CURSORS.decode(self.parameters["cursor"], asked))
        if (known := self.unmodified(recipient)) and position.seen <= known.version:
            return not_modified(known)
        found = self.read(
            lambda: changes.changes(recipient, position, limit=self.parameters["limit"]),
            lambda found: found.mailbox,
            at_least=0,  # a replica that is behind the position fails
        )
        url = None
        if found.position:
            url = url_of(request._request, self.given | {"cursor": _CURSORS.encode(found.position, asked)})
        body = ChangesAnswer(found.messages, found.deleted, since, found.until, url, found.mailbox)
        return answer(body, headers=version_headers(found.mailbox))
