"""Adapts statements to tables that `manage.py distribute` has divided by bucket: into partitions of one server, or over
the servers of Citus. citus.py has the statements that take several steps on Citus.

If a statement names a bucket, PostgreSQL reads one partition only. Without partitions such a condition has no use, and
can mislead the planner, which takes mailbox and bucket for independent. So a line of a statement that ends in one of
the marks below is removed from it for other layouts. The layout is read once for each connection. A connection that was
opened before the tables were partitioned continues to work, and reads all partitions.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from itertools import groupby
from typing import Any

from messaging.ids import BUCKETS

TABLES = ("messaging_mailbox", "messaging_message", "messaging_change", "messaging_outcome")

# Marks of lines. The second is for buckets that are taken from the ids of messages.
PARTITIONED = "-- if partitioned"
PARTITIONED_BY_ID = "-- if partitioned and ids end in their buckets"
CITUS = "-- if on Citus"
NOT_CITUS = "-- unless on Citus"

# Citus accepts only immutable functions in ON CONFLICT, and has another function for the size of all shards.
_ON_CITUS = {
    "o.expires_at <= clock_timestamp()": "excluded.expires_at - o.expires_at >= make_interval(secs => %(lifetime)s)",
    "pg_relation_size(oid)": "citus_relation_size(oid)",
}

# A constraint of the table of messages: every id ends in its bucket, so none was made before there were buckets.
ID_CONSTRAINT = "message_id_bucket"

# More buckets than this are spread over most partitions, so such calls read all of them. Each power of two up to it is
# another prepared statement.
_MOST_BUCKETS = 32

_LONGEST_KEPT = 10_000  # characters of a statement


class Layout(IntEnum):
    WHOLE = 0
    PARTITIONED = 1
    PARTITIONED_BY_ID = 2
    CITUS = 3


def layout_of(session: Any) -> Layout:
    """The layout of the tables when the session was opened; WHOLE for a session that is not of our own backend."""
    layout: Layout = getattr(session, "layout", Layout.WHOLE)
    return layout


# Its only row is the Layout without Citus, and whether the database has Citus.
LAYOUT = f"""
SELECT CASE WHEN relkind <> 'p' THEN 0 WHEN EXISTS (
    SELECT FROM pg_constraint WHERE conrelid = pg_class.oid AND conname = '{ID_CONSTRAINT}'
) THEN 2 ELSE 1 END, to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
FROM pg_class WHERE oid = to_regclass('messaging_message')"""

# With Citus: the shard of each bucket, null where the tables are not distributed.
SHARDS = f"""
SELECT array_agg(get_shard_id_for_distribution_column('messaging_message', bucket) ORDER BY bucket)
FROM generate_series(0, {BUCKETS - 1}) bucket
WHERE EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'messaging_message'::regclass)"""

# For a session on Citus. A generic plan knows no bucket and so no shard. SET LOCAL is passed on to the other servers,
# so that a lock timeout holds where the locks are.
SESSION = "SET plan_cache_mode = auto; SET citus.propagate_set_commands = local"


class Shards:
    """The Citus shard of each bucket, when the connection was opened.

    After a shard was split, a statement about both halves is refused with 0A000, and its connection is closed.
    """

    def __init__(self, of_bucket: list[int]) -> None:
        self.of_bucket = of_bucket

    def groups(self, buckets: Iterable[int]) -> list[list[int]]:
        """The buckets of each shard, in the order in which every transaction locks shards."""
        by_shard = sorted(sorted(set(buckets)), key=self.of_bucket.__getitem__)
        return [list(group) for _, group in groupby(by_shard, self.of_bucket.__getitem__)]


# Executes a statement as it is: the function that STEPS are given.
Run = Callable[..., list[tuple[Any, ...]]]

# For each statement that takes several steps on Citus, the function that runs them and returns the same rows. citus.py
# fills it.
STEPS: dict[str, Callable[[Run, Any, Shards], list[tuple[Any, ...]]]] = {}


def bucket_of_id(column: str) -> str:
    """SQL for the last 12 bits of a UUID."""
    return f"((get_byte(uuid_send({column}), 14) & 15) << 8 | get_byte(uuid_send({column}), 15))::smallint"


def adapted(statement: str, parameters: Any, layout: Layout) -> tuple[str, Any]:
    """The statement and its parameters as the layout needs them.

    `IN (%(buckets)s)` of the list `buckets` becomes one parameter for each bucket, since PostgreSQL prunes partitions
    by these and not by an array.
    """
    count = 0
    if layout >= Layout.PARTITIONED_BY_ID and isinstance(parameters, Mapping) and "buckets" in parameters:
        buckets = parameters["buckets"]
        count = 1 << (len(buckets) - 1).bit_length()
        if layout != Layout.CITUS and (not buckets or count > _MOST_BUCKETS):
            layout = Layout.PARTITIONED
        else:
            padded = [*buckets, *[buckets[0]] * (count - len(buckets))]
            parameters = {**parameters, **{f"bucket_{place}": bucket for place, bucket in enumerate(padded)}}
    # Batches on Citus are long statements, of which few are repeated: these are not cached.
    text_of = _text if len(statement) < _LONGEST_KEPT else _text.__wrapped__
    return text_of(statement, layout, count), parameters


@lru_cache(maxsize=4096)
def _text(statement: str, layout: Layout, count: int) -> str:
    left_out: tuple[str, ...] = (PARTITIONED, PARTITIONED_BY_ID, CITUS)[layout:] or (NOT_CITUS,)
    if layout == Layout.CITUS:
        for text, instead in _ON_CITUS.items():
            statement = statement.replace(text, instead)
    lines = [line for line in statement.split("\n") if not line.endswith(left_out)]
    places = ", ".join(f"%(bucket_{place})s" for place in range(count))
    return "\n".join(lines).replace("%(buckets)s", places)
