"""What Schemathesis cannot know from the document: a key that is bound to nobody names recipients, cursors come from
pages, and each request has an Idempotency-Key of its own. Invalid values of all of these are still sent.
"""

from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """With the key of this run, `recipient` is required; which members go together is said in words only."""
    schemas = raw_schema["components"]["schemas"]
    new, mark = schemas["MessageToSend"], schemas["Mark"]
    new["required"].append("recipient")
    new["properties"]["recipient"]["type"] = "string"
    # Of what a schema cannot say: not only white space, no control characters, an instant to come.
    new["properties"]["content"]["pattern"] = "^[!-~]+$"
    del new["properties"]["expires_at"]
    for schema in (new, mark):
        for name in {"recipient", "sender"} & schema["properties"].keys():
            schema["properties"][name]["pattern"] = "^[ -~]*$"
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
    schemas["Ticket"] |= {"required": ["recipient"], "properties": {"recipient": {"const": "ada"}}}
    for path, item in raw_schema["paths"].items():
        for parameter in (each for operation in item.values() for each in operation.get("parameters", ())):
            if parameter.get("name") in {"recipient", "sender"}:
                parameter["schema"]["pattern"] = "^[ -~]*$"
                parameter["required"] = parameter["name"] == "recipient" and path != "/mailbox/ticket"


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """A valid request has no made-up cursor, and no key that another request may have used."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if case.query:
        case.query.pop("cursor", None)
        if "since" in case.query:
            case.query["since"] = 0  # an unknown version is 410
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
