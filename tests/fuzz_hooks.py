"""What Schemathesis cannot know from the document: a key that is bound to nobody names recipients, cursors come from
pages, and each request has an Idempotency-Key of its own. Invalid values of all of these are still sent.
"""

import re
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """With the key of this run, `recipient` is required; which members go together is said in words only."""
    schemas = raw_schema["components"]["schemas"]
    new, mark = schemas["MessageToSend"], schemas["Mark"]
    for schema in (new, schemas["Ticket"]):
        schema["required"] = [*schema.get("required", ()), "recipient"]
        schema["properties"]["recipient"]["type"] = "string"
    del new["properties"]["expires_at"]  # no schema can say: an instant to come
    by_ids, up_to = (
        {name: {**mark["properties"][name]} for name in names} for names in (["ids"], ["recipient", "up_to"])
    )
    for properties in (by_ids, up_to):
        for member in properties.values():
            member["type"] = member["type"][0]
    schemas["Mark"] = {
        "oneOf": [
            {"type": "object", "required": list(found), "properties": found, "additionalProperties": False}
            for found in (by_ids, up_to)
        ]
    }
    for path, item in raw_schema["paths"].items():
        for operation in item.values():
            # A ticket's recipient may be in the query or in the body: here it is in the body.
            # A header that is a number makes Schemathesis refuse headers that it has made up itself.
            operation["parameters"] = [
                parameter
                for parameter in operation.get("parameters", ())
                if parameter.get("$ref") != "#/components/parameters/MinVersion"
                and not (path == "/mailbox/ticket" and parameter.get("name") == "recipient")
            ]
            for parameter in operation["parameters"]:
                if parameter.get("name") == "recipient":
                    parameter["required"] = True
    raw_schema["paths"]["/mailbox/ticket"]["post"]["requestBody"]["required"] = True


def _printable(value: Any) -> Any:
    """The value with texts of visible ASCII alone: no schema can say that control characters are refused."""
    if isinstance(value, str):
        return re.sub("[^!-~]", "x", value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        texts = {"recipient", "sender", "content", "messages"}
        return {name: _printable(item) if name in texts else item for name, item in value.items()}
    return value


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """A valid request has no made-up cursor, and no key that another request may have used."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict):
        case.body = _printable(case.body)
    if case.query:
        case.query = _printable(case.query)
        case.query.pop("cursor", None)
        if "since" in case.query:
            case.query["since"] = 0  # an unknown version is 410
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
