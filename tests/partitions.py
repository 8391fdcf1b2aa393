"""Partitioned tables in tests: made and undone, and which partitions a statement looks into."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection

from messaging.ids import BUCKETS
from messaging.management import partitioning
from messaging.sharding import Layout, Shards
from tests.helpers import Answer, Api
from tests.plans import Statement, nodes, plan_of

ON_CITUS = "TEST_CITUS" in os.environ


def not_on_citus(reason: str) -> pytest.MarkDecorator:
    """Leave a test out where the tables are distributed by Citus; on one server every one of them runs."""
    return pytest.mark.skipif(ON_CITUS, reason=f"on Citus: {reason}")


def patient(api: Api) -> Api:
    """A client that repeats what is refused with 503 on Citus: there changes take longer, and fewer may wait."""

    def transport(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = api.transport(method, path, headers, body)
        for _ in range(50 if ON_CITUS else 0):
            if answer.status != 503:
                break
            answer = api.transport(method, path, headers, body)
        return answer

    return replace(api, transport=transport)


def not_partitioned(reason: str) -> pytest.MarkDecorator:
    """Leave a test out where the tables are in partitions from the start; with plain tables every one of them runs."""
    return pytest.mark.skipif("TEST_PARTITIONS" in os.environ, reason=f"in partitions: {reason}")


# The queries of the admin do not name buckets, so it reads as much of each partition.
ADMIN_OF_ONE_TABLE = not_partitioned("the admin reads as many rows of each partition as of one table")

PARTITION = re.compile(r"(messaging_\w+)_(\d+)$")


def distribute(number: int) -> None:
    """Give the tables of the test database so many partitions."""
    call_command("distribute", partitions=number, verbosity=0, stdout=StringIO())
    reconnect()


def distribute_over(workers: list[str]) -> None:
    """Distribute the tables of the test database, on the coordinator of Citus, over workers: `host:port` of each."""
    name = connection.settings_dict["NAME"]
    for worker in workers:
        host, port = worker.split(":")
        server = {"host": host, "port": port, "user": connection.settings_dict["USER"], "autocommit": True}
        with psycopg.connect(dbname="postgres", **server) as session:
            session.execute(f'CREATE DATABASE "{name}"')
        with psycopg.connect(dbname=name, **server) as session:
            session.execute("CREATE EXTENSION citus")
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS citus")
        cursor.execute(
            "SELECT citus_set_coordinator_host(%s, %s)",
            [connection.settings_dict["HOST"], int(connection.settings_dict["PORT"])],
        )
        for worker in workers:
            host, port = worker.split(":")
            cursor.execute("SELECT citus_add_node(%s, %s)", [host, int(port)])
    call_command("distribute", citus=True, verbosity=0, stdout=StringIO())
    reconnect()


@contextmanager
def statements_of_citus() -> Iterator[None]:
    """This connection executes the statements for Citus, on tables that are where they are, until the block ends."""
    connection.ensure_connection()
    session: Any = connection.connection
    before = session.layout, session.shards
    session.layout = Layout.CITUS
    session.shards = session.shards or Shards([bucket * 7 % 32 for bucket in range(BUCKETS)])
    try:
        yield
    finally:
        session.layout, session.shards = before


def reconnect() -> None:
    """Close the connections of this process: new ones learn what the database sets, and how its tables are laid out."""
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
