"""The operations of the OpenAPI document: what each takes and answers, with examples. One entry for each action.

Their summaries are the docstrings of views.py; what several share stands in schema_parameters.py and
schema_problems.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from rest_framework.serializers import Serializer

from messaging.api import serializers as shapes
from messaging.api.schema_parameters import ALICE, BOB, CURSOR, MESSAGE_ID, OTHER_ID, UNREAD_CURSOR
from messaging.services import UP_TO_STEP

Shape = type[Serializer[None]]

MESSAGES, MAILBOXES, HEALTH = "Messages", "Mailboxes", "Health"

MESSAGE: dict[str, Any] = {
    "id": MESSAGE_ID,
    "seq": 12,
    "recipient": ALICE,
    "sender": BOB,
    "content": "Lunch at noon?",
    "metadata": {"priority": "high", "thread": 7},
    "created_at": "2026-01-31T11:58:03.123456Z",
    "read_at": None,
    "is_read": False,
}
_OTHER = {
    **MESSAGE,
    "id": OTHER_ID,
    "seq": 11,
    "content": "Grüße aus Zürich",
    "metadata": {},
    "created_at": "2026-01-31T11:41:20.004512Z",
}
_WELCOME = {**MESSAGE, "id": OTHER_ID, "seq": 13, "sender": "", "content": "Welcome!", "metadata": {}}
MAILBOX: dict[str, Any] = {"recipient": ALICE, "version": 12, "total": 9, "unread": 4}
_CHANGED = {**MAILBOX, "version": 13, "unread": 3}
_NEXT = f"http://localhost:8000/messages/?recipient=alice%40example.com&limit=2&cursor={CURSOR}"
_NEXT_UNREAD = f"http://localhost:8000/messages/unread?recipient=alice%40example.com&limit=2&cursor={UNREAD_CURSOR}"
_PAGE = {"results": [MESSAGE, _OTHER], "next": _NEXT, "previous": None, "mailbox": MAILBOX}
_DRAFT = {"recipient": ALICE, "sender": BOB, "content": "Lunch at noon?", "metadata": {"priority": "high", "thread": 7}}
_IDS = {"ids": [MESSAGE_ID, OTHER_ID]}
_BY_IDS = {
    "results": [{"id": MESSAGE_ID, "status": "changed"}, {"id": OTHER_ID, "status": "not_found"}],
    "changed": 1,
    "unchanged": 0,
    "not_found": 1,
    "mailboxes": [_CHANGED],
}
_UP_TO = {"changed": 4, "unchanged": 0, "not_found": 0, "mailboxes": [{**_CHANGED, "unread": 0}], "complete": True}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation, beyond what its method already says: reads may be conditional, writes have Idempotency-Key.

    `problems` are the statuses of refusals that not every operation has. Examples are by name; a body or an answer
    that may have one of several shapes names them all.
    """

    id: str
    details: str
    tag: str = MESSAGES
    parameters: tuple[str, ...] = ()
    takes: tuple[Shape, ...] = ()
    taken: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    answer: str
    answers: tuple[Shape, ...] = ()
    answered: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    problems: tuple[int, ...] = ()
    links: Mapping[str, Any] = field(default_factory=dict)


def _to(operation: str, description: str, **link: Any) -> dict[str, Any]:
    return {"operationId": operation, "description": description, **link}


_ID, _WHOSE = "$response.body#/id", "$response.body#/recipient"
_LINKS = {
    "GetMessage": _to("getMessage", "The same message, later.", parameters={"id": _ID}),
    "DeleteMessage": _to("deleteMessage", "Delete it.", parameters={"id": _ID}),
    "MarkMessagesRead": _to("markMessagesRead", "Mark it as read.", requestBody={"ids": [_ID]}),
    "MarkMessagesUnread": _to(
        "markMessagesUnread", "Mark all up to it as unread.", requestBody={"recipient": _WHOSE, "up_to": _ID}
    ),
    "BulkDeleteMessages": _to("bulkDeleteMessages", "Delete it.", requestBody={"ids": [_ID]}),
    "BulkDeleteMessagesByPost": _to("bulkDeleteMessagesByPost", "Delete it.", requestBody={"ids": [_ID]}),
    "ListMessages": _to("listMessages", "The mailbox it is in.", parameters={"recipient": _WHOSE}),
    "ListUnreadMessages": _to("listUnreadMessages", "What is unread there.", parameters={"recipient": _WHOSE}),
    "GetMailbox": _to("getMailbox", "The mailbox it is in.", parameters={"recipient": _WHOSE}),
}

_PAGING = ("Recipient", "Limit", "Ordering")
_FILTERS = ("Sender", "IsRead", "CreatedAfter", "CreatedBefore")
_HOW_TO_PAGE = (
    "Follow `next` and `previous` as they are: page 10,000 costs what page 1 costs, and nobody sees a message twice, "
    "or misses one that was there all along, whatever arrives or goes meanwhile."
)
_MARKED = (
    "Name messages by `ids`, or every message of a recipient up to one of them by `recipient` and `up_to`, which "
    "leaves alone what arrived later. A message that already is in that state is `unchanged`, so a retry does no harm. "
    f"A call with `up_to` works through at most {UP_TO_STEP:,} messages, oldest first, and says `complete: false` "
    "while some remain."
)
_MARK: dict[str, Any] = {
    "takes": (shapes.IdsSerializer, shapes.UpToSerializer),
    "taken": {"byIds": _IDS, "upTo": {"recipient": ALICE, "up_to": MESSAGE_ID}},
    "answer": "What the call did, and the mailboxes as they now stand.",
    "answers": (shapes.BulkOutcomeSerializer, shapes.UpToOutcomeSerializer),
    "answered": {"byIds": _BY_IDS, "upTo": _UP_TO},
    "problems": (404,),
}
_BULK_DELETE: dict[str, Any] = {
    "takes": (shapes.IdsSerializer,),
    "taken": {"byIds": _IDS},
    "answer": "What became of each id, and the mailboxes as they now stand.",
    "answers": (shapes.BulkOutcomeSerializer,),
    "answered": {"byIds": {**_BY_IDS, "mailboxes": [{**_CHANGED, "total": 8}]}},
}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("MessageViewSet", "list"): Operation(
        id="listMessages",
        details=_HOW_TO_PAGE,
        parameters=(*_PAGING, "Cursor", *_FILTERS),
        answer="A page of messages, with the mailbox at the same instant.",
        answers=(shapes.PageSerializer,),
        answered={"page": _PAGE},
        headers=("ETag", "Link"),
        problems=(404,),
    ),
    ("MessageViewSet", "unread"): Operation(
        id="listUnreadMessages",
        details=_HOW_TO_PAGE,
        parameters=(*_PAGING, "UnreadCursor", *_FILTERS),
        answer="A page of unread messages, with the mailbox at the same instant.",
        answers=(shapes.PageSerializer,),
        answered={"page": {**_PAGE, "next": _NEXT_UNREAD}},
        headers=("ETag", "Link"),
        problems=(404,),
    ),
    ("MessageViewSet", "create"): Operation(
        id="sendMessage",
        details="It is stored, counted and in its place before the answer comes.",
        takes=(shapes.NewMessageSerializer,),
        taken={"message": _DRAFT},
        status=201,
        answer="The message as it was stored.",
        answers=(shapes.MessageSerializer,),
        answered={"message": MESSAGE},
        headers=("Location",),
        problems=(404,),
        links=_LINKS,
    ),
    ("MessageViewSet", "batch"): Operation(
        id="sendMessageBatch",
        details=f"1 to {settings.MESSAGES_MAX_BULK:,} messages in one transaction. If one of them is not valid, none "
        "is sent, and `errors` names every fault with its message's place.",
        takes=(shapes.BatchSerializer,),
        taken={"messages": {"messages": [_DRAFT, {"recipient": ALICE, "content": "Welcome!"}]}},
        status=201,
        answer="The messages as they were stored, in the order given.",
        answers=(shapes.BatchResultSerializer,),
        answered={"messages": {"results": [MESSAGE, _WELCOME]}},
        problems=(404,),
        links={
            "GetFirstMessage": _to(
                "getMessage", "The first of them, later.", parameters={"id": "$response.body#/results/0/id"}
            )
        },
    ),
    ("MessageViewSet", "retrieve"): Operation(
        id="getMessage",
        details="Its `ETag` is that of its mailbox.",
        parameters=("Id",),
        answer="The message.",
        answers=(shapes.MessageSerializer,),
        answered={"message": MESSAGE},
        headers=("ETag",),
        problems=(404,),
    ),
    ("MessageViewSet", "mark_read"): Operation(id="markMessagesRead", details=_MARKED, **_MARK),
    ("MessageViewSet", "mark_unread"): Operation(id="markMessagesUnread", details=_MARKED, **_MARK),
    ("MessageViewSet", "destroy"): Operation(
        id="deleteMessage",
        details="A second time it is 404, unless `allow_missing` is true.",
        parameters=("Id", "AllowMissing"),
        status=204,
        answer="It is gone.",
        problems=(404,),
    ),
    ("MessageViewSet", "bulk"): Operation(
        id="bulkDeleteMessages",
        details="One transaction. Where a client or a proxy drops the body of a DELETE, there is "
        "`POST /messages/bulk-delete`.",
        **_BULK_DELETE,
    ),
    ("MessageViewSet", "bulk_delete"): Operation(
        id="bulkDeleteMessagesByPost", details="The same as `DELETE /messages/bulk`.", **_BULK_DELETE
    ),
    ("MailboxViewSet", "list"): Operation(
        id="getMailbox",
        tag=MAILBOXES,
        details="One read by primary key, whatever the mailbox's size. A recipient that nobody has sent to has an "
        "empty mailbox at version 0.",
        parameters=("Recipient",),
        answer="The mailbox.",
        answers=(shapes.MailboxSerializer,),
        answered={"mailbox": MAILBOX},
        headers=("ETag",),
        problems=(404,),
    ),
}
