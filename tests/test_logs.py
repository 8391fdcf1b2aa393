"""Log lines: for people and for machines, one to a request, and free of what was said in it."""

import io
import json
import logging
import re
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection
from django.test import Client

from messages_project.logs import ACCESS, ConsoleFormatter, JsonFormatter


def record(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("messages.test", logging.WARNING, __file__, 1, message, arguments, None)
    if error:
        made.exc_info = (type(error), error, error.__traceback__)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_a_line_of_json_holds_what_the_call_gave() -> None:
    line = json.loads(JsonFormatter().format(record("sent %d", 3, recipients=2)))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "messages.test", "message": "sent 3", "recipients": 2}


def test_an_access_line_of_json_has_its_parts_as_members() -> None:
    parts = ("GET", "/livez", 200, 0.25, 16, "-", "abc-1")
    made = logging.LogRecord(ACCESS, logging.INFO, __file__, 1, "%s %s %d %.1fms %dB %s %s", parts, None)
    line = json.loads(JsonFormatter().format(made))
    assert line["message"] == "GET /livez 200 0.2ms 16B - abc-1"
    assert (line["method"], line["path"], line["status"], line["milliseconds"]) == ("GET", "/livez", 200, 0.25)
    assert (line["bytes"], line["caller"], line["request_id"]) == (16, "-", "abc-1")


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


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), JsonFormatter()])
@pytest.mark.django_db
def test_a_traceback_does_not_quote_the_row_that_the_database_refused(formatter: logging.Formatter) -> None:
    error = failure()
    assert "private" in str(error)
    assert isinstance(error.__cause__, psycopg.Error)
    line = formatter.format(record("could not send", error=error))
    assert "violates check constraint" in line
    assert "in failure" in line, "no traceback"
    assert "private" not in line
    assert "letter" not in line


def access_line(path: str) -> str:
    """What a request of `path` with the id abc-1 adds to the access log, as a person sees it."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(ConsoleFormatter())
    logger = logging.getLogger(ACCESS)
    logger.addHandler(handler)
    try:
        Client().get(path, headers={"X-Request-ID": "abc-1"})
    finally:
        logger.removeHandler(handler)
    return text.getvalue().removesuffix("\n")


def test_the_access_line_names_the_path_without_its_query() -> None:
    line = access_line("/livez?recipient=someone")
    assert re.fullmatch(r"\d\d:\d\d:\d\d GET /livez 200 \d+\.\dms 16B - abc-1", line)


def test_a_path_cannot_forge_a_second_line() -> None:
    line = access_line("/no%0A12:00:00 GET /livez%E2%80%A8%1B[31m")
    assert line.isprintable()
    assert "\\n12:00:00" in line
