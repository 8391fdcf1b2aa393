"""HTTP/1.1 on the wire, the same with every web server: where an answer ends, and when a connection stays open."""

import io
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.servers import RunningServer

BODY = b'{"recipient": "ada", "content": "hello"}'
GET = b"GET /messages/?recipient=ada HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = b"Content-Type: application/json"

Connect = Callable[..., socket.socket]


def request(method: bytes, path: bytes, *headers: bytes, body: bytes | None = None, length: int | None = None) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % (len(body) if length is None else length))
    return b"\r\n".join([*lines, b"", body or b""])


def post(*headers: bytes, body: bytes = BODY, path: bytes = b"/messages/") -> bytes:
    return request(b"POST", path, JSON, *headers, body=body)


SMALL = {
    "MESSAGES_ACCESS": "open", "WEB_CONCURRENCY": "1", "WEB_THREADS": "2", "MESSAGES_MAX_BODY_BYTES": str(256 * 1024),
}  # fmt: skip


@pytest.fixture
def server(transactional_db: None, share_server: Callable[..., RunningServer], web_server: str) -> RunningServer:
    """The service with few threads, open access and small bodies."""
    return share_server(web_server, WEB_SERVER=web_server, **SMALL)


@pytest.fixture
def connect(server: RunningServer) -> Iterator[Connect]:
    """Open a connection and send the bytes given."""
    with ExitStack() as opened:

        def connected(sent: bytes = b"") -> socket.socket:
            client = opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            with suppress(OSError):  # it may close before it has read all of it
                client.sendall(sent)
            return client

        yield connected


def answered(stream: io.BufferedReader, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
    """The next answer: its status, headers and body."""
    status = int(stream.readline().split(b" ")[1])
    headers: dict[str, str] = {}
    while line := stream.readline().rstrip(b"\r\n"):
        name, _, value = line.decode().partition(": ")
        assert name.lower() not in headers
        headers[name.lower()] = value
    length = int(headers.get("content-length", 0)) if has_body else 0
    return status, headers, stream.read(length)


def test_requests_of_all_kinds_take_turns_on_one_connection(connect: Connect) -> None:
    client = connect()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    with client.makefile("rb") as stream:
        for sent, status in [
            (post(), 201),
            (GET.replace(b"GET", b"HEAD"), 200),
            (GET, 200),
            (request(b"POST", b"/messages/", JSON, b"Transfer-Encoding: chunked") + chunks, 201),
            (request(b"HEAD", b"/nowhere"), 404),
            (GET, 200),
            (post() + post() + GET, 201),
        ]:
            client.sendall(sent)
            found, headers, _ = answered(stream, has_body=not sent.startswith(b"HEAD"))
            assert found == status
            assert headers.get("connection", "keep-alive") == "keep-alive"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
        # Those that were sent behind.
        assert answered(stream)[0] == 201
        assert answered(stream)[2].count(b'"content":"hello"') == 4


def test_an_answer_to_head_has_the_length_of_that_to_get(connect: Connect) -> None:
    client = connect()
    with client.makefile("rb") as stream:
        for path in (b"/messages/?recipient=ada", b"/messages/?limit=x", b"/messages/bulk", b"/nowhere", b"/docs"):
            client.sendall(request(b"GET", path, b"X-Request-ID: a"))
            status, headers, body = answered(stream)
            client.sendall(request(b"HEAD", path, b"X-Request-ID: a"))
            head_status, head_headers, _ = answered(stream, has_body=False)
            assert (head_status, head_headers["content-length"]) == (status, headers["content-length"])
            assert len(body) == int(headers["content-length"]) > 0


def test_answers_without_a_body_end_where_they_should(connect: Connect) -> None:
    client = connect(post())
    with client.makefile("rb") as stream:
        location = answered(stream)[1]["location"].partition("localhost")[2].encode()
        client.sendall(GET)
        tag = answered(stream)[1]["etag"].encode()
        client.sendall(request(b"GET", b"/messages/?recipient=ada", b"If-None-Match: " + tag))
        assert answered(stream)[0] == 304
        client.sendall(request(b"DELETE", location))
        assert answered(stream)[0] == 204
        client.sendall(request(b"OPTIONS", b"/messages/", b"Connection: close"))
        status, headers, rest = answered(stream)
        assert (status, headers["connection"]) == (204, "close")
        assert rest + stream.read() == b""


def test_a_request_that_comes_byte_by_byte_and_two_that_come_at_once(connect: Connect) -> None:
    client = connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client.makefile("rb") as stream:
        for byte in post():
            client.sendall(bytes([byte]))
        assert answered(stream)[0] == 201
        client.sendall(post() * 2)
        assert [answered(stream)[0] for _ in range(2)] == [201, 201]


@pytest.mark.parametrize("sent", [request(b"GET", b"/livez", b"Connection: close"), b"GET /livez HTTP/1.0\r\n\r\n"])
def test_clients_that_leave_their_side_open_delay_nobody(connect: Connect, sent: bytes) -> None:
    # All at once, so that delays would add up beyond the timeout of the clients after them.
    for client in [connect(sent) for _ in range(30)]:
        assert b" 200 " in client.makefile("rb").readline()
    for _ in range(5):
        assert b" 200 " in connect(GET).makefile("rb").readline()


def test_a_client_that_disconnects_early_changes_nothing(server: RunningServer, connect: Connect) -> None:
    api = server.api()
    for sent in (post()[:40], post()[: -len(BODY)], post()[:-1]):
        connect(sent).close()
    assert api.mailbox("ada")["total"] == 0


def test_a_client_that_disconnects_during_its_response_is_not_an_error(server: RunningServer, connect: Connect) -> None:
    for _ in range(10):
        server.api().post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x" * 5_000}] * 20})
    for _ in range(5):
        client = connect(GET.replace(b"ada", b"ada&limit=200"))
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert server.api().mailbox("ada")["total"] == 200
    assert "Traceback" not in server.log


REFUSED = {
    "unknown path": (request(b"POST", b"/nowhere", JSON), 404),
    "unknown method": (request(b"POST", b"/mailbox", JSON), 405),
    "unknown media type": (request(b"POST", b"/messages/", b"Content-Type: text/plain"), 415),
    "too large": (request(b"POST", b"/messages/", JSON), 413),
    "unknown key": (request(b"POST", b"/messages/", JSON, b"Authorization: Bearer nonsense"), 401),
}


@pytest.mark.parametrize("size", [100_000, 2_000_000])
def test_a_refusal_keeps_the_connection_open_or_says_that_it_does_not(connect: Connect, size: int) -> None:
    for case, (sent, status) in REFUSED.items():
        expected = 400 if (case, size) == ("too large", 100_000) else status
        client = connect(sent[:-2] + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
        with client, client.makefile("rb") as stream:
            found, headers, body = answered(stream)
            assert found == expected, (case, body)
            assert headers["content-type"] == "application/problem+json", case
            if headers.get("connection") == "close":
                with suppress(ConnectionResetError):
                    assert stream.read() == b"", case
            else:
                client.sendall(GET)
                assert answered(stream)[0] == 200, case


def test_a_refusal_that_comes_before_the_body_says_what_becomes_of_the_connection(connect: Connect) -> None:
    """Many clients send a body in a packet of its own."""
    for _ in range(10):
        client = connect(request(b"POST", b"/nowhere", JSON, body=b"", length=len(BODY)))
        with client.makefile("rb") as stream:
            status, headers, _ = answered(stream)
            assert status == 404
            if headers.get("connection") != "close":
                client.sendall(BODY + GET)
                assert answered(stream)[0] == 200


@pytest.mark.parametrize("web_server", ["gunicorn"])
def test_a_refused_body_up_to_the_size_of_a_batch_can_be_sent_whole(connect: Connect) -> None:
    """A proxy answers 502 instead of passing a response on if it could not send all of the request."""
    body = b" " * 4_000_000
    for _ in range(10):
        client = connect(request(b"POST", b"/messages/", JSON, body=b"", length=len(body)))
        client.sendall(body)
        assert b" 413 " in client.makefile("rb").readline()


def test_a_client_that_still_sends_a_larger_refused_body_is_not_left_waiting(connect: Connect) -> None:
    body = b" " * 15_000_000
    for _ in range(25):
        client = connect(request(b"POST", b"/messages/", JSON, body=b"", length=len(body)))
        client.settimeout(8)
        with suppress(ConnectionError):
            client.sendall(body)
        assert b" 413 " in client.makefile("rb").readline()


def test_an_unread_body_is_not_parsed_as_a_request(server: RunningServer, connect: Connect) -> None:
    """A body is refused before it is read; a request hidden in it must not be answered."""
    hidden = post(body=b'{"recipient": "eve", "content": "smuggled"}')
    client = connect(post(body=b" " * 300_000 + hidden * 200))
    answers = b""
    with client.makefile("rb") as stream, suppress(OSError):
        while more := stream.read1():
            answers += more
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"413"]
    assert server.api().mailbox("eve")["total"] == 0


MALFORMED = [
    (b"GARBAGE\r\n\r\n", 400),
    (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: a\r\n" * 120 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 500_000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 400),
    (b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
]


def test_malformed_http_is_refused_with_the_right_status(connect: Connect) -> None:
    for sent, status in MALFORMED:
        with connect(sent) as client, client.makefile("rb") as stream:
            found, headers, _ = answered(stream)
            assert (found, headers.get("connection")) == (status, "close"), sent[:100]


def test_what_is_no_request_is_logged_without_its_text(run_server: Callable[..., RunningServer]) -> None:
    server = run_server(**SMALL)
    for sent in (
        b"GET /messages?recipient=secret\xc3\xbc HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /messages HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer secret\r\n\r\n",
        request(b"POST", b"/messages/", JSON, body=b'{"content": "secret it\'s"}\r\n\r\n', length=1),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(sent)
            with client.makefile("rb") as stream, suppress(ConnectionError):
                stream.read()
    assert server.stop() == 0
    assert "secret" not in server.log
