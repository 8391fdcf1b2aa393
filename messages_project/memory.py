"""The C library's allocator, told to give large blocks back: a batch of 10 MB must not stay in the process's size."""

import ctypes

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_LARGE_BYTES = 1024 * 1024
_ARENAS = 2


def give_large_blocks_back() -> None:
    """Map blocks of 1 MiB and more one by one, so that freeing them returns them, and keep few arenas.

    By default glibc raises that threshold to 32 MiB with use, and keeps what was freed, for each thread. To be called
    before there are threads. Other C libraries have no such call, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
