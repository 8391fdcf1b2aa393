"""The process: it starts from a fresh checkout, says clearly why it cannot, and leaves nothing behind when it ends."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from messages_project import embedded_cluster
from messages_project.boot import StartError
from tests.servers import PROJECT_DIR, free_port, wait_until

pytestmark = pytest.mark.process

SECRET = "a-strong-key-5b1f0e9d8c7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e"


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what configures the service, and with `variables`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POSTGRES_", "MESSAGES_", "SECRET_KEY", "PLAIN_HTTP", "DEBUG", "DJANGO_", "PYTEST_"))
    }
    return kept | {"BIND": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"} | variables


def run(*arguments: str, cwd: Path | str = PROJECT_DIR, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, in the environment of `clean_environment`."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=clean_environment(**variables), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def refusal(**variables: str) -> str:
    """What `python -m messages_project` says when it refuses to start."""
    ended = run("-m", "messages_project", **{"SECRET_KEY": SECRET, "POSTGRES_HOST": "127.0.0.1"} | variables)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


class Tree:
    """A copy of the code, with an embedded PostgreSQL and processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.started: list[subprocess.Popen[bytes]] = []
        for name in ("messages_project", "messaging"):
            shutil.copytree(PROJECT_DIR / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PROJECT_DIR / "manage.py", folder)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def serve(self, *runner: str, wait_for: str | None = "/readyz", **variables: str) -> "subprocess.Popen[bytes]":
        """Start the service, by a command that runs it if one is given; return when `wait_for` answers 200."""
        settings = {"PORT": str(self.port), "WEB_CONCURRENCY": "2"} | variables
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*runner, sys.executable, "-m", "messages_project"],
                cwd=self.folder, env=clean_environment(**settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        if wait_for:

            def answers() -> bool:
                assert process.poll() is None, self.log
                return self.status(wait_for, int(settings["PORT"])) == 200

            wait_until(answers, what=f"200 from {wait_for}")
        return process

    def status(self, path: str, port: int | None = None) -> int | None:
        """The status with which `path` is answered, None if it is not."""
        return self.ask(path, port)[0]

    def ask(self, path: str, port: int | None = None, timeout: float = 10) -> tuple[int | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return None, b""
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, str]) -> int | None:
        """The status with which a POST is answered, None if it is not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def session(self) -> "psycopg.Connection[Any]":
        """A session of one's own in its database."""
        return psycopg.connect(host=str(self.server_process().cwd()), user="messages", dbname="messages")

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in this tree: the service, its workers, the keeper, PostgreSQL."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.folder) or Path(process.cwd()) in self.sheltered():
                    found.append(process)
        return found

    def sheltered(self) -> list[Path]:
        link = self.folder / ".postgres" / "shelter"
        return [link.resolve() / "data"] if link.is_symlink() else []

    def server_process(self) -> psutil.Process:
        """PostgreSQL's first process."""
        pid = int((self.folder / ".postgres" / "data" / "postmaster.pid").read_text().split("\n")[0])
        return psutil.Process(pid)

    def keeper_process(self) -> psutil.Process:
        [keeper] = [process for process in self.processes() if is_keeper(process)]
        return keeper

    def wait_until_nothing_runs(self, seconds: float = 15) -> None:
        wait_until(lambda: not self.processes(), seconds, what="the end of all processes")

    def close(self) -> None:
        """End whatever runs here, and remove it. What ends in an orderly way cleans up outside this folder too."""
        for started in self.started:
            started.terminate()
        for started in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(30)
        _, left = psutil.wait_procs(self.processes(), 10)
        for process in left:
            process.kill()
        psutil.wait_procs(left, 10)
        for data in self.sheltered():
            shutil.rmtree(data.parent, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def is_keeper(process: psutil.Process) -> bool:
    """Whether this is the keeper of an embedded PostgreSQL."""
    return "messages_project.embedded_postgres" in process.cmdline()


def web_server_of(service: "subprocess.Popen[bytes]") -> psutil.Process:
    """The web server's first process."""
    children = psutil.Process(service.pid).children()
    [server] = [child for child in children if not is_keeper(child)]
    return server


def is_waiting(session: "psycopg.Connection[Any]") -> bool:
    """Whether some session waits for a lock."""
    with psycopg.connect(host=session.info.host, user="messages", dbname="messages") as other:
        return other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").rowcount > 0


@pytest.fixture
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(prefix="messages-tree-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        made = Tree(Path(folder))
        try:
            yield made
        finally:
            made.close()


# --- why it does not start


def test_every_wrong_setting_is_named_in_one_message() -> None:
    wrong = {
        "PORT": "eight thousand", "WEB_CONCURRENCY": "0", "MESSAGES_ACCESS": "all", "MESSAGES_RATE_LIMIT_READ": "9",
        "LIVE_URL": "live.example.com",
    }  # fmt: skip
    said = refusal(**wrong)
    assert all(f"{name}=" in said for name in wrong)


def test_no_secret_key_is_refused_with_the_way_to_make_one() -> None:
    said = refusal(SECRET_KEY="")
    assert "messages.E001" in said
    assert "secrets.token_urlsafe" in said


def test_open_access_on_every_address_is_refused_with_the_way_to_make_a_key() -> None:
    said = refusal(MESSAGES_ACCESS="open", BIND="0.0.0.0")
    assert "messages.E004" in said
    assert "create_api_key" in said


def test_a_busy_port_is_refused_before_anything_else() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert f"127.0.0.1:{port} is in use by another process" in refusal(PORT=str(port))


def test_one_port_for_the_api_and_the_live_process_is_refused() -> None:
    said = refusal(WITH_COMPANIONS="true", PORT="8123", LIVE_PORT="8123")
    assert "PORT and LIVE_PORT are both 8123" in said


def test_names_that_have_no_effect_and_an_address_with_a_port_are_refused_together() -> None:
    said = refusal(MESSAGES_RETENTION_DAY="30", BIND="127.0.0.1:8000")
    assert "MESSAGES_RETENTION_DAY is no variable of this service; write MESSAGES_RETENTION_DAYS." in said
    assert "BIND is no host; write its name or address alone" in said


def test_an_address_of_another_machine_is_refused() -> None:
    assert "Set BIND" in refusal(BIND="192.0.2.1", ALLOWED_HOSTS="example.com")
    # With brackets; also where the machine has no IPv6.
    assert "Cannot listen on [2001:db8::1]:8123 (" in refusal(BIND="2001:db8::1", PORT="8123")


def test_a_start_without_a_database_is_refused_after_a_while() -> None:
    started = time.monotonic()
    said = refusal(POSTGRES_PORT=str(free_port()), PORT=str(free_port()), DATABASE_WAIT_SECONDS="1")
    assert time.monotonic() - started < 25  # it waits for 30 s by default
    assert "Waiting for PostgreSQL" in said
    assert "correct POSTGRES_HOST" in said


@pytest.mark.parametrize("command", [["migrate"], ["distribute", "--partitions", "4"]])
def test_a_command_reports_a_missing_database_too(command: list[str]) -> None:
    ended = run("manage.py", *command, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(free_port()), SECRET_KEY=SECRET)
    assert ended.returncode == 1
    assert "Connection refused" in ended.stderr
    assert "correct POSTGRES_HOST" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_copy_of_a_checkout_does_not_take_its_database(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # so that as root the data lie elsewhere
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    data = embedded_cluster.prepare(first).data
    try:
        shutil.copytree(first, second, symlinks=True)
        if embedded_cluster.service_ids() is None:
            assert embedded_cluster.prepare(second).data == second / "data"
            return
        with pytest.raises(StartError, match="is a copy of"):
            embedded_cluster.prepare(second)
        # One that was moved has it still.
        shutil.rmtree(first)
        assert embedded_cluster.prepare(second).data == data
        shutil.copytree(second, first, symlinks=True)
        with pytest.raises(StartError, match="is a copy of"):
            embedded_cluster.prepare(first)
    finally:
        shutil.rmtree(data.parent if data.parent != first else first)


def test_a_missing_embedded_postgres_is_reported(tree: Tree) -> None:
    # A path entry that hides the package, and one that comes with it, from everything that looks for them.
    (tree.folder / "embedded_postgres").mkdir()
    (tree.folder / "embedded_postgres" / "__init__.py").touch()
    (tree.folder / "psutil.py").write_text("raise ImportError")
    ended = run("manage.py", "check", cwd=tree.folder)
    assert ended.returncode == 1
    assert "Set POSTGRES_HOST, or run: pip install" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["manage.py", "check"], ["-m", "messages_project"]])
def test_a_python_without_the_packages_is_reported(arguments: list[str]) -> None:
    ended = run("-S", *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Django is not installed for {sys.executable}. Run .venv/bin/python instead")


@pytest.mark.parametrize("process", ["serve", "live"])
def test_traces_without_what_sends_them_are_refused(process: str, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    variables = {"PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}
    ended = run("-m", "messages_project", process, POSTGRES_HOST="127.0.0.1", SECRET_KEY=SECRET, **variables)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert "Run: pip install -r requirements-otel.txt" in ended.stderr


@pytest.mark.parametrize("arguments", [["manage.py", "check"], ["-m", "messages_project"]])
def test_a_python_without_docstrings_is_refused(arguments: list[str]) -> None:
    ended = run(*arguments, PYTHONOPTIMIZE="2", POSTGRES_HOST="127.0.0.1")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "Unset PYTHONOPTIMIZE" in ended.stderr


@pytest.mark.parametrize("arguments", [["manage.py", "check"], ["-m", "messages_project"]])
def test_a_settings_module_of_another_project_is_refused(arguments: list[str]) -> None:
    ended = run(*arguments, DJANGO_SETTINGS_MODULE="other.settings", POSTGRES_HOST="127.0.0.1")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("DJANGO_SETTINGS_MODULE=other.settings cannot be imported")


# --- how it lives and ends


def test_a_fresh_checkout_serves_and_keeps_its_data(tree: Tree, web_server: str) -> None:
    # What libpq and PostgreSQL read is meant for another server.
    foreign = {"PGTARGETSESSIONATTRS": "standby", "PGSERVICE": "none", "PGPORT": "5433", "PGCLIENTENCODING": "auto"}
    process = tree.serve(WEB_SERVER=web_server, **foreign)
    assert f"http://127.0.0.1:{tree.port}/docs" in tree.log
    assert "Try: curl" in tree.log
    status, body = tree.ask("/health")
    assert (status, json.loads(body)) == (200, {"status": "ok", "database": "ok"})
    key = (tree.folder / ".postgres" / "secret_key").read_text()
    for name in ("secret_key", "token_secret", "server.log"):
        assert not (tree.folder / ".postgres" / name).stat().st_mode & 0o077, f"others may read {name}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    tree.wait_until_nothing_runs()

    process = tree.serve(WEB_SERVER=web_server)
    assert tree.log.count("Migrating the database") == 1, "the second start began with an empty database"
    assert (tree.folder / ".postgres" / "secret_key").read_text() == key
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    tree.wait_until_nothing_runs()


def test_a_project_that_was_installed_for_its_user_alone_serves_too(tree: Tree) -> None:
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(embedded_cluster.install_dir().parent.parent / name, tree.folder / name, symlinks=True)
    for path in (tree.folder, *tree.folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o077)  # as under a umask of 077
    tree.serve()
    assert tree.status("/health") == 200


@pytest.mark.parametrize("name", ["long" * 25, "one, two"])
def test_a_path_that_is_long_or_has_a_comma_does_not_matter(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="messages-tree-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        deep = Path(folder) / name
        deep.mkdir()
        tree = Tree(deep)
        try:
            tree.serve()
            assert tree.status("/health") == 200
        finally:
            tree.close()


def test_processes_share_the_server_and_the_last_one_stops_it(tree: Tree) -> None:
    first, second = tree.serve(wait_for=None), tree.serve(wait_for=None, PORT=str(other := free_port()))
    wait_until(lambda: tree.status("/readyz") == tree.status("/readyz", other) == 200, what="two services")
    assert run("manage.py", "check", cwd=tree.folder).returncode == 0
    postgres = tree.server_process()
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    assert tree.status("/health", other) == 200
    assert postgres.is_running()
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    tree.wait_until_nothing_runs()


# Without it, as in a container, root cannot read the working directory of another user's process.
WITHOUT_PTRACE = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace") if os.geteuid() == 0 else ()


@pytest.mark.parametrize(
    ("victims", "runner"),
    [
        pytest.param("service", (), id="service"),
        pytest.param("service keeper", (), id="service+keeper"),
        pytest.param("service keeper postgres", (), id="service+keeper+postgres"),
        pytest.param("keeper", (), id="keeper"),
        pytest.param("keeper", WITHOUT_PTRACE, id="keeper-in a container"),
        pytest.param("postgres", (), id="postgres"),
    ],
)
def test_after_any_kill_the_next_start_works_and_nothing_is_left(
    tree: Tree, victims: str, runner: tuple[str, ...]
) -> None:
    service = tree.serve(*runner)
    kinds = {"service": psutil.Process(service.pid), "keeper": tree.keeper_process(), "postgres": tree.server_process()}
    for name in victims.split():
        kinds[name].kill()
    if "service" not in victims:
        service.terminate()
    service.wait(30)
    wait_until(lambda: tree.status("/livez") is None, 5, what="the end of its workers")
    again = tree.serve(*runner)
    assert tree.status("/health") == 200
    again.terminate()
    assert again.wait(30) == 0
    tree.wait_until_nothing_runs()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_keeper_does_not_leave_the_server_running(tree: Tree, number: signal.Signals) -> None:
    service = tree.serve()
    keeper = tree.keeper_process()
    keeper.send_signal(number)
    assert tree.status("/health") == 200
    assert keeper.is_running()
    service.terminate()
    assert service.wait(30) == 0
    tree.wait_until_nothing_runs()


@pytest.mark.parametrize("victim", ["supervisor", "server"])
def test_a_killed_service_leaves_nothing_running_and_its_port_free(tree: Tree, web_server: str, victim: str) -> None:
    service = tree.serve(WEB_SERVER=web_server)
    (psutil.Process(service.pid) if victim == "supervisor" else web_server_of(service)).kill()
    service.wait(30)
    wait_until(lambda: tree.status("/livez") is None, 5, what="a free port")
    tree.wait_until_nothing_runs()


def test_a_stale_pid_file_that_names_a_living_process_does_not_matter(tree: Tree) -> None:
    service = tree.serve()
    pid_file = tree.folder / ".postgres" / "data" / "postmaster.pid"
    stale = pid_file.read_text().split("\n")
    service.terminate()
    service.wait(30)
    tree.wait_until_nothing_runs()
    pid_file.write_text("\n".join([str(os.getpid()), *stale[1:]]))
    tree.serve()
    assert tree.status("/health") == 200


# --- health


def test_a_database_that_hangs_or_dies_is_reported_within_three_seconds_and_started_again(tree: Tree) -> None:
    tree.serve()
    postgres = tree.server_process()
    family = [postgres, *postgres.children(recursive=True)]
    for process in family:
        process.suspend()
    wait_until(lambda: tree.status("/health") == 503, 3, what="the report of a hanging database")
    started = time.monotonic()
    assert tree.ask("/health") == (503, b'{"status": "unavailable", "database": "unavailable"}')
    assert tree.status("/readyz") == 503
    assert tree.status("/livez") == 200
    assert time.monotonic() - started < 6
    for process in family:
        process.resume()
    wait_until(lambda: tree.status("/health") == 200, 10, what="the report of a healed database")

    postgres.kill()
    wait_until(lambda: tree.status("/health") == 503, 3, what="the report of a dead database")
    wait_until(lambda: tree.status("/health") == 200, what="the report of a database that was started again")


def test_a_database_that_was_killed_and_not_reaped_does_not_run(tmp_path: Path) -> None:
    cluster = embedded_cluster.Cluster(install=tmp_path, home=tmp_path, data=tmp_path, owner=None)
    with subprocess.Popen(["sleep", "60"]) as killed:
        (tmp_path / "postmaster.pid").write_text(f"{killed.pid}\n")
        wait_until(lambda: cluster.is_running, what="a running server")
        killed.kill()
        wait_until(lambda: psutil.Process(killed.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
        assert not cluster.is_running
    assert not cluster.is_running


def test_a_database_that_cannot_be_started_again_is_tried_until_it_can(tree: Tree) -> None:
    tree.serve()
    postgres = tree.server_process()
    folder, log = Path(postgres.cwd()), tree.folder / ".postgres" / "server.log"
    (folder / "postgresql.conf").rename(folder / "away")
    postgres.kill()
    # Twice: the log of the first attempt is gone once the second begins.
    for _ in range(2):
        wait_until(lambda: "could not access the server configuration file" in log.read_text(), what="a failed start")
        log.write_text("")
    (folder / "away").rename(folder / "postgresql.conf")
    wait_until(lambda: tree.status("/health") == 200, what="the report of a database that was started again")


def test_ready_means_migrated(tree: Tree) -> None:
    tree.serve(wait_for="/health", MIGRATE_ON_START="false")
    assert tree.ask("/readyz") == (
        503,
        b'{"status": "unavailable", "reason": "migrations are missing, or the role does not see the tables"}',
    )
    assert run("manage.py", "migrate", "--verbosity=0", cwd=tree.folder).returncode == 0
    assert tree.status("/readyz") == 200


def test_a_stopping_service_says_so_before_it_stops_serving(tree: Tree, web_server: str) -> None:
    service = tree.serve(WEB_SERVER=web_server, SHUTDOWN_DELAY_SECONDS="60")
    with closing(http.client.HTTPConnection("127.0.0.1", tree.port, timeout=10)) as pooled:

        def said_of_connection() -> str:
            pooled.request(
                "POST", "/messages/", '{"recipient": "ada", "content": "x"}', {"Content-Type": "application/json"}
            )
            response = pooled.getresponse()
            assert (response.status, len(response.read()) > 0) == (201, True)
            return response.getheader("Connection", "keep-alive")

        assert said_of_connection() == "keep-alive"
        service.send_signal(signal.SIGTERM)
        wait_until(lambda: tree.status("/readyz") == 503, what="503 from /readyz")
        assert said_of_connection() == "close"
    assert tree.status("/health") == tree.status("/livez") == 200
    # A worker that dies meanwhile is replaced by one that says so too.
    server = web_server_of(service)
    workers = server.children()
    workers[0].kill()
    wait_until(lambda: len(set(server.children()) - set(workers)) == 1, what="another worker")
    for _ in range(10):
        wait_until(lambda: tree.status("/readyz") == 503, what="503 from /readyz")
    service.send_signal(signal.SIGTERM)  # somebody who is in a hurry
    assert service.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_lets_running_requests_end(tree: Tree, web_server: str, number: signal.Signals) -> None:
    service = tree.serve(WEB_SERVER=web_server, POSTGRES_STATEMENT_TIMEOUT_MS="0", POSTGRES_LOCK_TIMEOUT_MS="0")
    with closing(tree.session()) as session, ThreadPoolExecutor() as pool:
        tree.post("/messages/", {"recipient": "ada", "content": "first"})
        session.execute("SELECT 1 FROM messaging_mailbox FOR UPDATE")
        answer = pool.submit(tree.post, "/messages/", {"recipient": "ada", "content": "second"})
        wait_until(lambda: is_waiting(session), what="a request that waits for the mailbox")
        service.send_signal(number)
        wait_until(lambda: tree.ask("/livez", timeout=1)[0] is None, what="the end of accepting")
        session.rollback()
        assert answer.result() == 201
    assert service.wait(30) == 0


def test_ctrl_c_does_not_wait_for_running_requests(tree: Tree, web_server: str) -> None:
    service = tree.serve(WEB_SERVER=web_server, GRACEFUL_TIMEOUT_SECONDS="600", POSTGRES_STATEMENT_TIMEOUT_MS="0",
                         POSTGRES_LOCK_TIMEOUT_MS="0")  # fmt: skip
    with closing(tree.session()) as session, ThreadPoolExecutor() as pool:
        tree.post("/messages/", {"recipient": "ada", "content": "first"})
        session.execute("SELECT 1 FROM messaging_mailbox FOR UPDATE")
        answer = pool.submit(tree.post, "/messages/", {"recipient": "ada", "content": "second"})
        wait_until(lambda: is_waiting(session), what="a request that waits for the mailbox")
        service.send_signal(signal.SIGINT)
        assert service.wait(30) == 0
        assert answer.result() is None


def test_a_start_that_waits_for_its_database_has_its_port_and_ends_by_sigterm() -> None:
    port = str(free_port())
    variables = {"SECRET_KEY": SECRET, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-m", "messages_project"],
        cwd=PROJECT_DIR, env=clean_environment(PORT=port, DATABASE_WAIT_SECONDS="600", **variables),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        assert "Waiting for PostgreSQL" in process.stderr.readline()
        # Both would listen in the end, and share the connections.
        assert f"127.0.0.1:{port} is in use by another process" in refusal(PORT=port)
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_a_stop_does_not_wait_for_workers_that_are_not_ready(tree: Tree, web_server: str) -> None:
    """On a busy machine a worker takes long until it has set its handlers."""
    module = tree.folder / "messages_project" / "web_servers.py"
    slow = """
from gunicorn.workers.gthread import ThreadWorker

def granian_worker(*_):
    sys.stderr.write("loading")
    multiprocessing.Event().wait()

ThreadWorker.init_signals = granian_worker
"""
    module.write_text(module.read_text() + slow)
    service = tree.serve(wait_for=None, WEB_SERVER=web_server, GRACEFUL_TIMEOUT_SECONDS="300")
    wait_until(lambda: tree.log.count("loading") == 2, what="two workers")
    service.send_signal(signal.SIGTERM)
    assert service.wait(30) == 0


def test_a_stop_does_not_wait_for_processes_that_were_just_forked(tree: Tree) -> None:
    module = tree.folder / "messages_project" / "supervisor.py"
    slow = """
def _run_child(_):
    sys.stderr.write("forked")
    time.sleep(300)
"""
    module.write_text(module.read_text() + slow)
    service = tree.serve(wait_for=None, GRACEFUL_TIMEOUT_SECONDS="300", WITH_COMPANIONS="true")
    wait_until(lambda: tree.log.count("forked") == 3, what="three processes")
    service.send_signal(signal.SIGTERM)
    assert service.wait(30) == 0


@pytest.mark.parametrize(
    ("command", "module"), [("serve", "web_servers.py"), ("live", "live.py"), ("upkeep", "upkeep.py")]
)
def test_a_signal_during_a_callback_of_python_ends_the_start(tree: Tree, command: str, module: str) -> None:
    """Python drops what the handler raises there."""
    signalled = """
import os, signal, weakref

def interrupt(_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000): pass

last = set()
watch = weakref.ref(last, interrupt)
del last
"""
    path = tree.folder / "messages_project" / module
    path.write_text(path.read_text() + signalled)
    ended = run("-m", "messages_project", command, cwd=tree.folder, PORT=str(tree.port), LIVE_PORT=str(free_port()))
    assert "Exception ignored in: <function interrupt" in ended.stderr
    assert "Serving" not in ended.stderr
    assert ended.returncode == 0


def test_a_signal_for_which_python_raises_another_error_ends_the_start(tree: Tree) -> None:
    signalled = """
class Interrupting:
    def __set_name__(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass

class Holder:
    attribute = Interrupting()
"""
    path = tree.folder / "messages_project" / "web_servers.py"
    path.write_text(path.read_text() + signalled)
    ended = run("-m", "messages_project", cwd=tree.folder, PORT=str(tree.port))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_service_runs_without_standard_streams(tree: Tree, web_server: str) -> None:
    """As a daemon starts it, that has closed them."""
    service = tree.serve("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", WEB_SERVER=web_server, WITH_COMPANIONS="true")
    service.send_signal(signal.SIGTERM)
    assert service.wait(30) == 0


def test_an_ignored_hangup_stays_ignored(tree: Tree, web_server: str) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        service = tree.serve(WEB_SERVER=web_server)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # The process group of a terminal's job.
    os.killpg(service.pid, signal.SIGHUP)
    # With a handler for it, the service would have stopped; a signal that is ignored leaves no trace to wait for.
    ignored = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{service.pid}/status").read_text(), re.MULTILINE)
    assert ignored is not None
    assert int(ignored[1], 16) & 1 << (signal.SIGHUP - 1)
    assert tree.status("/livez") == 200
    service.send_signal(signal.SIGTERM)
    assert service.wait(30) == 0
    assert "has ended" not in tree.log


def test_services_that_start_at_once_migrate_once(tree: Tree) -> None:
    ports = [free_port() for _ in range(3)]
    for port in ports:
        tree.serve(wait_for=None, PORT=str(port), WEB_CONCURRENCY="1")
    wait_until(lambda: all(tree.status("/readyz", port) == 200 for port in ports), what="three services")
    # Two that apply one migration at once cannot both succeed.
    assert "could not be applied" not in tree.log
