"""What Schemathesis cannot know from the document: a key that is bound to nobody names recipients, cursors come from
pages, and each request has an Idempotency-Key of its own. Invalid values of all of these are still sent.
"""

from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """With the key of this run, `recipient` is required."""
    components = raw_schema["components"]
    components["parameters"]["Recipient"]["required"] = True
    for name in ("NewMessage", "UpTo"):
        components["schemas"][name]["required"].append("recipient")


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """A valid request has no made-up cursor, and no key that another request may have used."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if case.query:
        case.query.pop("cursor", None)
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
