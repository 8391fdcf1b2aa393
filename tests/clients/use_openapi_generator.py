"""Uses the API with the Python client of openapi-generator: use_openapi_generator.py URL KEY, beside the package."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import openapi_client as client

RECIPIENT = "ada+x@example.com"
url, key = sys.argv[1:]
connection = client.ApiClient(client.Configuration(host=url, access_token=key))
messages, mailboxes = client.MessagesApi(connection), client.MailboxesApi(connection)


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> Any:
    """The exception of a call that has to be refused."""
    try:
        call(*arguments, **options)
    except client.ApiException as refused:
        return refused
    raise AssertionError(f"{call} was not refused")


sent = []
metadata = {"nested": {"list": [1, 2.5, None]}}
for content in ("one", "two", "three"):
    body = client.MessageToSend(recipient=RECIPIENT, content=content, metadata=metadata)
    replies = [messages.send_message_with_http_info(body, idempotency_key=content) for _ in range(2)]
    assert replies[0].data.id == replies[1].data.id
    assert replies[1].headers["Idempotency-Replayed"] == "true"
    sent.append(replies[0].data)
assert sent[0].metadata == metadata

seen, cursor, since = [], None, datetime.now(UTC) - timedelta(hours=1)
for last in (False, True):
    page = messages.list_messages(RECIPIENT, is_read=False, created_after=since, limit=2, cursor=cursor)
    seen += [message.content for message in page.results]
    assert (page.next is None) is last
    cursor = None if last else parse_qs(urlsplit(page.next).query)["cursor"][0]
assert seen == ["three", "two", "one"]
for reading in (messages.list_messages, messages.list_unread_messages):
    [oldest] = reading(RECIPIENT, ordering=client.Ordering.OLDEST_FIRST, limit=1).results
    assert oldest.content == "one"

marked = messages.mark_messages_read(client.Mark(ids=[sent[0].id]))
assert (marked.results[0].status, marked.complete) == ("changed", None)
up_to = messages.mark_messages_read_by_post(client.Mark(recipient=RECIPIENT, up_to=sent[1].id))
assert (up_to.complete, up_to.changed, up_to.results) == (True, 1, None)
assert messages.get_message(sent[0].id).read_at > sent[0].created_at

mailbox = mailboxes.get_mailbox_with_http_info(RECIPIENT)
assert (mailbox.data.total, mailbox.data.unread) == (3, 1)
assert refusal(mailboxes.get_mailbox, RECIPIENT, if_none_match=mailbox.headers["ETag"]).status == 304

assert messages.delete_message(sent[0].id) is None
gone = refusal(messages.delete_message, sent[0].id)
assert (gone.status, gone.data.code) == (404, "not_found")
assert messages.delete_message(sent[0].id, allow_missing=True) is None
bulk = messages.bulk_delete_messages(client.MessageIds(ids=[sent[0].id, sent[1].id]))
assert (bulk.changed, bulk.not_found) == (1, 1)

problem = refusal(messages.send_message, client.MessageToSend(recipient=RECIPIENT, content=" ")).data
assert (problem.code, problem.errors[0].pointer, problem.errors[0].code) == ("invalid_input", "/content", "blank")
changes = mailboxes.list_changes(0, RECIPIENT)
assert ([message.content for message in changes.messages], changes.next) == (["three"], None)
assert mailboxes.create_ticket(ticket=client.Ticket(recipient=RECIPIENT)).expires_at > datetime.now(UTC)
assert client.HealthApi(connection).get_health().status == "ok"
