"""Input made to break things: refused with a pointer or kept exactly, never a 500; and a refusal changes nothing."""

import gzip
import json
import re
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from messaging.api.parsers import members
from tests.helpers import PATIENCE_SECONDS, Api
from tests.servers import RunningServer
from tests.state import nothing_changes, stored
from tests.test_reading import MISSING

NAUGHTY: list[str] = json.loads((Path(__file__).parent / "data" / "naughty-strings.json").read_text(encoding="utf-8"))
NAUGHTY += [
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\u0085",
    "\x1c",
    "\x1f",
    "\u2003\u3000",
    "\u00ad",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "~",
    "~1/",
]
MIB = 1_048_576

WRITES = [
    ("POST", "/messages/"),
    ("POST", "/messages/batch"),
    ("PATCH", "/messages/mark-read"),
    ("PATCH", "/messages/mark-unread"),
    ("DELETE", "/messages/bulk"),
    ("POST", "/messages/bulk-delete"),
]


def is_text(text: str) -> bool:
    """Whether PostgreSQL, and UTF-8, can hold it."""
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def is_name(text: str) -> bool:
    return is_text(text) and 0 < len(text) <= 255 and not re.search("[\x00-\x1f\x7f-\x9f]", text)


def is_content(text: str) -> bool:
    return is_text(text) and not text.isspace() and text != ""


# --- strings that break programs, in every place


def test_naughty_strings_are_many() -> None:
    assert len(NAUGHTY) > 500
    assert sum(map(is_name, NAUGHTY)) > 400
    assert sum(map(is_content, NAUGHTY)) > 480


@pytest.mark.parametrize("ascii_only", [True, False])
def test_naughty_strings_as_content_and_metadata_come_back_exactly(api: Api, ascii_only: bool) -> None:
    good = [text for text in NAUGHTY if is_content(text)]
    drafts = [{"recipient": "ada", "content": text, "metadata": {text: [text, {"in": text}]}} for text in good]
    body = json.dumps({"messages": drafts}, ensure_ascii=ascii_only).encode()
    results = api.post("/messages/batch", body=body).expect(201).json["results"]
    found = api.pages("/messages/", {"recipient": "ada", "limit": 200, "ordering": "created_at"})

    assert results == found
    for draft, message in zip(drafts, found, strict=True):
        assert (message["content"], message["metadata"]) == (draft["content"], draft["metadata"])


def test_naughty_strings_as_names_come_back_exactly(api: Api) -> None:
    good = sorted({text for text in NAUGHTY if is_name(text)})
    drafts = [{"recipient": text, "sender": text, "content": text + "."} for text in good]
    api.post("/messages/batch", {"messages": drafts}).expect(201)

    for text in good:
        page = api.get("/messages/", {"recipient": text, "sender": text}).expect(200).json
        assert page["mailbox"] == {"recipient": text, "version": 1, "total": 1, "unread": 1}
        [message] = page["results"]
        assert (message["recipient"], message["sender"], message["content"]) == (text, text, text + ".")


def test_naughty_strings_that_cannot_be_kept_are_refused_by_name(api: Api) -> None:
    with nothing_changes():
        for text in NAUGHTY:
            fields = [
                ("recipient", is_name(text)),
                ("sender", not text or is_name(text)),
                ("content", is_content(text)),
            ]
            for name, is_good in fields:
                if not is_good:
                    draft = {"recipient": "ada", "content": "x", name: text}
                    assert api.post("/messages/", draft).expect(400, "invalid_input").faults.keys() == {f"/{name}"}
            if not is_text(text):
                for metadata in ({"a": text}, {text: "a"}):
                    [pointer] = (
                        api.post("/messages/", {**DRAFT, "metadata": metadata}).expect(400, "invalid_input").faults
                    )
                    assert pointer.startswith("/metadata/")


def test_naughty_strings_in_the_query(api: Api) -> None:
    api.send("ada")
    with nothing_changes():
        for number, text in enumerate(NAUGHTY):
            value = quote(text, safe="", errors="surrogatepass")
            answer = api.get(f"/messages/?recipient={value}")
            if is_name(text):
                assert answer.expect(200).json["mailbox"]["recipient"] == text
            else:
                assert answer.expect(400, "invalid_input").faults.keys() == {"?recipient"}
            name = ("cursor", "ordering", "is_read", "created_after")[number % 4]
            if text.lower() not in {"true", "false", "1", "0"}:
                faults = api.get(f"/messages/unread?recipient=ada&{name}={value}").expect(400, "invalid_input").faults
                assert faults.keys() == {f"?{name}"}
            assert api.get(f"/mailbox?recipient=ada&x{value}").expect(400, "invalid_input").faults


def test_naughty_strings_in_the_path(api: Api) -> None:
    api.send("ada")
    with nothing_changes():
        for number, text in enumerate(NAUGHTY):
            method = ("GET", "DELETE", "PATCH", "POST")[number % 4]
            path = f"/messages/{quote(text, safe='', errors='surrogatepass')}"
            if text and not text.endswith("/"):
                answer = api.request(method, path)
                assert answer.status in ({404} if method in {"GET", "DELETE"} else {404, 405}), (text, answer)


def test_naughty_strings_as_ids(api: Api) -> None:
    api.send("ada")
    with nothing_changes():
        for method, path in WRITES[2:]:
            for text in NAUGHTY[::7]:
                faults = api.request(method, path, {"ids": [text]}).expect(400, "invalid_input").faults
                assert faults == {"/ids/0": "not_a_uuid"}


def test_naughty_strings_as_names_of_fields(api: Api) -> None:
    with nothing_changes():
        for number, text in enumerate(NAUGHTY):
            method, path = WRITES[number % len(WRITES)]
            answer = api.request(method, path, {text: text}).expect(400, "invalid_input")
            assert answer.faults


# --- bodies that are no JSON, or not the JSON of this API


def nested(levels: int) -> bytes:
    """A draft of so many levels of arrays and objects."""
    inner = levels - 2
    return b'{"recipient": "ada", "content": "x", "metadata": {"a": ' + b"[" * inner + b"]" * inner + b"}}"


DRAFT = {"recipient": "ada", "content": "x"}

BODIES: list[tuple[str, bytes, dict[str, str]]] = [
    ("nothing", b"", {"": "malformed_json"}),
    ("white space", b" \n", {"": "malformed_json"}),
    ("cut off", b'{"recipient": "ada", "content": "x"', {"": "malformed_json"}),
    ("two values", b"{}{}", {"": "malformed_json"}),
    ("single quotes", b"{'recipient': 'ada'}", {"": "malformed_json"}),
    ("trailing comma", b'{"recipient": "ada",}', {"": "malformed_json"}),
    ("comment", b'{"recipient": "ada" /* */}', {"": "malformed_json"}),
    ("raw control character", b'{"recipient": "ada", "content": "a\nb"}', {"": "malformed_json"}),
    ("raw NUL", b'{"recipient": "ada", "content": "a\x00b"}', {"": "malformed_json"}),
    ("NUL after", b'{"recipient": "ada", "content": "x"}\x00', {"": "malformed_json"}),
    ("bad escape", b'{"recipient": "ada", "content": "\\x41"}', {"": "malformed_json"}),
    ("half an escape", b'{"recipient": "ada", "content": "\\u00"}', {"": "malformed_json"}),
    ("a form", b"recipient=ada&content=x", {"": "malformed_json"}),
    ("UTF-16 with a mark", json.dumps(DRAFT).encode("utf-16"), {"": "invalid_utf8"}),
    ("UTF-16 little end", json.dumps(DRAFT).encode("utf-16-le"), {"": "invalid_utf8"}),
    ("UTF-16 big end", json.dumps(DRAFT).encode("utf-16-be"), {"": "invalid_utf8"}),
    ("UTF-32", json.dumps(DRAFT).encode("utf-32"), {"": "invalid_utf8"}),
    ("gzip", gzip.compress(json.dumps(DRAFT).encode()), {"": "invalid_utf8"}),
    ("Latin-1", b'{"recipient": "ada", "content": "caf\xe9"}', {"/content": "invalid_utf8"}),
    ("a stray byte", b'{"recipient": "ada\xff", "content": "x"}', {"/recipient": "invalid_utf8"}),
    ("an overlong form", b'{"recipient": "ada", "content": "\xc0\x80"}', {"/content": "invalid_utf8"}),
    ("an encoded surrogate", b'{"recipient": "ada", "content": "\xed\xa0\x80"}', {"/content": "invalid_utf8"}),
    ("beyond Unicode", b'{"recipient": "ada", "content": "\xf4\x90\x80\x80"}', {"/content": "invalid_utf8"}),
    ("half a character", b'{"recipient": "ada", "content": "\xe2\x82"}', {"/content": "invalid_utf8"}),
    ("deep in metadata", b'{"recipient": "ada", "content": "x", "metadata": {"a/b": [1, {"c": "\xff"}]}}',
     {"/metadata/a~1b/1/c": "invalid_utf8"}),
    ("a stray byte in a key", b'{"recipient": "ada", "content": "x", "metadata": {"\xff": 1}}',
     {"/metadata/\ufffd": "invalid_utf8"}),
    ("a lone surrogate", b'{"recipient": "ada", "content": "\\ud83d"}', {"/content": "lone_surrogate"}),
    ("surrogates reversed", b'{"recipient": "ada", "content": "\\ude00\\ud83d"}', {"/content": "lone_surrogate"}),
    ("100,000 lists", b"[" * 100_000, {"": "too_deep"}),
    ("100,000 objects", b'{"a":' * 100_000, {"": "too_deep"}),
    ("100,000 closed lists", b"[" * 100_000 + b"]" * 100_000, {"": "too_deep"}),
    ("65 levels", nested(65), {"": "too_deep"}),
    ("5,000 levels, not UTF-8", b"[" * 5_000 + b'"\xff"' + b"]" * 5_000, {"": "too_deep"}),
    ("5,000 levels, twice a key", b'{"a":' * 5_000 + b'{"b":1,"b":2}' + b"}" * 5_000, {"": "too_deep"}),
    ("twice a key", b'{"recipient": "ada", "recipient": "bob", "content": "x"}', {"/recipient": "duplicate_key"}),
    ("twice, once escaped", b'{"recipient": "a", "\\u0072ecipient": "b"}', {"/recipient": "duplicate_key"}),
    ("twice in metadata", b'{"recipient": "ada", "metadata": {"a": 1, "a": 1}}', {"/metadata/a": "duplicate_key"}),
    ("a number", b"5", {"": "not_an_object"}),
    ("a string", b'"x"', {"": "not_an_object"}),
    ("null", b"null", {"": "not_an_object"}),
    ("NaN", b"NaN", {"": "not_an_object"}),
    ("5,000 digits", b"1" * 5_000, {"": "not_an_object"}),
    ("an infinite content", b'{"recipient": "ada", "content": Infinity}', {"/content": "not_a_string"}),
    ("a huge content", b'{"recipient": "ada", "content": 1e999}', {"/content": "not_a_string"}),
    ("a recipient of digits", b'{"recipient": ' + b"9" * 5_000 + b', "content": "x"}', {"/recipient": "not_a_string"}),
    ("metadata NaN", b'{"recipient": "ada", "content": "x", "metadata": NaN}', {"/metadata": "not_an_object"}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "faults"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_an_invalid_body_is_refused(api: Api, body: bytes, faults: dict[str, str]) -> None:
    with nothing_changes():
        answer = api.post("/messages/", body=body).expect(400, "invalid_input")
        if body.strip():
            assert answer.faults == faults
            assert " at at " not in answer.json["errors"][0]["detail"]
        for method, path in WRITES[1:]:
            assert api.request(method, path, body=body).expect(400, "invalid_input").faults


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"recipient": "a", "content": "b", "metadata": {"a": {"b": 1, "b/c": 2, "b/c": 3}}}', "/metadata/a/b~1c"),
        (b'{"recipient": "a", "content": "b", "metadata": {"a": [1, {"b": 1, "b": 2}]}}', "/metadata/a/1/b"),
        (b'{"messages": [{}, {}, {}, {"metadata": {"a": {"b": 1, "b": 2}}}]}', "/messages/3/metadata/a/b"),
        (b'{"messages": [{"content": "a", "content": "b"}]}', "/messages/0/content"),
    ],
)
def test_a_repeated_key_is_pointed_at_wherever_it_stands(api: Api, body: bytes, pointer: str) -> None:
    for path in ("/messages/", "/messages/batch"):
        assert api.post(path, body=body).expect(400, "invalid_input").faults == {pointer: "duplicate_key"}


def test_a_byte_order_mark_is_passed_over(api: Api) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(DRAFT).encode()
    assert api.post("/messages/", body=body).expect(201).json["content"] == DRAFT["content"]


def test_sixty_four_levels_are_taken(api: Api) -> None:
    message = api.post("/messages/", body=nested(64)).expect(201).json
    assert api.get(f"/messages/{message['id']}").expect(200).json == message
    # A message may be as deep in a batch.
    [again] = api.post("/messages/batch", body=b'{"messages": [' + nested(64) + b"]}").expect(201).json["results"]
    assert again["metadata"] == message["metadata"]
    faults = api.post("/messages/batch", body=b'{"messages": [' + nested(65) + b"]}").expect(400).faults
    assert faults == {"": "too_deep"}


def test_faults_inside_a_batch_point_into_it(api: Api) -> None:
    start = b'{"messages": [{"recipient": "ada", "content": "x"}, {"recipient": "ada", "content": '
    with nothing_changes():
        for content, fault in [
            (b'"\xff"', {"/messages/1/content": "invalid_utf8"}),
            (b'"\\u0000"', {"/messages/1/content": "nul_character"}),
            (b"1e999999999999999999999", {"/messages/1/content": "not_a_string"}),
            (b'"x", "metadata": {"n": [NaN]}', {"/messages/1/metadata/n/0": "inexact_number"}),
            (b'"x", "metadata": ' + b"[" * 70 + b"]" * 70, {"": "too_deep"}),
        ]:
            assert api.post("/messages/batch", body=start + content + b"}]}").expect(400).faults == fault


@pytest.mark.parametrize(
    "media_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
     "application/jsonp", "application/merge-patch+json", "application/problem+json", "json", "/", "\xff", ";;", "*"],
)  # fmt: skip
def test_another_media_type_is_refused(api: Api, media_type: str | None) -> None:
    body = json.dumps(DRAFT | {"ids": [MISSING]}).encode()
    with nothing_changes():
        for method, path in WRITES:
            answer = api.request(method, path, body=body, headers={"Content-Type": media_type})
            answer.expect(415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_every_spelling_of_the_media_type_is_accepted(api: Api, media_type: str) -> None:
    body = json.dumps(DRAFT | {"content": "é"}, ensure_ascii=False).encode()
    assert api.post("/messages/", body=body, headers={"Content-Type": media_type}).expect(201).json["content"] == "é"


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_content_encoding_identity_is_accepted(api: Api, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    api.post("/messages/", {"recipient": "ada", "content": "x"}, headers=headers).expect(201)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x"])
def test_compressed_bodies_are_refused(api: Api, encoding: str) -> None:
    with nothing_changes():
        api.post("/messages/", DRAFT, headers={"Content-Encoding": encoding}).expect(415, "unsupported_media_type")


# --- bodies that are too large


@pytest.mark.parametrize(("method", "path"), [*WRITES, ("DELETE", f"/messages/{MISSING}")])
def test_a_body_up_to_its_limit_and_one_byte_more(api: Api, method: str, path: str) -> None:
    limit = 16 * MIB if path.endswith("batch") else MIB
    message = {"messages": [DRAFT]} if path.endswith("batch") else DRAFT
    body = json.dumps(message if method == "POST" and "delete" not in path else {"ids": [MISSING]}).encode()
    full = body + b" " * (limit - len(body))
    before = stored()

    answer = api.request(method, path, body=full)
    assert answer.status in {200, 201, 404}
    after = stored()
    assert (after != before) == (answer.status == 201)
    api.request(method, path, body=full + b" ").expect(413, "body_too_large")
    assert stored() == after


def test_millions_of_values_are_refused_in_time_that_grows_with_them(api: Api) -> None:
    started = time.monotonic()
    zeros = b"[" + b"0," * 400_000 + b"0"
    with nothing_changes():
        api.post("/messages/", body=zeros + b',"\xff"]').expect(400, "invalid_input")
        faults = api.post("/messages/", body=b'{"recipient":"ada","content":"x","metadata":{"a":' + zeros + b"]}}")
        assert faults.expect(400, "invalid_input").faults == {"/metadata": "too_large"}
        answer = api.post("/messages/batch", body=b'{"messages":' + b"[" + b"[]," * 1_001 + b"[]" + b"]}")
        assert answer.expect(400, "invalid_input").faults == {"/messages": "too_many"}
        answer = api.post("/messages/", json={f"{i}": 1 for i in range(50_000)}).expect(400, "invalid_input")
        assert len(answer.body) < 50_000
    # Far more than it takes; with a cost that grows by the square, the first of them alone takes half a minute.
    assert time.monotonic() - started < 15


def test_the_search_for_a_fault_takes_no_memory_for_each_value() -> None:
    value: list[list[int]] = [[]] * 100_000
    tracemalloc.start()
    assert sum(1 for _ in members(value)) == 100_000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


# --- headers


@pytest.mark.parametrize("key", ["", "k" * 256, "\xff", "a\x00b", "a\tb", "é", "k" * 5_000])
@pytest.mark.parametrize(("method", "path"), WRITES)
def test_an_invalid_idempotency_key_is_refused(api: Api, method: str, path: str, key: str) -> None:
    with nothing_changes():
        answer = api.request(method, path, {"ids": [MISSING]}, headers={"Idempotency-Key": key})
        assert answer.expect(400, "invalid_input").json["errors"][0]["code"] == "invalid_idempotency_key"


@pytest.mark.parametrize("given_id", ["", "a b", "x" * 129, "a\x00b", "é", '"', "a;b", "../x", "a\nb"])
def test_an_invalid_request_id_is_replaced(api: Api, given_id: str) -> None:
    answer = api.get("/mailbox?recipient=ada", headers={"X-Request-ID": given_id}).expect(200)
    assert re.fullmatch(r"[A-Za-z0-9._-]{16,128}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("given_id", ["a", "x" * 128, "A.b_C-9"])
def test_a_request_id_is_kept(api: Api, given_id: str) -> None:
    headers = {"X-Request-ID": given_id}
    assert api.get("/mailbox?recipient=ada", headers=headers).headers["X-Request-ID"] == given_id
    assert api.get("/mailbox", headers=headers).expect(400).json["request_id"] == given_id
    assert api.get("/nowhere", headers=headers).expect(404).json["request_id"] == given_id


@pytest.mark.parametrize(
    "query",
    ["recipient=%ff", "recipient=a%c3", "recipient=%ed%a0%80", "recipient=a%00b", "recipient=%", "recipient=%zz%00",
     "%ff=1", "%00=1", "recipient=ada&cursor=%ff", "recipient=ada&sender=%ff", "recipient=ada&sender=%00",
     "recipient=ada&limit=%ff", "recipient=ada&ordering=%00", "recipient=ada&created_after=%00",
     "&".join(f"a{i}=1" for i in range(51)), "recipient=ada&" + "&" * 2_000 + "x=1"],
)  # fmt: skip
def test_a_query_that_is_not_text_is_refused_by_name(api: Api, query: str) -> None:
    # Percent signs that encode nothing stand for themselves, as browsers have it.
    if query == "recipient=%":
        assert api.get(f"/mailbox?{query}").expect(200).json["recipient"] == "%"
        return
    for path in ("/messages/", "/messages/unread", "/mailbox"):
        assert all(
            pointer.startswith("?") for pointer in api.get(f"{path}?{query}").expect(400, "invalid_input").faults
        )


# --- made up by a machine

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MISSING) | st.just("ada"),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["recipient", "sender", "content", "metadata", "messages", "ids", "up_to"]) | st.text(), inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip
FUZZ = settings(
    max_examples=60, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@FUZZ
@given(value=JSON, route=st.sampled_from(WRITES))
def test_any_json_is_taken_or_refused_by_name(api: Api, value: Any, route: tuple[str, str]) -> None:
    before = stored()
    answer = api.request(*route, value)
    if answer.status == 400:
        assert answer.faults
        assert stored() == before
    else:
        assert answer.status in {200, 201, 404}


@FUZZ
@given(body=st.binary(max_size=60), route=st.sampled_from(WRITES))
def test_any_bytes_are_refused(api: Api, body: bytes, route: tuple[str, str]) -> None:
    with nothing_changes():
        api.request(*route, body=body).expect(400, "invalid_input")


@FUZZ
@given(
    text=st.text(max_size=40), name=st.sampled_from(["recipient", "sender", "cursor", "limit", "created_after", "x"])
)
def test_any_query_is_taken_or_refused_by_name(api: Api, text: str, name: str) -> None:
    value = quote(text, safe="", errors="surrogatepass")
    answer = api.get(f"/messages/?{'' if name == 'recipient' else 'recipient=ada&'}{name}={value}")
    if answer.status != 200:
        assert answer.expect(400, "invalid_input").faults.keys() == {f"?{name}"}


# --- on the wire


class Wire:
    """One request of raw bytes."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, *parts: bytes, hang_up: bool = False) -> bytes:
        """The answer's bytes; `hang_up` ends the request's side after the last part."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                if hang_up:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all of it was sent
            received = b""
            try:
                while b"\r\n\r\n" not in received or b"content-length" not in received.lower():
                    more = connection.recv(65_536)
                    if not more:
                        break
                    received += more
            except ConnectionResetError:
                pass
        return received


def head(method: bytes, path: bytes, *headers: bytes) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunks(body: bytes, size: int = 65_536) -> list[bytes]:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]


def status(answer: bytes) -> int:
    assert answer, "no answer at all"
    return int(answer.split(b" ", 2)[1])


# What Granian does with such requests: test_wire.py.
@pytest.mark.parametrize("web_server", ["gunicorn"])
def test_on_the_wire(run_server: Callable[..., RunningServer]) -> None:
    server = run_server(MESSAGES_ACCESS="open", WEB_CONCURRENCY="1")
    api, wire = server.api(), Wire(server.port)
    chunked = b"Transfer-Encoding: chunked"
    draft = json.dumps(DRAFT | {"content": "é" * 100}, ensure_ascii=False).encode()

    # A body in chunks is a body.
    for size in (1, 7, 65_536):
        assert status(wire(head(b"POST", b"/messages/", chunked), *chunks(draft, size))) == 201
    assert status(wire(head(b"POST", b"/messages/", b"Content-Length: %d" % len(draft)), draft)) == 201
    before = api.mailbox("ada")
    assert before["total"] == 4

    # A body that is too large is refused with and without a declared length, before or after it was sent.
    for path, limit in ((b"/messages/", MIB), (b"/messages/batch", 16 * MIB), (b"/messages/bulk-delete", MIB)):
        large = draft + b" " * (limit + 1 - len(draft))
        assert status(wire(head(b"POST", path, chunked), *chunks(large))) == 413
        assert status(wire(head(b"POST", path, b"Content-Length: %d" % len(large)))) == 413
        assert status(wire(head(b"POST", path, b"Content-Length: %d" % 10**15))) == 413
    exact = draft + b" " * (MIB - len(draft))
    assert status(wire(head(b"POST", b"/messages/", chunked), *chunks(exact))) == 201
    before = api.mailbox("ada")

    # Half a request changes nothing.
    cut = head(b"POST", b"/messages/", b"Content-Length: %d" % (len(draft) + 1))
    assert status(wire(cut, draft, hang_up=True)) == 400
    assert (
        status(wire(head(b"POST", b"/messages/", chunked), *chunks(draft)[:-1], hang_up=True) or b"HTTP/1.1 400 ")
        == 400
    )

    # What servers and proxies could read in two ways is refused.
    for odd in (
        [b"Content-Length: 5", chunked],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: -1"],
        [b"Content-Length: +5"],
        [b"Content-Length: 1e3"],
        [b"Content-Length: 5, 5"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: xchunked"],
        [b"X\x00: y"],
        [b"X: a\x00b"],
        [b"X : y"],
    ):
        assert 400 <= status(wire(head(b"POST", b"/messages/", *odd), draft, hang_up=True)) < 600
    assert status(wire(head(b"POST", b"/messages/", chunked), b"zz\r\n{}\r\n0\r\n\r\n", hang_up=True)) == 400

    # Bytes of a target that nothing has encoded.
    for target in (b"/messages/?recipient=\xff", b"/messages/?recipient=a\x00b", b"/mailbox?recipient=%ff%00"):
        assert status(wire(head(b"GET", target), hang_up=True)) == 400
    assert status(wire(head(b"GET", b"/mailbox?recipient=caf\xc3\xa9"), hang_up=True)) == 400
    assert status(wire(head(b"GET", b"/messages/\xff\xfe"), hang_up=True)) in {400, 404}

    assert api.mailbox("ada") == before
    assert " 500 " not in server.log
    assert "Traceback" not in server.log
