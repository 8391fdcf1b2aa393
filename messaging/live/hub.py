"""The followers of each mailbox, and the polling for new versions.

One query a few times a second reads the versions of all followed mailboxes. So nothing depends on LISTEN or on the
process that made a change, and idle streams hold no connection. Hints (hints.py) trigger a query sooner.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import Error

from messaging.auth import keys
from messaging.database import read
from messaging.errors import DatabaseUnavailableError
from messaging.live.followers import Follower
from messaging.postgresql.sqlstates import reason_of
from messaging.queries import changed_mailboxes
from messaging.records import MailboxRecord

# Runs a function with its arguments in a thread that can use the database.
InThread = Callable[..., Awaitable[Any]]

TICK_SECONDS = 0.35
TICK_SECONDS_WITH_HINTS = 1.0
# Queries may take this share of the time, so many mailboxes or a slow database make them less frequent.
_TICK_SHARE = 0.1
_MAX_TICK_SECONDS = 2.0
# Hints that arrive within this time share one query.
_GATHER_SECONDS = 0.02
_KEY_CHECK_SECONDS = 2.0  # plus the statement timeout: below the 5 s within which a revocation takes effect

logger = logging.getLogger(__name__)


class Hub:
    """All followers of this process. To be used on its event loop only."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._followers: dict[str, set[Follower]] = {}
        self._newest: dict[str, MailboxRecord] = {}
        self._late: set[Follower] = set()  # those that lack the newest version
        self._hinted: set[str] = set()
        self._wake = asyncio.Event()
        self._next_tick = 0.0
        self.gets_hints = False

    def add(self, follower: Follower) -> None:
        """Add a follower, which is notified of states newer than the one that it was opened with."""
        recipient = follower.mailbox.recipient
        self._followers.setdefault(recipient, set()).add(follower)
        known = self._newest.get(recipient)
        if known is None or known.version < follower.mailbox.version:
            self._show(follower.mailbox)
        else:
            follower.mailbox = known
        if follower.version != follower.mailbox.version:
            self._late.add(follower)
        self._wake.set()

    def remove(self, follower: Follower) -> None:
        recipient = follower.mailbox.recipient
        self._late.discard(follower)
        followers = self._followers[recipient]
        followers.discard(follower)
        if not followers:
            del self._followers[recipient], self._newest[recipient]

    def hint(self, recipients: Iterable[str]) -> None:
        """Query these mailboxes as soon as possible."""
        self._hinted.update(recipient for recipient in recipients if recipient in self._followers)
        if self._hinted:
            self._wake.set()

    def end_all(self) -> None:
        for follower in self._all():
            follower.end(stopping=True)

    async def run(self) -> None:
        """Query for new versions and notify followers, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()
            self._wake.clear()
            await self._look()
            now = time.monotonic()
            for follower in [late for late in self._late if late.is_ready(now)]:
                self._late.discard(follower)
                follower.tell(now)
            await asyncio.sleep(_GATHER_SECONDS)

    async def tend(self) -> None:
        """End streams whose time is over or whose key has ended, and keep the others alive, until cancelled."""
        keys_checked_at = 0.0
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for follower in self._all():
                follower.tend(now)
            if now - keys_checked_at >= _KEY_CHECK_SECONDS:
                keys_checked_at = now
                await self._check_keys()

    def _all(self) -> list[Follower]:
        return [follower for followers in self._followers.values() for follower in followers]

    def _pause_seconds(self) -> float | None:
        if not self._followers:
            return None
        pause = self._next_tick - time.monotonic()
        return max(0.0, min(pause, 0.05) if self._late else pause)

    def _show(self, mailbox: MailboxRecord) -> None:
        self._newest[mailbox.recipient] = mailbox
        for follower in self._followers[mailbox.recipient]:
            follower.mailbox = mailbox
            if follower.version != mailbox.version:
                self._late.add(follower)

    async def _look(self) -> None:
        """Query for new versions: of all mailboxes if a tick is due, else of those in hints."""
        started_at = time.monotonic()
        is_tick = started_at >= self._next_tick
        asked = self._newest.keys() if is_tick else self._hinted & self._newest.keys()
        known = {recipient: self._newest[recipient] for recipient in asked}
        self._hinted.clear()
        if not known:
            return
        try:
            versions = {recipient: mailbox.version for recipient, mailbox in known.items()}
            found = await self._in_thread(read, partial(changed_mailboxes, versions))
        except (DatabaseUnavailableError, Error) as error:
            # Streams stay open, and receive the newest state once the database answers.
            logger.warning("the versions of mailboxes cannot be read (%s): trying again in a second", reason_of(error))
            self._next_tick = time.monotonic() + 1
            return
        if is_tick:
            now = time.monotonic()
            usual = TICK_SECONDS_WITH_HINTS if self.gets_hints else TICK_SECONDS
            slowed = min((now - started_at) / _TICK_SHARE, _MAX_TICK_SECONDS)
            self._next_tick = started_at + max(usual, slowed)
        for mailbox in found:
            # A follower that was added during the query may have brought a newer state.
            if self._newest.get(mailbox.recipient) is known[mailbox.recipient]:
                self._show(mailbox)

    async def _check_keys(self) -> None:
        by_prefix: dict[str, list[Follower]] = {}
        for follower in self._all():
            if prefix := keys.prefix_of(follower.caller):
                by_prefix.setdefault(prefix, []).append(follower)
        if not by_prefix:
            return
        try:
            ended = await self._in_thread(keys.ended, list(by_prefix))
        except (DatabaseUnavailableError, Error) as error:
            logger.warning("the keys of streams cannot be checked (%s): trying again in two seconds", reason_of(error))
            return
        for prefix in ended:
            for follower in by_prefix[prefix]:
                follower.refuse()
