"""Statements prepared once for each connection and executed by psycopg's libpq layer, in binary, one round trip each.

What psycopg's cursor does around that (choosing what to prepare, keeping results for later) costs more than PostgreSQL
needs to find a row: 50 of the 100 µs of one primary-key read. Adapting values, waiting and raising errors stay
psycopg's. Nothing here knows about messages or Django.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from psycopg import capabilities, errors
from psycopg.abc import PyFormat
from psycopg.adapt import Transformer
from psycopg.generators import execute
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

MAX_STATEMENTS = 100  # of one connection, as psycopg's own; each is memory in its server process

_PLACEHOLDER = re.compile(r"%(?:%|s|\((\w+)\)s)")
# The server no longer knows the statement, or a migration has changed what it returns: prepared anew, it works again.
_OUTDATED = frozenset({"26000", "0A000"})

_Key = tuple[str, tuple[int, ...]]


@lru_cache(maxsize=1024)
def _numbered(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """The statement with PostgreSQL's `$1` for `%s` and `%(name)s`, and the names where it has names."""
    names: list[str] = []
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] == "%%":
            return "%"
        if (name := found[1]) is None:
            count += 1
            return f"${count}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return _PLACEHOLDER.sub(number, statement).encode(), tuple(names)


class PreparedStatements:
    """The prepared statements of one connection, which one thread at a time may use.

    No cursor of the connection may prepare any beside them: psycopg deallocates all there are after a rollback.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transformer = Transformer(connection)
        # By statement and types of its parameters, since the same text may be prepared for other types.
        self._names: OrderedDict[_Key, bytes] = OrderedDict()
        self._made = 0

    def fetch(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows of the statement, with `%s` or `%(name)s` for its parameters.

        Raises:
            psycopg.Error: as its cursor's `execute` does.
        """
        pgconn = self._connection.pgconn
        if not self._connection.autocommit and pgconn.transaction_status == TransactionStatus.IDLE:
            pgconn.send_query(b"BEGIN")
            self._result()
        text, names = _numbered(statement)
        values = [parameters[name] for name in names] if isinstance(parameters, Mapping) else parameters
        adapt = self._transformer
        dumped = adapt.dump_sequence(values, [PyFormat.AUTO] * len(values))
        key = (statement, adapt.types or ())
        formats = adapt.formats
        try:
            return self._rows(key, text, dumped, formats)
        except errors.Error as error:
            if error.sqlstate not in _OUTDATED:
                raise
            self._names.pop(key, None)
            if pgconn.transaction_status != TransactionStatus.IDLE:
                raise
        # It has done nothing, and no transaction has failed with it.
        return self._rows(key, text, dumped, formats)

    def _rows(self, key: _Key, text: bytes, dumped: Any, formats: Any) -> list[tuple[Any, ...]]:
        if (name := self._names.get(key)) is None:
            name = self._prepare(key, text)
        else:
            self._names.move_to_end(key)
        self._connection.pgconn.send_query_prepared(name, dumped, param_formats=formats, result_format=Format.BINARY)
        result = self._result()
        adapt = self._transformer
        adapt.set_pgresult(result)
        rows = adapt.load_rows(0, result.ntuples, tuple)
        adapt.set_pgresult(None)  # or a large result would be kept until the next one
        return rows

    def _prepare(self, key: _Key, text: bytes) -> bytes:
        pgconn = self._connection.pgconn
        if len(self._names) >= MAX_STATEMENTS:
            _, oldest = self._names.popitem(last=False)
            if capabilities.has_send_close_prepared():
                pgconn.send_close_prepared(oldest)
            else:
                pgconn.send_query(b"DEALLOCATE " + oldest)
            self._result()
        self._made += 1
        name = b"prepared_%d" % self._made
        pgconn.send_prepare(name, text, param_types=key[1])
        self._result()
        self._names[key] = name
        return name

    def _result(self) -> PGresult:
        """The one result of what was sent."""
        result: PGresult
        [result] = self._connection.wait(execute(self._connection.pgconn))
        if result.status not in {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}:
            raise errors.error_from_result(result, encoding=self._connection.info.encoding)
        return result
