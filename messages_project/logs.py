"""Logging: one line for each request and event on standard error, as text (console) or JSON.

No line contains message contents or secrets: paths are logged without their query string, and database errors without
the DETAIL lines in which PostgreSQL quotes the row. Control characters are escaped, so input cannot forge a line.
"""

import logging
import re
import time
import traceback
from operator import attrgetter
from typing import Any

from pythonjsonlogger.json import JsonFormatter as PythonJsonFormatter

ACCESS = "messages.access"
_ACCESS_LINE = "%(method)s %(path)s %(status)d %(milliseconds).1fms %(bytes)dB %(caller)s %(request_id)s"
_access_log = logging.getLogger(ACCESS)

# https://www.w3.org/TR/trace-context/: version, trace-id, parent-id, flags; an id of zeros only is invalid.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


def logging_config(*, style: str, level: str, access: bool) -> dict[str, Any]:
    """Django's LOGGING. `style` is console or json; `access` enables the line for each request."""
    console = "messages_project.logs.ConsoleFormatter"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "console": {"()": console, "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s", "datefmt": "%H:%M:%S"},
            "console access": {"()": console, "fmt": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"},
            "json": {
                "()": "messages_project.logs.JsonFormatter",
                "fmt": ["asctime", "levelname", "name", "message"],
                "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"},
            },
        },
        # Django reports every answer of 500 and above, intended ones included. Those with a traceback are failures.
        "filters": {
            "failures": {"()": "django.utils.log.CallbackFilter", "callback": attrgetter("exc_info")},
            "unrepeated": {"()": "messages_project.logs.UnrepeatedFilter"},
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": style, "filters": ["unrepeated"]},
            "access": {"class": "logging.StreamHandler", "formatter": "json" if style == "json" else "console access"},
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "messaging": {"level": level},
            "messages_project": {"level": level},
            ACCESS: {"level": "INFO" if access else "CRITICAL", "handlers": ["access"], "propagate": False},
            # The access log has every 4xx; an exception is still logged with its traceback.
            "django": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
            "django.request": {"level": "ERROR", "filters": ["failures"]},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            # Of the server: killed workers, requests that are not HTTP.
            "gunicorn.error": {"level": "DEBUG" if level == "DEBUG" else "WARNING"},
            # Not every attempt to reconnect: a request that fails is logged by problems.py.
            "psycopg.pool": {"level": "ERROR"},
        },
    }


def log_access(parts: dict[str, Any], traceparent: str) -> None:
    """Write the line of one request, if it is enabled. `parts` are those of _ACCESS_LINE; the path has no query string.

    In JSON they are members, with `trace_id` and `span_id` where the client sent a valid `traceparent`.
    """
    if not _access_log.isEnabledFor(logging.INFO):
        return
    trace = _TRACEPARENT.fullmatch(traceparent)
    extra = parts | {"trace_id": trace[1], "span_id": trace[2]} if trace else parts
    # Not Logger.info, which walks the stack for the caller's file and line.
    record = _access_log.makeRecord(ACCESS, logging.INFO, "", 0, _ACCESS_LINE, (parts,), None, extra=extra)
    _access_log.handle(record)


class UnrepeatedFilter(logging.Filter):
    """Drops a line that was written in the same second: each request meets the same fault of the database."""

    _began_at = 0.0
    _written: frozenset[tuple[str, ...]] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written. Those with a traceback always are."""
        if not 0 <= record.created - self._began_at <= 1:  # below 0: the clock was set back
            self._began_at, self._written = record.created, frozenset()
        # Not formatted, since an error in a filter would reach the caller.
        line = (record.name, str(record.msg), str(record.args))
        is_repeated = line in self._written
        self._written |= {line}
        return not is_repeated or bool(record.exc_info)


class _Formatter(logging.Formatter):
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    converter = staticmethod(time.gmtime)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback, without what a database error says about the values in its statement."""
        chain: list[str] = []
        error, seen = ei[1], set[int]()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            is_of_database = type(error).__module__.startswith(("psycopg", "django.db.utils"))
            text = str(error).partition("\n")[0] if is_of_database else str(error)
            stack = "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)])
            chain.append(f"{stack}{type(error).__module__}.{type(error).__qualname__}: {_in_one_line(text)}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nwhich led to:\n".join(reversed(chain))


class ConsoleFormatter(_Formatter):
    """Standard formatting in UTC, with control characters escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return _in_one_line(super().formatMessage(record))


class JsonFormatter(_Formatter, PythonJsonFormatter):
    """One JSON object a line: time, level, logger, message, what `extra` gave, and the traceback as `exception`."""


def _in_one_line(text: str) -> str:
    """The text with control characters and line separators escaped, so that it cannot forge a second line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
