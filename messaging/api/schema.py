"""The OpenAPI document: from the table of operations (schema_operations.py) to what drf-spectacular writes.

`make schema` writes openapi.yaml; docs.py of the process serves the document.
"""

from functools import cache
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from messaging.api.schema_operations import HEALTH, OPERATIONS, Operation, Shape
from messaging.api.schema_parameters import HEADERS, PARAMETERS
from messaging.api.schema_problems import FAULT, PROBLEM, PROBLEMS, response_of

JSON = "application/json"
BEARER = "bearer"

_READ_PROBLEMS = (400, 401, 403, 406, 429, 500, 503)
_WRITE_PROBLEMS = (400, 401, 403, 406, 409, 413, 415, 422, 429, 500, 503)
_LIMIT_HEADERS = ("RateLimit", "RateLimit-Policy")


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str, optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    return {
        name: HEADERS[name] | {"required": False} if name in optional else _ref("headers", name)
        for name in ("X-Request-ID", *names)
    }


def _examples(values: Any) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}


class ApiSchema(AutoSchema):
    """Describes the operation of one action by its entry in the table."""

    def get_operation(self, path: str, path_regex: str, path_prefix: str, method: str, registry: Any) -> dict[str, Any]:
        """The operation object (OpenAPI 3.1, 4.8.10)."""
        self.path, self.path_regex, self.path_prefix = path, path_regex, path_prefix
        self.method, self.registry = method.upper(), registry
        view: Any = self.view
        entry = OPERATIONS[type(view).__name__, view.action]
        is_read = self.method == "GET"
        summary, _, rest = self.get_description().partition("\n")
        scope = view.scopes[view.action]
        parameters = (*entry.parameters, "IfNoneMatch" if is_read else "IdempotencyKey", "RequestId")
        body = {"required": True, "content": {JSON: self._media(entry.takes, entry.taken)}} if entry.takes else None
        operation: dict[str, Any] = {
            "operationId": entry.id,
            "summary": summary,
            "description": "\n\n".join(filter(None, [rest.strip(), entry.details, f"Needs the scope `{scope}`."])),
            "tags": [entry.tag],
            "parameters": [_ref("parameters", name) for name in parameters],
            "security": [{BEARER: []}],
            "requestBody": body,
            "responses": self._responses(entry, is_read=is_read),
        }
        return {name: value for name, value in operation.items() if value is not None}

    def _responses(self, entry: Operation, *, is_read: bool) -> dict[str, Any]:
        headers = entry.headers if is_read else (*entry.headers, "Idempotency-Replayed")
        success: dict[str, Any] = {"description": entry.answer, "headers": _headers(*headers, *_LIMIT_HEADERS)}
        if entry.answers:
            success["content"] = {JSON: self._media(entry.answers, entry.answered)}
        if entry.links:
            success["links"] = dict(entry.links)
        responses = {str(entry.status): success}
        if is_read:
            responses["304"] = _ref("responses", "NotModified")
        for status in sorted({*(_READ_PROBLEMS if is_read else _WRITE_PROBLEMS), *entry.problems}):
            responses[str(status)] = _ref("responses", PROBLEMS[status].component)
        return responses

    def _media(self, shapes: tuple[Shape, ...], examples: Any) -> dict[str, Any]:
        schemas = [self.resolve_serializer(shape, "request").ref for shape in shapes]
        return {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}, "examples": _examples(examples)}


# --- what belongs to no view of the API


def _state(description: str, example: dict[str, str]) -> dict[str, Any]:
    properties = {
        name: {"type": "string", "const": value} if name != "reason" else {"type": "string"}
        for name, value in example.items()
    }
    schema = {"type": "object", "required": list(example), "properties": properties}
    return {
        "description": description,
        "headers": _headers(),
        "content": {JSON: {"schema": schema, "example": example}},
    }


def _health(operation: str, summary: str, description: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "description": description,
            "tags": [HEALTH],
            "parameters": [_ref("parameters", "RequestId")],
            "security": [],
            "responses": responses,
        }
    }


HEALTH_PATHS = {
    "/health": _health(
        "getHealth",
        "Say whether the service and its database work.",
        "Asks the database over a connection of its own and answers within 3 seconds, whatever state it is in.",
        {
            "200": _state("Both work.", {"status": "ok", "database": "ok"}),
            "503": _state("The database does not answer.", {"status": "unavailable", "database": "unavailable"}),
        },
    ),
    "/livez": _health(
        "getLiveness",
        "Say whether the process answers.",
        "Without asking anything else: restart the process if this fails.",
        {"200": _state("It does.", {"status": "ok"})},
    ),
    "/readyz": _health(
        "getReadiness",
        "Say whether requests may be sent here.",
        "The database answers, no migration is missing, and the process is not about to stop.",
        {
            "200": _state("They may.", {"status": "ok"}),
            "503": _state("Not now.", {"status": "unavailable", "reason": "the database does not answer"}),
        },
    ),
}

REQUEST_BODIES = ("NewMessage", "Batch", "Ids", "UpTo")


def complete(result: dict[str, Any], **_generator: Any) -> dict[str, Any]:
    """drf-spectacular's last step: the shared components, the health endpoints, paths without needless slashes."""
    components = result["components"]
    for name in REQUEST_BODIES:
        components["schemas"][name]["additionalProperties"] = False
    components["schemas"] |= {"Fault": FAULT, "Problem": PROBLEM}
    components["parameters"], components["headers"] = PARAMETERS, HEADERS
    components["responses"] = {kind.component: response_of(status) for status, kind in PROBLEMS.items()} | {
        "NotModified": {
            "description": "The mailbox is still at the version that `If-None-Match` names.",
            "headers": _headers("ETag", *_LIMIT_HEADERS),
        }
    }
    components["securitySchemes"] = {
        BEARER: {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, `msg_…`, or an end-user token (JWT) for one recipient. Scopes: `send`, `read`, "
            "and `manage` for marking and deleting. Where the service runs with open access, no key is needed.",
        }
    }
    paths = {path if path == "/messages/" else path.rstrip("/"): item for path, item in result["paths"].items()}
    order = [operation.id for operation in OPERATIONS.values()]
    by_place = sorted(
        paths.items(), key=lambda item: min(order.index(operation["operationId"]) for operation in item[1].values())
    )
    return {**result, "paths": {**dict(by_place), **HEALTH_PATHS}}


@cache
def document(*, open_access: bool) -> dict[str, Any]:
    """The document of this process, generated once: tenths of a second. With open access a key is optional."""
    found: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    if open_access:
        for item in found["paths"].values():
            for operation in item.values():
                if operation["security"]:
                    operation["security"] = [*operation["security"], {}]
    return found
