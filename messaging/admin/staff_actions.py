"""Changes by staff to any number of messages, each with one entry in Django's admin log."""

from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.template.defaultfilters import pluralize

from messaging.access import EVERYONE
from messaging.database import in_transaction
from messaging.models import Message
from messaging.records import BulkOutcome

# An entry names so many, and gives the number of the others.
NAMED_IDS = 10
NAMED_RECIPIENTS = 3
MAX_NAMED_LENGTH = 200  # of LogEntry.object_repr


class StaffAction:
    """One action of a member of staff, on messages in batches of MESSAGES_MAX_BULK, each a transaction.

    The entry in the admin log is written with the first batch and updated with each later one, in the transaction of
    that batch. So it is right even if a later batch fails or the process dies.
    """

    def __init__(self, *, verb: Callable[..., BulkOutcome], name: str, flag: int, user_id: int) -> None:
        self._verb, self._name = verb, name
        self._outcomes: list[BulkOutcome] = []
        content_type = ContentType.objects.get_for_model(Message)
        self._entry = LogEntry(user_id=user_id, content_type=content_type, action_flag=flag)

    @property
    def changed(self) -> int:
        return sum(outcome.changed for outcome in self._outcomes)

    @property
    def unchanged(self) -> int:
        return sum(outcome.unchanged for outcome in self._outcomes)

    def apply_to(self, ids: Sequence[UUID]) -> None:
        """Change these messages.

        If a batch raises a MessagingError, those before it are committed and counted.
        """
        for start in range(0, len(ids), settings.MESSAGES_MAX_BULK):
            batch = ids[start : start + settings.MESSAGES_MAX_BULK]
            self._outcomes.append(in_transaction(partial(self._change, batch)))

    def _change(self, batch: Sequence[UUID]) -> BulkOutcome:
        outcome = self._verb(ids=batch, caller=EVERYONE)
        if outcome.changed:
            self._log([*self._outcomes, outcome])
        return outcome

    def _log(self, outcomes: list[BulkOutcome]) -> None:
        ids = [result.id for outcome in outcomes for result in outcome.results if result.status == "changed"]
        recipients = list(dict.fromkeys(mailbox.recipient for outcome in outcomes for mailbox in outcome.mailboxes))
        messages = f"{len(ids):,} message{pluralize(ids)}"
        self._entry.object_id = ids[0] if len(ids) == 1 else None
        named = f"{messages} to {_first(recipients, NAMED_RECIPIENTS)}"
        # A name that was cut off would not be found by erasure.py.
        self._entry.object_repr = named if len(named) <= MAX_NAMED_LENGTH else messages
        self._entry.change_message = f"{self._name} {messages}: {_first(ids, NAMED_IDS)}."
        self._entry.save()


def _first(names: list[str], limit: int) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
