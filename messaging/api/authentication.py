"""Authentication: the Caller of a bearer key or token (RFC 6750), or an anonymous one if access is open."""

from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, Throttled
from rest_framework.request import Request

from messaging import metrics
from messaging.access import EVERYONE, Caller
from messaging.auth import keys
from messaging.auth.limits import invalid_keys

MISSING = "This call needs a key or token. Send it in the header: `Authorization: Bearer KEY`."
# One text for every cause, so that a response does not reveal which keys exist.
INVALID = "This key or token is not valid, or no longer valid. Check it, or ask the operator for a new one."
_TOO_MANY = "Too many requests with an invalid key or token came from this address. Correct the key."


class BearerAuthentication(BaseAuthentication):
    """`request.user` is the Caller, `request.auth` is None, since the credential is not kept."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        """The caller. An invalid key or token is refused even if access is open."""
        http: Any = request._request
        scheme, _, credential = http.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        address = client_address(http.META)
        # Another scheme is ignored: it may be meant for a proxy in front.
        if scheme.lower() != "bearer":
            if settings.MESSAGES_ACCESS != "open":
                raise NotAuthenticated(MISSING)
            caller = _anybody_at(address)
        else:
            caller = _holder_of(credential.strip(), address)
        http.caller_name = caller.identity
        return caller, None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def caller_of(request: Request) -> Caller:
    """The caller of an authenticated request, which DRF calls its user."""
    caller: Any = request.user
    assert isinstance(caller, Caller)
    return caller


def _holder_of(credential: str, address: str) -> Caller:
    seconds_to_wait = invalid_keys.seconds_to_wait(address)
    caller = _caller_of(credential, is_suspect=seconds_to_wait is not None)
    if caller is not None:
        return caller
    invalid_keys.add(address)
    if seconds_to_wait is not None:
        metrics.rate_limited.labels("invalid_keys").inc()
        raise Throttled(seconds_to_wait, _TOO_MANY)
    raise AuthenticationFailed(INVALID, code="invalid_key")


def _caller_of(credential: str, *, is_suspect: bool) -> Caller | None:
    if credential.startswith(keys.KEY_START):
        return keys.verifier.caller_of(credential, is_suspect=is_suspect)
    if not settings.MESSAGES_TOKEN_SECRET and not settings.MESSAGES_TOKEN_JWKS:
        return None
    # Imported only if tokens are enabled: its cryptography takes 9 MB of each process.
    from messaging.auth import tokens

    return tokens.caller_of(credential)


@lru_cache(maxsize=4096)
def _anybody_at(address: str) -> Caller:
    return replace(EVERYONE, identity=f"open:{address}")


def client_address(meta: dict[str, Any]) -> str:
    """The client's address, in the form in which it is counted; `unknown` if there is none.

    With MESSAGES_TRUSTED_PROXIES=n it is the n-th entry of X-Forwarded-For from the right, which the n-th proxy has
    added; a client can forge the entries before it. A request through fewer proxies is counted by its peer address.
    """
    peer: str = meta.get("REMOTE_ADDR", "")
    if proxies := settings.MESSAGES_TRUSTED_PROXIES:
        hops = meta.get("HTTP_X_FORWARDED_FOR", "").split(",")
        if len(hops) >= proxies and (address := _counted(hops[-proxies].strip())):
            return address
    return _counted(peer) or "unknown"


@lru_cache(maxsize=4096)
def _counted(text: str) -> str:
    """An address without its port; for IPv6 the /64 network, which belongs to one client. Empty if invalid."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address), 64), strict=False))
