"""Classifies the error codes of PostgreSQL (its Appendix A) by what may follow.

The server has rolled the transaction back. A code in none of the sets below is a defect of the service or the database:
the client gets 500, and the log has the details.
"""

import psycopg
from django.db import InterfaceError, OperationalError

# Serialization failure, deadlock, snapshot too old, and their class: the same transaction may succeed at once.
RUN_AGAIN = frozenset({"40000", "40001", "40P01", "72000"})

# A cached plan that no longer fits its table (0A000), an unknown prepared statement (26000), a read-only session, as
# after a failover or with default_transaction_read_only (25006): a new connection may not have the fault.
READ_ONLY = "25006"
STALE_SESSION = frozenset({"0A000", "26000", READ_ONLY})

# A row, table or unique key that another transaction has locked for longer than lock_timeout.
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"  # by statement_timeout or pg_cancel_backend

# A unique key that is there already. A statement with ON CONFLICT may meet it while an index is replaced (REINDEX
# CONCURRENTLY): it looks for the key in the old index, and is refused by the new one.
UNIQUE_VIOLATION = "23505"

UNDEFINED = frozenset({"42P01", "42703"})  # a table or column of a migration that was not applied yet

INSUFFICIENT_PRIVILEGE = "42501"

# The request is valid, but the database cannot execute it now.
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
    *UNDEFINED,
})  # fmt: skip


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error; None if it did not come from the server."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def cause_of(error: BaseException) -> BaseException:
    """The error that began a chain of causes: psycopg's own, which Django's and the service's are raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """What an error says, for logs and messages. PostgreSQL quotes the values of a row in later lines (DETAIL)."""
    return str(error).strip().partition("\n")[0]


def reason_of(error: BaseException) -> str:
    """The cause of an error in one line, for the log."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {first_line(cause)}"


def with_cause(error: Exception) -> str:
    """An error of the service and what the database said, for whoever runs a command."""
    return f"{error} {first_line(error.__cause__)}." if error.__cause__ else str(error)


def has_lost_connection(error: BaseException | None) -> bool:
    """Whether an error of Django's means that the connection was lost, perhaps in COMMIT.

    An error of the connection has no SQLSTATE. PgBouncer reports a server that it has lost with one of class 08. A
    session that PostgreSQL ends (57P01) reads that as the answer to its next statement, perhaps one after COMMIT.
    """
    is_of_connection = isinstance(error, (OperationalError, InterfaceError))
    return is_of_connection and (sqlstate(error) or "08").startswith(("08", "57P01"))


def is_unavailable(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    code = sqlstate(error)
    if code is None:
        # From psycopg itself: it could not connect, the connection is lost, a timeout.
        return isinstance(error, (OperationalError, InterfaceError))
    return code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES
