"""The directory in which the workers of an instance keep their metrics (prometheus-client's multiprocess mode).

It is in shared memory where there is some. The instance and its children hold a lock (flock) on a file in it until
they end, so a later start can tell the directory of a killed instance from that of a running one, whatever the PID
namespaces of the two.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from messages_project.boot import StartError

_MEMORY = "/dev/shm"  # noqa: S108 - TemporaryDirectory makes one of its own there
_PREFIX = "messages-metrics-"
# prometheus-client maps its files into memory, about 0.1 MiB for each worker. The kernel kills a worker (SIGBUS) that
# writes to them while there is no room.
_NEEDED_BYTES = 16 * 2**20


@contextmanager
def metrics_directory() -> Iterator[str]:
    """A new directory, removed at the end. Those of killed instances are removed too.

    Raises StartError.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_parent(), ignore_cleanup_errors=True) as directory:
        unlocked = Path(directory, "new")
        with unlocked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(unlocked.with_name("lock"))  # only now does another start see it
            yield directory


def _candidates() -> Iterator[str]:
    yield _MEMORY
    with suppress(FileNotFoundError):  # no directory can be written to
        yield tempfile.gettempdir()


def _parent() -> str:
    for parent in _candidates():
        _remove_stale(Path(parent))
        if os.access(parent, os.W_OK) and shutil.disk_usage(parent).free >= _NEEDED_BYTES:
            return parent
    raise StartError(
        f"Metrics need {_NEEDED_BYTES // 2**20} MiB in {_MEMORY} or in a directory for temporary files. "
        "Make room, or name another directory: TMPDIR=/var/tmp."
    )


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*/lock"):
        # In use, or being removed by another start.
        with suppress(OSError):
            if path.parent.lstat().st_uid != os.geteuid():
                continue  # anybody may write to shared memory
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent)
