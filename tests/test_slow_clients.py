"""Clients that take their time hold nobody up: a thread takes a request once it is whole."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.servers import RunningServer, wait_until

THREADS = 2
BODY = b'{"recipient": "ada", "content": "hello"}'
HEAD = (
    b"POST /messages/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
)


@pytest.fixture
def server(run_server: Callable[..., RunningServer]) -> RunningServer:
    """The service with few threads and open access."""
    return run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1", WEB_THREADS=str(THREADS))


@pytest.fixture
def connect(server: RunningServer) -> Iterator[Callable[..., socket.socket]]:
    """Open a connection and send the bytes given."""
    with ExitStack() as opened:

        def connected(sent: bytes = b"") -> socket.socket:
            client = opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            client.sendall(sent)
            return client

        yield connected


def status(client: socket.socket) -> bytes:
    return client.recv(65_536).split(b" ")[1]


@pytest.mark.parametrize("sent", [HEAD[:1], HEAD[:40], HEAD[:-1], HEAD, HEAD + BODY[:-1]])
def test_half_sent_requests_hold_no_thread(
    server: RunningServer, connect: Callable[..., socket.socket], sent: bytes
) -> None:
    slow = [connect(sent) for _ in range(10 * THREADS)]
    api = server.api()
    api.mailbox("ada")
    assert api.get("/livez").status == 200

    # And each is answered once the rest has come.
    for client in slow:
        client.sendall((HEAD + BODY)[len(sent) :])
    assert {status(client) for client in slow} == {b"201"}
    assert api.mailbox("ada")["total"] == len(slow)


def test_a_request_that_comes_byte_by_byte_and_two_that_come_at_once(connect: Callable[..., socket.socket]) -> None:
    client = connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in HEAD + BODY:
        client.sendall(bytes([byte]))
    assert status(client) == b"201"

    client.sendall((HEAD + BODY) * 2)
    answers = b""
    while answers.count(b"HTTP/1.1 201") < 2:
        more = client.recv(65_536)
        assert more, answers
        answers += more


def test_whoever_leaves_in_the_middle_changes_nothing(
    server: RunningServer, connect: Callable[..., socket.socket]
) -> None:
    api = server.api()
    for sent in (HEAD[:40], HEAD, HEAD + BODY[:-1]):
        connect(sent).close()
    assert api.mailbox("ada")["total"] == 0


def test_whoever_never_finishes_is_sent_away(connect: Callable[..., socket.socket]) -> None:
    client = connect(HEAD + BODY[:-1])
    client.setblocking(False)

    def is_closed() -> bool:
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    wait_until(is_closed, seconds=20, what="the end of the connection")
