"""What differs in a database whose tables are partitioned by bucket (`manage.py distribute`): conditions on the bucket.

A statement that names a bucket makes PostgreSQL look into one partition only. Without partitions such a condition finds
nothing sooner, and can mislead the planner, which takes mailbox and bucket for independent. So a line of a statement
that ends in one of the marks below is part of it only where it is of use. How the tables are laid out is read once for
each connection: what was opened before the tables were partitioned works as well, and looks into all partitions.
"""

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any

TABLES = ("messaging_mailbox", "messaging_message", "messaging_change", "messaging_outcome")

# Marks of lines. The second kind is for buckets that are taken from the ids of messages.
PARTITIONED = "-- if partitioned"
PARTITIONED_BY_ID = "-- if partitioned and ids end in their buckets"

# Of the table of messages, where no id in it is from before there were buckets.
ID_CONSTRAINT = "message_id_bucket"

# More buckets than this are in most of the partitions: those calls look into all of them. Each power of two up to it is
# a prepared statement of its own.
_MOST_BUCKETS = 32


class Layout(IntEnum):
    """How the tables are laid out."""

    WHOLE = 0
    PARTITIONED = 1
    PARTITIONED_BY_ID = 2


# Its only row is the Layout.
LAYOUT = f"""
SELECT CASE WHEN relkind <> 'p' THEN 0 WHEN EXISTS (
    SELECT FROM pg_constraint WHERE conrelid = pg_class.oid AND conname = '{ID_CONSTRAINT}'
) THEN 2 ELSE 1 END FROM pg_class WHERE oid = to_regclass('messaging_message')"""


def bucket_of_id(column: str) -> str:
    """SQL for the last 12 bits of a UUID."""
    return f"((get_byte(uuid_send({column}), 14) & 15) << 8 | get_byte(uuid_send({column}), 15))::smallint"


def adapted(statement: str, parameters: Any, layout: Layout) -> tuple[str, Any]:
    """The statement and its parameters as the layout needs them.

    `buckets`, a list among the parameters, is written as `IN (%(buckets)s)`. It becomes single parameters, of which
    PostgreSQL can choose partitions, as it cannot of an array.
    """
    count = 0
    if layout == Layout.PARTITIONED_BY_ID and isinstance(parameters, Mapping) and "buckets" in parameters:
        buckets = parameters["buckets"]
        count = 1 << (len(buckets) - 1).bit_length()
        if not buckets or count > _MOST_BUCKETS:
            layout = Layout.PARTITIONED
        else:
            padded = [*buckets, *[buckets[0]] * (count - len(buckets))]
            parameters = {**parameters, **{f"bucket_{place}": bucket for place, bucket in enumerate(padded)}}
    return _text(statement, layout, count), parameters


@lru_cache(maxsize=4096)
def _text(statement: str, layout: Layout, count: int) -> str:
    left_out: tuple[str, ...] = (PARTITIONED, PARTITIONED_BY_ID)[layout:]
    lines = [line for line in statement.split("\n") if not line.endswith(left_out)]
    places = ", ".join(f"%(bucket_{place})s" for place in range(count))
    return "\n".join(lines).replace("%(buckets)s", places)
