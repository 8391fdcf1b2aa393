"""The OpenAPI document is what the code generates, names every route, and its examples are what the service takes."""

import difflib
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.urls import get_resolver

from tests import document
from tests.helpers import Api

OPERATIONS = {
    "listMessages": ("GET", "/messages", "Messages"),
    "sendMessage": ("POST", "/messages", "Messages"),
    "listUnreadMessages": ("GET", "/messages/unread", "Messages"),
    "sendMessageBatch": ("POST", "/messages/batch", "Messages"),
    "getMessage": ("GET", "/messages/{id}", "Messages"),
    "deleteMessage": ("DELETE", "/messages/{id}", "Messages"),
    "markMessagesRead": ("PATCH", "/messages/mark-read", "Messages"),
    "markMessagesReadByPost": ("POST", "/messages/mark-read", "Messages"),
    "markMessagesUnread": ("PATCH", "/messages/mark-unread", "Messages"),
    "markMessagesUnreadByPost": ("POST", "/messages/mark-unread", "Messages"),
    "bulkDeleteMessages": ("DELETE", "/messages/bulk", "Messages"),
    "bulkDeleteMessagesByPost": ("POST", "/messages/bulk-delete", "Messages"),
    "getMailbox": ("GET", "/mailbox", "Mailboxes"),
    "listChanges": ("GET", "/changes", "Mailboxes"),
    "createTicket": ("POST", "/mailbox/ticket", "Mailboxes"),
    "followMailbox": ("GET", "/mailbox/events", "Live"),
    "waitForMailbox": ("GET", "/mailbox/wait", "Live"),
    "getHealth": ("GET", "/health", "Health"),
    "getLiveness": ("GET", "/livez", "Health"),
    "getReadiness": ("GET", "/readyz", "Health"),
}
# For people and their tools: not part of what the document describes.
NOT_DESCRIBED = {"root", "inbox", "openapi", "docs", "redoc", "redoc-script", "metrics"}


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document.load()["paths"].items()
        for method, operation in item.items()
    ]


def test_the_committed_document_is_the_generated_one() -> None:
    generated = io.StringIO()
    call_command("spectacular", "--fail-on-warn", "--validate", stdout=generated)
    committed = document.PATH.read_text()
    difference = difflib.unified_diff(
        committed.splitlines(), generated.getvalue().strip().splitlines(), "openapi.yaml", "generated", lineterm=""
    )
    told = "\n".join(difference)
    assert not told, f"{told}\nIf this is meant, accept it by: make schema"


def test_operations_and_tags_have_the_names_that_clients_are_generated_from() -> None:
    found = {operation["operationId"]: (method, path, *operation["tags"]) for method, path, operation in _operations()}
    assert found == OPERATIONS
    assert {tag["name"] for tag in document.load()["tags"]} == {tag for _, _, tag in OPERATIONS.values()}


def test_no_component_collides_with_the_constructor_of_another_in_go() -> None:
    names = document.load()["components"]["schemas"].keys()
    assert names.isdisjoint({f"New{name}" for name in names})


def test_no_schema_is_a_choice_between_others() -> None:
    # Generators for Kotlin and PHP make one class of all of them, in Kotlin with the required members of each.
    names = document.load()["components"]["schemas"].items()
    assert [name for name, schema in names if {"oneOf", "anyOf", "allOf"} & schema.keys()] == []


def test_a_default_is_no_member_of_a_named_enumeration() -> None:
    # The Kotlin generator gives such a default a name that the enumeration does not have.
    schemas = document.load()["components"]["schemas"].items()
    assert [name for name, schema in schemas if "x-enum-varnames" in schema and "default" in schema] == []


def test_every_route_is_in_the_document() -> None:
    described = {path.rstrip("/") for _, path, _ in _operations()}
    routes = set()
    for pattern in [*get_resolver().url_patterns, *get_resolver("messaging.live.urls").url_patterns]:
        inner = getattr(pattern, "url_patterns", [pattern])
        # The admin's are many, and not the API's.
        if getattr(pattern, "app_name", None) != "admin" and "admin" not in str(pattern.pattern):
            routes |= {str(route.pattern) for route in inner if getattr(route, "name", None) not in NOT_DESCRIBED}
    paths = {"/" + re.sub(r"\(\?P<pk>\[\^/\]\+\)", "{id}", route).strip("^$").removesuffix("/?") for route in routes}
    assert paths == described


def test_a_generated_client_sends_its_key_in_the_header_alone() -> None:
    assert document.load()["components"]["securitySchemes"].keys() == {"bearer"}
    for _, _, operation in _operations():
        assert ({} in operation["security"]) == ("Live" in operation["tags"])  # there a ticket is enough


def test_its_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(document.PATH.parent) / "pyproject.toml").read_text())
    assert document.load()["info"]["version"] == project["project"]["version"]


def test_every_operation_names_the_refusals_that_all_have() -> None:
    for method, path, operation in _operations():
        if operation["tags"] == ["Health"]:
            continue
        refusals = {"400", "401", "403", "406", "429", "500", "503"}
        if operation["tags"] == ["Live"]:
            assert refusals <= set(operation["responses"]), f"{method} {path}"
            continue
        refusals |= {"304"} if method == "GET" else {"409", "413", "415", "422"}
        assert refusals <= set(operation["responses"]), f"{method} {path}"


def _media() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for method, path, operation in _operations():
        places = [operation["requestBody"]] if "requestBody" in operation else []
        places += [document.resolve(answer) for answer in operation["responses"].values()]
        found += [(f"{method} {path}", media) for place in places for media in place.get("content", {}).values()]
    return found


def test_every_body_and_answer_has_an_example_that_its_schema_allows() -> None:
    for where, media in _media():
        values = [example["value"] for example in media.get("examples", {}).values()] or [media["example"]]
        for value in values:
            assert not document.schema_faults(media["schema"], value), where


def example_of(part: dict[str, Any]) -> Any:
    """The example of a parameter or header: beside its schema, or in it."""
    if "examples" in part:
        return next(iter(part["examples"].values()))["value"]
    return part["example"] if "example" in part else part["schema"].get("examples", [None])[0]


def test_every_parameter_and_header_has_an_example_that_its_schema_allows() -> None:
    parts = [*document.load()["components"]["headers"].values()]
    parts += [document.resolve(each) for _, _, operation in _operations() for each in operation["parameters"]]
    for part in parts:
        if example_of(part) is not None:
            assert not document.schema_faults(part["schema"], example_of(part)), part


def test_every_required_parameter_has_an_example_that_a_form_shows() -> None:
    """Swagger UI fills a form from an example beside a schema, not from one in it."""
    for _, path, operation in _operations():
        for part in map(document.resolve, operation["parameters"]):
            if part.get("required"):
                assert {"example", "examples"} & {*part}, (path, part["name"])


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        pytest.param(*found, id=found[2]["operationId"])
        for found in _operations()
        if not {"Health", "Live"} & {*found[2]["tags"]}
    ],
)
def test_the_service_takes_every_example(api: Api, method: str, path: str, operation: dict[str, Any]) -> None:
    parameters = [document.resolve(parameter) for parameter in operation["parameters"]]
    target = path.replace("{id}", api.send("alice@example.com")["id"])
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    bodies = [{"json": example["value"]} for example in content.get("examples", {}).values()] or [{}]
    headers = {each["name"]: str(example_of(each)) for each in parameters if each["in"] == "header"}
    # No example: where the type says everything, and a cursor, which is taken from a page.
    shown = [each for each in parameters if each["in"] == "query" and example_of(each) is not None]
    given = {each["name"]: example_of(each) for each in shown}
    required = {each["name"] for each in parameters if each.get("required")} | {"recipient"}
    needed = {name: value for name, value in given.items() if name in required}
    # One at a time: a cursor, for instance, belongs to the filters it came with.
    queries = [{**needed, name: value} for name, value in given.items()] or [{}]
    for body in bodies:
        for query in queries:
            text = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
            own = headers | ({"Idempotency-Key": repr((body, query))[:255]} if method != "GET" else {})
            answer = api.request(method, target, query=text, headers=own, **body)
            # No message has the ids of the examples.
            assert answer.status < 400 or answer.code == "not_found", answer.body


def test_it_is_served_without_a_key_and_cached_by_its_tag(anonymous: Api) -> None:
    answer = anonymous.get("/openapi.json").expect(200)
    assert answer.json == json.loads(json.dumps(document.load()))
    tag = answer.headers["ETag"]
    assert anonymous.request("HEAD", "/openapi.json").expect(200).headers["ETag"] == tag
    for method in ("GET", "HEAD"):
        anonymous.request(method, "/openapi.json/", headers={"If-None-Match": tag}).expect(304)


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc"])
def test_read_only_pages_refuse_other_methods(anonymous: Api, path: str) -> None:
    for method in ("POST", "DELETE", "OPTIONS"):
        assert anonymous.request(method, path).expect(405, "method_not_allowed").headers["Allow"] == "GET, HEAD"


def test_a_page_that_is_not_acceptable_names_its_media_type(anonymous: Api) -> None:
    refused = anonymous.get("/docs", headers={"Accept": "application/json"}).expect(406, "not_acceptable")
    assert "text/html" in refused.json["detail"]


def test_with_open_access_a_key_is_optional(anonymous: Api, open_access: None) -> None:
    served = anonymous.get("/openapi.json").expect(200).json
    assert served["paths"]["/mailbox"]["get"]["security"] == [{"bearer": []}, {}]
    assert served["paths"]["/health"]["get"]["security"] == []


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/redoc", "/redoc/"])
def test_the_pages_load_nothing_from_elsewhere(anonymous: Api, path: str) -> None:
    page = anonymous.get(path).expect(200)
    html = page.body.decode()
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    # The policy lets no script run inside the page.
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assets = re.findall(r'(?:src|href|data-url|spec-url)="([^"]+)"', html)
    scripts = [anonymous.get(asset).expect(200).body.decode() for asset in assets if "script" in asset]
    assert "/openapi.json" in assets or any("openapi.json" in script for script in scripts)
    for asset in assets:
        assert asset.startswith("/"), f"{asset} is not here"
        assert not asset.startswith("//"), f"{asset} is not here"
        assert anonymous.get(asset).expect(200).body
