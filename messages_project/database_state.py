"""Checks whether the service can use its database, at the start and for /readyz.

The start waits for a PostgreSQL that is not ready yet, and ends at once if PostgreSQL refuses the connection. The
SQLSTATE tells the two apart, since error messages are translated (lc_messages).
"""

import re
import select
import tempfile
import time
from typing import Any, NamedTuple

import psycopg
from django.apps import apps
from psycopg import pq

# Too many connections; shutting down, crashed, starting up: the same attempt may succeed later.
_PASSING = ("53", "57P")
_POLL_SECONDS = 5.0
# Arguments of psycopg's connect() that are not parameters of libpq.
_OF_PSYCOPG = frozenset({"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"})
_CODE = re.compile(rb'ErrorResponse\t.*? C "([0-9A-Z]{5})"')

# The missing privileges of the service, by table.
_MISSING_PRIVILEGES = """
SELECT format('%%s on %%I', string_agg(privilege, ', ' ORDER BY privilege), relname)
FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE relname = ANY(%s) AND pg_table_is_visible(pg_class.oid) AND NOT has_table_privilege(pg_class.oid, privilege)
GROUP BY relname ORDER BY relname"""


class Fault(NamedTuple):
    """Why the service cannot use the database."""

    reason: str
    cure: str
    is_passing: bool = False  # may end without a restart, so /readyz reports it


def fault_of(connection: "psycopg.Connection[Any]") -> Fault | None:
    """The reason why the service cannot use this database, or None."""
    row = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('transaction_read_only')"
    ).fetchone()
    assert row is not None
    encoding, read_only = row
    if encoding != "UTF8":
        cure = "Make one that holds every text: CREATE DATABASE messages ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;"
        return Fault(f"the database's encoding is {encoding}, not UTF8", cure)
    if read_only == "on":
        cure = "It is a standby, or default_transaction_read_only is on."
        return Fault("the database is read-only", cure, is_passing=True)
    tables = [model._meta.db_table for model in apps.get_app_config("messaging").get_models()]
    if missing := [line for (line,) in connection.execute(_MISSING_PRIVILEGES, (tables,))]:
        cure = f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{connection.info.user}";'
        return Fault(f"the database role lacks {'; '.join(missing)}", cure)
    return None


def will_answer(parameters: dict[str, Any]) -> bool:
    """Whether to retry a connection that has failed: there is no server, or it is not ready yet."""
    code = _refusal(parameters)
    return code is None or code.startswith(_PASSING)


def _refusal(parameters: dict[str, Any]) -> str | None:
    """The SQLSTATE with which PostgreSQL refuses a connection; None if there is none.

    libpq reports only the text of such an error. Its trace of the protocol (PQtrace, on Linux) has the code.
    """
    known = {name: value for name, value in parameters.items() if name not in _OF_PSYCOPG}
    connection = pq.PGconn.connect_start(psycopg.conninfo.make_conninfo(**known).encode())
    deadline = time.monotonic() + _POLL_SECONDS
    with tempfile.TemporaryFile() as trace:
        try:
            connection.trace(trace.fileno())
            status = pq.PollingStatus.WRITING
            while status in {pq.PollingStatus.READING, pq.PollingStatus.WRITING} and time.monotonic() < deadline:
                is_reading = status == pq.PollingStatus.READING
                sockets = [connection.socket]
                select.select(sockets if is_reading else [], [] if is_reading else sockets, [], 1)
                status = pq.PollingStatus(connection.connect_poll())
            connection.untrace()
        except (psycopg.Error, ValueError, OSError):
            return None
        finally:
            connection.finish()
        trace.seek(0)
        found = _CODE.search(trace.read())
    return found[1].decode() if found else None
