"""`manage.py doctor`: compares what a deployment depends on with what it should be, and says what to do."""

import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import django
import psycopg
from django.conf import settings
from django.core import checks
from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, Error, connections

from messages_project import boot, health
from messaging import upkeep
from messaging.auth import signing_keys
from messaging.database import fetch
from messaging.errors import MessagingError, redis_error_name
from messaging.models import Observation
from messaging.postgresql.replicas import FLUSHED, REPLAYED
from messaging.postgresql.sqlstates import cause_of, first_line

_CLOCK_SECONDS = 2.0
_FREE_SHARE = 0.1  # of the disk
_UPKEEP_SECONDS = 600
_CHECKS = "See https://docs.djangoproject.com/en/stable/ref/checks/."

State = Literal["ok", "warn", "bad"]  # `bad` must be changed, `warn` should be reviewed


class Finding(NamedTuple):
    """One row: what was checked, what was found, and what to do."""

    subject: str
    state: State
    found: str
    advice: str = ""


def _ok(subject: str, found: str) -> Finding:
    return Finding(subject, "ok", found)


def _judged(subject: str, found: str, advice: str, *, is_ok: bool, otherwise: State = "bad") -> Finding:
    return _ok(subject, found) if is_ok else Finding(subject, otherwise, found, advice)


def findings() -> list[Finding]:
    """All findings. Checks that need the database are left out if it cannot be reached."""
    found = [*_versions(), *_settings()]
    reached = _reachability()
    found.append(reached)
    if reached.state != "bad":
        for look in _DATABASE:
            try:
                found += list(look())
            except (Error, MessagingError) as error:
                reason = first_line(cause_of(error))
                found.append(Finding(look.__name__.strip("_"), "warn", f"could not be checked: {reason}"))
    return [*found, *_token_keys(), *_redis(), *_disk()]


def _versions() -> Iterator[Finding]:
    names = ("djangorestframework", "psycopg", "gunicorn")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    yield _ok("versions", f"Python {platform.python_version()}, Django {django.__version__}, {packages}")


def _settings() -> Iterator[Finding]:
    messages = [m for m in checks.run_checks(include_deployment_checks=True) if not m.is_silenced()]
    for message in messages:
        state: State = "bad" if message.is_serious() else "warn"
        yield Finding(f"settings {message.id}", state, message.msg, message.hint or _CHECKS)
    if not messages:
        yield _ok("settings", "no system check has a warning")
    yield _ok("access", f"MESSAGES_ACCESS={settings.MESSAGES_ACCESS}, listening on {settings.BIND}")
    is_ok = bool(not settings.MESSAGES_TRUSTED_PROXIES or settings.SECURE_PROXY_SSL_HEADER or settings.PUBLIC_URL)
    advice = "Set TRUST_FORWARDED_PROTO=true, or PUBLIC_URL, if clients use https: links say http otherwise."
    found = f"MESSAGES_TRUSTED_PROXIES={settings.MESSAGES_TRUSTED_PROXIES}"
    yield _judged("proxy", found, advice, is_ok=is_ok, otherwise="warn")


def _reachability() -> Finding:
    began = time.perf_counter()
    try:
        [(text,)] = fetch("SELECT version()")
    except Error as error:
        reason = boot.why_no_connection(error)
        return Finding("database", "bad", reason, "Start PostgreSQL, or correct the POSTGRES_* variables.")
    found = f"{text.partition(' on ')[0]}, connected in {(time.perf_counter() - began) * 1e3:.1f} ms"
    is_ok = connections[DEFAULT_DB_ALIAS].pg_version >= 150000  # type: ignore[attr-defined]
    return _judged("database", found, "Use PostgreSQL 15 or newer.", is_ok=is_ok)


def _usable() -> Iterator[Finding]:
    if fault := health.fault_of(connections[DEFAULT_DB_ALIAS].connection):
        yield Finding("usable", "bad", fault.reason, fault.cure)
    else:
        yield _ok("usable", "in UTF8, writable, with all privileges")


def _durability() -> Iterator[Finding]:
    names = ["fsync", "full_page_writes", "synchronous_commit"]
    for name, value in fetch("SELECT name, setting FROM pg_settings WHERE name = ANY(%s) ORDER BY name", (names,)):
        found = "off: acknowledged changes can be lost in a crash" if value == "off" else str(value)
        state: State = "warn" if name == "synchronous_commit" else "bad"
        yield _judged(name, found, f"Set {name} = on in postgresql.conf.", is_ok=value != "off", otherwise=state)


def _connections() -> Iterator[Finding]:
    [(free, used)] = fetch(
        "SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0),"
        " nullif(rolconnlimit, -1), nullif(datconnlimit, -1)),"
        # Of other roles, PostgreSQL may show the database and hide the type.
        " (SELECT count(*) FROM pg_stat_activity"
        " WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend')"
        " FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"
    )
    watch = bool(settings.POSTGRES_REPLICAS)
    wanted = settings.WEB_CONCURRENCY * (max(2, settings.WEB_THREADS) + 1 + watch)
    found = f"{free} for this role and database, {used} in use; one instance takes up to {wanted}"
    advice = (
        "Raise max_connections, or the CONNECTION LIMIT of the role or database; or lower WEB_CONCURRENCY or"
        " WEB_THREADS, or put PgBouncer in between."
    )
    yield _judged("connections", found, advice, is_ok=wanted <= free)


def _clock() -> Iterator[Finding]:
    before = time.time()
    [(there,)] = fetch("SELECT extract(epoch FROM clock_timestamp())::float8")
    apart = there - (before + time.time()) / 2
    found = f"the database's is {apart:+.2f} s from this machine's"
    advice = "Synchronise both clocks (NTP): tokens and ids depend on them."
    yield _judged("clock", found, advice, is_ok=abs(apart) < _CLOCK_SECONDS, otherwise="warn")


def _migrations() -> Iterator[Finding]:
    is_ok = health.is_migrated()
    yield _judged("migrations", "all applied" if is_ok else "some are missing", "Run manage.py migrate.", is_ok=is_ok)


def _upkeep() -> Iterator[Finding]:
    if not health.is_migrated():
        return
    left = {kind: count for kind, count in upkeep.backlog().items() if count}
    found = ", ".join(f"{count} {kind}" for kind, count in left.items()) or "nothing"
    run = Observation.last("upkeep")
    age = time.time() - run.observed_at.timestamp() if run else float("inf")
    ended = f"ran {age:.0f} s ago" if run else "never ran"
    advice = "Run `python -m messages_project upkeep` as a service, or `manage.py upkeep --once` from cron."
    is_ok = age <= max(_UPKEEP_SECONDS, 10 * settings.MESSAGES_UPKEEP_SECONDS)
    yield _judged("upkeep", f"{ended}; {found} to be deleted", advice, is_ok=is_ok, otherwise="warn")


def _mailboxes() -> Iterator[Finding]:
    if not health.is_migrated():
        return
    checked = Observation.last("mailbox_disagreements")
    if checked is None:
        yield Finding("mailboxes", "warn", "never compared", "Run manage.py check_mailboxes, best every day.")
    elif checked.value:
        found = f"{checked.value} disagree with their messages"
        yield Finding("mailboxes", "bad", found, "Run manage.py check_mailboxes --repair.")
    else:
        yield _ok("mailboxes", f"none disagreed on {checked.observed_at:%Y-%m-%d %H:%M}")


def _replicas() -> Iterator[Finding]:
    for alias in settings.POSTGRES_REPLICAS:
        known = settings.DATABASES[alias]
        is_ok, found = _replica(alias)
        advice = "Start it, make it follow the primary, or take it out of POSTGRES_REPLICAS; reads do without."
        name = f"replica {known['HOST']}:{known['PORT']}"
        yield _judged(name, found, advice, is_ok=is_ok, otherwise="warn")


def _replica(alias: str) -> tuple[bool, str]:
    """Whether a replica can be used, and what was found."""
    try:
        # Without the pool, whose error does not give the reason.
        with psycopg.connect(**connections[alias].get_connection_params()) as replica:
            row = replica.execute(REPLAYED).fetchone()
    except psycopg.Error as error:
        return False, first_line(error)
    if row is None:
        return False, "not in recovery, so it is no replica and is not used"
    position, (cluster, timeline), _ = row
    [(flushed, (own_cluster, current))] = fetch(FLUSHED)
    behind = flushed - position
    if cluster != own_cluster:
        return False, "a replica of another cluster, which is not used"
    if behind < 0:
        return False, f"{-behind} bytes of WAL ahead of the primary: it follows another server"
    if timeline != current:
        # See messaging/postgresql/replicas.py. Processes that knew it before a failover do use it.
        return (
            False,
            f"its last restartpoint is on timeline {timeline}, not {current}: CHECKPOINT on the primary, then there",
        )
    return True, f"in recovery, {behind} bytes of WAL behind the primary"


def _token_keys() -> Iterator[Finding]:
    """The published keys behind a URL. A file is read by a check of the settings."""
    if not signing_keys.is_url(settings.MESSAGES_TOKEN_JWKS):
        return
    try:
        number = len(signing_keys.load(settings.MESSAGES_TOKEN_JWKS))
    except signing_keys.UNREADABLE as error:
        advice = "Correct MESSAGES_TOKEN_JWKS, or what answers there: until then, new processes refuse all tokens."
        yield Finding("token keys", "bad", f"cannot be read ({error})", advice)
        return
    yield _ok("token keys", f"{number} that verify tokens")


def _redis() -> Iterator[Finding]:
    if not settings.REDIS_URL:
        yield _ok("redis", "not used; limits are counted in PostgreSQL")
        return
    from messaging.auth.limits_redis import RedisWindows

    try:
        RedisWindows(settings.REDIS_URL).probe()
    except Exception as error:  # noqa: BLE001 - as in limits_redis.py
        found = f"does not count ({redis_error_name(error)}); limits are counted in PostgreSQL"
        yield Finding("redis", "warn", found, "Start it, let it write, or correct REDIS_URL.")
        return
    yield _ok("redis", "counts the limits")


def _disk() -> Iterator[Finding]:
    usage = shutil.disk_usage(settings.BASE_DIR)
    found = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} on this machine"
    is_ok = usage.free >= _FREE_SHARE * usage.total
    yield _judged("disk", found, "Make room: without any, PostgreSQL stops.", is_ok=is_ok, otherwise="warn")


_DATABASE = (_usable, _durability, _connections, _replicas, _clock, _migrations, _upkeep, _mailboxes)


class Command(BaseCommand):
    help = (
        "Checks settings, versions, the database and its settings, clocks, migrations, Redis, disk and upkeep, and"
        " says what to do. Changes nothing. Exit status 1 if anything must be changed."
    )
    requires_system_checks: list[str] = []  # it shows them itself

    def add_arguments(self, parser: CommandParser) -> None:
        parser.epilog = "Example: manage.py doctor --json | jq '.[] | select(.state != \"ok\")'"
        parser.add_argument("--json", action="store_true", help="Print the findings as a JSON list.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = findings()
        if options["json"]:
            self.stdout.write(json.dumps([finding._asdict() for finding in found], indent=2))
        else:
            self._table(found)
        if any(finding.state == "bad" for finding in found):
            sys.exit(1)

    def _table(self, found: list[Finding]) -> None:
        width = max(len(finding.subject) for finding in found)
        for subject, state, text, advice in found:
            self.stdout.write(f"{state:4}  {subject:{width}}  {text}")
            if advice:
                self.stdout.write(f"{'':4}  {'':{width}}  -> {advice}")
