"""How the tests run management commands: in this process, or as a process of their own on the test database."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, NamedTuple

from django.core.management import CommandError, call_command
from django.db import connection

from tests.servers import PROJECT_DIR


class Outcome(NamedTuple):
    """What a command printed, and how it failed: the text of its CommandError, empty if it did not."""

    out: str
    err: str
    failure: str
    status: int


def run(name: str, *arguments: str, **options: Any) -> Outcome:
    """Run a command in this process, without its progress bar."""
    out, err = StringIO(), StringIO()
    failure, status = "", 0
    try:
        call_command(name, *arguments, stdout=out, stderr=err, **{"verbosity": 0, **options})
    except CommandError as error:
        failure, status = str(error), error.returncode
    return Outcome(out.getvalue(), err.getvalue(), failure, status)


@contextmanager
def process(name: str, *arguments: str, nohup: bool = False, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command as a process of its own, perhaps under nohup; it is killed when the block ends."""
    running = subprocess.Popen(
        [*(["nohup"] if nohup else []), sys.executable, "manage.py", name, *arguments],
        cwd=PROJECT_DIR,
        env=os.environ | {"POSTGRES_DB": str(connection.settings_dict["NAME"])} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def ended(
    name: str, *arguments: str | bytes, stdin: Any = None, stdout: Any = subprocess.PIPE, **variables: str
) -> "subprocess.CompletedProcess[bytes]":
    """A command as a process of its own, after its end. It must not end in a traceback."""
    done = subprocess.run(
        [sys.executable, "manage.py", name, *arguments],
        cwd=PROJECT_DIR, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120,
        env=os.environ | {"POSTGRES_DB": str(connection.settings_dict["NAME"])} | variables,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def read_until(running: subprocess.Popen[bytes], mark: bytes) -> bytes:
    """Read standard error until it contains `mark`; return what was read."""
    assert running.stderr is not None
    read = b""
    while mark not in read:
        assert select.select([running.stderr], [], [], 120)[0], f"no {mark!r} within 120 s: {read.decode()}"
        piece = os.read(running.stderr.fileno(), 65536)
        assert piece, f"the command ended without printing {mark!r}: {read.decode()}"
        read += piece
    return read
