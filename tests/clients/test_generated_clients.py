"""Clients that are generated as docs/api.md says, from the running service, and used against it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeKey
from tests.programs import without
from tests.servers import PROJECT_DIR, RunningServer

FOLDER = Path(__file__).parent
VENV = Path(sys.prefix)
PATH = f"{VENV / 'bin'}:{VENV / 'node_modules' / '.bin'}:{os.environ['PATH']}"
COMMANDS = re.findall(
    r"^.* http://localhost:8000/openapi.json.*$", (PROJECT_DIR / "docs/api.md").read_text(), re.MULTILINE
)
# Of openapi-generator 7.26 for any document of OpenAPI 3.1, however small.
MEANINGLESS = ("OpenAPI 3.1 support is still in beta", "Failed to get the schema name: null")

pytestmark = pytest.mark.process


@pytest.fixture
def web_server() -> str:
    """Either one: the answers are the same."""
    return "gunicorn"


@pytest.fixture
def generate(server: RunningServer, tmp_path: Path) -> Callable[[str], str]:
    """Run the command of docs/api.md for a generator; returns what it printed."""

    def run(generator: str) -> str:
        [command] = [command for command in COMMANDS if generator in command]
        if not shutil.which(generator, path=PATH):
            without(generator, "make .venv/.deployable (and npm, for openapi-typescript)")
        return done(command.replace("http://localhost:8000", server.url), tmp_path)

    return run


def done(command: str, folder: Path) -> str:
    """What a command prints; it has to succeed."""
    ran = subprocess.run(
        shlex.split(command), cwd=folder, env=os.environ | {"PATH": PATH, "PYTHONPATH": "."}, check=False, text=True,
        timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_openapi_python_client(
    generate: Callable[[str], str], server: RunningServer, make_key: MakeKey, tmp_path: Path
) -> None:
    assert "warning" not in generate("openapi-python-client").lower()
    done(f"{sys.executable} -m mypy --strict messages_client", tmp_path / "messages-client")
    done(
        f"{sys.executable} {FOLDER / 'use_openapi_python_client.py'} {server.url} {make_key()}",
        tmp_path / "messages-client",
    )


def test_openapi_generator_for_python(
    generate: Callable[[str], str], server: RunningServer, make_key: MakeKey, tmp_path: Path
) -> None:
    told = [line for line in generate("openapi-generator-cli").splitlines() if re.search(r"\[\w+\] (WARN|ERROR)", line)]
    assert [line for line in told if not any(text in line for text in MEANINGLESS)] == []
    done(
        f"{sys.executable} {FOLDER / 'use_openapi_generator.py'} {server.url} {make_key()}",
        tmp_path / "messages-python",
    )


def test_openapi_typescript_with_openapi_fetch(
    generate: Callable[[str], str], server: RunningServer, make_key: MakeKey, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(VENV / "node_modules")
    for file in ("package.json", "use.ts"):
        shutil.copy(FOLDER / file, tmp_path)
    assert "warn" not in generate("openapi-typescript").lower()
    # What the types refuse fails here.
    done("tsc --strict --module nodenext --target es2022 --lib es2023,dom --skipLibCheck use.ts", tmp_path)
    done(f"node use.js {server.url} {make_key()}", tmp_path)
