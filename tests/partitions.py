"""Partitioned tables in tests: made and undone, and which partitions a statement looks into."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection

from messaging.management import partitioning
from tests.plans import Statement, nodes, plan_of

# Tests of what the admin reads: its queries do not name buckets, so it reads as much of each partition.
ONE_TABLE = pytest.mark.skipif("TEST_PARTITIONS" in os.environ, reason="counts what is read of one table")

PARTITION = re.compile(r"(messaging_\w+)_(\d+)$")


def distribute(number: int) -> None:
    """Give the tables of the test database so many partitions."""
    call_command("distribute", partitions=number, verbosity=0, stdout=StringIO())
    reconnect()


def reconnect() -> None:
    """Close the connections of this process: only those opened after the tables were partitioned go by it."""
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # the stubs lack it


@contextmanager
def partitioned(number: int) -> Iterator[None]:
    """The tables in so many partitions, until the block ends."""
    before = partitioning.partitions()
    distribute(number)
    try:
        yield
    finally:
        distribute(before)


def touched_by(statement: Statement) -> dict[str, set[int]]:
    """The partitions that a statement reads, by table; what is pruned when it runs is not read."""
    found: dict[str, set[int]] = {}
    for node in nodes(plan_of(statement)):
        partition = PARTITION.fullmatch(node.get("Relation Name", ""))
        if partition and node["Actual Loops"]:
            found.setdefault(partition[1], set()).add(int(partition[2]))
    return found
