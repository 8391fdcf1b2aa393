"""The endpoint `GET /changes`: what has changed in a mailbox since a version. messaging/changes.py reads it."""

import hashlib
import struct
from urllib.parse import quote, urlencode

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from messaging import changes
from messaging.access import Scope
from messaging.api.answers import ChangesAnswer, answer, version_headers
from messaging.api.pagination import FOREIGN_CURSOR, base_url, sealed, unsealed
from messaging.api.serializers import ChangesParameters
from messaging.api.viewsets import ApiViewSet, not_modified
from messaging.changes import Position
from messaging.errors import InvalidInputError
from messaging.models import Mailbox

_PACKED = struct.Struct(">qqqq9s")  # a Position, binding


def _encoded(position: Position, binding: bytes) -> str:
    return sealed(_PACKED.pack(position.version, position.place, position.seen, position.floor or 0, binding))


def _decoded(text: str, binding: bytes) -> Position:
    *values, bound_to = unsealed(text, _PACKED)
    if bound_to != binding:
        raise InvalidInputError([FOREIGN_CURSOR])
    return Position(*values)


class ChangesViewSet(ApiViewSet):
    """The changes of a mailbox."""

    queryset = Mailbox.objects.all()
    scopes = {"list": Scope.READ}

    @extend_schema(
        operation_id="listChanges",
        parameters=[ChangesParameters],
        responses={200: ChangesAnswer},
    )
    def list(self, request: Request) -> HttpResponse:
        """Get what has changed in a mailbox since a version.

        For keeping a copy: begin with `since=0`, put each answer over the copy (replace by id, remove by id) while
        `next` is there, and keep the last `until` as the next `since`. A message may come more than once, the last one
        counts. 410 `changes_expired`, where deletions from so long ago are no longer known, or the mailbox was restored
        to an older version: begin anew with `since=0`, or with a walk through the pages.
        """
        self.read_query(ChangesParameters)
        recipient, since = self.parameters["recipient"], self.parameters["since"]
        self.require_reachable(recipient)
        binding = hashlib.blake2b(repr((recipient, since)).encode(), digest_size=9, person=b"changes").digest()
        cursor = self.parameters.get("cursor")
        position = changes.start(since) if cursor is None else _decoded(cursor, binding)
        if (known := self.unmodified(recipient)) and position.seen <= known.version:
            return not_modified(known)
        found = self.read(
            lambda: changes.changes(recipient, position, limit=self.parameters["limit"]),
            lambda found: found.mailbox,
            at_least=0,  # a replica that is behind the position fails
        )
        url = None
        if found.position:
            query = self.given | {"cursor": _encoded(found.position, binding)}
            url = f"{base_url(request._request)}{quote(request._request.path_info)}?{urlencode(query)}"
        body = ChangesAnswer(found.messages, found.deleted, since, found.until, url, found.mailbox)
        return answer(body, headers=version_headers(found.mailbox))
