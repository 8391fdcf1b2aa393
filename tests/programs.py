"""Programs that some tests need and that pip does not install."""

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str, *, install: str | None = None) -> str:
    """The path of a program. Without it the test is skipped, and the summary says how to install it.

    With REQUIRE_ALL_PROGRAMS set, as .ci/run does, the test fails instead: there nothing may be skipped unnoticed.
    """
    # PgBouncer and others are installed where only root's PATH looks.
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return path or without(name, install or f"apt-get install {name}")


def without(what: str, install: str) -> NoReturn:
    """Skip the test, or fail it with REQUIRE_ALL_PROGRAMS set, since `what` is not installed."""
    reason = f"{what} is not installed; get it with: {install}"
    if os.environ.get("REQUIRE_ALL_PROGRAMS"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
