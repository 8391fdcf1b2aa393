"""A TCP proxy between the service and PostgreSQL that cuts, holds or swallows what passes, at a statement of choice.

It reads the client's side of PostgreSQL's protocol (Message Flow, Message Formats in its documentation), so that a
statement is recognised by its SQL also where it is executed as a prepared one.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

# Requests that have no type byte: SSLRequest and GSSENCRequest, after which the start-up message follows.
_NEGOTIATIONS = {80877103, 80877104}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


Moment = Literal["before", "after", "hold"]


@dataclass
class Fault:
    """What happens to the connection that executes a statement whose SQL contains `sql`, `times` times.

    `before`: cut without the statement having reached PostgreSQL. `after`: cut once PostgreSQL has answered, without
    that answer having reached the client. `hold`: nothing passes any more, in either direction, until `release`.
    """

    sql: str
    when: Moment
    times: int = 1
    happened: int = 0


@dataclass
class _Stream:
    """The client's messages on one connection."""

    is_started: bool = False
    pending: bytes = b""
    prepared: dict[bytes, str] = field(default_factory=dict)

    def statements(self, data: bytes) -> Iterator[str]:
        """The SQL of the statements that these bytes execute."""
        self.pending += data
        while True:
            head = 1 if self.is_started else 0
            if len(self.pending) < head + 4:
                return
            length = head + int.from_bytes(self.pending[head : head + 4])
            if len(self.pending) < length:
                return
            message, self.pending = self.pending[:length], self.pending[length:]
            body = message[head + 4 :]
            if not self.is_started:
                self.is_started = int.from_bytes(body[:4]) not in _NEGOTIATIONS
            elif message[:1] == b"Q":
                yield body.rstrip(b"\0").decode()
            elif message[:1] == b"P":
                name, sql, _ = body.split(b"\0", 2)
                self.prepared[name] = sql.decode()
            elif message[:1] == b"B":
                yield self.prepared.get(body.split(b"\0", 2)[1], "")


class TcpProxy:
    """Listens on `port` of 127.0.0.1 and connects to `target`: a host and port, or the path of a Unix socket."""

    def __init__(self, target: tuple[str, int] | str, *, reads_statements: bool = True) -> None:
        self.target = target  # of connections opened from now on
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.reads_statements = reads_statements
        self.faults: list[Fault] = []
        self._is_silent = threading.Event()
        self._is_refusing = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def fault(self, sql: str, when: Moment, times: int = 1) -> Fault:
        """Let the next statements that contain `sql` meet a fault."""
        found = Fault(sql, when, times)
        self.faults.append(found)
        return found

    def silence(self) -> None:
        """Pass nothing on any more, in either direction, on any connection; accept new ones."""
        self._is_silent.set()

    def refuse(self) -> None:
        """Cut all connections, and new ones at once."""
        self._is_refusing = True
        self.cut()

    def release(self) -> None:
        """End silence, refusal and faults. What was held is cut."""
        self.faults.clear()
        held = self._is_silent.is_set()
        self._is_silent.clear()
        self._is_refusing = False
        if held:
            self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_refusing:
                _reset(client)
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if isinstance(self.target, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.target)
            else:
                server = socket.create_connection(self.target)
        except OSError:
            _reset(client)
            return
        ends = {client, server}
        with self._lock:
            self._open |= ends
        is_cut = True
        try:
            is_cut = self._pass(client, server)
        except OSError:
            pass  # one side is gone, and so is the other in a moment
        finally:
            with self._lock:
                self._open -= ends
            for end in ends:
                _reset(end) if is_cut else end.close()

    def _pass(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass on what comes, until one side ends the connection; True if a fault has ended it."""
        stream = _Stream()
        is_last = False
        while True:
            ready, _, _ = select.select([client, server], [], [])
            for end in ready:
                data = end.recv(65536)
                if not data:
                    return False
                if self._is_silent.is_set():
                    return self._swallow(client)
                if end is server:
                    if is_last:
                        return True
                    client.sendall(data)
                    continue
                fault = self._met(stream.statements(data)) if self.reads_statements else None
                if fault is not None and fault.when == "before":
                    return True
                if fault is not None and fault.when == "hold":
                    return self._swallow(client)
                server.sendall(data)
                is_last = is_last or fault is not None

    def _met(self, statements: Iterator[str]) -> Fault | None:
        executed = list(statements)
        with self._lock:
            for fault in self.faults:
                if fault.happened < fault.times and any(fault.sql in sql for sql in executed):
                    fault.happened += 1
                    return fault
        return None

    @staticmethod
    def _swallow(client: socket.socket) -> bool:
        """Wait until the client gives up, or `cut`; what it sends meanwhile goes nowhere."""
        while client.recv(65536):
            pass
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._is_closed = True
        self.cut()
        # close() alone does not wake a thread that is in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
