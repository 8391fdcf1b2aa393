"""Runs the ```console blocks of a page in bash, and compares what they print with what the page shows.

Ids, instants, request ids, keys and seconds left differ from run to run: each must be of its kind, and an id must be
the same one wherever the page shows it. White space inside JSON is the page's own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

ADDRESS = "localhost:8000"  # the one that pages show
_END = "\x01"  # printed after each command
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VOLATILE = re.compile(
    r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|(?P<instant>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"
    r"|(?P<request_id>\b[0-9a-f]{32}\b)"
    r"|(?P<key>\bmsg_[a-z0-9]{10}_[A-Za-z0-9]{43}\b)"
    r"|(?P<token>\beyJ[\w-]+\.[\w-]+\.[\w-]+)"
    # Each worker counts a share of the limit, so what is left depends on which one answers.
    r"|(?P<left>;r=\d+;t=\d+)"
)
# `make manage` as the page has it, without make; curl without its progress bar.
_PRELUDE = """
make() { [ "$1" = -s ] && shift; [ "$1" = manage ] && eval "\\"$PYTHON\\" manage.py ${2#ARGS=}"; }
curl() { command curl -sS --max-time 30 "$@"; }
export -f curl
"""


class Step(NamedTuple):
    """A command of a page, and what the page says that it prints."""

    command: str
    shown: str


def steps_of(page: str) -> Iterator[Step]:
    """The commands of a page in their order. Lines indented below a command belong to it."""
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.rstrip("\n").split("\n")
            size = next((n for n, line in enumerate(lines) if n and not line.startswith("    ")), len(lines))
            yield Step("\n".join(lines[:size]), "\n".join(lines[size:]))


class Shell:
    """One bash for all commands of a page, in which an earlier one's variables are a later one's."""

    def __init__(self, folder: Path, address: str, variables: Mapping[str, str]) -> None:
        self._address = address
        self._meant: dict[str, str] = {}  # what stands in the page, and what this run has in its place
        self._process = subprocess.Popen(
            ["bash"], cwd=folder, env={**os.environ, "PYTHON": sys.executable, **variables}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.run(_PRELUDE)

    def run(self, command: str) -> str:
        """What a command prints on standard output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for shown, real in self._meant.items():
            command = command.replace(shown, real)
        command = command.replace(ADDRESS, self._address)
        self._process.stdin.write(f"{command}\nprintf '{_END}'\n")
        self._process.stdin.flush()
        printed = ""
        while not printed.endswith(_END):
            letter = self._process.stdout.read(1)
            assert letter, f"bash ended at: {command}"
            printed += letter
        return printed.removesuffix(_END).replace(self._address, ADDRESS).rstrip("\n")

    def check(self, step: Step) -> None:
        """Run a command, and fail where it prints something else than the page shows."""
        printed = self.run(step.command)
        expected, found = _comparable(step.shown), _comparable(printed)
        assert _VOLATILE.sub(_kind, expected) == _VOLATILE.sub(_kind, found), f"$ {step.command}\n{printed}"
        for mine, yours in zip(_VOLATILE.finditer(expected), _VOLATILE.finditer(found), strict=True):
            if mine.lastgroup in {"id", "key", "token"}:
                # One for one, in both directions; what the page itself made up stands for itself.
                known = self._meant.setdefault(mine[0], mine[0] if mine[0] in step.command else yours[0])
                meanings = [shown for shown, real in self._meant.items() if real == yours[0]]
                assert known == yours[0], f"$ {step.command}\n{yours[0]} where {mine[0]} is {known}"
                assert meanings == [mine[0]], f"$ {step.command}\n{yours[0]} is shown as {meanings}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        with self._process:
            self._process.kill()


def _kind(found: re.Match[str]) -> str:
    return f"<{found.lastgroup}>"


def _comparable(printed: str) -> str:
    """The text, any JSON at its beginning without the white space between its parts."""
    text = printed.strip()
    if not text.startswith(("{", "[")):
        return text
    value, end = json.JSONDecoder().raw_decode(text)
    return f"{json.dumps(value, ensure_ascii=False)}\n{text[end:].strip()}"
