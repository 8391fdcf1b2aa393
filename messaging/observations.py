"""The last result of a job, for /metrics and `doctor`. One row for each name."""

from datetime import datetime
from typing import Literal, NamedTuple

from messaging.database import change
from messaging.models import Observation

Name = Literal["upkeep", "mailbox_disagreements"]

_RECORD = """
INSERT INTO messaging_observation AS o (name, value, observed_at) VALUES (%(name)s, %(value)s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET value = excluded.value, observed_at = excluded.observed_at
RETURNING 1"""


class Found(NamedTuple):
    """A result and its time."""

    value: int
    observed_at: datetime


def record(name: Name, value: int) -> None:
    """Replace a result: the rows deleted by upkeep, or the mailboxes that `check_mailboxes` found wrong."""
    change(_RECORD, {"name": name, "value": value})


def last(name: Name) -> Found | None:
    """The last result; None if there is none."""
    row = Observation.objects.filter(pk=name).values_list("value", "observed_at").first()
    return None if row is None else Found(*row)
