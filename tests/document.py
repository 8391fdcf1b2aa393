"""Holds an answer against the committed OpenAPI document, and against what every answer of the API carries.

How the document itself is kept in step with the code: test_openapi.py.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml
from jsonschema_rs import Draft202012Validator, validator_for

PATH = Path(__file__).resolve().parent.parent / "openapi.yaml"
METHODS = ("get", "post", "patch", "delete")

# Pages, assets and the document: for people and tools, not part of what the document describes.
_NOT_DESCRIBED = ("/admin", "/docs", "/redoc", "/openapi.json", "/inbox", "/static/", "/metrics")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Headers that mean something in this API: an operation that sends one must say so.
_TELLING = (
    "etag", "messages-version", "link", "location", "idempotency-replayed", "retry-after", "ratelimit",
    "ratelimit-policy", "www-authenticate", "allow",
)  # fmt: skip


@functools.cache
def load() -> dict[str, Any]:
    """The document."""
    document: dict[str, Any] = yaml.load(PATH.read_bytes(), Loader=yaml.CSafeLoader)
    return document


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """`node`, or what it refers to."""
    while "$ref" in node:
        found: Any = load()
        for token in node["$ref"].removeprefix("#/").split("/"):
            found = found[token.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def problem_codes() -> frozenset[str]:
    """Every `code` that the document names."""
    return frozenset(load()["components"]["schemas"]["Problem"]["properties"]["code"]["x-extensible-enum"])


def fault_codes() -> frozenset[str]:
    """Every `code` of a fault in the input that the document names."""
    return frozenset(load()["components"]["schemas"]["Fault"]["properties"]["code"]["x-extensible-enum"])


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    # The references of a schema lead into the components of the document. A member that it does not name may come one
    # day, but what the code answers today it names.
    schemas = {
        name: {"additionalProperties": False, **component} if "properties" in component else component
        for name, component in load()["components"]["schemas"].items()
    }
    validator = validator_for(json.loads(schema) | {"components": {"schemas": schemas}}, validate_formats=True)
    assert isinstance(validator, Draft202012Validator)
    return validator


def schema_faults(schema: dict[str, Any], value: Any) -> list[str]:
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"/{'/'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


@functools.cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    # Paths without a variable go first.
    return [
        (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path.rstrip("/")))), path)
        for path in sorted(load()["paths"], key=lambda path: "{" in path)
    ]


def operation_of(method: str, path: str) -> tuple[str | None, dict[str, Any] | None]:
    """The path of the document that `path` is one of, and its operation; None for what there is not."""
    asked = path.rstrip("/")
    template = next((template for pattern, template in _templates() if pattern.fullmatch(asked)), None)
    if template is None:
        return None, None
    verb = "get" if method == "HEAD" else method.lower()
    return template, load()["paths"][template].get(verb)


class Exchange(NamedTuple):
    """A request and its answer. Names of headers are in lower case."""

    method: str
    path: str
    sent: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes


def check(exchange: Exchange) -> None:
    """Fail, naming everything, where an answer is not as the document has it."""
    faults = _disagreements(exchange)
    if faults:
        told = "\n  - ".join(faults)
        raise AssertionError(
            f"{exchange.method} {exchange.path} was answered by {exchange.status}, but not as openapi.yaml says:\n"
            f"  - {told}\n{exchange.body[:1000].decode(errors='replace')}\n"
            "Correct the code, or messaging/api/schema.py and then openapi.yaml by `make schema`."
        )


def _disagreements(exchange: Exchange) -> list[str]:
    faults = []
    if not _REQUEST_ID.fullmatch(exchange.headers.get("x-request-id", "")):
        faults.append("it carries no X-Request-ID")
    path = unquote(urlsplit(exchange.path).path)
    if path == "/" or path.startswith(_NOT_DESCRIBED):
        is_problem = exchange.headers.get("content-type") == "application/problem+json"
        return faults + (_problem_faults(exchange) if is_problem else [])
    template, operation = operation_of(exchange.method, path)
    if operation is None:
        return faults + _outside(exchange, template)
    if exchange.status == 500:
        return faults + _problem_faults(exchange)
    if str(exchange.status) not in operation["responses"]:
        return [*faults, f"{operation['operationId']} has no status {exchange.status}"]
    described = resolve(operation["responses"][str(exchange.status)])
    content = described.get("content", {})
    faults += _header_faults(described.get("headers", {}), exchange.headers)
    faults += _body_faults(content, exchange)
    if exchange.status >= 400 and "application/problem+json" in content:
        faults += _problem_faults(exchange)
    if exchange.status < 300 and exchange.sent and "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        faults += [f"the request was taken, but {fault}" for fault in schema_faults(schema, json.loads(exchange.sent))]
    return faults


def _outside(exchange: Exchange, template: str | None) -> list[str]:
    """What is wrong with an answer to a request that the document does not have."""
    if template is not None and exchange.status in {204, 405} and "allow" not in exchange.headers:
        return ["it carries no Allow"]
    if template is not None and exchange.method == "OPTIONS" and exchange.status == 204:
        return []
    if exchange.status < 400:
        return ["the document has no such request"]
    return _problem_faults(exchange)


def _problem_faults(exchange: Exchange) -> list[str]:
    if exchange.method == "HEAD":
        return ["an answer to HEAD has a body"] if exchange.body else []
    if exchange.headers.get("content-type") != "application/problem+json":
        return [f"it is {exchange.headers.get('content-type')}, not application/problem+json"]
    problem = json.loads(exchange.body)
    faults = schema_faults({"$ref": "#/components/schemas/Problem"}, problem)
    # The document leaves the codes open for later versions; what this version answers, it names.
    codes = {problem.get("code")} - problem_codes()
    codes |= {fault.get("code") for fault in problem.get("errors", [])} - fault_codes()
    faults += [f"the code {code} is not described" for code in sorted(map(str, codes))]
    if (problem.get("code") == "invalid_input") != ("errors" in problem):
        faults.append("errors belong to invalid_input, and to no other code")
    if problem.get("status") != exchange.status:
        faults.append(f"its member status is {problem.get('status')}")
    if problem.get("request_id") != exchange.headers.get("x-request-id"):
        faults.append("request_id is not the X-Request-ID")
    return faults


def _header_faults(described: dict[str, Any], headers: Mapping[str, str]) -> list[str]:
    by_name = {name.lower(): resolve(header) for name, header in described.items()}
    faults = [
        f"the header {name} is missing"
        for name, header in by_name.items()
        if header.get("required") and name not in headers
    ]
    for name, value in headers.items():
        if name in by_name:
            schema = by_name[name]["schema"]
            is_number = schema.get("type") == "integer" and value.isdigit()
            faults += [f"header {name}: {fault}" for fault in schema_faults(schema, int(value) if is_number else value)]
        elif name in _TELLING:
            faults.append(f"the header {name} is not described")
    return faults


def _body_faults(content: dict[str, Any], exchange: Exchange) -> list[str]:
    if exchange.method == "HEAD":
        return []
    if not exchange.body:
        return ["it has no body"] if content else []
    media_type = exchange.headers.get("content-type", "")
    if media_type not in content:
        return [f"it is {media_type or 'of no type'}, not one of: {', '.join(content) or 'none'}"]
    return schema_faults(content[media_type]["schema"], json.loads(exchange.body))
