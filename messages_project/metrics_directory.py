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

_MEMORY = "/dev/shm"  # noqa: S108 - TemporaryDirectory makes one of its own there
_PREFIX = "messages-metrics-"


@contextmanager
def metrics_directory() -> Iterator[str]:
    """A new directory, removed at the end. Those of killed instances are removed too."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()
    _remove_stale(Path(parent))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as directory:
        unlocked = Path(directory, "new")
        with unlocked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(unlocked.with_name("lock"))  # only now does another start see it
            yield directory


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*/lock"):
        # In use, or being removed by another start.
        with suppress(OSError):
            if path.parent.lstat().st_uid != os.geteuid():
                continue  # anybody may write to shared memory
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent)
