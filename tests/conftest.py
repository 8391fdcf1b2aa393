"""Fixtures: clients with keys, access modes, and the service as a process of its own."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.test import Client

from tests.database import workers
from tests.helpers import Api, in_process
from tests.live_servers import RunningLive, Service
from tests.servers import RunningServer

_DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "postgres", "own_redis", "redis_server"}
_PROCESS_FIXTURES = {"run_server", "share_server", "run_live", "cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a database, and those that run the service as a process.

    pytest-django lets no others reach the database. `make unit` runs the tests without it.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("django_db") or _DATABASE_FIXTURES & fixtures:
            item.add_marker("database")
        if _PROCESS_FIXTURES & fixtures:
            item.add_marker("process")


@pytest.fixture(scope="session")
def django_db_keepdb(django_db_keepdb: bool) -> bool:
    """Whether the test database stays: on Citus a process of its own keeps Django from dropping it."""
    return django_db_keepdb or bool(workers())


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """The test database, its tables in TEST_PARTITIONS partitions or distributed over the workers of TEST_CITUS."""
    if number := os.environ.get("TEST_PARTITIONS"):
        from tests.partitions import distribute

        with django_db_blocker.unblock():
            distribute(int(number))
    if workers():
        from tests.partitions import distribute_over

        with django_db_blocker.unblock():
            distribute_over(workers())


@pytest.fixture(scope="session")
def database(django_db_setup: None) -> str:
    """The name of the test database."""
    from django.db import connection

    return str(connection.settings_dict["NAME"])


MakeKey = Callable[..., str]


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    """Each test begins with empty caches: what the one before has left changes statement counts and refusals."""
    from messaging.api.page_cache import pages
    from messaging.auth.keys import existing_prefixes
    from messaging.auth.limits import invalid_keys

    pages._pages.clear()
    invalid_keys._windows.clear()
    existing_prefixes.cache_clear()


@pytest.fixture
def make_key(db: None) -> MakeKey:
    """Make a key of any scopes and binding; return its text: make_key("read", recipient="alice")."""
    from messaging.auth import keys

    def make(*scopes: str, name: str = "test", **binding: Any) -> str:
        return keys.create(name=name, scopes=scopes or ("send", "read", "manage"), **binding)[1]

    return make


@pytest.fixture
def anonymous(db: None) -> Api:
    """A client without a key."""
    return Api(in_process)


@pytest.fixture
def api(anonymous: Api, make_key: MakeKey) -> Api:
    """A client with a key for everything. `api.holding(key)` is one with another key."""
    return anonymous.holding(make_key())


@pytest.fixture
def staff(db: None) -> Callable[..., Client]:
    """Log a member of staff in, with these permissions of the app: staff("view_message")."""
    from tests.staff import log_in

    return log_in


@pytest.fixture
def clerk(staff: Callable[..., Client]) -> Client:
    """Staff with every permission for messages and mailboxes."""
    return staff(
        *(f"{verb}_{model}" for verb in ("view", "add", "change", "delete") for model in ("message", "mailbox"))
    )


@pytest.fixture
def open_access(settings: Any) -> None:
    """MESSAGES_ACCESS=open: `anonymous` may do everything."""
    settings.MESSAGES_ACCESS = "open"


@pytest.fixture(params=["gunicorn", "granian"])
def web_server(request: pytest.FixtureRequest) -> str:
    """A value of WEB_SERVER: each test that runs the service as a process does so with every server."""
    return str(request.param)


@pytest.fixture
def run_server(transactional_db: None, database: str, web_server: str) -> Iterator[Callable[..., RunningServer]]:
    """Start the service with the variables given: run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1")."""
    with ExitStack() as running:
        yield lambda **variables: running.enter_context(
            RunningServer(**{"POSTGRES_DB": database, "WEB_SERVER": web_server} | variables)
        )


@pytest.fixture(scope="module")
def share_server(database: str) -> Iterator[Callable[..., RunningServer]]:
    """A service that other tests of the module use too: share_server("small bodies", MESSAGES_MAX_BODY_BYTES="1024").

    The first test that asks for the name starts it. A fixture that returns it needs `transactional_db`.
    """
    started: dict[str, RunningServer] = {}
    with ExitStack() as running:

        def share(name: str, **variables: str) -> RunningServer:
            if name not in started:
                started[name] = running.enter_context(RunningServer(**{"POSTGRES_DB": database} | variables))
            return started[name]

        yield share
        for server in started.values():
            server.kill()  # a stop may take seconds


@pytest.fixture
def run_live(transactional_db: None, database: str) -> Iterator[Callable[..., RunningLive]]:
    """Start the live process with the variables given."""
    with ExitStack() as running:
        yield lambda **variables: running.enter_context(RunningLive(**{"POSTGRES_DB": database} | variables))


@pytest.fixture
def live(run_live: Callable[..., RunningLive]) -> RunningLive:
    """The live process, beside which `api` and `make_key` use the same database."""
    return run_live()


@pytest.fixture
def service(
    run_server: Callable[..., RunningServer], run_live: Callable[..., RunningLive], make_key: MakeKey
) -> Service:
    """The API and the live process as processes of their own."""
    return Service(run_server, run_live, make_key())


@pytest.fixture
def server(run_server: Callable[..., RunningServer]) -> RunningServer:
    """The service as a process of its own. `server.api(make_key())` is a client of it."""
    return run_server()
