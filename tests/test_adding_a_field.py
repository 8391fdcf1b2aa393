"""docs/adding-a-field.md: its diff applies to this version of the code, and its test passes then."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import program
from tests.servers import PROJECT_DIR

PAGE = (PROJECT_DIR / "docs" / "adding-a-field.md").read_text()
[DIFF], [TEST] = (re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for kind in ("diff", "python"))
# The same test with the statements for Citus.
TEST_ON_CITUS = """
from collections.abc import Iterator

import pytest

from tests.helpers import Api
from tests.partitions import statements_of_citus
from tests.test_priority import test_a_priority_is_stored_and_returned


@pytest.fixture
def api(api: Api) -> Iterator[Api]:
    with statements_of_citus():
        yield api
"""
FILES = re.findall(r"^\+\+\+ b/(.*)$", DIFF, re.MULTILINE)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run a command in a copy of the repository, which `tmp_path` becomes."""
    installed_or_made = shutil.ignore_patterns(".*", "__pycache__", "htmlcov", "node_modules", "images")
    shutil.copytree(PROJECT_DIR, tmp_path, ignore=installed_or_made, dirs_exist_ok=True)
    # A database of its own, beside the one of this test run.
    environment = os.environ | {"POSTGRES_DB": f"adding_a_field_{os.getpid()}"}

    def run_there(*command: str, text: str = "") -> None:
        done = subprocess.run(
            command,
            check=False,
            cwd=tmp_path,
            env=environment,
            input=text,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"

    return run_there


def test_a_field_takes_at_most_6_files_and_60_lines() -> None:
    assert len(FILES) <= 6
    assert len(re.findall(r"^[+-](?![+-]{2} [ab]/)", DIFF, re.MULTILINE)) <= 60


@pytest.mark.process
def test_the_diff_applies_and_its_test_passes(tmp_path: Path, run: Callable[..., None]) -> None:
    run(program("git"), "apply", "-", text=DIFF)
    python, manage = sys.executable, (sys.executable, "manage.py")
    run(python, "-m", "ruff", "format", "--check", *FILES)
    run(*manage, "makemigrations", "messaging", "--name", "priority", "--verbosity", "0")
    run(*manage, "spectacular", "--fail-on-warn", "--validate", "--file", "openapi.yaml")
    tests = ("tests/test_priority.py", "tests/test_priority_on_citus.py")
    for file, text in zip(tests, (TEST, TEST_ON_CITUS), strict=True):
        (tmp_path / file).write_text(text)
    run(python, "-m", "pytest", "-q", "--numprocesses=0", *tests)
