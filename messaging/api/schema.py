"""The parts of the OpenAPI document that drf-spectacular cannot derive from the views. `make schema` writes it."""

from typing import Any

import msgspec
from drf_spectacular.drainage import set_override
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent

from messaging.api.answers import MEDIA_TYPE
from messaging.api.examples import EXAMPLES
from messaging.api.problems import ProblemDocument
from messaging.api.schema_components import CODES, HEADER_PARAMETERS, HEADERS, RESPONSES, name_of

_READ_PROBLEMS = (400, 401, 403, 404, 406, 429, 500, 503)
_WRITE_PROBLEMS = (400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 429, 500, 503)
_COMPONENT_NAMES = {
    "PageAnswer": "Page",
    "BatchAnswer": "BatchResult",
    "ChangesAnswer": "Changes",
}
# Headers of a successful response that only some operations send.
_HEADERS_OF = {
    "sendMessage": ("Location",),
    "listMessages": ("Link",),
    "listUnreadMessages": ("Link",),
    "deleteMessage": ("Messages-Version",),
}

_PROBLEMS_OF = {"listChanges": (410,)}

# Of the live process. Their responses are not cached, so they have no ETag.
_UNCONDITIONAL = frozenset({"followMailbox", "waitForMailbox"})

_ID, _RECIPIENT = {"id": "$response.body#/id"}, {"recipient": "$response.body#/recipient"}
_LINKS_OF: dict[str, dict[str, Any]] = {
    "sendMessage": {
        "GetMessage": {"operationId": "getMessage", "parameters": _ID},
        "DeleteMessage": {"operationId": "deleteMessage", "parameters": _ID},
        "ListMessages": {"operationId": "listMessages", "parameters": _RECIPIENT},
        "ListUnreadMessages": {"operationId": "listUnreadMessages", "parameters": _RECIPIENT},
        "GetMailbox": {"operationId": "getMailbox", "parameters": _RECIPIENT},
    },
    "sendMessageBatch": {
        "GetFirstMessage": {"operationId": "getMessage", "parameters": {"id": "$response.body#/results/0/id"}},
    },
}


class RecordExtension(OpenApiSerializerExtension):
    """Describes a msgspec struct by the schema that msgspec generates, so a response needs no serializer."""

    target_class = "msgspec.Struct"
    match_subclasses = True

    def get_name(self, auto_schema: Any, direction: Any) -> str:
        # Not an array, even if the action is named `list`. A struct inside others is registered by its name alone.
        for option, value in (("many", False), ("suppress_collision_warning", True)):
            set_override(self.target, option, value)
        name: str = self.target.__name__
        return _COMPONENT_NAMES.get(name, name.removesuffix("Record"))

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """The schema of the struct; those of the structs in it become components."""
        found = _schemas(self.target)
        own: dict[str, Any] = found.pop(self.target.__name__.removesuffix("Record"))
        for name, schema in found.items():
            component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, schema=schema, object=name)
            auto_schema.registry.register_on_missing(component)
        return own


def _schemas(struct: Any) -> dict[str, Any]:
    """The schemas of a struct and of the structs in it, by the names of their components."""
    _, schemas = msgspec.json.schema_components([struct], ref_template="#/components/schemas/{name}")
    return {name.removesuffix("Record"): _of_answer(schema) for name, schema in schemas.items()}


def _of_answer(schema: Any) -> Any:
    """A schema of msgspec for responses: `T | None` is a list of types; only what may be UNSET is not required."""
    if isinstance(schema, list):
        return [_of_answer(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = {"title", "default"} | ({"anyOf"} if "type" in schema else set())
    found = {name: _of_answer(value) for name, value in schema.items() if name not in left_out}
    if "enum" in found:
        found.setdefault("type", "string")
    if "$ref" in found:
        found["$ref"] = found["$ref"].removesuffix("Record")
    if "properties" in schema:
        found["properties"] = {name: _of_answer(member) for name, member in schema["properties"].items()}
        required = schema.get("required", [])
        found["required"] = [name for name, of in schema["properties"].items() if name in required or "default" in of]
    return found


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "messaging.api.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, `msg_…`, or an end-user token (JWT) for one recipient. Scopes: `send`, `read`, "
            "and `manage` for marking and deleting. Where the service runs with open access, no key is needed.",
        }


class ApiSchema(AutoSchema):
    """The first line of an action's docstring is its summary; the others, and the scope it needs, its description."""

    def get_summary(self) -> str:
        return super().get_description().partition("\n")[0]

    def get_description(self) -> str:  # type: ignore[override]  # drf-spectacular's own differs from DRF's
        view: Any = self.view
        rest = super().get_description().partition("\n")[2].strip()
        return f"{rest}\n\nNeeds the scope `{view.scopes[view.action]}`.".lstrip()

    def get_tags(self) -> list[str]:
        return ["Mailboxes" if self.path.startswith(("/mailbox", "/changes")) else "Messages"]


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def headers_of(*names: str) -> dict[str, Any]:
    return {name: _ref("headers", name) for name in ("X-Request-ID", *names)}


def _component_of(media: dict[str, Any]) -> str:
    """The name of the component that is the schema of a body; empty for a schema of its own."""
    name: str = media["schema"].get("$ref", "").rpartition("/")[2]
    return name


def _add_examples(place: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Add to a body or response the examples of its component, and its description if it has none."""
    for media in place.get("content", {}).values():
        component = _component_of(media)
        if component in EXAMPLES:
            media["examples"] = {name: {"value": value} for name, value in EXAMPLES[component].items()}
            place["description"] = place.get("description") or schemas[component]["description"]


def _complete(operation: dict[str, Any], schemas: dict[str, Any], *, is_read: bool) -> None:
    """Add to an operation what all reads, or all writes, have in common."""
    name = operation["operationId"]
    # The recipient first, then the order of declaration.
    parameters = sorted(operation.get("parameters", []), key=lambda each: each["name"] != "recipient")
    for parameter in parameters:
        if is_read and parameter["name"] in {"recipient", "since", "version"}:
            # Swagger UI fills in the example of a parameter, and ignores those of its schema.
            [parameter["example"]] = parameter["schema"].pop("examples")
        if parameter["name"] == "ordering":
            # A component: a generated client has one enumeration, not one for each operation.
            schemas["Ordering"], parameter["schema"] = parameter["schema"], _ref("schemas", "Ordering")
            # openapi-generator's Kotlin names a default by its value and not by x-enum-varnames: that does not compile.
            del schemas["Ordering"]["default"]
    is_conditional = is_read and name not in _UNCONDITIONAL
    shared = ["IfNoneMatch", "MinVersion"] * is_conditional + ["IdempotencyKey"] * (not is_read) + ["RequestId"]
    operation["parameters"] = parameters + [_ref("parameters", name) for name in shared]
    if "requestBody" in operation:
        _add_examples(operation["requestBody"], schemas)
        [media] = operation["requestBody"]["content"].values()
        schemas[_component_of(media)]["additionalProperties"] = False  # see StrictSerializer
        # Even if none of its members is required: code generators place required arguments first.
        operation["requestBody"]["required"] = name != "createTicket"
    [success] = operation["responses"].values()
    _add_examples(success, schemas)
    own = ["ETag", "Messages-Version"] * is_conditional + ["Idempotency-Replayed"] * (not is_read)
    success["headers"] = headers_of(*own, *_HEADERS_OF.get(name, ()), "RateLimit", "RateLimit-Policy")
    if name in _LINKS_OF:
        success["links"] = _LINKS_OF[name]
    if is_conditional:
        operation["responses"]["304"] = _ref("responses", "NotModified")
    problems = _READ_PROBLEMS if is_read else _WRITE_PROBLEMS
    for code in sorted({*problems, *_PROBLEMS_OF.get(name, ())}):
        operation["responses"][str(code)] = _ref("responses", name_of(code))


def complete(result: dict[str, Any], **_generator: Any) -> dict[str, Any]:
    """Postprocessing hook of drf-spectacular: shared components, health endpoints, paths without trailing slashes."""
    components = result["components"]
    problem = _schemas(ProblemDocument)
    problem["ProblemDocument"]["required"].remove("errors")
    # No closed enum: a later version may have more, which must not break a generated client.
    problem["ProblemDocument"]["properties"]["code"]["x-extensible-enum"] = CODES
    components["schemas"] |= {"Fault": problem["Fault"], "Problem": problem["ProblemDocument"], "Health": _STATE}
    components["parameters"], components["headers"] = HEADER_PARAMETERS, HEADERS
    components["responses"] = {
        **RESPONSES,
        "NotModified": {
            "description": "The mailbox is still at the version that `If-None-Match` names.",
            "headers": headers_of("ETag", "Messages-Version", "RateLimit", "RateLimit-Policy"),
        },
    }
    paths = {path.rstrip("/"): item for path, item in result["paths"].items()}
    # drf-spectacular gives a DELETE no body (its issue 379).
    paths["/messages/bulk"]["delete"]["requestBody"] = paths["/messages/bulk-delete"]["post"]["requestBody"]
    for path, item in paths.items():
        # In a fixed order: that of drf-spectacular varies.
        paths[path] = {method: item[method] for method in ("get", "post", "patch", "delete") if method in item}
        for method, operation in paths[path].items():
            _complete(operation, components["schemas"], is_read=method == "get")
    return {**result, "paths": paths | {path: _health(*described) for path, described in _HEALTH.items()}}


# --- the health endpoints, which are no views of REST framework

# Operation, summary, description, and for each status when it occurs and an example.
_HEALTH: dict[str, tuple[str, str, str, dict[int, tuple[str, dict[str, str]]]]] = {
    "/health": (
        "getHealth",
        "Check the service and its database.",
        "Queries the database over a connection of its own. Answers within 3 seconds in any case.",
        {
            200: ("The service and its database answer.", {"status": "ok", "database": "ok"}),
            503: ("The database does not answer.", {"status": "unavailable", "database": "unavailable"}),
        },
    ),
    "/livez": (
        "getLiveness",
        "Check whether the process is alive.",
        "Depends on nothing else: restart the process if this fails.",
        {200: ("The process is alive.", {"status": "ok"})},
    ),
    "/readyz": (
        "getReadiness",
        "Check whether this process may receive requests.",
        "The database answers, no migration is missing, and the process is not about to stop.",
        {
            200: ("It may receive requests.", {"status": "ok"}),
            503: (
                "It may not receive requests now.",
                {"status": "unavailable", "reason": "the database does not answer"},
            ),
        },
    ),
}
_STATE = {
    "type": "object",
    "description": "The response of a health endpoint.",
    "required": ["status"],
    "properties": {name: {"type": "string"} for name in ("status", "database", "reason")},
}


def _health(name: str, summary: str, description: str, states: dict[int, tuple[str, dict[str, str]]]) -> dict[str, Any]:
    answers = {
        str(status): {
            "description": meaning,
            "headers": headers_of(),
            "content": {MEDIA_TYPE: {"schema": _ref("schemas", "Health"), "example": example}},
        }
        for status, (meaning, example) in states.items()
    }
    operation = {"operationId": name, "summary": summary, "description": description, "tags": ["Health"]}
    return {"get": operation | {"parameters": [_ref("parameters", "RequestId")], "security": [], "responses": answers}}
