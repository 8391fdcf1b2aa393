"""Log lines for people and for machines, on standard error.

No line holds contents or secrets: paths come without their query string, and errors of the database without the lines
in which PostgreSQL quotes the row.
"""

import json
import logging
import time
import traceback
from types import TracebackType
from typing import Any

ACCESS = "messages.access"
_ACCESS_LINE = "%s %s %d %.1fms %dB %s %s"
_ACCESS_PARTS = ("method", "path", "status", "milliseconds", "bytes", "caller", "request_id")
_access_log = logging.getLogger(ACCESS)
_ACCESS_RECORD = vars(logging.LogRecord(ACCESS, logging.INFO, __file__, 0, _ACCESS_LINE, (), None))

# Set by logging itself; whatever else a record carries was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def logging_config(*, style: str, level: str, access: bool) -> dict[str, Any]:
    """Django's LOGGING. `style` is console or json; `access` switches the line a request on."""
    handlers = ["stderr"]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "console": {"()": "messages_project.logs.ConsoleFormatter"},
            "json": {"()": "messages_project.logs.JsonFormatter"},
        },
        "filters": {"failures": {"()": "messages_project.logs.FailureFilter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style}},
        "root": {"handlers": handlers, "level": "WARNING"},
        "loggers": {
            "messages": {"level": level},
            "messaging": {"level": level},
            "messages_project": {"level": level},
            ACCESS: {"level": "INFO" if access else "CRITICAL", "handlers": handlers, "propagate": False},
            # The access line already tells of every 4xx; a failure inside still arrives with its traceback.
            "django": {"level": "WARNING", "handlers": handlers, "propagate": False},
            "django.request": {"level": "ERROR", "filters": ["failures"]},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            # The server's own: workers that had to be killed, requests that are no HTTP.
            "gunicorn.error": {"level": "DEBUG" if level == "DEBUG" else "WARNING"},
            # Each attempt to reconnect; what a request sees of it is logged where it is answered.
            "psycopg.pool": {"level": "ERROR"},
        },
    }


def log_access(  # noqa: PLR0917 - the parts of the line, in its order
    method: str, path: str, status: int, milliseconds: float, size: int, caller: str, request_id: str
) -> None:
    """Write one line of the access log, if it is switched on. `path` comes without its query string."""
    if _access_log.isEnabledFor(logging.INFO):
        # Quoted, since a path may hold line feeds once decoded, and would forge a second line.
        path = path if path.isprintable() else ascii(path)[1:-1]
        # A copy of one record, since Logger.info would walk the stack, and LogRecord ask for thread and process.
        record = logging.LogRecord.__new__(logging.LogRecord)
        now = time.time()
        parts = (method, path, status, milliseconds, size, caller, request_id)
        vars(record).update(_ACCESS_RECORD, args=parts, created=now, msecs=now % 1 * 1e3)
        _access_log.handle(record)


class FailureFilter(logging.Filter):
    """Lets through what has a traceback. Django also reports every answer of 500 and above, meant ones included."""

    def filter(self, record: logging.LogRecord) -> bool:
        return bool(record.exc_info)


class _Formatter(logging.Formatter):
    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """The traceback, without what an error of the database says about the values in its statement."""
        if ei[1] is None:
            return ""
        chain: list[str] = []
        error: BaseException | None = ei[1]
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            text = str(error).partition("\n")[0] if _is_of_database(error) else str(error)
            stack = "".join(traceback.format_tb(error.__traceback__))
            chain.append(f"{stack}{type(error).__module__}.{type(error).__qualname__}: {text}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nwhich followed from this:\n".join(reversed(chain))


class ConsoleFormatter(_Formatter):
    """`12:34:56 WARNING messaging.database: text`, in UTC; access lines without level and name."""

    # The second that was last written out: most lines share it with the one before.
    _clock = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        second, clock = self._clock
        if second != int(record.created):
            clock = self.formatTime(record, "%H:%M:%S")
            self._clock = (int(record.created), clock)
        text = record.getMessage()
        if record.name == ACCESS:
            return f"{clock} {text}"
        line = f"{clock} {record.levelname} {record.name}: {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, what `extra` gave, and the traceback under `exception`.

    An access line has the parts of its message as members too.
    """

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name == ACCESS and isinstance(record.args, tuple):
            line.update(zip(_ACCESS_PARTS, record.args, strict=True))
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _is_of_database(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "psycopg" or type(error).__module__ == "django.db.utils"
