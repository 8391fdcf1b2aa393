"""The endpoints: thin ViewSets whose docstrings are the public text of the API.

They turn requests into calls of services and queries, and what those return into answers; what they have in common
stands in viewsets.py, what the OpenAPI document says beyond the docstrings in schema.py.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.http import HttpResponse
from rest_framework.decorators import action
from rest_framework.request import Request

from messaging import queries, services
from messaging.access import Scope
from messaging.api.filters import FILTERS, MessageFilter, filtered_messages
from messaging.api.idempotency import idempotent
from messaging.api.page_cache import Address, KeptPage, pages
from messaging.api.pagination import MailboxPagination, origin, query_parameters, required_recipient
from messaging.api.renderers import answer, empty_answer, rendered_answer
from messaging.api.viewsets import ApiViewSet, not_modified
from messaging.database import read
from messaging.errors import Fault, InvalidInputError, NotFoundError
from messaging.records import BulkOutcome, NewMessage, UpToOutcome, to_json
from messaging.validation import draft_from, drafts_from, id_from, ids_from, object_body, up_to_from


class MessageViewSet(ApiViewSet):
    """Messages."""

    lookup_value_regex = "[^/]+"
    filterset_class = MessageFilter
    scopes = {
        "list": Scope.READ,
        "unread": Scope.READ,
        "retrieve": Scope.READ,
        "create": Scope.SEND,
        "batch": Scope.SEND,
        "mark_read": Scope.MANAGE,
        "mark_unread": Scope.MANAGE,
        "destroy": Scope.MANAGE,
        "bulk": Scope.MANAGE,
        "bulk_delete": Scope.MANAGE,
    }
    bulk_fields = {
        "batch": "messages",
        "mark_read": "ids",
        "mark_unread": "ids",
        "bulk": "ids",
        "bulk_delete": "ids",
    }

    def list(self, request: Request) -> HttpResponse:
        """List the messages of a recipient, newest first."""
        return self._page(request, unread=False)

    @action(detail=False)
    def unread(self, request: Request) -> HttpResponse:
        """List the unread messages of a recipient, newest first."""
        return self._page(request, unread=True)

    def _page(self, request: Request, *, unread: bool) -> HttpResponse:
        http = request._request
        address = Address(origin(http), http.path, http.META.get("QUERY_STRING", ""), self.caller.recipient)
        if kept := pages.get(address):
            # Asked for in good order, by a caller who reaches the same mailboxes; all that is left to ask is whether
            # this one stands still.
            mailbox_id, mailbox = read(lambda: queries.mailbox_and_id(kept.mailbox.recipient))
            if self.is_known(mailbox):
                return not_modified(mailbox)
            if (mailbox_id, mailbox) == (kept.mailbox_id, kept.mailbox):
                kept.was_useful = True
                return rendered_answer(kept.body, HTTPStatus.OK, kept.headers)
        query = query_parameters(http, *MailboxPagination.parameters, *FILTERS)
        asked = MailboxPagination(http, query, recipient=self.caller.recipient, unread=unread)
        filtered = filtered_messages(query)
        self.require_reachable(asked.recipient)
        if not kept and (known := self.unmodified(asked.recipient)):
            return not_modified(known)
        page = read(
            lambda: queries.page(
                asked.recipient,
                newest_first=asked.reading_newest_first,
                limit=asked.limit,
                position=asked.position,
                unread=unread,
                filtered=filtered,
            )
        )
        body, links = asked.answer(page)
        found = KeptPage(page.mailbox_id, page.mailbox, to_json(body), links | {"ETag": page.mailbox.etag})
        pages.put(address, found)
        return rendered_answer(found.body, HTTPStatus.OK, found.headers)

    @idempotent
    def create(self, request: Request) -> HttpResponse:
        """Send a message."""
        query_parameters(request._request)
        draft = draft_from(request.data, caller=self.caller)
        if not isinstance(draft, NewMessage):
            raise InvalidInputError(draft)
        sent = services.send(message=draft, caller=self.caller)
        return answer(sent, HTTPStatus.CREATED, headers={"Location": self.location(sent.id)})

    @action(detail=False, methods=["post"])
    @idempotent
    def batch(self, request: Request) -> HttpResponse:
        """Send several messages at once, all or none."""
        query_parameters(request._request)
        drafts = drafts_from(request.data, caller=self.caller)
        sent = services.send_batch(messages=drafts, caller=self.caller)
        return answer({"results": sent}, HTTPStatus.CREATED)

    def retrieve(self, request: Request, pk: str) -> HttpResponse:
        """Get one message."""
        query_parameters(request._request)
        message_id = id_from(pk)
        if message_id is None:
            # No message can have such an id, so it is missing like any other.
            raise NotFoundError
        found, mailbox = read(lambda: queries.message(message_id, caller=self.caller))
        if self.is_known(mailbox):
            return not_modified(mailbox)
        return answer(found, headers={"ETag": mailbox.etag})

    @action(detail=False, methods=["patch"], url_path="mark-read")
    @idempotent
    def mark_read(self, request: Request) -> HttpResponse:
        """Mark messages as read, by ids or up to one of them."""
        return self._mark(request, services.mark_read, services.mark_read_up_to)

    @action(detail=False, methods=["patch"], url_path="mark-unread")
    @idempotent
    def mark_unread(self, request: Request) -> HttpResponse:
        """Mark messages as unread, by ids or up to one of them."""
        return self._mark(request, services.mark_unread, services.mark_unread_up_to)

    def _mark(
        self, request: Request, by_ids: Callable[..., BulkOutcome], up_to: Callable[..., UpToOutcome]
    ) -> HttpResponse:
        query_parameters(request._request)
        body = object_body(request.data)
        if body.keys().isdisjoint({"recipient", "up_to"}):
            return self._bulk(body, by_ids)
        recipient, message_id = up_to_from(body, caller=self.caller)
        outcome = up_to(recipient=recipient, message_id=message_id, caller=self.caller)
        return answer(
            {
                "changed": outcome.changed,
                # Only messages that were in the other state are looked at.
                "unchanged": 0,
                "not_found": 0,
                "mailboxes": [outcome.mailbox],
                "complete": outcome.complete,
            }
        )

    @idempotent
    def destroy(self, request: Request, pk: str) -> HttpResponse:
        """Delete one message for good."""
        query = query_parameters(request._request, "allow_missing")
        allow_missing = query.get("allow_missing", "false")
        if allow_missing not in ("true", "false"):
            raise InvalidInputError([Fault("?allow_missing", "invalid", "This must be true or false.")])
        message_id = id_from(pk)
        if message_id is None:
            # No message ever had such an id, so this is a mistake and not a repetition.
            raise NotFoundError
        gone = services.delete(ids=[message_id], caller=self.caller).changed
        if not gone and allow_missing == "false":
            raise NotFoundError
        return empty_answer(HTTPStatus.NO_CONTENT)

    @action(detail=False, methods=["delete"])
    @idempotent
    def bulk(self, request: Request) -> HttpResponse:
        """Delete messages for good."""
        query_parameters(request._request)
        return self._bulk(object_body(request.data), services.delete)

    @action(detail=False, methods=["post"], url_path="bulk-delete")
    @idempotent
    def bulk_delete(self, request: Request) -> HttpResponse:
        """Delete messages for good, for clients and proxies that drop the body of a DELETE."""
        query_parameters(request._request)
        return self._bulk(object_body(request.data), services.delete)

    def _bulk(self, body: dict[str, Any], change: Callable[..., BulkOutcome]) -> HttpResponse:
        ids = ids_from(body)
        return answer(change(ids=ids, caller=self.caller))


class MailboxViewSet(ApiViewSet):
    """Mailboxes."""

    scopes = {"list": Scope.READ}

    def list(self, request: Request) -> HttpResponse:
        """Get a recipient's mailbox: its version and its exact counts."""
        query = query_parameters(request._request, "recipient")
        faults: list[Fault] = []
        recipient = required_recipient(query, self.caller.recipient, faults)
        if faults:
            raise InvalidInputError(faults)
        self.require_reachable(recipient)
        mailbox = read(lambda: queries.mailbox_of(recipient))
        if self.is_known(mailbox):
            return not_modified(mailbox)
        return answer(mailbox, headers={"ETag": mailbox.etag})
