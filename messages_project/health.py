"""/health, /livez and /readyz: the state of this process and of its database.

Plain Django views that need no key. The database is queried over a connection of its own, so neither a full pool nor a
server that hangs delays the response beyond its deadline.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from multiprocessing.sharedctypes import RawValue

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse

from messages_project.database_state import fault_of
from messaging.api.problems import Problem
from messaging.postgresql.base import is_silent

logger = logging.getLogger(__name__)

# A dead database must be reported within 3 s.
_TIMEOUT_SECONDS = 2.5
# How long a result is reused, so that any number of pollers costs two connections a second in each process.
_FRESH_SECONDS = 0.5


class _Probe:
    """One query, in a thread of its own: resolving a name or connecting may take longer than the deadline."""

    def __init__(self) -> None:
        self.answered = False
        self.obstacle: str | None = None
        self.ended_at: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._ask, daemon=True).start()

    def wait(self) -> bool:
        self._ended.wait(_TIMEOUT_SECONDS)
        return self.answered

    def is_stale(self) -> bool:
        return self.ended_at is not None and time.monotonic() - self.ended_at > _FRESH_SECONDS

    def _ask(self) -> None:
        try:
            parameters = connections[DEFAULT_DB_ALIAS].get_connection_params()
            with psycopg.connect(**parameters, autocommit=True) as connection:
                fault = fault_of(connection)
            self.obstacle = fault.reason if fault else None
            self.answered = True
        except psycopg.Error as error:
            logger.warning("the database does not answer: %s", str(error).partition("\n")[0])
        finally:
            self.ended_at = time.monotonic()
            self._ended.set()


class _Database:
    """The last probe of the database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probe: _Probe | None = None
        self._is_migrated = False

    def answers(self) -> bool:
        """Whether it accepts a connection and executes a statement; takes at most 2.5 s."""
        return not is_silent() and self._asked().wait()

    def obstacle(self) -> str | None:
        """Why it cannot serve requests, None if it can; takes at most 2.5 s."""
        if is_silent() or not (probe := self._asked()).wait():
            return "the database does not answer"
        return probe.obstacle

    def _asked(self) -> _Probe:
        with self._lock:
            if self._probe is None or self._probe.is_stale():
                self._probe = _Probe()
            return self._probe

    def is_migrated(self) -> bool:
        """Whether every migration of this code is applied. Once true, it stays true for this process."""
        if not self._is_migrated:
            try:
                self._is_migrated = is_migrated()
            except Exception:
                logger.exception("the migrations applied could not be read")
            finally:
                connections[DEFAULT_DB_ALIAS].close()
        return self._is_migrated


def is_migrated() -> bool:
    """Whether every migration of this code has been applied to the database."""
    executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


_database = _Database()
# Shared memory: the supervisor receives the signal to stop, and the processes that it forks read this flag.
_is_stopping = RawValue("b", 0)


def announce_stop() -> None:
    """Make /readyz answer 503 from now on, in this process and in those it has forked."""
    _is_stopping.value = 1


def is_stopping() -> bool:
    """Whether a stop was announced."""
    return bool(_is_stopping.value)


def read_only(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Refuse, as a problem document, every method but GET and HEAD."""

    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponse:
        if request.method in {"GET", "HEAD"}:
            return view(request)
        detail = "Only GET and HEAD are allowed here."
        headers = {"Allow": "GET, HEAD"}
        return Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", detail, headers=headers).answer(request)

    return checked


def _answer(status: int, body: dict[str, str]) -> HttpResponse:
    return JsonResponse(body, status=status, headers={"Cache-Control": "no-store"})


@read_only
def health(_request: HttpRequest) -> HttpResponse:
    if _database.answers():
        return _answer(200, {"status": "ok", "database": "ok"})
    return _answer(503, {"status": "unavailable", "database": "unavailable"})


@read_only
def livez(_request: HttpRequest) -> HttpResponse:
    return _answer(200, {"status": "ok"})


@read_only
def readyz(_request: HttpRequest) -> HttpResponse:
    if _is_stopping.value:
        return _answer(503, {"status": "unavailable", "reason": "shutting down"})
    if (obstacle := _database.obstacle()) is not None:
        return _answer(503, {"status": "unavailable", "reason": obstacle})
    if not _database.is_migrated():
        return _answer(503, {"status": "unavailable", "reason": "migrations are missing"})
    return _answer(200, {"status": "ok"})
