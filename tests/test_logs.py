"""Log lines: for people and for programs, one for each request, without contents, secrets or forged lines."""

import io
import json
import logging
import logging.config
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection
from django.test import Client

from messages_project.logs import ACCESS, UnrepeatedFilter, logging_config

Output = Callable[[], list[str]]


def formatter(name: str) -> logging.Formatter:
    """A formatter as Django's LOGGING makes it."""
    options = dict(logging_config(style="json", level="INFO", access=True)["formatters"][name])
    made: logging.Formatter = logging.config.DictConfigurator({}).configure_formatter(options)
    return made


def record(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("messages.test", logging.WARNING, __file__, 1, message, arguments, None)
    if error:
        made.exc_info = (type(error), error, error.__traceback__)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_a_line_of_json_holds_what_the_call_gave() -> None:
    line = json.loads(formatter("json").format(record("sent %d", 3, recipients=2)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "WARNING", "logger": "messages.test", "message": "sent 3", "recipients": 2}


def test_a_line_for_people_has_time_level_and_name() -> None:
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d WARNING messages\.test: sent 3", formatter("console").format(record("sent %d", 3))
    )


# Here, since a traceback shows the lines of the code that it went through.
CONTENT = "a private\nletter"


def failure() -> BaseException:
    """An error of the database, whose full text quotes the row."""
    with connection.cursor() as cursor:
        try:
            cursor.execute("CREATE TEMPORARY TABLE t (content text CHECK (length(content) < 5)) ON COMMIT DROP")
            cursor.execute("INSERT INTO t VALUES (%s)", [CONTENT])
        except IntegrityError as error:
            return error
    raise AssertionError("the row was taken")


@pytest.mark.parametrize("name", ["console", "json"])
@pytest.mark.django_db
def test_a_traceback_does_not_quote_the_row_that_the_database_refused(name: str) -> None:
    error = failure()
    assert "private" in str(error)
    assert isinstance(error.__cause__, psycopg.Error)
    line = formatter(name).format(record("could not send", error=error))
    assert "violates check constraint" in line
    assert "in failure" in line, "no traceback"
    assert "private" not in line
    assert "letter" not in line


def test_a_line_is_written_once_a_second() -> None:
    unrepeated = UnrepeatedFilter()

    def is_written(at: float, text: str = "the disk is full", error: BaseException | None = None) -> bool:
        made = record("%s", text, error=error)
        made.created = at
        return unrepeated.filter(made)

    assert [is_written(at) for at in (100.0, 100.1, 100.9, 101.2, 101.3)] == [True, False, False, True, False]
    assert is_written(101.4, "another")
    assert is_written(101.4, error=ValueError())
    assert is_written(50.0)  # the clock was set back
    assert unrepeated.filter(record("%d", "no number")), "its handler reports it"


@pytest.mark.parametrize("name", ["console", "json"])
def test_a_message_cannot_forge_a_second_line(name: str) -> None:
    line = formatter(name).format(record("refused %s", "no\n12:00:00 GET /livez\r\u2028\x1b[31m ü"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_the_text_of_an_error_cannot_forge_a_line() -> None:
    line = formatter("console").format(record("failed", error=ValueError("x\n12:00:00 GET /livez 200")))
    assert not [part for part in line.splitlines() if part.startswith("12:00:00")]


@pytest.fixture(params=["console access", "json"])
def output(request: pytest.FixtureRequest) -> Iterator[Output]:
    """The lines of the access log so far."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter(request.param))
    logger = logging.getLogger(ACCESS)
    logger.addHandler(handler)
    yield lambda: text.getvalue().splitlines()
    logger.removeHandler(handler)


def is_json(output: Output) -> bool:
    return output()[0].startswith("{")


def test_a_request_is_one_line_with_its_path_and_not_its_query(output: Output) -> None:
    Client().get("/livez?recipient=someone", headers={"X-Request-ID": "abc-1"})
    [line] = output()
    assert "someone" not in line
    if not is_json(output):
        assert re.fullmatch(r"\d\d:\d\d:\d\d GET /livez 200 \d+\.\dms 16B - abc-1", line)
        return
    parts = json.loads(line)
    assert re.fullmatch(r"GET /livez 200 \d+\.\dms 16B - abc-1", parts.pop("message"))
    assert isinstance(parts.pop("milliseconds"), float)
    assert parts.pop("time").endswith("Z")
    assert parts == {
        "level": "INFO", "logger": ACCESS, "method": "GET", "path": "/livez", "status": 200, "bytes": 16,
        "caller": "-", "request_id": "abc-1",
    }  # fmt: skip


def test_a_path_cannot_forge_a_second_line(output: Output) -> None:
    Client().get("/no%0A12:00:00 GET /livez%E2%80%A8%1B[31m")
    [line] = output()
    assert line.isprintable()
    assert "\\n12:00:00" in line


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "is_valid"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        ("x\ny", False),
        ("", False),
    ],
)
def test_an_access_line_of_json_names_the_trace_of_its_client(output: Output, given: str, is_valid: bool) -> None:
    Client().get("/livez", headers={"traceparent": given})
    if is_json(output):
        parts = json.loads(output()[0])
        assert (parts.get("trace_id"), parts.get("span_id")) == ((TRACE, SPAN) if is_valid else (None, None))
    else:
        assert TRACE not in output()[0]
