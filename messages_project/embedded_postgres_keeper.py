"""The keeper of the embedded PostgreSQL: creates the cluster, runs the server, stops it after its last client.

embedded_postgres.py starts it as a process of its own, and explains the files and locks.
"""

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import psutil

from messages_project.embedded_postgres import EmbeddedPostgresError, socket_dir_of

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_START_SECONDS = 60
_SERVICE_USER = "nobody"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
_THROWAWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def keep(root: Path, home: Path, *, throwaway: bool) -> None:
    """Start the server, report on standard output, stop the server when the last client has ended."""
    lock = os.open(home / "keeper", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    owner = _service_ids()
    if owner:
        home.chmod(0o711)
        root = _reachable_install(root, home)
    data = _prepared_data(root, home, owner)
    socket_dir = socket_dir_of(home)
    _end_leftover(data, socket_dir)
    if socket_dir != data:
        _make_private(socket_dir, owner)
    server = _launch(root, home, data, owner, _SETTINGS | (_THROWAWAY_SETTINGS if throwaway else {}))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    # The parent has stopped reading, so further output must not raise BrokenPipeError.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    threading.Thread(target=_stop_when_unused, args=(home, server), daemon=True).start()
    server.wait()
    if socket_dir != data:
        shutil.rmtree(socket_dir, ignore_errors=True)
    if throwaway:
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
    # Before the lock on `clients`, which is released with this process: its next holder must find this one free.
    os.close(lock)


def _stop_when_unused(home: Path, server: "subprocess.Popen[bytes]") -> None:
    descriptor = os.open(home / "clients", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Held until the keeper ends, so that new clients wait for a clean start. SIGINT is PostgreSQL's fast shutdown.
    server.send_signal(signal.SIGINT)


def _service_ids() -> tuple[int, int] | None:
    """The user and group to run PostgreSQL as, if this process is root, which PostgreSQL refuses; else None."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(_SERVICE_USER)
    return entry.pw_uid, entry.pw_gid


def _others_can_enter(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _make_private(folder: Path, owner: tuple[int, int] | None) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), owner[0] if owner else os.geteuid()}:
        raise EmbeddedPostgresError(f"{folder} belongs to another user. Remove it, or set POSTGRES_HOST.")
    folder.chmod(0o700)
    if owner:
        os.chown(folder, *owner)


def _reachable_install(root: Path, home: Path) -> Path:
    """The installation of PostgreSQL, or a copy of it if the service user cannot enter the project's directory."""
    if _others_can_enter(root / "bin"):
        return root
    target = _shelter(home) / "embedded_postgres"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root.parent, target, symlinks=True)
        libraries = root.parent.parent / "embedded_postgres.libs"
        shutil.copytree(libraries, target.parent / libraries.name, dirs_exist_ok=True)
        for path in (*target.rglob("*"), *(target.parent / libraries.name).rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        (target / "complete").touch()
    return target / root.name


def _shelter(home: Path) -> Path:
    """A directory that the service user can enter, for a project that it cannot. `home`/shelter links to it."""
    link = home / "shelter"
    if not link.exists():
        link.unlink(missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="messages-postgres-", dir="/var/lib"))
        folder.chmod(0o711)
        link.symlink_to(folder)
    return link.resolve()


def _prepared_data(root: Path, home: Path, owner: tuple[int, int] | None) -> Path:
    """The data directory, created by initdb if there is none."""
    data = home / "data"
    version = subprocess.run(
        [root / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1].partition(".")[0]  # fmt: skip
    if (data / "PG_VERSION").exists():
        if (found := (data / "PG_VERSION").read_text().strip()) != version:
            raise EmbeddedPostgresError(
                f"{data} was made by PostgreSQL {found}, and PostgreSQL {version} is installed. "
                f"Move {home} away to begin anew, or set POSTGRES_HOST."
            )
        return data.resolve()
    target = data
    if owner and not _others_can_enter(home):
        target = _shelter(home) / "data"
        data.unlink(missing_ok=True)
        data.symlink_to(target)
    # Renamed once complete, so that a killed initdb leaves no partial cluster.
    draft = target.with_name("data.new")
    shutil.rmtree(draft, ignore_errors=True)
    _make_private(draft, owner)
    made = subprocess.run(
        [root / "bin" / "initdb", "-D", draft, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
         "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions"],
        capture_output=True, text=True, check=False, **_identity(owner),
    )  # fmt: skip
    if made.returncode:
        raise EmbeddedPostgresError(f"PostgreSQL's initdb failed in {draft}: {made.stderr.strip() or made.returncode}")
    draft.rename(target)
    return target.resolve()


class _Identity(TypedDict, total=False):
    """The arguments of subprocess that set the user."""

    user: int
    group: int
    extra_groups: list[int]


def _identity(owner: tuple[int, int] | None) -> _Identity:
    return {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}


def _end_leftover(data: Path, socket_dir: Path) -> None:
    """Stop a server whose keeper was killed, and remove the lock files of one that crashed.

    They must be removed, since PostgreSQL refuses to start if any live process has the pid of a stale file.
    """
    file = data / "postmaster.pid"
    try:
        process = psutil.Process(int(file.read_text().split("\n")[0]))
        if Path(process.cwd()) == data:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    for stale in (file, *socket_dir.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)
    # Backends of a killed postmaster end on their own, but not at once, and two servers must never share the data.
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()) == data:
                process.kill()
                process.wait(timeout=5)
        except (OSError, psutil.Error):
            continue


def _stopped_with_this_process() -> Callable[[], None] | None:
    """A function for the child, after which the kernel sends it SIGINT if the keeper dies (prctl(2), Linux only)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _launch(
    root: Path, home: Path, data: Path, owner: tuple[int, int] | None, settings: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the server; return once it accepts connections."""
    options = settings | {"unix_socket_directories": str(socket_dir_of(home))}
    log = home / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [root / "bin" / "postgres", "-D", data, *(f"-c{name}={value}" for name, value in options.items())],
            cwd=data, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=_stopped_with_this_process(),  # noqa: PLW1509 - the keeper has no second thread yet
            **_identity(owner),
        )  # fmt: skip
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if (data / "postmaster.pid").read_text().split("\n")[7].strip() == "ready":
                return server
        except (FileNotFoundError, IndexError):
            pass  # not written yet, or not completely
        time.sleep(0.01)
    server.kill()
    server.wait()
    last = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise EmbeddedPostgresError("The embedded PostgreSQL did not start: " + " / ".join(last) + f" (all of it: {log})")


if __name__ == "__main__":
    try:
        keep(Path(sys.argv[1]), Path(sys.argv[2]), throwaway=sys.argv[3:] == ["throwaway"])
    except (EmbeddedPostgresError, OSError, KeyError, subprocess.SubprocessError) as reason:
        sys.exit(str(reason))
