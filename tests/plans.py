"""How PostgreSQL runs statements, and the rows that it reads, by their plans (EXPLAIN ANALYZE)."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connection
from psycopg import ClientCursor

T = TypeVar("T")
Statement = tuple[str, Any]


def maintain(statement: str) -> None:
    """Run VACUUM or ANALYZE, if need be once PostgreSQL has cancelled an autovacuum of the same table."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = 0")
        cursor.execute(statement)
        cursor.execute("RESET lock_timeout")


@contextmanager
def statements() -> Iterator[list[Statement]]:
    """The statements that are run meanwhile, with their parameters; BEGIN and COMMIT are none."""
    found: list[Statement] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        cursor = context["cursor"].cursor
        # Django's own cursor makes the values part of the text.
        found.append((cursor.mogrify(sql, params), None) if isinstance(cursor, ClientCursor) else (sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield found


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan, and all below it."""
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def rows_of(node: dict[str, Any]) -> float:
    """Rows that a node reads, including those that a filter removes."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def rows_read_by(work: Callable[[], T]) -> tuple[int, T]:
    """Rows that the queries of `work` read from the tables of messaging, and what `work` returns."""
    statements: list[tuple[str, Any]] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if "messaging_" in sql and sql.lstrip().startswith(("SELECT", "WITH")):
            statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        result = work()
    read = 0.0
    for sql, params in statements:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
            plan = cursor.fetchone()[0]
        for node in nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]):
            if node.get("Relation Name", "").startswith("messaging_"):
                read += rows_of(node)
    return round(read), result


def plan_of(statement: Statement) -> Any:
    """The plan of a statement: generic, or for these values if they are part of its text."""
    sql, params = statement
    explain = "EXPLAIN (ANALYZE, FORMAT JSON)"
    with connection.cursor() as cursor:
        if params is None:
            cursor.execute(f"{explain} {sql}")
        else:
            names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
            values = [params[name] for name in names] if names else params
            places = iter(range(1, len(values) + 1))
            text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", sql)
            text = re.sub("%s", lambda _found: f"${next(places)}", text)
            cursor.execute(f"PREPARE explained AS {text}")
            cursor.execute(f"{explain} EXECUTE explained({', '.join(['%s'] * len(values))})", values)
        plan = cursor.fetchone()[0]
        if params is not None:
            cursor.execute("DEALLOCATE explained")
    return (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
