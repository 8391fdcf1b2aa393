"""A child whom the kernel tells that its parent has died, however that happened. Elsewhere than on Linux: nothing."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def follower(number: signal.Signals) -> Callable[[], None]:
    """A function for a child of this process to call: it then receives `number` once this process is gone.

    Made before the fork, so that the call itself needs nothing but the kernel. A change of user undoes it.
    """
    if sys.platform != "linux":
        return lambda: None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def follow() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)  # it died in between

    return follow
