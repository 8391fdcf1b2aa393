"""Who follows which mailbox, and how the process learns of new versions.

One statement asks for all mailboxes that somebody follows, a few times a second, so nothing depends on LISTEN or on
which process made a change, and no connection is held while streams wait. Hints (hints.py) make it sooner.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from django.conf import settings
from django.db import Error

from messaging.auth import keys
from messaging.database import read
from messaging.errors import DatabaseUnavailableError
from messaging.live.followers import Follower
from messaging.queries import changed_mailboxes
from messaging.records import MailboxRecord

# Runs a function with its arguments in a thread that may use the database.
InThread = Callable[..., Awaitable[Any]]

TICK_SECONDS = 0.25
TICK_SECONDS_WITH_HINTS = 1.0
# A tick may take this share of the time, so that many mailboxes or a slow database make ticks rarer.
_TICK_SHARE = 0.1
_MAX_TICK_SECONDS = 2.0
# Hints that arrive within this time are looked up together.
_GATHER_SECONDS = 0.02
_KEY_CHECK_SECONDS = 2.0  # with the statement's time limit below the 5 s within which a revocation takes effect

logger = logging.getLogger(__name__)


class Hub:
    """All followers of this process. Used on its event loop only."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._followers: dict[str, set[Follower]] = {}
        self._newest: dict[str, MailboxRecord] = {}
        self._late: set[Follower] = set()  # who lack the newest version
        self._hinted: set[str] = set()
        self._wake = asyncio.Event()
        self._next_tick = 0.0
        self.gets_hints = False

    def add(self, follower: Follower) -> None:
        """Begin to tell a follower about its mailbox, from the state that it was opened with."""
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
        """Forget a follower whose connection has ended."""
        recipient = follower.mailbox.recipient
        self._late.discard(follower)
        followers = self._followers[recipient]
        followers.discard(follower)
        if not followers:
            del self._followers[recipient], self._newest[recipient]

    def hint(self, recipients: Iterable[str]) -> None:
        """Look at these mailboxes as soon as possible."""
        self._hinted.update(recipient for recipient in recipients if recipient in self._followers)
        if self._hinted:
            self._wake.set()

    def end_all(self) -> None:
        """End every stream: the process stops."""
        for follower in self._all():
            follower.end(stopping=True)

    async def run(self) -> None:
        """Tell followers about their mailboxes, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._look()
            now = time.monotonic()
            for follower in [late for late in self._late if late.is_ready(now)]:
                self._late.discard(follower)
                follower.tell(now)
            await asyncio.sleep(_GATHER_SECONDS)

    async def tend(self) -> None:
        """End the streams whose time is over or whose key has ended, and keep the others alive, for ever."""
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
        """Ask the database which versions are new: of all mailboxes when it is time, else of those hinted at."""
        started_at = time.monotonic()
        is_tick = started_at >= self._next_tick
        hinted = self._hinted.intersection(self._newest)
        self._hinted.clear()
        known = dict(self._newest) if is_tick else {recipient: self._newest[recipient] for recipient in hinted}
        if not known:
            return
        try:
            found = await self._in_thread(_changed, {name: mailbox.version for name, mailbox in known.items()}, hinted)
        except (DatabaseUnavailableError, Error) as error:
            # Streams stay; what they miss they are told when the database is back.
            logger.warning("the versions of mailboxes cannot be read (%s): trying again in a second", error)
            self._next_tick = time.monotonic() + 1
            return
        if is_tick:
            now = time.monotonic()
            usual = TICK_SECONDS_WITH_HINTS if self.gets_hints else TICK_SECONDS
            slowed = min((now - started_at) / _TICK_SHARE, _MAX_TICK_SECONDS)
            self._next_tick = started_at + max(usual, slowed)
        for mailbox in found:
            # A follower that was added meanwhile may have brought a newer state.
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
            logger.warning("the keys of streams cannot be checked (%s): trying again in two seconds", error)
            return
        for prefix in ended:
            for follower in by_prefix[prefix]:
                follower.refuse()


def _changed(versions: dict[str, int], hinted: set[str]) -> list[MailboxRecord]:
    """Of these mailboxes those that are not at the version given. Hints are looked up on the primary: a replica may not
    have yet what has just changed, and what it has older than it is known here says nothing.
    """
    if not settings.POSTGRES_REPLICAS:
        return read(lambda: changed_mailboxes(versions))
    others = {name: version for name, version in versions.items() if name not in hinted}
    found = read(lambda: changed_mailboxes(others), is_new_enough=lambda _found: True) if others else []
    older = {mailbox.recipient for mailbox in found if mailbox.version < versions[mailbox.recipient]}
    again = {name: versions[name] for name in hinted | older}
    newer = [mailbox for mailbox in found if mailbox.recipient not in older]
    return newer + (read(lambda: changed_mailboxes(again)) if again else [])
