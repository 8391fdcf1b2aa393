"""What a search or a filter of the admin may cost: without an index it looks through the newest messages only."""

from typing import NamedTuple
from uuid import UUID

from django.db.models import Q, QuerySet

from messaging.admin.lists import MAX_LISTED
from messaging.models import Mailbox, Message
from messaging.validation import name_fault

# How many messages are looked through: a tenth of a second of PostgreSQL's time.
WINDOW = 100_000
TEXT_WINDOW = 10_000  # the same for contents, each of which is read whole
MAX_RECIPIENTS = 20  # that begin with what is searched for


class Window(NamedTuple):
    """The newest `rows` of some messages, whose order is that of the column `by`, which has an index."""

    messages: QuerySet[Message]
    by: str
    rows: int

    def bound(self) -> Q:
        """The condition that holds for them; empty if there are no other messages."""
        edge = self.messages.order_by(f"-{self.by}").values_list(self.by, flat=True)[self.rows : self.rows + 1]
        return Q(**{f"{self.by}__gt": last}) if (last := edge.first()) is not None else Q()


def all_messages() -> Window:
    """The newest of all messages."""
    return Window(Message.objects.all(), "pk", WINDOW)


def messages_in(recipient: str) -> Window:
    """The newest messages of a mailbox."""
    return Window(to(Message.objects.all(), recipient), "seq", WINDOW)


def texts_in(recipient: str) -> Window:
    """The newest messages of a mailbox, as many as a search may read."""
    return messages_in(recipient)._replace(rows=TEXT_WINDOW)


def to(messages: QuerySet[Message], recipient: str) -> QuerySet[Message]:
    """Those of the messages that are in the recipient's mailbox.

    Not by a join: only for one mailbox, known before the statement runs, has message_order the order of a page.
    """
    if name_fault(recipient, ""):
        return messages.none()
    return messages.filter(mailbox=Mailbox.objects.filter(recipient=recipient).values("pk")[:1])


def to_or_from(name: str) -> list[UUID]:
    """Ids of messages to the first MAX_RECIPIENTS recipients that begin with `name`, the newest of each; and of those
    that `name` sent, among the newest of all.
    """
    mailboxes = Mailbox.objects.filter(recipient__startswith=name).order_by("recipient")[:MAX_RECIPIENTS]
    keys = list(mailboxes.values_list("pk", flat=True))
    found = [
        pk
        for key in keys
        for pk in Message.objects.filter(mailbox=key)
        .order_by("-seq")
        .values_list("pk", flat=True)[: MAX_LISTED // len(keys)]
    ]
    sent = Message.objects.filter(all_messages().bound(), sender=name).order_by("-pk")
    return found + list(sent.values_list("pk", flat=True)[:MAX_LISTED])
