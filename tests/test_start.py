"""What a start makes of the database that it finds: waits for it, uses it, or says what is wrong with it."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.postgres_servers import PostgresServer
from tests.programs import without
from tests.servers import PROJECT_DIR, RunningServer, free_port, wait_until
from tests.test_process import SECRET, clean_environment, refusal, run


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def test_a_database_in_another_encoding_is_refused_with_the_cure(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        session.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    for name, encoding in (("latin", "LATIN1"), ("ascii", "SQL_ASCII")):
        said = refusal(**postgres.variables | {"POSTGRES_DB": name, "PORT": str(free_port())})
        assert f"encoding is {encoding}, not UTF8" in said
        assert "CREATE DATABASE messages ENCODING 'UTF8'" in said


def test_a_missing_privilege_is_reported_by_the_start_and_by_readiness(postgres: PostgresServer) -> None:
    variables = postgres.variables | {"POSTGRES_DB": "granted", "SECRET_KEY": SECRET, "MESSAGES_ACCESS": "open"}
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE granted")
        session.execute("CREATE ROLE teller LOGIN")
    with RunningServer(**variables):
        pass  # has migrated it
    limited = variables | {"POSTGRES_USER": "teller"}
    with postgres.session("granted") as session:
        session.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO teller")
        said = refusal(**limited | {"PORT": str(free_port())})
        assert "the database role lacks" in said
        assert "DELETE, INSERT, UPDATE on messaging_message" in said
        assert "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES" in said
        session.execute("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO teller")
        session.execute("REVOKE SELECT ON django_migrations FROM teller")
        said = refusal(**limited | {"PORT": str(free_port())})
        assert "lacks SELECT on django_migrations." in said
        session.execute("GRANT SELECT ON django_migrations TO teller")
        with RunningServer(**limited) as server:
            session.execute("REVOKE DELETE ON messaging_message FROM teller")
            answer = None

            def tells() -> bool:
                nonlocal answer
                answer = server.api().get("/readyz")
                return answer.status == 503

            wait_until(tells, what="503 from /readyz")
            assert answer is not None
            assert answer.json["reason"].endswith("lacks DELETE on messaging_message")
            assert server.api().get("/health").status == 200


HIDING = (
    (
        "migrations are missing, or the role does not see the tables",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
    ),
    (
        "row level security hides rows of messaging_message",
        "ALTER TABLE messaging_message ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE messaging_message DISABLE ROW LEVEL SECURITY",
    ),
)


def test_tables_that_vanish_or_hide_rows_are_reported_by_readiness(postgres: PostgresServer) -> None:
    variables = postgres.variables | {"POSTGRES_DB": "hidden", "MESSAGES_ACCESS": "open"}
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE hidden")
        session.execute("CREATE ROLE keeper LOGIN")
    assert migrating(**variables).returncode == 0
    variables |= {"POSTGRES_USER": "keeper", "MIGRATE_ON_START": "false", "SECRET_KEY": SECRET}
    with postgres.session("hidden") as session:
        session.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO keeper")
        with RunningServer(**variables) as server:
            api = server.api()
            path = f"/messages/{api.send('ada')['id']}"
            for reason, change, back in HIDING:
                session.execute(change)
                wait_until(lambda: api.get("/readyz").status == 503, what="503 from /readyz")
                assert api.get("/readyz").json["reason"] == reason
                api.get(path).expect(503, "database_unavailable")
                if "security" in reason:
                    said = refusal(**variables | {"PORT": str(free_port())})
                    assert f"{reason}.\nALTER ROLE keeper BYPASSRLS;" in said
                session.execute(back)
                wait_until(lambda: api.get("/readyz").status == 200, what="200 from /readyz")
                api.get(path).expect(200)


def test_the_cure_of_a_missing_privilege_names_the_schema_of_the_tables(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE elsewhere")
        session.execute('CREATE ROLE "the clerk" LOGIN')
        session.execute("ALTER DATABASE elsewhere SET search_path = app")
    variables = postgres.variables | {"POSTGRES_DB": "elsewhere", "PORT": str(free_port())}
    with postgres.session("elsewhere") as session:
        session.execute("CREATE SCHEMA app")
        assert migrating(**variables).returncode == 0
        session.execute('GRANT USAGE ON SCHEMA app TO "the clerk"')
    assert 'ON ALL TABLES IN SCHEMA app TO "the clerk";' in refusal(**variables | {"POSTGRES_USER": "the clerk"})


def migrating(**variables: str) -> "subprocess.CompletedProcess[str]":
    """What `manage.py migrate` says and returns."""
    return run("manage.py", "migrate", SECRET_KEY=SECRET, **variables)


def test_a_role_that_may_not_create_tables_is_told_so(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE closed")
        session.execute("CREATE ROLE visitor LOGIN")
    variables = postgres.variables | {"POSTGRES_DB": "closed", "POSTGRES_USER": "visitor", "PORT": str(free_port())}
    assert "could not be applied: permission denied for schema public\n" in refusal(**variables)
    assert migrating(**variables).stderr == "The database refuses this: permission denied for schema public.\n"


def test_a_start_needs_no_second_connection_at_a_time(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
        session.execute("CREATE DATABASE single OWNER single")
    variables = postgres.variables | {"POSTGRES_DB": "single", "POSTGRES_USER": "single", "PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, "-m", "messages_project"],
        cwd=PROJECT_DIR, env=clean_environment(SECRET_KEY=SECRET, WEB_CONCURRENCY="1", **variables),
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = []
        while "Serving on" not in (line := process.stderr.readline()):
            said.append(line)
            assert line, said
        process.terminate()


THREADS_BEFORE_FORKS = """
import os, sys, threading
threads = []
def note(*_event):
    threads.append(threading.current_thread())
    sys.setprofile(None)
threading.setprofile(note)
os.register_at_fork(before=lambda: os.write(2, b"forks after %d threads\\n" % len(threads)))
"""


def test_a_start_forks_before_any_thread_has_used_openssl(postgres: PostgresServer, tmp_path: Path) -> None:
    """What such a thread holds while it ends would be held for ever in the processes that serve."""
    (tmp_path / "sitecustomize.py").write_text(THREADS_BEFORE_FORKS)
    with RunningServer(SECRET_KEY=SECRET, PYTHONPATH=str(tmp_path), **postgres.variables) as server:
        forks = [line for line in server.log.splitlines() if line.startswith("forks after")]
    assert forks[0] == "forks after 0 threads"


def test_migrations_need_no_temporary_tables(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE strict")
        session.execute("CREATE ROLE builder LOGIN")
        session.execute("REVOKE ALL ON DATABASE strict FROM PUBLIC")
        session.execute("GRANT CONNECT ON DATABASE strict TO builder")
    with postgres.session("strict") as session:
        session.execute("GRANT CREATE ON SCHEMA public TO builder")
    migrated = migrating(**postgres.variables | {"POSTGRES_DB": "strict", "POSTGRES_USER": "builder"})
    assert migrated.returncode == 0, migrated.stderr


def test_a_sequence_that_was_not_replicated_is_refused_with_the_cure(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE subscriber")
    variables = postgres.variables | {"POSTGRES_DB": "subscriber", "SECRET_KEY": SECRET, "MESSAGES_ACCESS": "open"}
    with RunningServer(**variables) as server, postgres.session("subscriber") as session:
        server.api().send("ada")
        session.execute("ALTER TABLE messaging_mailbox ALTER COLUMN id RESTART")
        wait_until(lambda: server.api().get("/readyz").status == 503, what="503 from /readyz")
        said = refusal(**variables | {"PORT": str(free_port())})
        assert "the sequence of mailbox ids is behind them" in said
        session.execute(said.splitlines()[1].encode())
        wait_until(lambda: server.api().get("/readyz").status == 200, what="200 from /readyz")


def test_a_foreign_sequence_that_cannot_be_read_does_not_matter(postgres: PostgresServer) -> None:
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE neighbours")
    variables = postgres.variables | {"POSTGRES_DB": "neighbours", "SECRET_KEY": SECRET, "MESSAGES_ACCESS": "open"}
    with postgres.session("neighbours") as session:
        session.execute("CREATE SEQUENCE foreign_ids")
        with session.transaction():
            session.execute("ALTER SEQUENCE foreign_ids RESTART")  # who reads it waits for the end of the transaction
            with RunningServer(**variables) as server:
                server.api().get("/readyz").expect(200)


def test_a_read_only_database_is_not_ready_until_it_is_writable(postgres: PostgresServer) -> None:
    variables = postgres.variables | {"POSTGRES_DB": "demoted", "SECRET_KEY": SECRET, "MESSAGES_ACCESS": "open"}
    with postgres.session("postgres") as session:
        session.execute("CREATE DATABASE demoted")
        with RunningServer(**variables) as server:
            api = server.api()
            session.execute("ALTER DATABASE demoted SET default_transaction_read_only = on")
            wait_until(lambda: api.get("/readyz").status == 503, what="503 from /readyz")
            assert api.get("/readyz").json["reason"] == "the database is read-only"
            session.execute("ALTER DATABASE demoted SET default_transaction_read_only = off")
            wait_until(lambda: api.get("/readyz").status == 200, what="200 from /readyz")


@pytest.mark.process
@pytest.mark.parametrize("reason", ["no server", "starting up", "no connection left"])
def test_a_start_waits_for_a_database_that_will_answer(reason: str) -> None:
    with PostgresServer(max_connections="8", superuser_reserved_connections="2") as postgres:
        with postgres.session("postgres") as session:
            session.execute("CREATE ROLE plain LOGIN")
            session.execute("GRANT ALL ON DATABASE messages TO plain")
            session.execute("ALTER DATABASE messages OWNER TO plain")
        guests = []
        if reason == "no server":
            postgres.stop()
        elif reason == "starting up":
            postgres.stop()
            postgres.start_refusing()
        else:
            while True:
                try:
                    guests.append(
                        psycopg.connect(host="127.0.0.1", port=postgres.port, user="plain", dbname="messages")
                    )
                except psycopg.OperationalError:
                    break
        variables = postgres.variables | {"POSTGRES_USER": "plain", "SECRET_KEY": SECRET, "PORT": str(free_port())}
        process = subprocess.Popen(
            [sys.executable, "-m", "messages_project"],
            cwd=PROJECT_DIR, env=clean_environment(DATABASE_WAIT_SECONDS="120", WEB_CONCURRENCY="1", **variables),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert process.stderr is not None
            assert "Waiting for PostgreSQL" in process.stderr.readline()
            for guest in guests:
                guest.close()
            if reason == "no server":
                postgres.start()
            elif reason == "starting up":
                postgres.promote()
            while "Serving on" not in (line := process.stderr.readline()):
                assert line, "it has ended"
            process.terminate()
            assert process.wait(30) == 0
            process.stderr.read()


def test_a_database_that_refuses_is_reported_while_waiting_and_at_the_end(postgres: PostgresServer) -> None:
    said = refusal(**postgres.variables | {"POSTGRES_DB": "nowhere"}, PORT=str(free_port()), DATABASE_WAIT_SECONDS="1")
    waiting, end = said.splitlines()[:2]
    assert waiting.startswith("Waiting for PostgreSQL at 127.0.0.1:")
    assert 'database "nowhere" does not exist' in waiting
    assert 'database "nowhere" does not exist' in end


def test_a_low_limit_of_open_files_is_reported_and_limits_connections(run_server: Callable[..., RunningServer]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = subprocess.run(
        ["prlimit", "--nofile=180", sys.executable, "-m", "messages_project"],
        cwd=PROJECT_DIR, env=clean_environment(SECRET_KEY=SECRET, POSTGRES_HOST="127.0.0.1", PORT=str(free_port())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    assert "ulimit -n 1150" in said.stderr
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0], limits[1]))
    server = run_server()
    for worker in server.workers():
        soft, _ = worker.rlimit(resource.RLIMIT_NOFILE)
        assert soft == resource.RLIM_INFINITY or soft >= 1_150


def with_shared_memory(options: str) -> tuple[str, ...]:
    """What starts a command in a mount namespace of its own, where /dev/shm is mounted with these options."""
    mount = f'mount -t tmpfs -o {options} small /dev/shm && exec "$0" "$@"'
    launcher = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount)
    if subprocess.run([*launcher, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    return launcher


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_shared_memory_that_is_full_or_read_only_kills_no_worker(
    postgres: PostgresServer, web_server: str, options: str
) -> None:
    class Server(RunningServer):
        launcher = with_shared_memory(options)

    with Server(**postgres.variables, MESSAGES_ACCESS="open", WEB_SERVER=web_server) as server:
        server.api().send("ada")
        assert server.api().get("/metrics", headers={"Accept": "text/plain"}).status == 200


def test_a_start_without_room_for_metrics_says_so() -> None:
    done = subprocess.run(
        [*with_shared_memory("size=1m"), sys.executable, "-m", "messages_project"], cwd=PROJECT_DIR, check=False,
        capture_output=True, text=True,
        env=clean_environment(SECRET_KEY=SECRET, POSTGRES_HOST="127.0.0.1", TMPDIR="/dev/shm"),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Metrics need 16 MiB in /dev/shm or in a directory for temporary files. Make room")


class WithFullLog(RunningServer):
    """Its log is on a disk that is full."""

    def _start(self) -> "subprocess.Popen[bytes]":
        self._log.close()
        self._log = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        return super()._start()


def test_a_full_disk_of_logs_prevents_neither_start_nor_service(postgres: PostgresServer, web_server: str) -> None:
    with WithFullLog(**postgres.variables, MESSAGES_ACCESS="open", WEB_SERVER=web_server) as server:
        server.api().send("ada")
        assert server.stop() == 0


def test_signals_of_log_rotation_are_ignored(
    run_server: Callable[..., RunningServer], run_live: Callable[..., RunningServer]
) -> None:
    require_ignored_rotation(run_server(WEB_CONCURRENCY="1").process)
    require_ignored_rotation(run_live().process)


def require_ignored_rotation(service: "subprocess.Popen[bytes]") -> None:
    # The kernel delivers the lower number first.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        service.send_signal(number)
    assert service.wait(30) == 0


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_repeated_signal_does_not_change_the_exit_status(postgres: PostgresServer, number: signal.Signals) -> None:
    with RunningServer(SECRET_KEY=SECRET, **postgres.variables) as server:
        server.process.send_signal(number)
        psutil.wait_procs(server.children())
        while server.process.poll() is None:
            server.process.send_signal(number)
        assert server.process.returncode == 0


@pytest.mark.process
@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
def test_tls_to_postgresql(tmp_path: Path, mode: str) -> None:
    if not shutil.which("openssl"):
        without("openssl", "apt install openssl")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with PostgresServer(tls=(certificate, key)) as postgres:
        tls = {"POSTGRES_SSLMODE": mode, "SECRET_KEY": SECRET, "MESSAGES_ACCESS": "open"}
        trusted = tls if mode == "require" else tls | {"POSTGRES_SSLROOTCERT": str(certificate)}
        with RunningServer(**postgres.variables | trusted) as server:
            server.api().send("ada")
            with postgres.session() as session:
                row = session.execute(
                    "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                    " WHERE application_name = 'messages'"
                ).fetchone()
            assert row == (True,)
        if mode != "require":
            said = refusal(**postgres.variables | tls, PORT=str(free_port()), DATABASE_WAIT_SECONDS="0")
            assert "certificate" in said
        if mode == "verify-full":
            # OpenSSL takes SSL_CERT_FILE for the system's CAs.
            system = tls | {"POSTGRES_SSLROOTCERT": "system", "SSL_CERT_FILE": str(certificate)}
            with RunningServer(**postgres.variables | system) as server:
                server.api().send("ada")
