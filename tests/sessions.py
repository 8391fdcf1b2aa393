"""Sessions of the database beside the service's own, and calls that wait for what those hold."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from django.db import connection

from messaging.ids import bucket_of
from tests.partitions import ON_CITUS

T = TypeVar("T")


@contextmanager
def another_session() -> Iterator[psycopg.Connection[Any]]:
    """A session of one's own in the test database, whose transaction ends with it."""
    parameters = connection.get_connection_params()
    with psycopg.connect(**{**parameters, "cursor_factory": psycopg.Cursor}) as session:
        yield session
        session.rollback()


def lock_mailbox(session: psycopg.Connection[Any], recipient: str) -> None:
    """Lock a mailbox until the session's transaction ends."""
    session.execute(
        "SELECT FROM messaging_mailbox WHERE recipient = %s AND bucket = %s FOR UPDATE",
        [recipient, bucket_of(recipient)],
    )


def somebody_waits_for_a_lock() -> bool:
    """Whether any session does. Statistics are those of a transaction's start, so they are asked for in a new one."""
    with another_session() as session:
        found = session.execute(
            "SELECT FROM citus_lock_waits"
            if ON_CITUS
            else "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return found.rowcount > 0


def in_a_thread(work: Callable[[], T]) -> "Future[T]":
    """What `work` returns, with the connection that its thread opened closed behind it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed on to whoever asks for the result
            future.set_exception(error)
        finally:
            connection.close()

    threading.Thread(target=run).start()
    return future
