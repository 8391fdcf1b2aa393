"""The overview page: messages by day, the busiest mailboxes, keys that expire soon, the backlog of upkeep.

Its cost does not grow with the tables.
"""

from datetime import datetime, timedelta
from typing import Any

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


def overview(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    if not user.has_perm("messaging.view_message"):
        raise PermissionDenied
    now = timezone.now()
    first_day = now.date() - timedelta(DAYS - 1)
    numbers = sample.take(since=datetime(first_day.year, first_day.month, first_day.day, tzinfo=now.tzinfo))
    mailboxes = Mailbox.objects.in_bulk(list(numbers.by_mailbox))
    days = [(day := first_day + timedelta(index), numbers.by_day.get(day, 0)) for index in range(DAYS)]
    context = site.each_context(request) | {
        "title": "Overview",
        "numbers": numbers,
        "unread_percent": round(100 * numbers.unread / numbers.total, 1) if numbers.total else 0,
        "days": days,
        "most": max(1, *(count for _, count in days)),
        "may_see_mailboxes": user.has_perm("messaging.view_mailbox"),
        "mailboxes": [(mailboxes[pk], count) for pk, count in numbers.by_mailbox.items() if pk in mailboxes],
        "keys": _keys_that_end(now) if user.has_perm("messaging.view_apikey") else None,
        "backlog": [(_BACKLOGS[kind], rows) for kind, rows in upkeep.backlog().items()],
        "counted": upkeep.COUNTED,  # there may be more rows
    }
    return TemplateResponse(request, "messaging/overview.html", context)


def _keys_that_end(now: datetime) -> list[ApiKey]:
    soon = keys.all_keys().filter(revoked_at=None, expires_at__gt=now, expires_at__lt=now + timedelta(DAYS))
    return list(soon.defer("secret_sha256").order_by("expires_at")[:MAX_KEYS])
