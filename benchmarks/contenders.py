"""The two APIs under test: how each is filled, served and asked. What they are asked for is in works.py."""

import http.client
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from benchmarks.postgres import Server, free_port

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2
Answer = tuple[int, dict[str, str], bytes]  # status, headers in lower case, body
BUSY = """
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND state <> 'idle' AND pid <> pg_backend_pid() LIMIT 1
"""
BACKENDS = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()
"""
# The limits that docs/operations.md recommends, and as many keys as it takes to stay below them.
RATE_LIMIT_READ, RATE_LIMIT_WRITE, KEYS = "600/min", "300/min", 1_000
MAKE_KEYS = f"""
import django
django.setup()
from messaging.auth import keys
for number in range({KEYS}):
    print(keys.create(name=f"benchmark {{number}}", scopes=("send", "read", "manage"))[1])
"""


@dataclass
class Contender(ABC):
    """One API with its own database on the common server; subclasses say how it is filled and how it starts."""

    table: ClassVar[str]  # of its messages
    name: str
    server: Server
    port: int = field(default_factory=free_port)
    tokens: list[str] = field(default_factory=list)
    asked: int = 0  # requests by `ask_all` so far
    notes: list[str] = field(default_factory=list)
    kept: dict[Any, Any] = field(default_factory=dict)  # what a work found out once
    process: subprocess.Popen[bytes] | None = None

    def connect(self) -> psycopg.Connection:
        return self.server.connect(self.name)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def create(self) -> None:
        """Makes the database and its tables, empty, and the view `bench_message` (id, recipient, is_read)."""

    @abstractmethod
    def add_messages(self, recipients: str, each: int, days: int = 0) -> None:
        """Adds `each` messages of 200 characters, half of them read, to every mailbox LIKE `recipients`, taking turns.

        They are spread evenly over the last `days`; 0 makes all of them new.
        """

    def add_mailboxes(self, names: Sequence[str]) -> None:
        with self.connect() as connection:
            connection.execute("INSERT INTO bench_recipient SELECT unnest(%s::text[])", (list(names),))

    def run_tool(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            check=False,
            env=self.environment() | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serves it with two processes; its output, access lines included, goes to a file beside the data."""
        log = self.server.directory / f"{self.name}.log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(), env=self.environment(), cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        try:
            self.wait_until_ready(log)
            yield
        finally:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def wait_until_ready(self, log: Path, seconds: float = 60) -> None:
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.ask("GET", "/health")[0] == 200 and len(self.pids()) >= PROCESSES:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"{self.name} does not answer on port {self.port}:\n{log.read_text()[-3000:]}")

    def pids(self) -> list[int]:
        """The serving processes below the one that was started."""
        assert self.process is not None
        found, parents = [], [self.process.pid]
        while parents:
            children = Path(f"/proc/{parents[-1]}/task/{parents.pop()}/children").read_text().split()
            found += [int(pid) for pid in children]
            parents += [int(pid) for pid in children]
        return found

    def backends(self) -> list[int]:
        """PostgreSQL's processes that serve its connections."""
        with self.connect() as connection:
            return [pid for (pid,) in connection.execute(BACKENDS)]

    def settle(self, seconds: float = 60, looks: int = 1) -> None:
        """Waits until its processes have finished what was under way when the load stopped: `looks` find them idle."""
        deadline, before, idle = time.monotonic() + seconds, -1.0, 0
        with self.connect() as connection:
            while time.monotonic() < deadline:
                spent = processor_seconds(self.pids())
                is_idle = spent - before < 0.02 and connection.execute(BUSY).fetchone() is None
                idle = idle + 1 if is_idle else 0
                if idle == looks:
                    return
                before = spent
                time.sleep(0.1)
        raise SystemExit(f"{self.name} is still busy {seconds} seconds after the load has stopped")

    def ask(self, method: str, path: str, body: str = "", etag: str = "") -> Answer:
        """One request on a connection of its own."""
        [answer] = self.ask_all([(method, path, body, etag)])
        return answer

    def ask_all(self, requests: Iterable[Sequence[str]]) -> list[Answer]:
        """Requests (method, path, and perhaps body and entity tag) one after the other on one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        answers = []
        for method, path, *rest in requests:
            body, etag = (*rest, "", "")[:2]
            headers = {}
            if self.tokens:
                # Each request by the next key, so that no key reaches its limit.
                self.asked += 1
                headers["Authorization"] = f"Bearer {self.tokens[self.asked % len(self.tokens)]}"
            if body:
                headers["Content-Type"] = "application/json"
            if etag:
                headers["If-None-Match"] = etag
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            answers.append((answer.status, {key.lower(): value for key, value in answer.getheaders()}, content))
        connection.close()
        return answers


class Opponent(Contender):
    table = "message"

    def environment(self) -> dict[str, str]:
        return super().environment() | self.server.variables(self.name)

    def command(self) -> list[str]:
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", str(PROCESSES)]
        return [sys.executable, "-m", "uvicorn", "benchmarks.opponent.main:app", *address]

    def create(self) -> None:
        self.server.create_database(self.name)
        done = self.run_tool("-c", "from benchmarks.opponent import database, models; database.create_tables()")
        if done.returncode:
            raise SystemExit(done.stderr)
        with self.connect() as connection:
            connection.execute("CREATE TABLE bench_recipient (recipient text)")
            connection.execute(
                "CREATE VIEW bench_message AS SELECT id, recipient, read_at IS NOT NULL AS is_read FROM message"
            )

    def add_messages(self, recipients: str, each: int, days: int = 0) -> None:
        with self.connect() as connection:
            connection.execute(
                """
                INSERT INTO message (id, recipient, sender, content, extra, created_at, read_at)
                SELECT uuidv7(-age), recipient, 'benchmark', left(repeat(md5(n || recipient), 7), 200), '{}',
                       now() - age, CASE WHEN n %% 2 = 0 THEN now() END
                FROM generate_series(1, %(each)s) AS n,
                     make_interval(secs => %(days)s * 86400.0 * (1 - n / %(each)s::float)) AS age,
                     bench_recipient
                WHERE recipient LIKE %(recipients)s
                ORDER BY n
                """,
                {"recipients": recipients, "each": each, "days": days},
            )
            connection.execute("VACUUM ANALYZE message")


class Product(Contender):
    table = "messaging_message"
    web_server = "gunicorn"
    page_cache_bytes: int | None = None  # the product's default

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.server.port),
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": "postgres",
            "POSTGRES_DB": self.name,
            "BIND": "127.0.0.1",
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(PROCESSES),
            "SECRET_KEY": "benchmark-only-" + "0123456789abcdef" * 4,
            "DJANGO_SETTINGS_MODULE": "messages_project.settings",
            "MESSAGES_RATE_LIMIT_READ": RATE_LIMIT_READ,
            "MESSAGES_RATE_LIMIT_WRITE": RATE_LIMIT_WRITE,
            "MESSAGES_PAGE_CACHE_BYTES": "" if self.page_cache_bytes is None else str(self.page_cache_bytes),
            "WEB_SERVER": self.web_server,
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "messages_project"]

    def create(self) -> None:
        self.server.create_database(self.name)
        done = self.run_tool("-m", "django", "migrate", "--verbosity", "0")
        if done.returncode:
            raise SystemExit(done.stderr)
        made = self.run_tool("-c", MAKE_KEYS)
        if made.returncode:
            raise SystemExit(made.stderr)
        self.tokens = made.stdout.split()
        self.create_view()

    def create_view(self) -> None:
        with self.connect() as connection:
            connection.execute(
                """
                CREATE VIEW bench_message AS SELECT message.id, recipient, read_at IS NOT NULL AS is_read, seq
                    FROM messaging_message AS message JOIN messaging_mailbox AS mailbox ON mailbox.id = mailbox_id
                        AND mailbox.bucket = message.bucket
                """
            )

    def distribute(self, partitions: int) -> None:
        """Puts the tables into partitions; their view has to go meanwhile."""
        with self.connect() as connection:
            connection.execute("DROP VIEW bench_message")
        done = self.run_tool("-m", "django", "distribute", "--partitions", str(partitions), "--verbosity", "0")
        if done.returncode:
            raise SystemExit(done.stderr)
        self.create_view()
        with self.connect() as connection:
            connection.execute("VACUUM ANALYZE")

    def add_mailboxes(self, names: Sequence[str]) -> None:
        buckets = [int.from_bytes(blake2b(name.encode()).digest()[:2]) % 4096 for name in names]
        with self.connect() as connection:
            connection.execute(
                """
                INSERT INTO messaging_mailbox (recipient, bucket, version, total, unread)
                SELECT recipient, bucket, 0, 0, 0 FROM unnest(%s::text[], %s::smallint[]) AS a (recipient, bucket)
                """,
                (list(names), buckets),
            )

    def add_messages(self, recipients: str, each: int, days: int = 0) -> None:
        with self.connect() as connection, connection.transaction():
            # The rows are right by construction, so their foreign keys are not checked.
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(
                """
                WITH grown AS (
                    UPDATE messaging_mailbox
                    SET version = version + %(each)s, total = total + %(each)s,
                        unread = unread + %(each)s - %(each)s / 2
                    WHERE recipient LIKE %(recipients)s
                    RETURNING id, bucket, recipient, version
                )
                INSERT INTO messaging_message
                    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, read_at)
                SELECT (left(uuidv7(-age)::text, 33) || lpad(to_hex(bucket::int), 3, '0'))::uuid,
                       bucket, id, version - %(each)s + n, 'benchmark',
                       left(repeat(md5(n || recipient), 7), 200),
                       '{}', now() - age, CASE WHEN n %% 2 = 0 THEN now() END
                FROM generate_series(1, %(each)s) AS n,
                     make_interval(secs => %(days)s * 86400.0 * (1 - n / %(each)s::float)) AS age,
                     grown
                ORDER BY n
                """,
                {"recipients": recipients, "each": each, "days": days},
            )
        with self.connect() as connection:
            connection.execute("VACUUM ANALYZE messaging_message, messaging_mailbox")

    def send_statement(self) -> str:
        """The statement that sends, as the product has it: with `%(name)s` for its parameters."""
        done = self.run_tool("-c", "import django; django.setup(); from messaging.statements import SEND; print(SEND)")
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout

    def seeding_seconds(self, messages: int) -> float:
        """How long `seed` takes for so many messages to a thousand mailboxes, its start included."""
        started = time.monotonic()
        done = self.run_tool(
            "-m", "django", "seed", "--messages", str(messages), "--recipients", "1000", "--verbosity", "0"
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return time.monotonic() - started

    def mailbox_faults(self) -> str:
        """What `check_mailboxes` finds after it all: nothing, or the run is void."""
        done = self.run_tool("-m", "django", "check_mailboxes")
        return "" if done.returncode == 0 else done.stdout + done.stderr


class Granian(Product):
    """The product behind the other server that it supports."""

    web_server = "granian"


def processor_seconds(pids: Iterable[int]) -> float:
    """What these processes have spent on the processor so far; one that has ended counts for nothing."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def count_messages(contender: Contender) -> int:
    with contender.connect() as connection:
        row = connection.execute(f"SELECT count(*) FROM {contender.table}").fetchone()
        return int(row[0]) if row else 0
