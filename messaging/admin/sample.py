"""Counts of all messages, estimated from a sample of the table's pages, so the cost does not grow with the table."""

from datetime import date, datetime
from typing import NamedTuple

from messaging.database import fetch, read

# Random reads, if they are not cached. A table of fewer pages, about 15,000 messages, is read completely.
SAMPLED_PAGES = 600
BUSIEST = 10

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


class Sample(NamedTuple):
    """Counts of messages, scaled up from the sample; exact if the whole table was read."""

    is_exact: bool
    total: int
    unread: int
    oldest_unread: datetime | None  # in the sample, so older ones may exist unless it is exact
    by_day: dict[date, int]
    by_mailbox: dict[int, int]  # messages of those days in the busiest mailboxes, by primary key


def take(*, since: datetime) -> Sample:
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
