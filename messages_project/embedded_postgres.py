"""The embedded PostgreSQL of development and tests: start, attach, stop.

Every process that uses the server holds a shared lock (flock) on one file. A small process, the keeper, waits for the
exclusive lock on it, and then stops the server. Until then it restarts a server that was killed. The kernel releases
the locks of a process that dies, so a killed process leaves nothing to clean up.

In `.postgres/`: `data` (the cluster), `server.log`, `secret_key`, `token_secret`, and the lock files `clients`,
`keeper` and `start`.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from messages_project import env
from messages_project.boot import StartError
from messages_project.embedded_cluster import PORT, prepare, socket_dir_of

PROJECT_DIR = Path(__file__).resolve().parent.parent
HOME = PROJECT_DIR / ".postgres"

_STOP_SECONDS = 10
_LOOK_SECONDS = 1.0  # how often the keeper looks whether the server runs


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that this process is attached to, until `detach` or its end."""

    home: Path
    clients_lock: int

    def detach(self) -> None:
        """Release the server. The last process waits until it has stopped, for at most 10 seconds."""
        is_last = _try_lock(self.clients_lock)
        os.close(self.clients_lock)
        deadline = time.monotonic() + _STOP_SECONDS
        while is_last and time.monotonic() < deadline and _is_held(self.home / "keeper"):
            time.sleep(0.02)


def start(home: Path = HOME, *, throwaway: bool = False) -> Server:
    """Start the server of `home`, or attach to it if it runs, and set the environment variables of this process.

    Sets POSTGRES_HOST, POSTGRES_PORT and, where they are not set, POSTGRES_USER, POSTGRES_DB and the other defaults of
    a development machine. `throwaway` disables durability, and deletes `home` after the last process has ended.

    Raises StartError.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # meant for another server; libpq reads them, and the embedded server two of them
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        clients = _open(home / "clients")
    except OSError as error:
        raise StartError(
            f"The embedded PostgreSQL cannot write to {home} ({error.strerror}). "
            "Make it writable for this user, or set POSTGRES_HOST to use a server of your own."
        ) from error
    try:
        # Waits while a keeper stops the server.
        fcntl.flock(clients, fcntl.LOCK_SH)
        with _opened(home / "start") as starting, _opened(home / "keeper") as keeper:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if _try_lock(keeper):
                _start_server(home, keeper, throwaway=throwaway)
            _export(home, throwaway=throwaway)
            _create_database()
    except (OSError, KeyError, subprocess.SubprocessError, psycopg.Error) as error:
        raise StartError(f"The embedded PostgreSQL did not start: {error} (see {home}/server.log)") from error
    return Server(home, clients)


def _start_server(home: Path, keeper_lock: int, *, throwaway: bool) -> None:
    """Start the keeper, which inherits its lock, and then the server."""
    cluster = prepare(home)
    arguments = [str(home), str(keeper_lock), "throwaway" if throwaway else "lasting"]
    keeper = subprocess.Popen(
        [sys.executable, "-m", "messages_project.embedded_postgres", *arguments],
        cwd=PROJECT_DIR, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=[keeper_lock],
        start_new_session=True,  # Ctrl-C must not reach it
    )  # fmt: skip
    try:
        cluster.start(throwaway=throwaway)
    except StartError:
        keeper.kill()
        keeper.wait()
        raise
    # The keeper outlives this process. A return code prevents the ResourceWarning of Popen.
    keeper.returncode = 0


def keep(home: Path, keeper_lock: int, *, throwaway: bool) -> None:
    """The keeper: wait until no process uses the server, then stop it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # Without a keeper the server would outlive its clients. SIG_IGN would be inherited by the server.
        signal.signal(number, lambda _number, _frame: None)
    cluster = prepare(home)

    def revive(*_: object) -> None:
        with _opened(home / "start") as starting:
            # Who starts a server holds this lock.
            if _try_lock(starting) and not cluster.is_running:
                # It fails on a full disk, for instance; server.log says so. The next turn tries again.
                with suppress(StartError, OSError):
                    cluster.start(throwaway=throwaway)

    signal.signal(signal.SIGALRM, revive)  # runs while `flock` waits
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    fcntl.flock(_open(home / "clients"), fcntl.LOCK_EX)
    signal.setitimer(signal.ITIMER_REAL, 0)
    cluster.stop()
    if throwaway:
        shutil.rmtree(cluster.data, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
    # Released before the lock on `clients`, which ends with this process: its next holder must find this one free.
    os.close(keeper_lock)


def _export(home: Path, *, throwaway: bool) -> None:
    os.environ["POSTGRES_HOST"] = str(socket_dir_of((home / "data").resolve()))
    os.environ["POSTGRES_PORT"] = str(PORT)
    defaults = {"POSTGRES_USER": "messages", "POSTGRES_DB": "messages", "MESSAGES_ACCESS": "open", "PLAIN_HTTP": "true"}
    if not env.is_set("SECRET_KEY_FILE"):
        defaults["SECRET_KEY"] = _kept_secret(home / "secret_key")
    # So that `create_token` works without configuration. Tests set their own secrets.
    if not throwaway and not env.is_set("MESSAGES_TOKEN_SECRET_FILE") and not env.is_set("MESSAGES_TOKEN_JWKS"):
        defaults["MESSAGES_TOKEN_SECRET"] = _kept_secret(home / "token_secret")
    env.default(**defaults)


def _kept_secret(path: Path) -> str:
    """A random secret, made once and kept in a file, so that sessions and tokens survive a restart."""
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(secrets.token_urlsafe(48))
        Path(file.name).rename(path)
    return path.read_text().strip()


def _create_database() -> None:
    """The role and the database that the environment names, if they are missing."""
    user, name, host = os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"], os.environ["POSTGRES_HOST"]
    with psycopg.connect(host=host, port=PORT, user="postgres", dbname="postgres", autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).rowcount == 0:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(user)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(user))
            )


# --- locks


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    """Whether some process holds the exclusive lock on `path`."""
    try:
        with _opened(path) as descriptor:
            return not _try_lock(descriptor)
    except FileNotFoundError:
        return False  # the keeper of a throwaway server has deleted the directory


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]), throwaway=sys.argv[3:] == ["throwaway"])
