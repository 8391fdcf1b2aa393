"""gunicorn's threaded worker, whose own refusals are problem documents (RFC 9457) too.

What reaches the application is refused there (messaging/problems.py); here is what never becomes a request: an address
or headers beyond the limits, and what is no HTTP.
"""

import json
import logging
import time
from http import HTTPStatus
from typing import Any

from gunicorn import util
from gunicorn.http import errors
from gunicorn.workers.gthread import ThreadWorker
from uuid_utils import uuid7

from messages_project.logs import log_access
from messaging.api.problems import title_of

_log = logging.getLogger(__name__)

# The first kind that fits.
_REFUSALS: tuple[tuple[type[Exception], HTTPStatus, str, str], ...] = (
    (errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long", "The address is too long. Shorten it."),
    (
        errors.LimitRequestHeaders,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers_too_large",
        "There are too many headers, or one is too long. Send fewer or shorter ones.",
    ),
    (errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED, "expectation_failed", "Send no Expect header."),
    (
        errors.UnsupportedTransferCoding,
        HTTPStatus.NOT_IMPLEMENTED,
        "unsupported_transfer_coding",
        "Send the body as it is, or chunked.",
    ),
    (errors.ParseException, HTTPStatus.BAD_REQUEST, "malformed_request", "This is no valid HTTP request."),
)


class Worker(ThreadWorker):  # type: ignore[misc]
    """The worker class of serving.py."""

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - its signature
        """As usual; and a worker that stops serves whoever is in its queue, then closes its port to the others.

        Left open until the last request has ended, it would take connections that nobody serves.
        """
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                before = None
                while before != self.nr_conns:
                    before = self.nr_conns
                    self.accept(listener)
                listener.close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer a request that could not be read, or that failed outside the application."""
        started = time.perf_counter()
        status, code, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "Something failed inside."
        for kind, *refusal in _REFUSALS:
            if isinstance(exc, kind):
                status, code, detail = refusal  # type: ignore[assignment]
                break
        else:
            _log.error("a request failed outside the application", exc_info=exc)
        request_id = uuid7().hex
        body = json.dumps(
            {
                "type": "about:blank",
                "title": title_of(status),
                "status": status.value,
                "detail": detail,
                "instance": getattr(req, "path", None) or "",
                "code": code,
                "request_id": request_id,
            }
        ).encode()
        head = (
            f"HTTP/1.1 {status.value} {title_of(status)}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: application/problem+json\r\nX-Request-ID: {request_id}\r\n"
            "X-Content-Type-Options: nosniff\r\n\r\n"
        )
        try:
            util.write_nonblock(client, head.encode("ascii") + body)
        except OSError:
            return  # nobody waits for it any more
        spent = (time.perf_counter() - started) * 1e3
        method, path = getattr(req, "method", None) or "-", getattr(req, "path", None) or "-"
        log_access(method, path, status, spent, len(body), "-", request_id)
