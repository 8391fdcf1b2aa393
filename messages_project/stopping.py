"""Whether the process is to stop: announced by the one that receives the signal, known to all that it has forked."""

from mmap import mmap

# A byte of memory that forks share.
_is_stopping = mmap(-1, 1)


def announce_stop() -> None:
    """From now on /readyz answers 503, and each response of the API is the last one of its connection."""
    _is_stopping[0] = 1


def is_stopping() -> bool:
    return bool(_is_stopping[0])
