"""Moves the tables of messages into hash partitions by bucket, another number of them, or back into plain tables.

One transaction copies each table, with its constraints, indexes, storage parameters, privileges and identity, into a
new one in another schema, and then replaces the old tables. Nothing is changed before it commits. It locks out writes
from its start, and reads only while it replaces the tables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import IntegrityError, connection, transaction

from messaging.management.commands.migrate import LOCK_TIMEOUT_MS, with_lock
from messaging.sharding import ID_CONSTRAINT, TABLES, bucket_of_id

MAX_PARTITIONS = 128
BUILD = "messaging_distribute"  # the schema in which the new tables are made

_PAGES = 4_096  # copied by one statement

# Called with the stage, the pages that are copied, and those of all tables; 0 for stages that cannot be measured.
Report = Callable[[str, int, int], None]


class DistributeError(Exception):
    """The tables cannot be moved; the text says why, and what to do. Nothing was changed."""


class Table(NamedTuple):
    """The definition of a table, as SQL that creates its parts in the first schema of the search path."""

    name: str
    parts: list[str]  # the tables that hold its rows
    columns: str
    storage: str  # its parameters
    additions: list[str]  # keys, indexes and privileges
    foreign_keys: list[str]


_COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped"""

_PARTS = """
SELECT relid::regclass::text FROM pg_partition_tree(%(table)s::regclass) WHERE isleaf
UNION ALL SELECT %(table)s WHERE NOT EXISTS (SELECT FROM pg_partition_tree(%(table)s::regclass))"""

_STORAGE = """
SELECT coalesce(string_agg(format('%%s%%I = %%L', prefix, split_part(o, '=', 1), split_part(o, '=', 2)), ', '), '')
FROM (
    SELECT '' AS prefix, reloptions FROM pg_class WHERE oid = %(part)s::regclass
    UNION ALL SELECT 'toast.', toast.reloptions FROM pg_class JOIN pg_class toast ON toast.oid = pg_class.reltoastrelid
    WHERE pg_class.oid = %(part)s::regclass
) found, unnest(reloptions) o"""

# Without the constraints that PostgreSQL derives for single partitions (conparentid).
_CONSTRAINTS = """
SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(table)s, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = %(table)s::regclass AND conparentid = 0 AND contype = ANY(%(types)s)
ORDER BY contype, conname"""

# In its pretty form a definition names the table without its schema.
_INDEXES = """
SELECT replace(pg_get_indexdef(indexrelid, 0, true), ' ON ONLY ', ' ON ') FROM pg_index
WHERE indrelid = %(table)s::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
ORDER BY 1"""

_GRANTS = """
SELECT format('GRANT %%s ON %%s TO %%s%%s', privilege_type, %(table)s,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class, aclexplode(relacl) WHERE oid = %(table)s::regclass"""

# Additions to a table that the new table would lack, and another owner or tablespace than the new table would have.
_ADDED = """
WITH part AS (
    SELECT unnest(%(tables)s::regclass[]) AS oid
    UNION SELECT relid FROM unnest(%(tables)s::regclass[]) root, pg_partition_tree(root)
)
SELECT format('%%s has the trigger %%I', tgrelid::regclass, tgname) FROM pg_trigger
WHERE tgrelid = ANY(%(tables)s::regclass[]) AND NOT tgisinternal
UNION ALL SELECT format('%%s has row level security', oid::regclass) FROM pg_class
WHERE oid = ANY(%(tables)s::regclass[]) AND relrowsecurity
UNION ALL SELECT format('%%s has privileges on its column %%I', attrelid::regclass, attname) FROM pg_attribute
WHERE attrelid = ANY(%(tables)s::regclass[]) AND attacl IS NOT NULL
UNION ALL SELECT DISTINCT format('%%s is part of a publication', root) FROM pg_publication_tables,
    to_regclass(format('%%I.%%I', schemaname, tablename)) found, coalesce(pg_partition_root(found), found) root
WHERE root = ANY(%(tables)s::regclass[])
UNION ALL SELECT DISTINCT format('the view %%s depends on %%s', ev_class::regclass, refobjid::regclass)
FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid AND classid = 'pg_rewrite'::regclass
WHERE refclassid = 'pg_class'::regclass AND refobjid = ANY(%(tables)s::regclass[])
UNION ALL SELECT format('%%s belongs to %%s, the role of this session is %%s', oid::regclass, relowner::regrole,
    current_user) FROM pg_class
WHERE oid = ANY(%(tables)s::regclass[]) AND relowner <> current_user::regrole
UNION ALL SELECT format('%%s lies in the tablespace %%I, which is not default_tablespace', c.oid::regclass, spcname)
FROM pg_class c JOIN pg_tablespace t ON t.oid = reltablespace WHERE spcname <> current_setting('default_tablespace')
    AND c.oid IN (SELECT oid FROM part UNION SELECT indexrelid FROM pg_index JOIN part ON part.oid = indrelid)
UNION ALL SELECT format('%%s has the statistics object %%I', stxrelid::regclass, stxname) FROM pg_statistic_ext
WHERE stxrelid IN (SELECT oid FROM part) AND stxname NOT LIKE '%%\\_bucket'
UNION ALL SELECT format('%%s has a replica identity of its own', oid::regclass) FROM pg_class JOIN part USING (oid)
WHERE relreplident <> 'd'"""

_MOVES = """
SELECT format('ALTER TABLE %%s SET SCHEMA %%s', oid::regclass, %(schema)s) FROM pg_class
WHERE relnamespace = %(build)s::regnamespace AND relkind IN ('r', 'p')
UNION ALL SELECT format('ALTER STATISTICS %%I SET SCHEMA %%s', stxname, %(schema)s) FROM pg_statistic_ext
WHERE stxnamespace = %(build)s::regnamespace"""


def partitions() -> int:
    """How many partitions the tables have; 1 where they are plain tables. Raises DistributeError without tables."""
    if value("SELECT bool_or(to_regclass(name) IS NULL) FROM unnest(%(tables)s::text[]) name", tables=list(TABLES)):
        raise DistributeError("The database lacks the tables of the service: run manage.py migrate first.")
    return len(_column(_PARTS, table="messaging_message"))


def ids_end_in_buckets() -> bool:
    """Whether a constraint says that every message's id ends in its bucket."""
    found = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'messaging_message'::regclass AND conname = %(name)s"
    return bool(value(found, name=ID_CONSTRAINT))


def distributed_by_citus() -> int:
    """How many of the tables Citus distributes. The database must have Citus."""
    found = (
        "SELECT count(*) FROM pg_dist_partition WHERE logicalrelid = ANY(%(tables)s::regclass[]) AND partmethod = 'h'"
    )
    return int(value(found, tables=list(TABLES)))


def distribute(number: int, report: Report, say: Callable[[str], None]) -> None:
    """Give the tables this number of partitions, 1 for none.

    Raises DistributeError if there are no tables, or if they have additions that would be lost; and DatabaseError.
    """
    partitions()
    if value("SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL") and distributed_by_citus():
        raise DistributeError("The tables are distributed by Citus, and cannot be partitioned as well.")
    with transaction.atomic():
        lock("EXCLUSIVE", say)
        if partitions() != number:
            require_nothing_added()
            _rebuild(number, report, say)
        elif number > 1 and not ids_end_in_buckets():
            lock("ACCESS EXCLUSIVE", say)
            constrain_ids()


def _rebuild(number: int, report: Report, say: Callable[[str], None]) -> None:
    tables = [_table(name) for name in TABLES]
    schema = value("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'messaging_message'::regclass")
    run(f"CREATE SCHEMA {BUILD}; SET LOCAL search_path = {BUILD}, {schema}")
    # A synchronized scan may start in the middle of the table, which would change the order of the rows.
    run("SET LOCAL synchronize_seqscans = off")
    _copy_all(tables, number, schema, report)
    for table in tables:
        report(f"indexes of {table.name}", 0, 0)
        run("; ".join([*table.additions, f"ANALYZE {table.name}"]))
    report("foreign keys", 0, 0)
    run("; ".join(key for table in tables for key in table.foreign_keys))
    if number > 1:
        constrain_ids()
    old_sequence = value("SELECT pg_get_serial_sequence(%(mailbox)s, 'id')", mailbox=f"{schema}.{TABLES[0]}")
    run(f"SELECT setval(pg_get_serial_sequence('{TABLES[0]}', 'id'), last_value, is_called) FROM {old_sequence}")
    report("replacing the tables", 0, 0)
    lock("ACCESS EXCLUSIVE", say, schema)
    run(f"DROP TABLE {', '.join(f'{schema}.{name}' for name in TABLES)}")
    moves = _column(_MOVES, schema=schema, build=BUILD)
    run("; ".join([*moves, f"DROP SCHEMA {BUILD}", f"SET LOCAL search_path = {schema}"]))


def _copy_all(tables: list[Table], number: int, schema: str, report: Report) -> None:
    """Make the new tables, and copy the rows of the old ones into them."""
    pages = {
        part: value("SELECT pg_relation_size(%(part)s) / current_setting('block_size')::int", part=f"{schema}.{part}")
        for table in tables
        for part in table.parts
    }
    done = 0
    for table in tables:
        _make(table, number, schema)
        for part in table.parts:
            for first in range(0, pages[part] + 1, _PAGES):
                until = f" AND ctid < '({first + _PAGES},0)'" if first + _PAGES <= pages[part] else ""
                # In the order in which the rows lie.
                run(
                    f"INSERT INTO {table.name} ({table.columns})"
                    f" SELECT {table.columns} FROM {schema}.{part} WHERE ctid >= '({first},0)'{until}"
                )
                report(f"copying {table.name}", done + min(first + _PAGES, pages[part]), sum(pages.values()))
            done += pages[part]


def _table(name: str) -> Table:
    parts = _column(_PARTS, table=name)
    return Table(
        name,
        parts,
        value(_COLUMNS, table=name),
        value(_STORAGE, part=parts[0]),
        [
            *_column(_CONSTRAINTS, table=name, types=["p", "u"]),
            *_column(_INDEXES, table=name),
            *_column(_GRANTS, table=name),
        ],
        _column(_CONSTRAINTS, table=name, types=["f"]),
    )


def _make(table: Table, number: int, schema: str) -> None:
    """Make the new table without its indexes."""
    storage = f" WITH ({table.storage})" if table.storage else ""
    like = (
        f"CREATE TABLE {table.name} (LIKE {schema}.{table.name} INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS)"
    )
    run(like + (storage if number == 1 else " PARTITION BY HASH (bucket)"))
    run(f"ALTER TABLE {table.name} DROP CONSTRAINT IF EXISTS {ID_CONSTRAINT}")
    for place in range(number if number > 1 else 0):
        part = f"{table.name}_{place}"
        values = f"FOR VALUES WITH (MODULUS {number}, REMAINDER {place})"
        run(f"CREATE TABLE {part} PARTITION OF {table.name} {values}{storage}")
        if table.name == "messaging_message":
            # Otherwise the planner takes mailbox and bucket for independent, expects hardly any rows of a mailbox, and
            # reads all of them instead of the few in the index of the statement.
            run(f"CREATE STATISTICS {part}_bucket (dependencies) ON mailbox_id, bucket FROM {part}")


def constrain_ids() -> None:
    """Add the constraint that ids end in their buckets, if all of them do."""
    try:
        with transaction.atomic():
            run(f"ALTER TABLE messaging_message ADD CONSTRAINT {ID_CONSTRAINT} CHECK (bucket = {bucket_of_id('id')})")
    except IntegrityError:
        pass


def require_nothing_added() -> None:
    if added := _column(_ADDED, tables=list(TABLES)):
        raise DistributeError(f"{'; '.join(added)}. Change that first; what is removed can be added again afterwards.")


def lock(mode: str, say: Callable[[str], None], schema: str = "") -> None:
    """Lock the tables. Transactions that wait for this one are let through every 150 ms, as in `migrate`."""
    tables = ", ".join(f"{schema}.{name}" if schema else name for name in TABLES)

    @transaction.atomic
    def work() -> None:
        run(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; LOCK TABLE {tables} IN {mode} MODE")
        run("SET LOCAL lock_timeout = 0")

    with connection.cursor() as cursor:
        with_lock(work, cursor, say)


def run(statement: str, **parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


def _column(statement: str, **parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return [row[0] for row in cursor.fetchall()]


def value(statement: str, **parameters: Any) -> Any:
    [found] = _column(statement, **parameters)
    return found
