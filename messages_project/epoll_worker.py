"""gunicorn's threaded worker with its dispatcher taken out: the threads wait for requests themselves.

Stock gthread has one thread that waits and hands each request to others, at the price of four thread switches a
request. And a client that sends half a request holds a thread for as long as it likes; here the kernel holds what has
come, and a thread takes a request once it is whole. Needs epoll, so Linux; elsewhere worker.py serves. A plain request
is read and answered by plain_http.py, any other by gunicorn.
"""

import contextlib
import errno
import re
import select
import socket
import struct
import threading
import time

from django.conf import settings
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn

from messages_project.plain_http import PlainAnswer, PlainRequest, connection_environ, plain_request
from messages_project.worker import Worker

_POLL_SECONDS = 1.0  # how long a thread or the loop waits before it looks whether it is still wanted
# From the first byte of a request to its last, or to the last of the first _LOOK_BYTES.
_ARRIVAL_SECONDS = 10.0
# How much of a request is looked at before a thread takes it; what is larger is read from then on as it comes.
_LOOK_BYTES = 32 * 1024
# For whatever a thread itself waits for: more of a large body, or room for an answer.
_SOCKET_SECONDS = 10
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)
# One event wakes one thread, and nobody else hears of that connection until it is armed again.
_ONCE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT if hasattr(select, "epoll") else 0


class EpollWorker(Worker):
    """The worker class of serving.py on Linux."""

    alive: bool
    _accepting: bool

    def init_process(self) -> None:
        self._events = select.epoll()
        # The sockets themselves: gunicorn's wrapper of one that another thread has closed fails in ways of its own.
        self._listeners: dict[int, socket.socket] = {}
        # Connections that wait for a request, or for the rest of one, by descriptor.
        self.keepalived_conns: dict[int, TConn] = {}
        self._count = threading.Lock()
        self._is_done = False
        super().init_process()

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - its signature
        """Accept new connections from now on, or no more; a stopping worker closes its port to the others."""
        if enabled == self._accepting:
            return
        self._accepting = enabled
        for listener in self.sockets:
            if enabled:
                listener.settimeout(0)
                self._listeners[listener.fileno()] = listener.sock
                self._events.register(listener.fileno(), _ONCE)
            else:
                own = self._listeners.pop(listener.fileno())
                self._events.unregister(listener.fileno())
                if not self.alive:
                    # Whoever is in its queue has connected to this worker alone.
                    while self._accepted(own):
                        pass
                    listener.close()

    def run(self) -> None:
        """Serve until told to stop; then until the last request is answered, or the grace is over."""
        # Signal handlers wake this loop through it.
        self.poller.register(self.method_queue.fileno(), select.EPOLLIN, self.method_queue.run_callbacks)
        self.set_accept_enabled(True)
        for number in range(self.cfg.threads):
            threading.Thread(target=self._serve, name=f"serve-{number}", daemon=True).start()
        while self.alive and self.is_parent_alive():
            self._beat(_POLL_SECONDS)
            self.set_accept_enabled(self.nr_conns < self.worker_connections)
        self.alive = False
        self.set_accept_enabled(False)
        # gunicorn's own linger: a client may be sending its next request already.
        lingers_until = time.monotonic() + STOP_KEEPALIVE_LINGER
        for conn in list(self.keepalived_conns.values()):
            conn.timeout = min(conn.timeout, lingers_until)
        grace_ends = time.monotonic() + self.cfg.graceful_timeout
        while self.nr_conns > 0 and time.monotonic() < grace_ends:
            self._beat(0.05)
        self._is_done = True

    def _beat(self, seconds: float) -> None:
        """Tell the parent that all is well, wait, and close connections whose patience has ended."""
        self.notify()
        self.wait_for_and_dispatch_events(seconds)
        now = time.monotonic()
        for descriptor, conn in list(self.keepalived_conns.items()):
            # Whoever takes it out of the table owns it: this loop, or the thread that its next request woke.
            if conn.timeout <= now and self.keepalived_conns.pop(descriptor, None):
                self._close(conn, graceful=False)

    # --- in the threads

    def _serve(self) -> None:
        while not self._is_done:
            for descriptor, flags in self._events.poll(_POLL_SECONDS, 1):
                listener = self._listeners.get(descriptor)
                if listener is not None:
                    # Everybody in its queue, or those would wait for a turn each behind all that are connected.
                    while self.nr_conns < self.worker_connections and self._accepted(listener):
                        pass
                    self._arm(descriptor)
                elif conn := self.keepalived_conns.pop(descriptor, None):
                    has_gone = flags & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
                    there = b"" if has_gone else self._whole(conn)
                    if there is None:
                        self._await(conn, until=conn.arrives_until)
                    else:
                        self._answer(conn, there)

    def _accepted(self, listener: socket.socket) -> bool:
        """Take one connection from the queue, if there is one."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED, errno.EBADF}:
                self.log.warning("cannot accept a connection: %s", error)
            return False
        with self._count:
            self.nr_conns += 1
        # Its own address of here, since the listener may have been closed by now.
        conn = TConn(self.cfg, client, address, client.getsockname())
        conn.data_ready = True  # it is handled only once there is something to read
        conn.arrives_until = None
        conn.environ = connection_environ(self.cfg, conn.client, conn.server)
        client.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            client.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _SOCKET_SECONDS, 0))
        self._events.register(client.fileno(), 0)
        self._await(conn)
        return True

    def _whole(self, conn: TConn) -> bytes | None:
        """The request, once all of it is there as far as one looks; until then the kernel is told for how much to wait.

        Only a look at bytes that stay where they are: whoever answers reads them.
        """
        try:
            there: bytes = conn.sock.recv(_LOOK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return b""  # reading it will show what is wrong
        head_ends = there.find(b"\r\n\r\n") + 4
        if head_ends >= 4:
            length = _CONTENT_LENGTH.search(there, 0, head_ends)
            body = int(length[1]) if length else 0
            # Who expects a 100 sends nothing more before; and what may be too large is refused before it is sent.
            if body > settings.MESSAGES_MAX_BODY_BYTES or _EXPECT.search(there, 0, head_ends):
                body = 0
            wanted = min(head_ends + body, _LOOK_BYTES)
        else:
            wanted = min(len(there) + 1, _LOOK_BYTES)
        if not there or len(there) >= wanted:
            if conn.arrives_until is not None:
                conn.arrives_until = None
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return there
        if conn.arrives_until is None:
            conn.arrives_until = time.monotonic() + _ARRIVAL_SECONDS
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        return None

    def _await(self, conn: TConn, *, until: float | None = None) -> None:
        idle_until = time.monotonic() + (self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER)
        conn.timeout = until or idle_until
        descriptor = conn.sock.fileno()
        # First into the table, since once armed another thread may look for it there.
        self.keepalived_conns[descriptor] = conn
        self._arm(descriptor)

    def _arm(self, descriptor: int) -> None:
        # The loop may have closed the connection meanwhile, or stopped accepting: then there is nothing to wait for,
        # and the thread must not die of it.
        with contextlib.suppress(OSError):
            self._events.modify(descriptor, _ONCE)

    def _answer(self, conn: TConn, there: bytes) -> None:
        # Where gunicorn has read from a connection once, it alone knows how much of it belongs to what.
        plain = plain_request(there, conn.environ) if conn.parser is None else None
        if plain:
            stays = self._answer_plain(conn, plain, len(there))
        else:
            stays = self.handle(conn)
            # What was read ahead no longer makes the socket readable.
            while stays and conn.parser.unreader.buf.getvalue():
                stays = self.handle(conn)
        if stays:
            self._await(conn)
        else:
            self._close(conn, graceful=True)

    def _answer_plain(self, conn: TConn, request: PlainRequest, size: int) -> bool:
        """What gunicorn's `handle` does, for a request of `size` bytes that is plain; whether the connection stays."""
        answer = PlainAnswer(request, may_stay=self.alive and len(self.keepalived_conns) < self.max_keepalived)
        try:
            conn.sock.recv(size)
            body = self.wsgi(request.environ, answer.start_response)
            try:
                return answer.send(body, conn.sock)
            finally:
                body.close()
        except OSError as error:
            self.log.debug("A client did not take its answer: %s", error)
        except Exception as error:
            if answer.has_begun:
                self.log.exception("an answer failed half-way")
            else:
                self.handle_error(request, conn.sock, conn.client, error)
        return False

    def _close(self, conn: TConn, *, graceful: bool) -> None:
        with self._count:
            self.nr_conns -= 1
        conn.close(graceful=graceful)
