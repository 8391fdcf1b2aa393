"""The overview page: messages by day, the busiest mailboxes, keys that expire soon, the backlog of upkeep.

Its cost does not grow with the tables.
"""

from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from django.contrib.admin.sites import site
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from messaging import upkeep
from messaging.admin import sample
from messaging.auth import keys
from messaging.models import ApiKey, Mailbox

DAYS = 30
MAX_KEYS = 20

_BACKLOGS = {
    "messages": "Messages that have expired",
    "old_messages": "Messages older than MESSAGES_RETENTION_DAYS",
    "changes": "Marks and deletions older than MESSAGES_CHANGES_DAYS",
    "outcomes": "Outcomes of requests with an Idempotency-Key that have expired",
    "rate_windows": "Windows of rate limits that have ended",
    "sessions": "Sessions of staff that have ended",
}

# The chart, in units of its viewBox.
_WIDTH, _HEIGHT, _MARGIN = 720, 180, 24


class Bar(NamedTuple):
    """A day of the chart."""

    day: date
    messages: int
    x: float
    y: float
    width: float
    height: float


class Backlog(NamedTuple):
    """Rows that upkeep has yet to delete."""

    name: str
    rows: int

    @property
    def is_capped(self) -> bool:
        """Whether there may be more rows than were counted."""
        return self.rows >= upkeep.COUNTED


def overview(request: HttpRequest) -> HttpResponse:
    """The page.

    Raises:
        PermissionDenied: the user may not see messages.
    """
    user: Any = request.user
    if not user.has_perm("messaging.view_message"):
        raise PermissionDenied
    now = timezone.now()
    first_day = now.date() - timedelta(DAYS - 1)
    numbers = sample.take(since=datetime(first_day.year, first_day.month, first_day.day, tzinfo=now.tzinfo))
    bars = _bars([(day := first_day + timedelta(index), numbers.by_day.get(day, 0)) for index in range(DAYS)])
    context = site.each_context(request) | {
        "title": "Overview",
        "numbers": numbers,
        "unread_percent": round(100 * numbers.unread / numbers.total, 1) if numbers.total else 0,
        "bars": bars,
        "most": max(bar.messages for bar in bars),
        "width": _WIDTH,
        "height": _HEIGHT,
        "base": _HEIGHT - _MARGIN,
        "mailboxes": _mailboxes(numbers.by_mailbox) if user.has_perm("messaging.view_mailbox") else None,
        "keys": _keys_that_end(now) if user.has_perm("messaging.view_apikey") else None,
        "backlogs": [Backlog(_BACKLOGS[kind], rows) for kind, rows in upkeep.backlog().items()],
    }
    return TemplateResponse(request, "messaging/overview.html", context)


def _bars(counts: list[tuple[date, int]]) -> list[Bar]:
    most = max(1, *(count for _, count in counts))
    room = _WIDTH / len(counts)
    bars = []
    for index, (day, count) in enumerate(counts):
        height = round((_HEIGHT - 2 * _MARGIN) * count / most, 1)
        top = round(_HEIGHT - _MARGIN - height, 1)
        bars.append(Bar(day, count, round(index * room + room * 0.1, 1), top, round(room * 0.8, 1), height))
    return bars


def _mailboxes(counts: dict[int, int]) -> list[tuple[Mailbox, int, float]]:
    """The busiest mailboxes, the messages that came in, and what part that is of the first one's, in percent."""
    found = Mailbox.objects.in_bulk(list(counts))
    most = max(counts.values(), default=1)
    return [(found[pk], count, round(100 * count / most, 1)) for pk, count in counts.items() if pk in found]


def _keys_that_end(now: datetime) -> list[ApiKey]:
    soon = keys.all_keys().filter(revoked_at=None, expires_at__gt=now, expires_at__lt=now + timedelta(DAYS))
    return list(soon.defer("secret_sha256").order_by("expires_at")[:MAX_KEYS])
