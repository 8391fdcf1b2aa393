"""The short way of plain requests: it reads what gunicorn would have read, and leaves it everything doubtful."""

import io
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import Resolver404
from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi
from hypothesis import given
from hypothesis import strategies as st

from messages_project.handler import Handler
from messages_project.plain_http import connection_environ, plain_request
from tests.servers import RunningServer

CLIENT, SERVER = ("127.0.0.1", 50_000), ("127.0.0.1", 8_000)
GET = b"GET /messages/?recipient=ada HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b'{"recipient": "ada", "content": "hello"}'


def post(*headers: bytes, body: bytes = BODY, length: bytes | None = None) -> bytes:
    lines = [b"POST /messages/ HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    lines.append(b"Content-Length: " + (b"%d" % len(body) if length is None else length))
    return b"\r\n".join([*lines, b"", body])


@pytest.fixture(scope="module")
def cfg() -> Config:
    """gunicorn's configuration, as serving.py has it where it matters here."""
    cfg = Config()
    cfg.set("limit_request_fields", 64)
    cfg.set("forwarded_allow_ips", "")
    return cfg


def plainly(sent: bytes, cfg: Config) -> Any:
    return plain_request(sent, connection_environ(cfg, CLIENT, SERVER))


def by_gunicorn(sent: bytes, cfg: Config) -> tuple[dict[str, Any], bytes, bool]:
    """The environ, the body, and whether the client keeps the connection, as gunicorn reads the same bytes."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        request = next(get_parser(cfg, ours, CLIENT))
        _, environ = wsgi.create(request, ours, CLIENT, SERVER, cfg)
        return environ, environ["wsgi.input"].read(), not request.should_close()


# What gunicorn offers to an application beyond PEP 3333, or makes anew for each request.
BESIDE = {"wsgi.input", "wsgi.errors", "wsgi.early_hints", "wsgi.multithread", "gunicorn.socket"}


def assert_same(sent: bytes, cfg: Config) -> None:
    plain = plainly(sent, cfg)
    assert plain is not None
    environ, body, stays = by_gunicorn(sent, cfg)
    assert {k: v for k, v in plain.environ.items() if k not in BESIDE} == {
        k: v for k, v in environ.items() if k not in BESIDE
    }
    assert plain.environ["wsgi.input"].read() == body
    assert plain.stays == stays


PLAIN = [
    GET,
    post(),
    post(b"Connection: close"),
    post(b"connection: Keep-Alive", b"X-Odd:value", b"Accept: */*, text/html;q=0.5", b'If-None-Match: W/"a", "b"'),
    post(body=b"", length=b"0"),
    GET.replace(b"ada", b"%C3%A4%00&x=%zz"),
    GET.replace(b"/messages/", b"/mess%61ges/%C3%A4"),
    GET.replace(b"GET", b"HEAD"),
    GET.replace(b"Host: localhost", b"HOST: localhost\r\nContent-Length: 0"),
]


@pytest.mark.parametrize("sent", PLAIN)
def test_a_plain_request_is_read_as_gunicorn_reads_it(sent: bytes, cfg: Config) -> None:
    assert_same(sent, cfg)


DOUBTFUL = [
    b"",
    GET[:-1],
    GET + b"G",
    GET + GET,
    post()[:-1],
    post() + b" ",
    post(length=b"+5"),
    post(length=b"5, 5", body=b"hello"),
    post(b"Content-Length: 40"),
    post(b"content-length: 3"),
    post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    post(b"Transfer-Encoding: identity"),
    post(b"Expect: 100-continue"),
    post(b"X_Real_Ip: 1.2.3.4"),
    post(b"X-A: 1", b"X-A: 2"),
    post(b"X-A: 1", b"x-a: 2"),
    post(b"X-A : 1"),
    post(b" X-A: 1"),
    post(b"X-A: 1\r\n folded"),
    post(b"X-A: 1\nX-B: 2"),
    post(b"X-A: 1\rX-B: 2"),
    post(b"X-A: \xe4"),
    post(b"X-A: a\tb"),
    post(b"X-A: \x00"),
    post(b"X-A:"),
    post(b"X-A: " + b"a" * 8_190),
    post(*(b"X-%d: a" % number for number in range(64))),
    post(b"Connection: upgrade", b"Upgrade: h2c"),
    post(b"Connection: close, X-A"),
    post(b"Upgrade: websocket"),
    post(b"TE: trailers"),
    post(b"Trailer: X-A"),
    GET.replace(b"Host: localhost\r\n", b""),
    GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
    GET.replace(b"HTTP/1.1", b"HTTP/2.0"),
    GET.replace(b"\r\n", b"\n"),
    GET.replace(b"GET", b"get"),
    GET.replace(b"GET", b"CONNECT"),
    GET.replace(b"GET /", b"GET  /"),
    GET.replace(b"/messages/", b"//messages/"),
    GET.replace(b"/messages/", b"http://localhost/messages/"),
    GET.replace(b"ada", b"ada#fragment"),
    GET.replace(b"ada", b"\xc3\xa4"),
    GET.replace(b"ada", b"a a"),
    b"\r\n" + GET,
]


@pytest.mark.parametrize("sent", DOUBTFUL)
def test_a_doubtful_request_is_left_to_gunicorn(sent: bytes, cfg: Config) -> None:
    assert plainly(sent, cfg) is None


PIECES = [
    b"GET", b"POST", b" ", b"/", b"/messages/", b"?recipient=ada", b"%41", b"#", b"HTTP/1.1", b"HTTP/1.0", b"\r\n",
    b"\n", b"\r", b"Host: a", b"Content-Length: 3", b"Content-Length:", b"content-length: 03", b"abc", b"\xff", b":",
    b"Transfer-Encoding: chunked", b"Connection: close", b"X-A: b", b"X_A: b", b"X-A:", b"\t", b"\x00", b",",
]  # fmt: skip


@given(
    head=st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join),
    lines=st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(b"".join), max_size=5),
    body=st.sampled_from([b"", b"abc", b"abcGET / HTTP/1.1\r\n\r\n"]),
)
def test_any_bytes_are_read_as_gunicorn_reads_them_or_left_to_it(
    cfg: Config, head: bytes, lines: list[bytes], body: bytes
) -> None:
    for start in (b"GET /a" + head + b" HTTP/1.1", head):
        sent = b"\r\n".join([start, b"Host: localhost", *lines, b"", b""]) + body
        if plainly(sent, cfg) is not None:
            assert_same(sent, cfg)


# --- on the wire


@pytest.fixture
def client(run_server: Callable[..., RunningServer]) -> Iterator[socket.socket]:
    """A connection to the service."""
    port = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1").port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


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


def test_plain_and_other_requests_take_turns_on_one_connection(client: socket.socket) -> None:
    chunked = b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunked += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    with client.makefile("rb") as stream:
        for sent, status in [
            (post(), 201),
            (GET.replace(b"GET", b"HEAD"), 200),
            (GET, 200),
            (chunked, 201),
            (GET, 200),
            (post() + post() + GET, 201),
        ]:
            client.sendall(sent)
            found, headers, _ = answered(stream, has_body=not sent.startswith(b"HEAD"))
            assert found == status
            assert headers["connection"] == "keep-alive"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
        # Those that were sent behind.
        assert answered(stream)[0] == 201
        assert answered(stream)[2].count(b'"content":"hello"') == 4


def test_answers_without_a_body_end_where_they_should(client: socket.socket) -> None:
    with client.makefile("rb") as stream:
        client.sendall(post())
        location = answered(stream)[1]["location"].partition("localhost")[2].encode()
        client.sendall(GET)
        tag = answered(stream)[1]["etag"].encode()
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nIf-None-Match: " + tag + b"\r\n\r\n"))
        assert answered(stream)[0] == 304
        client.sendall(b"DELETE %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % location)
        assert answered(stream)[0] == 204
        client.sendall(b"OPTIONS /messages/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status, headers, rest = answered(stream)
        assert (status, headers["connection"]) == (204, "close")
        assert rest + stream.read() == b""


def test_what_a_refused_request_leaves_unread_is_no_request(run_server: Callable[..., RunningServer]) -> None:
    """A body is refused before it is read; a request hidden in it must not be answered, whoever reads on."""
    server = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1", MESSAGES_MAX_BODY_BYTES="1024")
    hidden = post(body=b'{"recipient": "eve", "content": "smuggled"}', length=b"43")
    body = b" " * 33_000 + hidden * 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client, client.makefile("rb") as stream:
        with suppress(OSError):  # it may close before it has read all of it
            client.sendall(post(body=body))
        answers = b""
        with suppress(OSError):
            while more := stream.read1():
                answers += more
                client.settimeout(1)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"413"]
    assert server.api().mailbox("eve")["total"] == 0


def test_a_client_that_goes_away_in_the_middle_of_its_answer_is_no_failure(
    run_server: Callable[..., RunningServer],
) -> None:
    server = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1")
    server.api().post("/messages/batch", {"messages": [{"recipient": "ada", "content": "x" * 5_000}] * 200}).expect(201)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(GET.replace(b"ada", b"ada&limit=200"))
            client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.api().mailbox("ada")["total"] == 200
    assert "Traceback" not in server.log


def test_a_path_leads_to_the_same_when_it_is_asked_again(run_server: Callable[..., RunningServer]) -> None:
    # One worker, so that it is the one that has found its way there before.
    api = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1").api()
    one, two = api.send("ada", "one")["id"], api.send("ada", "two")["id"]
    api.patch("/messages/mark-read", {"ids": [one]}).expect(200)
    for _ in range(2):
        for slash in ("", "/"):
            for id_, content in ((one, "one"), (two, "two")):
                assert api.get(f"/messages/{id_}{slash}").expect(200).json["content"] == content
            query = f"{slash}?recipient=ada"
            found = [message["id"] for message in api.get(f"/messages{query}").expect(200).json["results"]]
            assert found == [two, one]
            found = [message["id"] for message in api.get(f"/messages/unread{query}").expect(200).json["results"]]
            assert found == [two]
            assert api.get(f"/mailbox{query}").expect(200).json["total"] == 2
            api.get(f"/mailboxes{query}").expect(404, "unknown_path")
            # The method is no part of the path.
            api.post(f"/messages/unread{slash}", {}).expect(405)


def test_only_paths_without_variable_parts_are_remembered() -> None:
    handler = Handler()
    for number in range(50):
        for path in ("/messages/", "/readyz", "/admin/messaging/message/", f"/messages/{number}", f"/admin/x{number}"):
            with suppress(Resolver404):
                handler.resolve_request(RequestFactory().get(path))
    assert handler.known_paths.keys() == {"/messages/", "/readyz", "/admin/messaging/message/"}
