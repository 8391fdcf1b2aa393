"""Example values of the OpenAPI document. A test sends each of them to the service and validates each answer."""

import json
from typing import Any

from messaging.records import MessageRecord, raw_json, to_json

ALICE, BOB = "alice@example.com", "bob@example.com"
MESSAGE_ID = "019b5c3e-7a10-7c32-9d5e-0b8f4a6d2c91"
OTHER_ID = "019b5c3e-9f44-7d08-b1a7-53e2c6f0d418"
ETAG = '"7d1f0c6ab2e4-12"'
REQUEST_ID = "019b5c3e7a107c329d5e0b8f4a6d2c91"
# After alice's message number 11, newest first and without filters.
CURSOR = "AAAAAAAAAAALI-GhIMDUS6_qoudK"

NEW_MESSAGE: dict[str, Any] = {
    "recipient": ALICE,
    "sender": BOB,
    "content": "Lunch at noon?",
    "metadata": {"priority": "high", "thread": 7},
}
# Made from the record, so that it has all fields.
MESSAGE: dict[str, Any] = json.loads(
    to_json(
        MessageRecord(
            id=MESSAGE_ID,
            seq=12,
            **{**NEW_MESSAGE, "metadata": raw_json(json.dumps(NEW_MESSAGE["metadata"]))},
            created_at="2026-01-31T11:58:03.123456Z",
            read_at=None,
            is_read=False,
            expires_at=None,
        )
    )
)
_OTHER = {
    **MESSAGE,
    "id": OTHER_ID,
    "seq": 11,
    "content": "Grüße aus Zürich",
    "metadata": {},
    "created_at": "2026-01-31T11:41:20.004512Z",
}
_WELCOME = {**MESSAGE, "id": OTHER_ID, "seq": 13, "sender": "", "content": "Welcome!", "metadata": {}}
BATCH = {"messages": [NEW_MESSAGE, {"recipient": ALICE, "content": "Welcome!"}]}
BATCH_ANSWER = {"results": [MESSAGE, _WELCOME]}
MAILBOX: dict[str, Any] = {"recipient": ALICE, "version": 12, "total": 9, "unread": 4}
_CHANGED = {**MAILBOX, "version": 13, "unread": 3}
PAGE = {
    "results": [MESSAGE, _OTHER],
    "next": f"http://localhost:8000/messages/?recipient=alice%40example.com&limit=2&cursor={CURSOR}",
    "previous": None,
    "mailbox": MAILBOX,
}
IDS = {"ids": [MESSAGE_ID, OTHER_ID]}
CHANGES = {
    "messages": [MESSAGE],
    "deleted": [OTHER_ID],
    "since": 7,
    "until": 12,
    "next": None,
    "mailbox": MAILBOX,
}
UP_TO = {"recipient": ALICE, "up_to": MESSAGE_ID}
BULK_OUTCOME = {
    "results": [{"id": MESSAGE_ID, "status": "changed"}, {"id": OTHER_ID, "status": "not_found"}],
    "changed": 1,
    "unchanged": 0,
    "not_found": 1,
    "mailboxes": [_CHANGED],
}
UP_TO_OUTCOME = {
    "changed": 4,
    "unchanged": 0,
    "not_found": 0,
    "mailboxes": [{**_CHANGED, "unread": 0}],
    "complete": True,
}
TICKET = "WyJhbGljZUBleGFtcGxlLmNvbSIsImtleTo3ZjNhIixudWxsXQ:1vmAcE:2qPYv7n5o8bq0cY2Jj3tV9w1xZk4LmN6rS8uTgHfEdA"
TICKET_ANSWER = {"ticket": TICKET, "expires_at": "2026-01-31T12:01:00.000000Z"}

# By the name of a component that is a body of a request or response.
EXAMPLES: dict[str, dict[str, Any]] = {
    "MessageToSend": {"Message": NEW_MESSAGE},
    "Batch": {"Messages": BATCH},
    "MessageIds": {"ByIds": IDS},
    "Mark": {"ByIds": IDS, "UpTo": UP_TO},
    "Ticket": {"Ticket": {"recipient": ALICE}},
    "Message": {"Message": MESSAGE},
    "BatchResult": {"Messages": BATCH_ANSWER},
    "Page": {"Page": PAGE},
    "Mailbox": {"Mailbox": MAILBOX},
    "Changes": {"Changes": CHANGES},
    "BulkOutcome": {"ByIds": BULK_OUTCOME},
    "MarkOutcome": {"ByIds": BULK_OUTCOME, "UpTo": UP_TO_OUTCOME},
    "TicketAnswer": {"Ticket": TICKET_ANSWER},
}
