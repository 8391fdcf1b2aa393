"""The opponent's one table and its public shapes.

Ids are UUIDv7, as the product's, so its pages are in order of arrival by the id alone: the cheapest keyset there is.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, DateTime, Index, desc, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel
from uuid_utils.compat import uuid7


def now() -> datetime:
    return datetime.now(UTC)


class MessageCreate(SQLModel):
    recipient: str = Field(min_length=1, max_length=255)
    sender: str = Field(default="", max_length=255)
    content: str = Field(min_length=1, max_length=10_000)
    extra: dict[str, Any] = Field(default_factory=dict)


class MessagePublic(MessageCreate):
    id: uuid.UUID
    created_at: datetime
    read_at: datetime | None


class Message(MessageCreate, table=True):
    __table_args__ = (
        Index("message_page", "recipient", desc("id")),
        Index("message_unread", "recipient", desc("id"), postgresql_where=text("read_at IS NULL")),
    )

    id: uuid.UUID = Field(default_factory=uuid7, primary_key=True)
    extra: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSONB, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    read_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class MessageBatch(SQLModel):
    messages: list[MessageCreate] = Field(min_length=1, max_length=1_000)


class MessageIds(SQLModel):
    ids: list[uuid.UUID] = Field(min_length=1, max_length=1_000)


class Result(SQLModel):
    id: uuid.UUID
    status: str


class Outcome(SQLModel):
    results: list[Result]
    changed: int
    unchanged: int
    not_found: int
