"""Many clients on one event loop: some follow mailboxes and reconnect, others send, mark and delete messages there.

The benchmark of the live process uses it, and the tests, which let processes and servers fail meanwhile.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

RETRY_SECONDS = (1.0, 5.0)  # as `retry` says
PATIENCE_SECONDS = 60.0
BATCH = 5  # messages that one call marks or deletes
# The end of a connection, or of its process.
BROKEN = (OSError, asyncio.IncompleteReadError, TimeoutError)


class Connection:
    """HTTP/1.1 over one persistent connection."""

    def __init__(self, port: int, token: str = "") -> None:
        self._port = port
        self._authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def begin(self, method: str, target: str, body: str = "", headers: str = "") -> tuple[int, dict[str, str]]:
        """Send a request; the status and the headers of its response."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self._authorization}{headers}"
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._streams[1].write(f"{head}{content}\r\n{body}".encode())
        status, *lines = (await self._streams[0].readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def ask(self, method: str, target: str, body: str = "") -> tuple[int, Any]:
        """Send a request; the status of its response, and the JSON of its body."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            status, headers = await self.begin(method, target, body)
            content = await self.read(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return status, json.loads(content) if content else None

    async def read(self, size: int) -> bytes:
        assert self._streams is not None
        return await self._streams[0].readexactly(size)

    async def line(self) -> bytes:
        """The next line of the body, without its end; chunks are of whole lines."""
        assert self._streams is not None
        return (await self._streams[0].readuntil(b"\n")).strip()

    def close(self) -> None:
        """Close the connection. The next request opens another one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Follower:
    """A client of `/mailbox/events` that reconnects with the version that it has, whenever its stream ends."""

    def __init__(self, port: int, recipient: str, token: str = "") -> None:
        self.recipient = recipient
        self.mailbox: dict[str, Any] = {"version": -1}
        self.connections = 0
        self.faults: list[str] = []
        self._connection = Connection(port, token)

    async def follow(self) -> None:
        """Follow the mailbox until this is cancelled."""
        while True:
            try:
                await self._read()
            except BROKEN:
                pass
            finally:
                self._connection.close()
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))

    async def _read(self) -> None:
        known = f"Last-Event-ID: {self.mailbox['version']}\r\n" if self.connections else ""
        target = f"/mailbox/events?recipient={self.recipient}"
        async with asyncio.timeout(PATIENCE_SECONDS):
            status, _ = await self._connection.begin("GET", target, headers=f"Accept: text/event-stream\r\n{known}")
        if status != 200:
            if status not in {429, 503}:  # the place of the stream before is not free yet; the database is away
                self.faults.append(f"{self.recipient}: status {status}")
            return
        self.connections += 1
        while (line := await self._connection.line()) != b"0":  # the last chunk
            if line.startswith(b"data: "):
                mailbox = json.loads(line[6:])
                if mailbox["version"] <= self.mailbox["version"]:
                    self.faults.append(f"{mailbox} after {self.mailbox}")
                self.mailbox = mailbox


class Writer:
    """A client that sends messages to mailboxes drawn at random, and marks and deletes them later."""

    def __init__(self, port: int, recipients: Sequence[str], tokens: Sequence[str] = ("",)) -> None:
        self.requests = 0
        self.faults: list[str] = []
        self._recipients = recipients
        self._connections = [Connection(port, token) for token in tokens]
        self._ids: deque[str] = deque()

    async def write(self, is_over: asyncio.Event) -> None:
        """Make one change after the other."""
        while not is_over.is_set():
            self.requests += 1
            with suppress(*BROKEN):
                await self._change()
        for connection in self._connections:
            connection.close()

    async def _change(self) -> None:
        connection = self._connections[self.requests % len(self._connections)]
        ids = json.dumps({"ids": [self._ids[place] for place in range(min(BATCH, len(self._ids)))]})
        kind = random.choice(("send", "send", "mark", "delete")) if len(self._ids) > 2 * BATCH else "send"
        if kind == "send":
            request = "POST", "/messages/", json.dumps({"recipient": random.choice(self._recipients), "content": "x"})
        elif kind == "mark":
            request = "PATCH", "/messages/mark-read", ids
            self._ids.rotate(-BATCH)
        else:
            request = "POST", "/messages/bulk-delete", ids
            for _ in range(BATCH):
                self._ids.popleft()
        try:
            status, found = await connection.ask(*request)
        except BROKEN:
            connection.close()
            raise
        if status == 201:
            self._ids.append(found["id"])
        elif status not in {200, 503}:
            self.faults.append(f"{request}: {status} {found}")


async def pass_by(port: int, recipient: str, token: str, part: int) -> None:
    """A client that disconnects again: 0 without a word, 1 after half a head, 2 after its request, 3 after an event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /mailbox/events?recipient={recipient} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write("".join((head, authorization + "\r\n")[:part]).encode())
    if part == 3:
        await reader.readuntil(b"data:")
    writer.close()


class Crowd:
    """`streams` followers spread over the live processes and mailboxes, and writers to the same mailboxes."""

    def __init__(
        self, api_port: int, live_ports: Sequence[int], *,
        streams: int, mailboxes: int, writers: int, tokens: Sequence[str] = ("",),
    ) -> None:  # fmt: skip
        self.recipients = [f"reader-{number}" for number in range(mailboxes)]
        places = [(number, self.recipients[number % mailboxes]) for number in range(streams)]
        self.followers = [
            Follower(live_ports[number // mailboxes % len(live_ports)], recipient, tokens[number % len(tokens)])
            for number, recipient in places
        ]
        shares = [tokens[number::writers] or tokens for number in range(writers)]
        self.writers = [Writer(api_port, self.recipients, share) for share in shares]
        self._api = Connection(api_port, tokens[0])

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """All clients, until the end of the block; then every stream must come to the true state of its mailbox.

        Raises:
            AssertionError: a stream did not, or went back, or a client got an answer that was no right one.
        """
        is_over = asyncio.Event()
        following = [asyncio.create_task(follower.follow()) for follower in self.followers]
        await self.until(lambda: all(follower.connections for follower in self.followers), "stream of each follower")
        writing = [asyncio.create_task(writer.write(is_over)) for writer in self.writers]
        try:
            yield
        finally:
            is_over.set()
            await asyncio.gather(*writing)
        truth = {recipient: await self._mailbox(recipient) for recipient in self.recipients}
        await self.until(
            lambda: all(follower.mailbox == truth[follower.recipient] for follower in self.followers),
            "true version on each stream",
        )
        for task in following:
            task.cancel()
        self._api.close()
        ended = await asyncio.gather(*following, return_exceptions=True)
        faults: list[Any] = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        clients: list[Follower | Writer] = [*self.followers, *self.writers]
        faults += [fault for client in clients for fault in client.faults]
        assert not faults, faults[:10]

    async def progress(self) -> None:
        """Return once every stream has had another event."""
        before = [follower.mailbox["version"] for follower in self.followers]
        await self.until(
            lambda: all(
                follower.mailbox["version"] > version for follower, version in zip(self.followers, before, strict=True)
            ),
            "event on each stream",
        )

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once a condition holds."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"no {what} within {PATIENCE_SECONDS:g} s") from None

    async def _mailbox(self, recipient: str) -> Any:
        status, found = await self._api.ask("GET", f"/mailbox?recipient={recipient}")
        assert status == 200, found
        return found
