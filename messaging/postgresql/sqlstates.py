"""What PostgreSQL's error codes (its Appendix A) say about the transaction that ended in one.

After each of them the server has rolled the transaction back. What no set below names is a defect, of this service or
of the database: the client hears 500, the log has it in full.
"""

import psycopg
from django.db import InterfaceError, OperationalError

# Serialization failure, deadlock, snapshot too old, and their class: the same transaction may succeed at once.
RUN_AGAIN = frozenset({"40000", "40001", "40P01", "72000"})

# A plan that no longer fits its table (0A000), a prepared statement that the server does not know (26000), a session
# that may only read, as it does after a failover or under default_transaction_read_only (25006): a new connection may
# be free of it.
READ_ONLY = "25006"
STALE_SESSION = frozenset({"0A000", "26000", READ_ONLY})

# A row, table or unique key that another transaction has locked for longer than lock_timeout.
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"  # by statement_timeout, or somebody's pg_cancel_backend

INSUFFICIENT_PRIVILEGE = "42501"

# Nothing is wrong with the request, but this database cannot do it now.
_UNAVAILABLE_CLASSES = frozenset({
    "08",  # connection
    "28",  # password or pg_hba.conf
    "53",  # disk full, out of memory, too many connections
    "54",  # a limit of the server: transaction ids are used up
    "55",  # a lock, or an object in use
    "57",  # statement_timeout, a shutdown, a start that is not over
    "58",  # an I/O error
})  # fmt: skip
_UNAVAILABLE = frozenset({
    READ_ONLY,
    "25P03", "25P04",  # idle_in_transaction_session_timeout, transaction_timeout
    "3D000",  # no such database
    INSUFFICIENT_PRIVILEGE,
})  # fmt: skip


def sqlstate(error: BaseException | None) -> str | None:
    """PostgreSQL's code of an error, None where the server said nothing."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def is_unavailable(error: BaseException) -> bool:
    """Whether the database could not do now what another time it can."""
    code = sqlstate(error)
    if code is None:
        # From psycopg itself: it could not connect, the connection is lost, a timeout.
        return isinstance(error, (OperationalError, InterfaceError))
    return code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES
