"""The same API as FastAPI and SQLModel are documented to write it: synchronous endpoints, a session a request, uvicorn.

It leaves out what would slow it down: access keys, counts, idempotency, request ids, links, ETags.
"""
