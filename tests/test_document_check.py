"""The check of every answer in the tests against the document: each line below is a wrong answer that it reports."""

import json
import re
from typing import Any

import pytest

from tests import document
from tests.document import Exchange

_ID = "019b5c3e7a107c329d5e0b8f4a6d2c91"
_MAILBOX: dict[str, Any] = {"recipient": "ada", "version": 1, "total": 1, "unread": 1}
_JSON = {"content-type": "application/json", "x-request-id": _ID}
_GOOD = Exchange("GET", "/mailbox?recipient=ada", b"", 200, {**_JSON, "etag": '"a-1"'}, json.dumps(_MAILBOX).encode())
_PROBLEM = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "There is nothing here.",
    "instance": "/mailbox",
    "code": "not_found",
    "request_id": _ID,
}
_REFUSED = _GOOD._replace(
    status=404,
    headers={"content-type": "application/problem+json", "x-request-id": _ID},
    body=json.dumps(_PROBLEM).encode(),
)


def _mailbox(**changed: Any) -> Exchange:
    return _GOOD._replace(body=json.dumps(_MAILBOX | changed).encode())


def _problem(**changed: Any) -> Exchange:
    return _REFUSED._replace(body=json.dumps(_PROBLEM | changed).encode())


def _headers(**changed: str | None) -> Exchange:
    headers = {**_GOOD.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return _GOOD._replace(headers={name: value for name, value in headers.items() if value is not None})


@pytest.mark.parametrize("exchange", [_GOOD, _REFUSED, _GOOD._replace(path="/mailbox/?recipient=ada")])
def test_an_answer_as_described_passes(exchange: Exchange) -> None:
    document.check(exchange)


@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        (_mailbox(total="1"), "/total"),
        (_mailbox(total=-1), "/total"),
        (_mailbox(owner="ada"), "owner"),
        (_GOOD._replace(body=b"{}"), "recipient"),
        (_GOOD._replace(body=b""), "it has no body"),
        (_GOOD._replace(status=202), "has no status 202"),
        (_GOOD._replace(method="POST"), "the document has no such request"),
        (_GOOD._replace(path="/mailboxes"), "the document has no such request"),
        (_headers(etag=None), "etag is missing"),
        (_headers(etag="1"), "header etag"),
        (_headers(x_request_id=None), "no X-Request-ID"),
        (_headers(location="/here"), "location is not described"),
        (_headers(content_type="text/html"), "it is text/html"),
        (_problem(code="no_such_code"), "no_such_code"),
        (_problem(code="invalid_input"), "invalid_input"),
        (_problem(status=400), "its member status is 400"),
        (_problem(request_id="other"), "request_id is not the X-Request-ID"),
        (_problem(trace="..."), "trace"),
        (_REFUSED._replace(headers=_JSON), "it is application/json"),
        (_REFUSED._replace(path="/nowhere", headers=_JSON), "not application/problem+json"),
        (
            Exchange("POST", "/messages/", b'{"ids": []}', 201, {**_JSON, "location": "http://a/b"}, b"{}"),
            "the request was taken, but",
        ),
    ],
)
def test_a_wrong_answer_is_reported(exchange: Exchange, told: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(told)):
        document.check(exchange)
