"""The opponent's endpoints: the better of the usual ways.

Pages are by keyset. Bulk calls load no objects; they tell what became of each id, since that is what the API promises.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from sqlmodel import col, delete, select, update

from benchmarks.opponent.database import SessionDep
from benchmarks.opponent.models import (
    Message,
    MessageBatch,
    MessageCreate,
    MessageIds,
    MessagePublic,
    Outcome,
    Result,
    now,
)

app = FastAPI(title="Messages")

Limit = Annotated[int, Query(ge=1, le=200)]


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/messages/", status_code=201, response_model=MessagePublic)
def send_message(message: MessageCreate, session: SessionDep) -> Any:
    stored = Message.model_validate(message)
    session.add(stored)
    session.commit()
    session.refresh(stored)
    return stored


@app.post("/messages/batch", status_code=201, response_model=list[MessagePublic])
def send_batch(batch: MessageBatch, session: SessionDep) -> Any:
    stored = [Message.model_validate(message) for message in batch.messages]
    session.add_all(stored)
    session.flush()
    # Read before the commit expires them: a refresh of each would be a thousand SELECTs.
    results = [MessagePublic.model_validate(message) for message in stored]
    session.commit()
    return results


def read_page(session: SessionDep, recipient: str, limit: int, before: uuid.UUID | None, *, unread: bool) -> Any:
    statement = select(Message).where(Message.recipient == recipient)
    if unread:
        statement = statement.where(col(Message.read_at).is_(None))
    if before is not None:
        statement = statement.where(col(Message.id) < before)
    return session.exec(statement.order_by(col(Message.id).desc()).limit(limit)).all()


@app.get("/messages/", response_model=list[MessagePublic])
def list_messages(session: SessionDep, recipient: str, limit: Limit = 50, before: uuid.UUID | None = None) -> Any:
    return read_page(session, recipient, limit, before, unread=False)


@app.get("/messages/unread/", response_model=list[MessagePublic])
def list_unread(session: SessionDep, recipient: str, limit: Limit = 50, before: uuid.UUID | None = None) -> Any:
    return read_page(session, recipient, limit, before, unread=True)


def outcome(ids: list[uuid.UUID], found: Iterable[uuid.UUID], changed: set[uuid.UUID]) -> Outcome:
    known = set(found)
    statuses = {id_: "changed" if id_ in changed else "unchanged" if id_ in known else "not_found" for id_ in ids}
    return Outcome(
        results=[Result(id=id_, status=status) for id_, status in statuses.items()],
        changed=len(changed),
        unchanged=len(known - changed),
        not_found=len(statuses) - len(known),
    )


def set_read_at(session: SessionDep, ids: list[uuid.UUID], read_at: datetime | None) -> Outcome:
    found = dict(session.exec(select(Message.id, Message.read_at).where(col(Message.id).in_(ids))).all())
    changing = {id_ for id_, was in found.items() if (was is None) != (read_at is None)}
    session.exec(update(Message).where(col(Message.id).in_(changing)).values(read_at=read_at))
    session.commit()
    return outcome(ids, found, changing)


@app.patch("/messages/mark-read")
def mark_read(body: MessageIds, session: SessionDep) -> Outcome:
    return set_read_at(session, body.ids, now())


@app.patch("/messages/mark-unread")
def mark_unread(body: MessageIds, session: SessionDep) -> Outcome:
    return set_read_at(session, body.ids, None)


@app.post("/messages/bulk-delete")
def delete_messages(body: MessageIds, session: SessionDep) -> Outcome:
    deleted = session.exec(delete(Message).where(col(Message.id).in_(body.ids)).returning(col(Message.id)))
    gone = set(deleted.scalars().all())
    session.commit()
    return outcome(body.ids, gone, gone)


@app.get("/messages/{message_id}", response_model=MessagePublic)
def read_message(message_id: uuid.UUID, session: SessionDep) -> Any:
    message = session.get(Message, message_id)
    if message is None:
        raise HTTPException(404, "Message not found")
    return message


@app.delete("/messages/{message_id}", status_code=204)
def delete_message(message_id: uuid.UUID, session: SessionDep) -> None:
    message = session.get(Message, message_id)
    if message is None:
        raise HTTPException(404, "Message not found")
    session.delete(message)
    session.commit()
