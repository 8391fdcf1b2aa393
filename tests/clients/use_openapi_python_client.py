"""Uses the API with the client of openapi-python-client: use_openapi_python_client.py URL KEY, beside the package."""

import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

from messages_client import AuthenticatedClient, models
from messages_client.types import UNSET

RECIPIENT = "ada+x@example.com"
client = AuthenticatedClient(*sys.argv[1:])


def call(operation: str, **arguments: Any) -> Any:
    return import_module(f"messages_client.api.{operation}").sync_detailed(client=client, **arguments)


sent = []
metadata = {"nested": {"list": [1, 2.5, None]}}
for content in ("one", "two", "three"):
    body = models.MessageToSend(
        recipient=RECIPIENT, content=content, metadata=models.MessageToSendMetadataType0.from_dict(metadata)
    )
    replies = [call("messages.send_message", body=body, idempotency_key=content) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [201, 201]
    assert replies[0].parsed.id == replies[1].parsed.id
    assert replies[1].headers["Idempotency-Replayed"] == "true"
    sent.append(replies[0].parsed)
assert sent[0].metadata.to_dict() == metadata

seen: list[str] = []
cursor: dict[str, str] = {}
filters = {"is_read": False, "created_after": datetime.now(UTC) - timedelta(hours=1)}
for last in (False, True):
    page = call("messages.list_messages", recipient=RECIPIENT, limit=2, **filters, **cursor).parsed
    seen += [message.content for message in page.results]
    assert (page.next_ is None) is last
    cursor = {} if last else {"cursor": parse_qs(urlsplit(page.next_).query)["cursor"][0]}
assert seen == ["three", "two", "one"]
for operation in ("list_messages", "list_unread_messages"):
    page = call(f"messages.{operation}", recipient=RECIPIENT, ordering=models.Ordering.OLDEST_FIRST, limit=1).parsed
    assert page.results[0].content == "one"

marked = call("messages.mark_messages_read", body=models.Mark(ids=[sent[0].id])).parsed
assert (marked.results[0].status, marked.complete) == ("changed", UNSET)
up_to = call("messages.mark_messages_read_by_post", body=models.Mark(recipient=RECIPIENT, up_to=sent[1].id)).parsed
assert (up_to.complete, up_to.changed, up_to.results) == (True, 1, UNSET)
assert call("messages.get_message", id=sent[0].id).parsed.read_at > sent[0].created_at

mailbox = call("mailboxes.get_mailbox", recipient=RECIPIENT)
assert (mailbox.parsed.total, mailbox.parsed.unread) == (3, 1)
known = mailbox.headers["ETag"]
assert call("mailboxes.get_mailbox", recipient=RECIPIENT, if_none_match=known).status_code == 304

assert call("messages.delete_message", id=sent[0].id).status_code == 204
gone = call("messages.delete_message", id=sent[0].id).parsed
assert isinstance(gone, models.Problem)
assert gone.code == "not_found"
assert call("messages.delete_message", id=sent[0].id, allow_missing=True).status_code == 204
bulk = call("messages.bulk_delete_messages", body=models.MessageIds([sent[0].id, sent[1].id])).parsed
assert (bulk.changed, bulk.not_found) == (1, 1)

refused = call("messages.send_message", body=models.MessageToSend(recipient=RECIPIENT, content=" ")).parsed
assert (refused.code, refused.errors[0].pointer, refused.errors[0].code) == ("invalid_input", "/content", "blank")
changes = call("mailboxes.list_changes", recipient=RECIPIENT, since=0).parsed
assert ([message.content for message in changes.messages], changes.next_) == (["three"], None)
assert call("mailboxes.create_ticket", body=models.Ticket(RECIPIENT)).parsed.expires_at > datetime.now(UTC)
assert call("health.get_health").parsed.status == "ok"
