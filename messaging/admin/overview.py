"""The overview page: messages by day, the busiest mailboxes, keys that expire soon, the backlog of upkeep.

Its cost does not grow with the tables: messages are counted in a sample of the pages of their table.
"""

from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from django.contrib.admin.sites import site
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from messaging import upkeep
from messaging.auth import keys
from messaging.database import fetch, read
from messaging.models import ApiKey, Mailbox

DAYS = 30
MAX_KEYS = 20
# Random reads, if they are not cached. A table of fewer pages, about 15,000 messages, is read completely.
SAMPLED_PAGES = 600
BUSIEST = 10

_BACKLOGS = {
    "messages": "Messages that have expired",
    "old_messages": "Messages older than MESSAGES_RETENTION_DAYS",
    "changes": "Marks and deletions older than MESSAGES_CHANGES_DAYS",
    "outcomes": "Outcomes of requests with an Idempotency-Key that have expired",
    "rate_windows": "Windows of rate limits that have ended",
    "sessions": "Sessions of staff that have ended",
}

# The greatest page number, and how many pages there are. The pages of a partitioned table are in its partitions, so a
# number selects a page of each.
_PAGES = """
SELECT max(pg_relation_size(oid)) / current_setting('block_size')::int,
    (sum(pg_relation_size(oid)) / current_setting('block_size')::int)::bigint
FROM pg_class WHERE oid = 'messaging_message'::regclass
    OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'messaging_message'::regclass)"""

# Pages at equal distances: messages of one day are stored together, so random pages (TABLESAMPLE SYSTEM) would favour
# some days. A page of 8 kB holds fewer than 110 messages, since the shortest has 76 bytes.
_SAMPLE = """
WITH sample AS MATERIALIZED (
    SELECT mailbox_id, created_at, read_at IS NULL AS unread,
        CASE WHEN created_at >= %(since)s THEN (created_at AT TIME ZONE 'UTC')::date END AS day
    FROM messaging_message
    WHERE ctid = ANY (ARRAY(
        SELECT ('(' || page || ',' || line || ')')::tid
        FROM generate_series(0, %(pages)s::int - 1, %(step)s::int) page, generate_series(1, 110) line
    ))
)
SELECT NULL::date, NULL::bigint, count(*), count(*) FILTER (WHERE unread), min(created_at) FILTER (WHERE unread)
FROM sample
UNION ALL
SELECT day, NULL, count(*), NULL, NULL FROM sample WHERE day IS NOT NULL GROUP BY day
UNION ALL
(SELECT NULL, mailbox_id, count(*), NULL, NULL FROM sample WHERE day IS NOT NULL
GROUP BY mailbox_id ORDER BY 3 DESC, 2 LIMIT %(busiest)s)"""


@permission_required("messaging.view_message", raise_exception=True)
def overview(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    now = timezone.now()
    first_day = now.date() - timedelta(DAYS - 1)
    numbers = take_sample(since=datetime(first_day.year, first_day.month, first_day.day, tzinfo=now.tzinfo))
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


class Sample(NamedTuple):
    """Counts of messages, scaled up from the sample; exact if the whole table was read."""

    is_exact: bool
    total: int
    unread: int
    oldest_unread: datetime | None  # in the sample, so older ones may exist unless it is exact
    by_day: dict[date, int]
    by_mailbox: dict[int, int]  # messages of those days in the busiest mailboxes, by primary key


def take_sample(*, since: datetime) -> Sample:
    """The current counts; those by day and by mailbox begin at `since`."""
    [(pages, all_pages)] = read(lambda: fetch(_PAGES))
    step = max(1, all_pages // SAMPLED_PAGES)
    parameters = {"since": since, "pages": pages, "step": step, "busiest": BUSIEST}
    rows = read(lambda: fetch(_SAMPLE, parameters, prepare=False))
    by_day: dict[date, int] = {}
    by_mailbox: dict[int, int] = {}
    total = unread = 0
    oldest_unread = None
    for day, mailbox, count, count_unread, oldest in rows:
        if day is not None:
            by_day[day] = count * step
        elif mailbox is None:
            total, unread, oldest_unread = count * step, count_unread * step, oldest
        elif step == 1 or count > 2:  # one or two in the sample are chance
            by_mailbox[mailbox] = count * step
    return Sample(step == 1, total, unread, oldest_unread, by_day, by_mailbox)
