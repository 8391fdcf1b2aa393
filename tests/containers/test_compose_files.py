"""Both compose files and the image, built and run for real. Takes minutes: `make containers`.

With podman, or with Docker's engine. Where images cannot be pulled, they must be there under their names.
"""

import json
import os
import shlex
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.certificates import write_certificate
from tests.programs import program, without
from tests.servers import PROJECT_DIR, free_port, wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

STAND_IN = PROJECT_DIR / "tests" / "containers" / "stand-in.yaml"
IMAGE = "messages-rest-api:test"


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout).strip()


@pytest.fixture(scope="module")
def engine() -> str:
    found = program("podman")
    if subprocess.run([found, "image", "exists", "docker.io/library/postgres:18"], check=False).returncode:
        without("an image postgres:18", "podman pull postgres:18 (or a stand-in of that name)")
    return found


@pytest.fixture(scope="module")
def compose() -> list[str]:
    installed = Path(sys.executable).with_name("podman-compose")
    return [str(installed) if installed.exists() else program("podman-compose", install="pip install podman-compose")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as a checkout under umask 077 leaves it."""
    copy = tmp_path_factory.mktemp("checkout") / "project"
    unneeded = shutil.ignore_patterns(".venv", ".git", ".postgres", "__pycache__", ".*_cache")
    shutil.copytree(PROJECT_DIR, copy, ignore=unneeded)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IRWXG | stat.S_IRWXO))
    return copy


@pytest.fixture(scope="module")
def image(engine: str, checkout: Path) -> str:
    run(engine, "build", "--quiet", "--format", "docker", "--tag", IMAGE, checkout)
    return IMAGE


@contextmanager
def composed(command: list[str], files: list[Path], folder: Path, **variables: str) -> Iterator[Callable[..., str]]:
    """`compose up`; yields a function that runs further commands of compose."""
    name = f"test-{os.getpid()}"
    base = [*command, "--project-name", name, *(part for file in files for part in ("--file", str(file)))]
    environment = os.environ | variables
    try:
        further = partial(run, *base, cwd=folder, env=environment)
        further("up", "--build", "--detach")
        yield further
    finally:
        subprocess.run([*base, "down", "--volumes"], cwd=folder, env=environment, capture_output=True, check=False)


def ask(
    connection: HTTPConnection, method: str, path: str, body: Any = None, key: str | None = None
) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        content = response.read()
    except OSError:
        connection.close()
        return 0, None
    return response.status, json.loads(content) if content else None


def followed_version(connection: HTTPConnection, key: str | None = None) -> Any:
    """The version of a mailbox by a long poll, once the live process answers: it starts beside the API."""
    poll = "/mailbox/wait?recipient=ada&version=0&seconds=5"
    wait_until(lambda: ask(connection, "GET", poll, key=key)[0] == 200, what="a live process that answers")
    return ask(connection, "GET", poll, key=key)[1]["version"]


# --- the image


def test_the_image_runs_as_any_user_from_a_checkout_of_any_umask(engine: str, image: str) -> None:
    hardened = ["--rm", "--read-only", "--cap-drop", "ALL", "--user", "54321:54321"]
    out = run(engine, "run", *hardened, "-e", "POSTGRES_HOST=nowhere", image, "python", "manage.py", "check")
    assert "no issues" in out


# --- docker-compose.yml


def test_the_development_compose_file_serves_and_its_health_check_ignores_proxies(
    compose: list[str], engine: str, image: str, checkout: Path
) -> None:
    port, live_port = free_port(), free_port()
    ports = {"PORT": str(port), "LIVE_PORT": str(live_port), "POSTGRES_PORT": str(free_port())}
    settings = ports | {"MESSAGES_ACCESS": "open", "MESSAGES_TOKEN_SECRET": "a-secret-of-32-bytes-or-a-few-more"}
    with composed(compose, [checkout / "docker-compose.yml"], checkout, **settings):
        api = HTTPConnection("127.0.0.1", port, timeout=10)
        wait_until(lambda: ask(api, "GET", "/readyz")[0] == 200, seconds=90, what="a ready service")
        assert ask(api, "POST", "/messages/", {"recipient": "ada", "content": "x"})[0] == 201
        live = HTTPConnection("127.0.0.1", live_port, timeout=10)
        assert followed_version(live) == 1
        live.close()
        name = f"test-{os.getpid()}_api_1"
        for holder in (name, IMAGE):
            [found] = json.loads(run(engine, "inspect", holder))
            # podman has the health check of an image at the top.
            health_check = (found["Config"].get("Healthcheck") or found["Healthcheck"])["Test"]
            run(engine, "exec", "--env", "http_proxy=http://127.0.0.1:9", name, *shlex.split(as_words(health_check)))
        link = run(engine, "exec", name, "python", "manage.py", "create_token", "--recipient", "ada", "--open")
        assert link.startswith(f"http://localhost:{port}/inbox#")
        api.close()


def as_words(health_check: list[str]) -> str:
    # podman-compose hands the list over as the text of one command.
    return health_check[1] if len(health_check) == 2 else shlex.join(health_check[1:])


# --- deploy/compose.yaml

Production = tuple[HTTPConnection, str, Callable[..., str]]


@pytest.fixture(scope="module")
def production(compose: list[str], engine: str, checkout: Path) -> Iterator[Production]:
    """The production deployment: a connection to its one way in, a key, and what runs commands of compose."""
    folder = checkout / "deploy"
    settings = folder / "postgresql" / "postgresql.conf"
    settings.write_text(settings.read_text().replace("#archive_", "archive_"))
    run(folder / "make-secrets")
    certificate = folder / "secrets" / "certificate.pem"
    write_certificate(certificate)
    # What is mounted must be readable for the users inside, as in a checkout of the usual umask.
    for path in [folder / "backup", *folder.glob("*/*")]:
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
    port = free_port()
    variables = {
        "ALLOWED_HOSTS": "localhost",
        "HTTP_PORT": f"127.0.0.1:{free_port()}",
        "HTTPS_PORT": f"127.0.0.1:{port}",
        "WEB_CONCURRENCY": "1",
        "MESSAGES_RATE_LIMIT_READ": "100000/min",
    }
    with composed(compose, [folder / "compose.yaml", STAND_IN], folder, **variables) as further:
        context = ssl.create_default_context(cafile=str(certificate))
        connection = HTTPSConnection("localhost", port, timeout=10, context=context)
        wait_until(lambda: ask(connection, "GET", "/readyz")[0] == 200, seconds=120, what="a ready deployment")
        yield connection, created_key(engine), further
        connection.close()


def created_key(engine: str) -> str:
    command = "python manage.py create_api_key test --scopes send,read,manage"
    keys: list[str] = []

    def is_created() -> bool:
        done = subprocess.run(
            in_container(engine, "api-a", *command.split()), capture_output=True, text=True, check=False
        )
        keys.append(done.stdout.strip())
        return done.returncode == 0

    # A busy machine may take longer to log in to PostgreSQL than a command waits.
    wait_until(is_created, seconds=60, what="a key")
    return keys[-1]


def in_container(engine: str, service: str, *command: str) -> list[str]:
    return [engine, "exec", f"test-{os.getpid()}_{service}_1", *command]


def inside(engine: str, service: str, *command: str) -> str:
    return run(*in_container(engine, service, *command))


def test_production_serves_over_tls(production: Production) -> None:
    connection, key, _ = production
    assert ask(connection, "POST", "/messages/", {"recipient": "ada", "content": "x"})[0] == 401
    sent = [ask(connection, "POST", "/messages/", {"recipient": "ada", "content": "x"}, key) for _ in range(2)]
    assert [status for status, _ in sent] == [201, 201]
    status, page = ask(connection, "GET", "/messages/?recipient=ada&limit=1", key=key)
    assert status == 200
    assert page["next"].startswith("https://localhost:")
    assert followed_version(connection, key) == 2
    assert ask(connection, "DELETE", f"/messages/{sent[0][1]['id']}", key=key)[0] == 204


def test_production_backs_up_and_restores(production: Production, engine: str) -> None:
    connection, key, _ = production
    kept = ask(connection, "POST", "/messages/", {"recipient": "bob", "content": "x"}, key)[1]
    dump = inside(engine, "db", "sh", "/backup/backup", "dump")
    assert inside(engine, "db", "sh", "/backup/backup", "base").endswith(".base")
    lost = ask(connection, "POST", "/messages/", {"recipient": "bob", "content": "x"}, key)[1]
    users = [f"test-{os.getpid()}_{service}_1" for service in ("api-a", "api-b", "live", "upkeep")]
    run(engine, "stop", *users)
    inside(engine, "db", "sh", "/backup/restore", dump)
    run(engine, "start", *users)
    for instance in ("api-a", "api-b"):
        wait_until(partial(is_ready, engine, instance), seconds=60, what=f"{instance} ready again")
    wait_until(
        lambda: ask(connection, "GET", f"/messages/{kept['id']}", key=key)[0] == 200, what="the restored message"
    )
    assert ask(connection, "GET", f"/messages/{lost['id']}", key=key)[0] == 404
    assert "nothing is wrong" in inside(engine, "upkeep", "python", "manage.py", "check_mailboxes")


def test_production_restores_a_base_backup_and_archived_wal(production: Production, engine: str) -> None:
    connection, key, compose = production
    users = ("api-a", "api-b", "live", "upkeep")
    inside(engine, "db", "install", "-d", "-o", "postgres", "/backups/wal")
    backup = inside(engine, "db", "sh", "/backup/backup", "base")
    kept = ask(connection, "POST", "/messages/", {"recipient": "cyd", "content": "x"}, key)[1]
    compose("stop", *users, "db")
    unpack = f'mv "$PGDATA" "$PGDATA.before" && mkdir "$PGDATA" && sh /backup/restore {backup} "$PGDATA"'
    compose("run", "--rm", "--entrypoint", "sh", "db", "-c", unpack)
    compose("start", "db")
    raise_versions = ("psql", "--dbname=messages", "--file=/backup/raise-versions.sql")
    wait_until(lambda: succeeds(engine, "db", *raise_versions), seconds=60, what="the end of recovery")
    compose("start", *users)
    for instance in ("api-a", "api-b"):
        wait_until(partial(is_ready, engine, instance), seconds=60, what=f"{instance} ready again")
    wait_until(
        lambda: ask(connection, "GET", f"/messages/{kept['id']}", key=key)[0] == 200, what="the archived message"
    )
    assert ask(connection, "GET", f"/changes?recipient=cyd&since={kept['seq']}", key=key)[0] == 410


def test_an_instance_of_production_is_replaced_without_a_failed_request(production: Production, engine: str) -> None:
    connection, key, _ = production
    for server in ("a", "b"):
        name = f"test-{os.getpid()}_api-{server}_1"
        with subprocess.Popen([engine, "restart", "--time", "35", name], stdout=subprocess.DEVNULL) as restarting:
            while restarting.poll() is None:
                assert ask(connection, "GET", "/mailbox?recipient=ada", key=key)[0] == 200
        wait_until(partial(is_taken_back, engine, server), seconds=60, what=f"api-{server} taken back by the proxy")


def is_ready(engine: str, service: str) -> bool:
    return succeeds(engine, service, "python", "-c", f"{GET}\nassert get('127.0.0.1:8000', '/readyz').status == 200")


def is_taken_back(engine: str, server: str) -> bool:
    metric = f'haproxy_server_status{{proxy="api",server="{server}",state="UP"}} 1\n'.encode()
    code = f"{GET}\nassert {metric!r} in get('haproxy:8404', '/metrics').read()"
    return succeeds(engine, "live", "python", "-c", code)


def succeeds(engine: str, service: str, *command: str) -> bool:
    return subprocess.run(in_container(engine, service, *command), capture_output=True, check=False).returncode == 0


GET = (
    "from http.client import HTTPConnection as C\n"
    "def get(host, path): c = C(host); c.request('GET', path); return c.getresponse()"
)
