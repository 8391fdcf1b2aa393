"""Limits the cost of searches and filters of the admin: without an index, only the newest messages are read."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple, Self
from uuid import UUID

from django.conf import settings
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.postgres.search import SearchQuery, SearchVector
from django.db.models import Q, QuerySet
from django.db.models.functions import Left

from messaging.ids import CLOCK_SKEW, first_id
from messaging.models import Mailbox, Message
from messaging.validation import name_fault

# The number of messages that are read: a fraction of a second for PostgreSQL. Those of one mailbox are not adjacent, so
# each may be on another page of the table.
WINDOW = 100_000
MAILBOX_WINDOW = 10_000
MAX_FOUND = 1_000  # messages that a search shows
MAX_RECIPIENTS = 20  # that begin with the search term
# Of a content, in which words are compared: PostgreSQL refuses a tsvector of more than 1 MiB.
MAX_WORDS_LENGTH = 100_000

# The query parameters that define the scope of a list.
PARAMETERS = frozenset({"recipient", "created_at__gte", "created_at__lt"})


class Scope(NamedTuple):
    """The messages of a list: of one mailbox or all, of a period or all time. Each combination has an index."""

    recipient: str
    since: datetime | None
    until: datetime | None

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Self:
        """The scope in the query parameters of a list. Raises IncorrectLookupParameters for what is no instant."""
        try:
            since, until = (_instant(parameters.get(f"created_at__{end}", "")) for end in ("gte", "lt"))
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
        return cls(parameters.get("recipient", ""), since, until)

    @property
    def order(self) -> str:
        """The column whose index has the messages in order of arrival."""
        if not self.recipient:
            return "pk"
        return "created_at" if self.since or self.until else "seq"

    def messages(self) -> QuerySet[Message]:
        messages = self.arrived(Message.objects.all())
        return to(messages, self.recipient) if self.recipient else messages

    def arrived(self, messages: QuerySet[Message]) -> QuerySet[Message]:
        """Those of the messages that arrived in the period."""
        bounds = {"gte": self.since, "lt": self.until}
        for end, instant in bounds.items():
            if instant is None:
                continue
            messages = messages.filter(**{f"created_at__{end}": instant})
            if not self.recipient:
                # Over all mailboxes there is no index of created_at, but ids rise with time (RFC 9562, version 7).
                slack = CLOCK_SKEW if end == "lt" else -CLOCK_SKEW
                messages = messages.filter(**{f"pk__{end}": first_id(instant, slack)})
        return messages

    @property
    def window(self) -> int:
        """The number of messages that a condition without an index is applied to."""
        return MAILBOX_WINDOW if self.recipient else WINDOW

    def newest(self) -> Q:
        """A condition that selects the newest messages, as many as `window`; empty if there are no more than that."""
        order, rows = self.order, self.window
        edge = self.messages().order_by(f"-{order}").values_list(order, flat=True)[rows : rows + 1]
        return Q(**{f"{order}__gt": last}) if (last := edge.first()) is not None else Q()


def _instant(text: str) -> datetime | None:
    """A date or an instant, in UTC unless it has an offset; None for an empty text."""
    if not text:
        return None
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def to(messages: QuerySet[Message], recipient: str) -> QuerySet[Message]:
    """Those of the messages that are in the recipient's mailbox.

    By a subquery, not a join: then the planner knows that it is one mailbox, and reads message_order in order.
    """
    if name_fault(recipient):
        return messages.none()
    return messages.filter(mailbox=Mailbox.objects.filter(recipient=recipient).values("pk")[:1])


def to_or_from(name: str, scope: Scope) -> list[UUID]:
    """Ids of the newest messages of each of the first MAX_RECIPIENTS recipients that begin with `name`; and of messages
    that `name` sent, among the newest of all.
    """
    mailboxes = Mailbox.objects.filter(recipient__startswith=name).order_by("recipient")[:MAX_RECIPIENTS]
    recipients = list(mailboxes.values_list("recipient", flat=True))
    found: list[UUID] = []
    for recipient in recipients:
        own = scope._replace(recipient=recipient)
        newest = own.messages().order_by(f"-{own.order}")[: MAX_FOUND // len(recipients)]
        found += newest.values_list("pk", flat=True)
    sent = scope.messages().filter(scope.newest(), sender=name).order_by("-pk")
    return [*found, *sent.values_list("pk", flat=True)[:MAX_FOUND]][:MAX_FOUND]


def mentioning(text: str, messages: QuerySet[Message]) -> QuerySet[Message]:
    """Those of the messages whose content contains the text or its words, or whose sender begins with it.

    Words are compared in MESSAGES_SEARCH_LANGUAGE, with the syntax of websearch_to_tsquery: `"a phrase"`, `or`, `-not`.
    """
    language = settings.MESSAGES_SEARCH_LANGUAGE
    words = SearchQuery(text, config=language, search_type="websearch")
    vector = SearchVector(Left("content", MAX_WORDS_LENGTH), config=language)
    return messages.alias(words=vector).filter(Q(sender__startswith=text) | Q(content__icontains=text) | Q(words=words))
