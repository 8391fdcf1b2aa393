"""Invented messages, as clients send them: bodies of requests and never rows, which only the service writes."""

from factory.base import DictFactory
from factory.declarations import Dict, Iterator, LazyAttribute, Sequence
from factory.faker import Faker


class DraftFactory(DictFactory):
    """The body of a POST to /messages/, in one of several languages."""

    class Params:
        language = Iterator(["en_US", "de_DE", "ja_JP", "ar_AA", "hi_IN", "el_GR"])

    recipient = Sequence(lambda n: f"reader{n % 7}@example.com")
    sender = Faker("user_name")
    content = LazyAttribute(lambda draft: Faker("paragraph").evaluate(None, None, {"locale": draft.language}))
    metadata = Dict({"thread": Faker("uuid4"), "priority": Faker("pyint", max_value=9)})
