"""Rows that PostgreSQL reads, counted in the plans of statements (EXPLAIN ANALYZE)."""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.db import connection

T = TypeVar("T")


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
