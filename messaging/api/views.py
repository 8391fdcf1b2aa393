"""The endpoints of messages: each action validates a request, calls services or queries, and renders the result.

The docstring of an action is its description in the OpenAPI document. viewsets.py has what all endpoints share;
mailboxes.py has the other endpoints.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import cast

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request

from messaging import queries, services
from messaging.access import Scope
from messaging.api.answers import (
    VERSION,
    BatchAnswer,
    PageAnswer,
    answer,
    empty_answer,
    rendered_answer,
    version_headers,
)
from messaging.api.examples import MESSAGE_ID
from messaging.api.idempotency import REPLAYED, idempotent, keyed, replayed_though_invalid
from messaging.api.page_cache import CachedPage, PageKey, pages
from messaging.api.pagination import MailboxPagination, base_url
from messaging.api.serializers import (
    BatchSerializer,
    DeleteParameters,
    MarkSerializer,
    MessageFilter,
    MessageIdsSerializer,
    NewMessageSerializer,
    PageParameters,
)
from messaging.api.viewsets import ApiViewSet, not_modified
from messaging.errors import NotFoundError
from messaging.models import Message
from messaging.outcomes import send_batch_once, send_once
from messaging.records import BulkOutcome, MarkOutcome, MessageRecord
from messaging.validation import id_from

ID = OpenApiParameter(
    "id",
    OpenApiTypes.UUID,
    OpenApiParameter.PATH,
    description="The id of a message.",
    examples=[OpenApiExample("Id", MESSAGE_ID)],
)


class MessageViewSet(ApiViewSet):
    queryset = Message.objects.all()
    lookup_value_regex = "[^/]+"
    filterset_class = MessageFilter
    pagination_class = MailboxPagination
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

    @extend_schema(operation_id="listMessages", parameters=[PageParameters], filters=True, responses={200: PageAnswer})
    def list(self, request: Request) -> HttpResponse:
        """List the messages of a recipient, newest first.

        Use the URLs in `next` and `previous` unchanged. Page 10,000 costs what page 1 costs. A walk through the pages
        returns each message that exists throughout exactly once, whatever is sent or deleted in between.
        """
        return self._page(request)

    @extend_schema(
        operation_id="listUnreadMessages", parameters=[PageParameters], filters=True, responses={200: PageAnswer}
    )
    @action(detail=False)
    def unread(self, request: Request) -> HttpResponse:
        """List the unread messages of a recipient, newest first.

        As `listMessages`, for messages that are not marked as read.
        """
        return self._page(request)

    def _page(self, request: Request) -> HttpResponse:
        http = request._request
        key = PageKey(base_url(http), http.path, http.META.get("QUERY_STRING", ""), self.caller.recipient)
        if cached := pages.get(key):
            # The same request was valid, and its caller may access the mailbox. Only the mailbox may have changed.
            mailbox_id, mailbox = self.read(
                lambda: queries.mailbox_and_id(cached.mailbox.recipient), lambda found: found[1]
            )
            if self.is_known(mailbox):
                return not_modified(mailbox)
            if (mailbox_id, mailbox) == (cached.mailbox_id, cached.mailbox):
                return rendered_answer(cached.body, HTTPStatus.OK, cached.headers)
        self.read_query(PageParameters, *MessageFilter.base_filters)
        selected = self.filter_queryset(self.get_queryset())
        self.caller.require_reach(self.parameters["recipient"])
        paginator = cast("MailboxPagination", self.paginator)
        paginator.read_cursor(request, self)
        if not cached and (known := self.unmodified(self.parameters["recipient"])):
            return not_modified(known)
        response = self.get_paginated_response(self.paginate_queryset(selected))
        headers = {name: response.headers[name] for name in ("ETag", "Link", VERSION) if name in response.headers}
        page = paginator.page
        pages.put(CachedPage(key, page.mailbox_id, page.mailbox, response.content, headers))
        return response

    @extend_schema(operation_id="sendMessage", request=NewMessageSerializer, responses={201: MessageRecord})
    @replayed_though_invalid
    def create(self, request: Request) -> HttpResponse:
        """Send a message.

        It is committed and counted before the response is sent.
        """
        request_key = keyed(request)
        self.read_query()
        message = self.validated_body(NewMessageSerializer)
        if request_key:
            sent, is_replayed = send_once(message=message, caller=self.caller, request=request_key)
        else:
            sent, is_replayed = services.send(message=message, caller=self.caller), False
        return self.created([sent], is_replayed=is_replayed)

    @extend_schema(operation_id="sendMessageBatch", request=BatchSerializer, responses={201: BatchAnswer})
    @action(detail=False, methods=["post"])
    @replayed_though_invalid
    def batch(self, request: Request) -> HttpResponse:
        """Send several messages at once, all or none.

        One transaction. If one of them is not valid, none is sent, and `errors` names every fault and its message.
        """
        request_key = keyed(request)
        self.read_query()
        messages = self.validated_body(BatchSerializer)["messages"]
        if request_key:
            sent, is_replayed = send_batch_once(messages=messages, caller=self.caller, request=request_key)
        else:
            sent, is_replayed = services.send_batch(messages=messages, caller=self.caller), False
        return self.created(sent, is_replayed=is_replayed)

    def created(self, sent: Sequence[MessageRecord], *, is_replayed: bool) -> HttpResponse:
        """The response to sending these messages."""
        headers = REPLAYED if is_replayed else {}
        if self.action == "batch":
            return answer(BatchAnswer(sent), HTTPStatus.CREATED, headers)
        [message] = sent
        location = f"{base_url(self.request._request)}/messages/{message.id}"
        return answer(message, HTTPStatus.CREATED, {"Location": location} | headers)

    @extend_schema(operation_id="getMessage", parameters=[ID], responses={200: MessageRecord})
    def retrieve(self, request: Request, pk: str) -> HttpResponse:
        """Get one message.

        Its `ETag` is that of its mailbox.
        """
        self.read_query()
        message_id = self._existing_id(pk)
        found, mailbox = self.read(lambda: queries.message(message_id, caller=self.caller), lambda found: found[1])
        if self.is_known(mailbox):
            return not_modified(mailbox)
        return answer(found, headers=version_headers(mailbox))

    @extend_schema(
        operation_id="markMessagesRead", methods=["PATCH"], request=MarkSerializer, responses={200: MarkOutcome}
    )
    @extend_schema(
        operation_id="markMessagesReadByPost", methods=["POST"], request=MarkSerializer, responses={200: MarkOutcome}
    )
    @action(detail=False, methods=["patch", "post"], url_path="mark-read")
    @idempotent
    def mark_read(self, request: Request) -> HttpResponse:
        """Mark messages as read, by ids or up to one of them.

        Name messages by `ids`, or by `recipient` and `up_to`: all messages of the recipient up to that one, and none
        that arrived later. A message that is in that state already is `unchanged`, so a retry is harmless. A call with
        `up_to` marks at most 10,000 messages, oldest first; `complete` is false while some remain. PATCH and POST do
        the same.
        """
        return self._mark(services.mark_read, services.mark_read_up_to)

    @extend_schema(
        operation_id="markMessagesUnread", methods=["PATCH"], request=MarkSerializer, responses={200: MarkOutcome}
    )
    @extend_schema(
        operation_id="markMessagesUnreadByPost", methods=["POST"], request=MarkSerializer, responses={200: MarkOutcome}
    )
    @action(detail=False, methods=["patch", "post"], url_path="mark-unread")
    @idempotent
    def mark_unread(self, request: Request) -> HttpResponse:
        """Mark messages as unread, by ids or up to one of them.

        The reverse of marking them as read, with the same body.
        """
        return self._mark(services.mark_unread, services.mark_unread_up_to)

    def _mark(self, by_ids: Callable[..., BulkOutcome], up_to: Callable[..., MarkOutcome]) -> HttpResponse:
        self.read_query()
        named = self.validated_body(MarkSerializer)
        if "ids" in named:
            return answer(by_ids(ids=named["ids"], caller=self.caller))
        return answer(up_to(recipient=named["recipient"], message_id=named["up_to"], caller=self.caller))

    @extend_schema(operation_id="deleteMessage", parameters=[ID, DeleteParameters], responses={204: None})
    @idempotent
    def destroy(self, request: Request, pk: str) -> HttpResponse:
        """Delete one message permanently.

        A second call is 404, unless `allow_missing` is true.
        """
        self.read_query(DeleteParameters)
        # An invalid id is a mistake, even with allow_missing.
        deleted = services.delete(ids=[self._existing_id(pk)], caller=self.caller)
        if not deleted.changed and not self.parameters["allow_missing"]:
            raise NotFoundError
        headers = {VERSION: str(deleted.mailboxes[0].version)} if deleted.mailboxes else None
        return empty_answer(HTTPStatus.NO_CONTENT, headers)

    @extend_schema(operation_id="bulkDeleteMessages", responses={200: BulkOutcome})
    @action(detail=False, methods=["delete"])
    @idempotent
    def bulk(self, request: Request) -> HttpResponse:
        """Delete messages permanently.

        One transaction. `POST /messages/bulk-delete` is for clients and proxies that drop the body of a DELETE.
        """
        self.read_query()
        if not request._request.body:
            detail = "The body is empty. Where something on the way drops it, use POST /messages/bulk-delete."
            raise ValidationError({"ids": [ErrorDetail(detail, "required")]})
        return self._delete()

    @extend_schema(operation_id="bulkDeleteMessagesByPost", request=MessageIdsSerializer, responses={200: BulkOutcome})
    @action(detail=False, methods=["post"], url_path="bulk-delete")
    @idempotent
    def bulk_delete(self, request: Request) -> HttpResponse:
        """Delete messages permanently, for clients and proxies that drop the body of a DELETE.

        The same as `DELETE /messages/bulk`.
        """
        self.read_query()
        return self._delete()

    def _delete(self) -> HttpResponse:
        ids = self.validated_body(MessageIdsSerializer)["ids"]
        return answer(services.delete(ids=ids, caller=self.caller))

    @staticmethod
    def _existing_id(text: str) -> str:
        """The id in a path. If it is not a UUID, the message is missing."""
        found = id_from(text)
        if found is None:
            raise NotFoundError
        return found
