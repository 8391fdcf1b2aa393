"""The deployed HAProxy configuration before two real services: slow clients are not felt, restarts lose nothing."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import document
from tests.deploy.certificates import write_certificate
from tests.deploy.haproxy import HAProxy
from tests.helpers import Api, Network
from tests.live_servers import RunningLive, Stream
from tests.programs import program
from tests.servers import PROJECT_DIR, RunningServer, free_port, wait_until

pytestmark = pytest.mark.process

THREADS = 2  # of each service
ATTACKERS = 4 * THREADS  # twice as many as both services have threads
# The attackers come from an address of their own.
ELSEWHERE = ("127.0.0.2", 0)

Start = Callable[..., HAProxy]


@pytest.fixture
def variables(web_server: str) -> dict[str, str]:
    """Of a service with open access and few threads, stopped as in the compose file."""
    program("haproxy")
    return {
        "WEB_SERVER": web_server, "MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "WEB_THREADS": str(THREADS),
        "SHUTDOWN_DELAY_SECONDS": "3", "TRUST_FORWARDED_PROTO": "true", "MESSAGES_TRUSTED_PROXIES": "1",
    }  # fmt: skip


@pytest.fixture
def services(
    transactional_db: None, share_server: Callable[..., RunningServer], variables: dict[str, str]
) -> list[RunningServer]:
    return [share_server(f"{variables['WEB_SERVER']} {name}", **variables) for name in "ab"]


@pytest.fixture
def restarted_services(
    run_server: Callable[..., RunningServer], variables: dict[str, str]
) -> Iterator[list[RunningServer]]:
    started = [run_server(**variables) for _ in range(2)]
    yield started
    for service in started:
        service.kill()  # it would wait for SHUTDOWN_DELAY_SECONDS


@pytest.fixture
def start_proxy(services: list[RunningServer]) -> Iterator[Start]:
    with ExitStack() as running:
        yield lambda **variables: running.enter_context(HAProxy(*(service.port for service in services), **variables))


@pytest.fixture
def proxy(start_proxy: Start) -> HAProxy:
    return start_proxy()


@pytest.fixture
def api(proxy: HAProxy) -> Iterator[Api]:
    """A client of the service, through the proxy."""
    network = Network(proxy.url)
    yield Api(network)
    network.close()


@contextmanager
def attackers(proxy: HAProxy, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as opened:
        address = ("127.0.0.1", proxy.port)
        yield [
            opened.enter_context(socket.create_connection(address, timeout=20, source_address=ELSEWHERE))
            for _ in range(count)
        ]


@contextmanager
def repeating(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` again and again beside the block."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(0.2):
            work()

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(repeat)
        try:
            yield
        finally:
            is_over.set()
        task.result()


def use(api: Api) -> None:
    """What a well-behaved client does. Each answer must come in a time that no attacked service would keep."""
    for _ in range(20):
        started = time.monotonic()
        message = api.send("bob")
        api.get("/messages/", {"recipient": "bob", "limit": 5}).expect(200)
        api.delete(f"/messages/{message['id']}").expect(204)
        assert time.monotonic() - started < 5


def test_bodies_that_trickle_hold_no_thread(proxy: HAProxy, api: Api) -> None:
    head = b"POST /messages/%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with attackers(proxy, 2 * ATTACKERS) as slow:
        for client in slow[:ATTACKERS]:
            # A first piece larger than any buffer of the usual size.
            client.sendall(head % b"batch" + b"Transfer-Encoding: chunked\r\n\r\n10000\r\n" + b" " * 0x10000 + b"\r\n")
        for client in slow[ATTACKERS:]:
            client.sendall(head % b"" + b"Content-Length: 1000\r\n\r\n{")

        def trickle() -> None:
            for client in slow:
                with suppress(OSError):  # the proxy has refused it
                    client.sendall(b"1\r\n \r\n")

        with repeating(trickle):
            use(api)


def test_a_body_that_never_comes_is_refused_by_its_length(proxy: HAProxy, api: Api) -> None:
    with attackers(proxy, ATTACKERS) as slow:
        for client in slow:
            client.sendall(b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n")
        use(api)
        for client in slow:
            head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 ")
            assert json.loads(body)["code"] == "body_too_large"


def test_connections_left_open_after_the_answer_hold_nothing(proxy: HAProxy, api: Api) -> None:
    with attackers(proxy, ATTACKERS) as slow:
        for client in slow:
            client.sendall(b"GET /mailbox?recipient=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        use(api)


def test_answers_that_are_read_slowly_hold_no_thread(proxy: HAProxy, api: Api) -> None:
    large = {"recipient": "large", "content": "\N{GRINNING FACE}" * 10_000}
    for _ in range(4):
        api.post("/messages/batch", {"messages": [large] * 50}).expect(201)
    with ExitStack() as opened:
        slow = []
        for _ in range(ATTACKERS):
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.bind(ELSEWHERE)
            client.connect(("127.0.0.1", proxy.port))
            client.sendall(b"GET /messages/?recipient=large&limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            slow.append(client)

        def sip() -> None:
            for client in slow:
                client.recv(25_000)

        with repeating(sip):
            use(api)


def test_thousands_of_idle_connections_do_not_block_others(start_proxy: Start) -> None:
    proxy = start_proxy(MAX_CONNECTIONS_PER_ADDRESS="100000")
    network = Network(proxy.url)
    with attackers(proxy, 5_000):
        use(Api(network))
    network.close()


def ask(client: socket.socket) -> None:
    client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if client.recv(12) != b"HTTP/1.1 200":
        raise ConnectionResetError


def test_one_address_has_a_limited_number_of_connections(start_proxy: Start) -> None:
    proxy = start_proxy(MAX_CONNECTIONS_PER_ADDRESS="5")
    with attackers(proxy, 5) as opened:
        for client in opened:
            ask(client)
        with pytest.raises(ConnectionError), attackers(proxy, 1) as (sixth,):
            ask(sixth)


def under_way(proxy: HAProxy, *addresses: bytes) -> int:
    """How many requests of these addresses, which a trusted proxy names, are under way when one more is refused."""
    head = b"%b /livez HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: %b\r\n"
    with attackers(proxy, len(addresses)) as opened:
        for begun, (client, address) in enumerate(zip(opened, addresses, strict=True)):
            client.sendall(head % (b"GET", address) + b"\r\n")
            if client.recv(65_536)[9:12] == b"429":
                return begun
            client.sendall(head % (b"POST", address) + b"Content-Length: 1000\r\n\r\n{")
    return len(addresses)


def test_one_address_has_a_limited_number_of_requests_at_a_time(start_proxy: Start) -> None:
    proxy = start_proxy(MAX_REQUESTS_PER_ADDRESS="5", TRUSTED_PROXIES="127.0.0.2")
    # More than five: the last ones may not have arrived.
    assert 5 <= under_way(proxy, *[b"203.0.113.9"] * 30) < 30
    assert 5 <= under_way(proxy, *[b"2001:db8:0:9::%x" % n for n in range(30)]) < 30  # one /64
    assert under_way(proxy, *[b"2001:db8:0:%x::9" % n for n in range(30)]) == 30


# --- TLS


def test_http2_and_the_redirect_to_tls(start_proxy: Start, tmp_path: Path) -> None:
    certificate, port = tmp_path / "certificate.pem", free_port()
    write_certificate(certificate)
    proxy = start_proxy(TLS_CERTIFICATE=str(certificate), LISTEN_TLS=f"127.0.0.1:{port}")
    curl = [
        program("curl"),
        "--silent",
        "--insecure",
        "--output",
        "-",
        "--write-out",
        "\n%{http_version} %{http_code} ",
    ]
    sent = subprocess.run(
        [*curl, "--http2", f"https://localhost:{port}/messages/", "-H", "Content-Type: application/json",
         "--data", '{"recipient": "ann", "content": "x"}'],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert sent.stdout.endswith("\n2 201 "), sent.stdout
    plain = subprocess.run([*curl, f"http://localhost:{proxy.port}/livez"], check=True, capture_output=True, text=True)
    assert plain.stdout == "\n1.1 308 "


# --- streams


def test_streams_are_led_to_live_and_pass_at_once(start_proxy: Start, run_live: Callable[..., RunningLive]) -> None:
    live = run_live(MESSAGES_ACCESS="open")
    proxy = start_proxy(live=f"127.0.0.1:{live.port}")
    network = Network(proxy.url)
    with Stream(proxy.port, recipient="ada") as stream:
        stream.wait_for(0)
        Api(network).send("ada")
        stream.wait_for(1)
    waited = network("GET", "/mailbox/wait?recipient=ada&version=0", {}, b"").expect(200)
    assert waited.json["version"] == 1
    network.close()


def test_refusals_of_bodies_that_nobody_reads_come_through(proxy: HAProxy) -> None:
    for _ in range(10):
        connection = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
        # The proxy takes it for a batch, and forwards all of it.
        path, body = "/nowhere/messages/batch", iter([b" " * 5_000_000])
        connection.request("POST", path, body, {"Host": "localhost"}, encode_chunked=True)
        assert connection.getresponse().status == 404
        connection.close()


# --- forwarded headers


def next_link(proxy: HAProxy, **headers: str) -> str:
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("GET", "/messages/?recipient=ann&limit=1", headers={"Host": "localhost"} | headers)
    link: str = json.loads(connection.getresponse().read())["next"]
    connection.close()
    return link


def test_forwarded_headers_of_a_client_are_not_believed(proxy: HAProxy, api: Api) -> None:
    for _ in range(2):
        api.send("ann")
    lies = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    assert next_link(proxy, **lies).startswith("http://localhost/messages/")


def test_forwarded_headers_of_a_trusted_proxy_are_believed(start_proxy: Start) -> None:
    proxy = start_proxy(TRUSTED_PROXIES="127.0.0.1", INTERNAL_NETWORKS="192.0.2.0/24 198.51.100.0/24")
    network = Network(proxy.url)
    for _ in range(2):
        Api(network).send("ann")
    assert next_link(proxy, **{"X-Forwarded-Proto": "https"}).startswith("https://localhost/messages/")
    statuses = [
        network("GET", "/admin/", {"X-Forwarded-For": f"192.0.2.1, {address}"}, b"").status
        for address in ("203.0.113.9", "192.0.2.7")
    ]
    assert statuses == [403, 302]
    network.close()


def test_a_request_id_is_one_word_in_every_answer(start_proxy: Start) -> None:
    proxy = start_proxy(INTERNAL_NETWORKS="192.0.2.0/24")
    for values in (['ok, "}'], ["ok", '"} x'], ['"} x', "ok"], ["a b"], [""], ["x" * 129]):
        for path in ("/livez", "/metrics"):
            connection = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            connection.putrequest("GET", path)
            for value in values:
                connection.putheader("X-Request-ID", value)
            connection.endheaders()
            response = connection.getresponse()
            given_id = response.headers["X-Request-ID"]
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given_id)
            assert json.loads(response.read()).get("request_id", given_id) == given_id
            connection.close()


def test_a_refusal_of_the_proxy_has_the_form_of_the_services_own(start_proxy: Start) -> None:
    network = Network(start_proxy(INTERNAL_NETWORKS="192.0.2.0/24").url)
    refused = {
        '/metrics/"': network("GET", '/metrics/"', {}, b"").expect(403, "permission_denied"),
        "/mailbox/wait": network("GET", "/mailbox/wait?version=0", {}, b"").expect(503, "service_unavailable"),
    }
    for path, answer in refused.items():
        assert not document.schema_faults({"$ref": "#/components/schemas/Problem"}, answer.json)
        assert (answer.json["instance"], answer.json["request_id"]) == (path, answer.headers["x-request-id"])
    network.close()


# --- paths that are not for everybody


def test_the_admin_and_the_metrics_are_closed_however_their_paths_are_written(start_proxy: Start) -> None:
    network = Network(start_proxy(INTERNAL_NETWORKS="192.0.2.0/24").url)
    for path in ("/admin/login/", "/%61dmin/login/", "/admi%6E", "/metrics", "/%6Detrics/", "/inbox/admin/login/"):
        network("GET", path, {}, b"").expect(403, "permission_denied")
    for path in ("/%61dmin/%", "/%61dmin/%zz/"):
        network("GET", path, {}, b"").expect(400, "malformed_request")
    network("GET", "/messages/?recipient=/admin/%25", {}, b"").expect(200)
    network.close()


# --- restarts


class Load:
    """Clients that send, read, mark and delete through the proxy without a pause, until `stop`."""

    def __init__(self, proxy: HAProxy, clients: int) -> None:
        self.answers = 0
        self._network = Network(proxy.url)
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._tasks = [self._pool.submit(self._work, Api(self._network), f"load-{n}") for n in range(clients)]

    def _work(self, api: Api, recipient: str) -> int:
        """Work until told to stop; return how many messages the mailbox must have."""
        kept = rounds = 0
        while not self._is_over.is_set():
            message = api.send(recipient)
            api.get(f"/messages/{message['id']}").expect(200)
            api.patch("/messages/mark-read", {"ids": [message["id"]]}).expect(200)
            if rounds % 2:
                api.delete(f"/messages/{message['id']}").expect(204)
            else:
                kept += 1
            rounds += 1
            self.answers += 3
        return kept

    def advance(self, answers: int) -> None:
        """Wait until so many more answers have come."""
        aim = self.answers + answers
        wait_until(lambda: self.answers > aim or any(task.done() for task in self._tasks), what="answers")

    def stop(self) -> list[int]:
        """Stop; raise the first failure that any client has met, or return what each has kept."""
        self._is_over.set()
        try:
            return [task.result(60) for task in self._tasks]
        finally:
            self._pool.shutdown()
            self._network.close()


def roll(services: list[RunningServer], project: Path = PROJECT_DIR) -> None:
    """Restart one service after the other under load, each once the proxy has taken the one before back."""
    with HAProxy(*(service.port for service in services)) as proxy:
        load = Load(proxy, clients=4)
        for service in services:
            load.advance(50)
            assert service.stop() == 0
            service.project_dir = project
            service.restart()
            wait_until(lambda: proxy.up == {"a", "b"}, what="both services taken back")
        load.advance(50)
        kept = load.stop()
    api = services[0].api()
    assert [api.mailbox(f"load-{n}")["total"] for n in range(len(kept))] == kept


def test_instances_that_are_slow_to_say_that_they_are_ready_are_not_taken_for_dead() -> None:
    program("haproxy")
    checks: list[str] = []

    class SlowlyReady(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/readyz":
                time.sleep(1.5)  # a busy machine; the service itself waits up to 2.5 s for its database
                checks.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_parts: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), SlowlyReady) as instance, ThreadPoolExecutor(1) as pool:
        pool.submit(instance.serve_forever)
        try:
            with HAProxy(instance.server_port, instance.server_port) as proxy:
                wait_until(lambda: len(checks) >= 6, what="three checks of each")
                network = Network(proxy.url)
                network("GET", "/mailbox", {}, b"").expect(200)
                network.close()
        finally:
            instance.shutdown()


def test_a_rolling_restart_fails_no_request(restarted_services: list[RunningServer]) -> None:
    roll(restarted_services)


MIGRATION = """
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("messaging", {last!r})]
    operations = [migrations.RunSQL("ALTER TABLE messaging_message ADD COLUMN of_a_later_version text", "SELECT 1")]
"""


def test_a_rolling_upgrade_with_a_migration_fails_no_request(
    restarted_services: list[RunningServer], tmp_path: Path
) -> None:
    for package in ("messaging", "messages_project"):
        shutil.copytree(PROJECT_DIR / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    migrations = tmp_path / "messaging" / "migrations"
    last = max(path.stem for path in migrations.glob("0*.py"))
    (migrations / "9999_of_a_later_version.py").write_text(MIGRATION.format(last=last))

    roll(restarted_services, tmp_path)
