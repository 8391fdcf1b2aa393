"""What the pages say is so: their commands print what they show, and their tables list what the code has."""

import ast
import re
import runpy
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands

from messages_project import env
from messaging import metrics
from messaging.api.metrics import DatabaseCollector
from tests import document
from tests.programs import program
from tests.servers import PROJECT_DIR, RunningServer
from tests.transcripts import Shell, steps_of

README, CONTRIBUTING = PROJECT_DIR / "README.md", PROJECT_DIR / "CONTRIBUTING.md"
API, OPERATIONS, DECISIONS = (PROJECT_DIR / "docs" / f"{name}.md" for name in ("api", "operations", "decisions"))
PAGES = sorted([README, CONTRIBUTING, PROJECT_DIR / "CHANGELOG.md", *(PROJECT_DIR / "docs").glob("*.md")])
# Where a page that names a file without its folder means it to be.
FOLDERS = (
    "",
    "messages_project",
    "messaging",
    "messaging/api",
    "messaging/auth",
    "messaging/live",
    "messaging/management/commands",
    "tests",
    "docs",
    "benchmarks",
)


def rows_of(page: Path, heading: str) -> Iterator[list[str]]:
    """The cells of the tables below a heading, without their heads."""
    section = re.split(rf"^#+ {heading}$", page.read_text(), flags=re.MULTILINE)[1].split("\n## ")[0]
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def marked(text: str) -> list[str]:
    """The texts in back quotes, outside of blocks of code."""
    return re.findall(r"`([^`]+)`", FENCED.sub("", text))


# --- what is shown, runs

_API_SERVER = {
    "MESSAGES_ACCESS": "keys", "MESSAGES_RATE_LIMIT_READ": "600/min", "MESSAGES_RATE_LIMIT_WRITE": "300/min",
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "variables"), [(README, {"MESSAGES_ACCESS": "open"}), (API, _API_SERVER)], ids=["README", "api"]
)
def test_the_commands_of_a_page_print_what_it_shows(
    run_server: Callable[..., RunningServer], page: Path, variables: dict[str, str]
) -> None:
    for name in ("bash", "curl", "split"):
        program(name)
    steps = list(steps_of(page.read_text()))
    assert len(steps) > 5
    server = run_server(**variables)
    with Shell(PROJECT_DIR, f"localhost:{server.port}", server.variables) as shell:
        for step in steps:
            shell.check(step)


# --- settings, endpoints, commands


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every variable that settings.py reads, with what it takes where nothing is set."""
    found: dict[str, str] = {}

    def remembering(reader: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: env.Env, name: str, *arguments: Any, **options: Any) -> Any:
            value = reader(self, name, *arguments, **options)
            text = ",".join(value) if isinstance(value, list) else str(value)
            if isinstance(value, tuple) and not any(value):
                text = ""
            # A reader that uses another one comes after it, and has the last word.
            found[name] = text.lower() if isinstance(value, bool) else text
            return value

        return read

    readers = {name: remembering(reader) for name, reader in vars(env.Env).items() if not name.startswith("_")}
    del readers["verify"], readers["fault"], readers["misspelt"]
    recorder = type("Recorder", (env.Env,), readers)
    with monkeypatch.context() as patched:
        patched.setattr(env, "Env", lambda: recorder({}))
        runpy.run_path(str(PROJECT_DIR / "messages_project" / "settings.py"))
    return found


def test_the_readme_lists_every_variable_with_its_default(defaults: dict[str, str]) -> None:
    rows = list(rows_of(README, "Configuration"))
    listed = {marked(row[0])[0]: row[1] for row in rows}
    may_be_files = {f"{marked(row[0])[0]}_FILE" for row in rows if row[0].endswith("*")}
    assert set(listed) | may_be_files == set(defaults)
    # A default in back quotes is a value; one in words is computed, or nothing.
    shown = {name: marked(default)[0] for name, default in listed.items() if default.startswith("`")}
    assert shown == {name: defaults[name] for name in shown}
    computed = {name for name in listed if name not in shown and defaults[name]}
    assert computed == {"WEB_CONCURRENCY", "PLAIN_HTTP", "POSTGRES_HOST"}


def test_the_readme_lists_every_endpoint() -> None:
    listed = {marked(row[0])[0] for row in rows_of(README, "Endpoints")}
    described = {
        f"{method.upper()} {path}"
        for path, operations in document.load()["paths"].items()
        for method in operations
        if method in document.METHODS
    }
    pages = {"GET /", "GET /docs", "GET /openapi.json", "GET /admin/", "GET /metrics", "GET /inbox"}
    assert listed - pages == described


def test_the_readme_lists_every_command_of_the_product() -> None:
    listed = {marked(row[0])[0].split()[0] for row in rows_of(README, "Commands")}
    assert listed == {name for name, app in get_commands().items() if app in {"messaging", "messages_project"}}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    listed = {name.strip() for row in rows_of(DECISIONS, "Dependencies") for name in row[0].split(",")}
    assert listed == {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}


@pytest.fixture
def web_server() -> str:
    """gunicorn, whose spelling of header names the pages show."""
    return "gunicorn"


# --- errors


def codes_of(heading: str) -> set[tuple[int, str]]:
    return {(int(row[0]), marked(row[1])[0]) for row in rows_of(API, heading) if row[0].isdigit()}


def test_the_api_page_lists_every_error_code_with_its_status() -> None:
    listed = codes_of("Errors")
    described = {
        (example["value"]["status"], code)
        for response in document.load()["components"]["responses"].values()
        for media in response.get("content", {}).values()
        for code, example in media["examples"].items()
    }
    others = {(404, "unknown_path"), (405, "method_not_allowed")}
    assert listed == described | others
    assert {code for _, code in listed} == document.problem_codes()


def test_the_api_page_lists_every_code_of_a_fault() -> None:
    listed = {code for row in rows_of(API, "Errors") if not row[0].isdigit() for code in marked(row[0])}
    assert listed == set(document.load()["components"]["schemas"]["Fault"]["properties"]["code"]["x-extensible-enum"])


# --- parameters and metrics


def test_the_api_page_lists_every_parameter_of_a_page() -> None:
    listed = {name for row in rows_of(API, "Reading") for name in marked(row[0])}
    parameters = document.load()["paths"]["/messages"]["get"]["parameters"]
    assert listed == {each["name"] for each in parameters if each.get("in") == "query"} - {"recipient"}


def test_the_operations_page_lists_every_metric(db: None) -> None:
    cells = [row[0] for row in rows_of(OPERATIONS, "Logs and health")]
    listed = {name.partition("{")[0] for cell in cells for name in marked(cell) if name.startswith("messages_")}
    families = metrics.registry([DatabaseCollector()]).collect()
    assert listed == {f"{each.name}_total" if each.type == "counter" else each.name for each in families}


@cache
def texts_of_the_code() -> str:
    """Every string of the code and of the Makefile, in which the parts of an f-string stand on their own."""
    files = [*(PROJECT_DIR / "messages_project").rglob("*.py"), *(PROJECT_DIR / "messaging").rglob("*.py")]
    texts = [
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join([*texts, (PROJECT_DIR / "Makefile").read_text()])


def test_the_operations_page_explains_every_check_and_quotes_real_messages() -> None:
    rows = list(rows_of(OPERATIONS, "Troubleshooting"))
    ids = set(re.findall(r"\bmess(?:ages|aging)\.[EW]\d{3}\b", texts_of_the_code()))
    assert ids == {name for row in rows for name in re.findall(r"\bmess(?:ages|aging)\.[EW]\d{3}\b", row[0])}
    for row in rows:
        for quoted in marked(row[0]):
            for part in filter(None, map(str.strip, quoted.split("…"))):
                assert part in texts_of_the_code(), f"no message of the code has: {part}"


# --- names


def test_modules_stay_under_300_lines() -> None:
    files = [file for folder in ("messaging", "messages_project") for file in (PROJECT_DIR / folder).rglob("*.py")]
    assert [str(file) for file in files if len(file.read_text().splitlines()) >= 300] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = {name for quoted in marked(text) for name in re.findall(r"^[\w./-]+\.(?:py|toml|yaml|yml)\b", quoted)}
    missing = [name for name in named if not any((PROJECT_DIR / folder / name).exists() for folder in FOLDERS)]
    for file, test in set(re.findall(r"`(tests/test_\w+\.py)::(\w+)`", text)):
        source = PROJECT_DIR / file
        if not source.exists() or not re.search(rf"def {test}\b", source.read_text()):
            missing.append(f"{file}::{test}")
    targets = set(re.findall(r"^([a-z]+):", (PROJECT_DIR / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z]+)\b", "\n".join(commands_in(text)), re.MULTILINE)
    missing += [f"make {name}" for name in set(called) - targets]
    missing += [link for link in set(re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text)) if not exists(page, link)]
    assert not missing, f"{page.name} names what does not exist: {', '.join(sorted(missing))}"


def commands_in(text: str) -> list[str]:
    return [*marked(text), *FENCED.findall(text)]


def exists(page: Path, link: str) -> bool:
    return not link or link.startswith("http") or (page.parent / link).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_a_page_lead_to_its_headings(page: Path) -> None:
    text = page.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_an_example_environment_sets_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {marked(row[0])[0] for row in rows_of(README, "Configuration")} | {"POSTGRES_VERSION"}
    named = re.findall(r"^#?([A-Z_]+)=", (PROJECT_DIR / ".env.example").read_text(), re.MULTILINE)
    composed = re.findall(r"\$\{([A-Z_]+)", (PROJECT_DIR / "docker-compose.yml").read_text())
    assert set(named) | set(composed) <= known
