"""End-user tokens: short-lived signed proofs (JWT, RFC 7519) by which a page or an app reads one recipient's mailbox.

The claims `exp`, `aud` and `sub` are required; `sub` is the recipient, and `scope` (RFC 8693, 4.2) may hold `read`,
the default, and `manage`. A token cannot send, since its holder could send to any mailbox.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any

import jwt
from cachetools import TLRUCache
from django.conf import settings

from messaging.access import Caller, Scope
from messaging.auth.signing_keys import ALGORITHMS, KeySet
from messaging.errors import Fault, InvalidInputError
from messaging.validation import name_fault

TOKEN_SCOPES = frozenset({Scope.READ, Scope.MANAGE})
MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: no shorter than the hash of HS256
LEEWAY_SECONDS = 5  # for clocks that differ
_MAX_LENGTH = 8_000  # characters of a token; longer ones are refused unread. gunicorn takes headers of 8,190 bytes
# A token is verified again after this time, so that the removal of a key from the JWKS takes effect.
_CACHE_SECONDS = 60.0
_CACHED_TOKENS = 10_000


class NoTokenSecretError(Exception):
    """Nothing here can sign a token."""


# Short secrets and RSA keys under 2,048 bits are refused by the library.
_JWT = jwt.PyJWT(options={"require": ["exp", "aud", "sub"], "enforce_minimum_key_length": True})


def secrets_in(text: str) -> tuple[str, ...]:
    """The secrets of MESSAGES_TOKEN_SECRET, separated by white space: the first signs, each verifies."""
    return tuple(text.split())


@dataclass(kw_only=True)
class Verifier:
    """Verifies tokens, under one configuration. `clock` is the time in seconds since 1970."""

    secrets: tuple[str, ...] = ()
    jwks: str = ""
    audience: str
    issuer: str = ""
    max_seconds: int
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._key_set = KeySet(self.jwks) if self.jwks else None
        # By hash, so that no usable token stays in memory after its request.
        self._verified: TLRUCache[bytes, Caller] = TLRUCache(
            _CACHED_TOKENS, lambda _, caller, now: min(caller.ends_at or now, now + _CACHE_SECONDS), timer=self.clock
        )
        self._lock = threading.Lock()

    def caller_of(self, text: str) -> Caller | None:
        """The caller of a token; None if it is malformed, expired, or not for this service.

        Raises TokenKeysUnavailableError if the keys of MESSAGES_TOKEN_JWKS were never fetched.
        """
        if len(text) > _MAX_LENGTH:
            return None
        digest = sha256(text.encode(errors="replace")).digest()
        with self._lock:
            caller = self._verified.get(digest)
        if caller is not None:
            return caller
        try:
            caller = self._judged(text)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # The library does not catch some of Python's errors, for claims such as an infinite `exp`.
            return None
        if caller is not None:
            with self._lock:
                self._verified[digest] = caller
        return caller

    def _judged(self, text: str) -> Caller | None:
        claims, now = self._claims(text), self.clock()
        if claims is None:
            return None
        recipient, scope, expires_at = claims["sub"], claims.get("scope", "read"), int(claims["exp"])
        if name_fault(recipient) or not isinstance(scope, str):
            return None
        # Without `iat` only the rest of the token's lifetime is known.
        if expires_at - min(now, claims.get("iat", now)) > self.max_seconds + LEEWAY_SECONDS:
            return None
        asked = set(scope.split())
        scopes = frozenset(scope for scope in TOKEN_SCOPES if scope in asked)
        return Caller(identity_of(recipient), scopes, recipient, ends_at=expires_at + LEEWAY_SECONDS)

    def _claims(self, text: str) -> dict[str, Any] | None:
        """The claims of a token with a valid signature, for this audience, at this time."""
        for key, algorithm in self._keys_for(jwt.get_unverified_header(text)):
            try:
                return _JWT.decode(
                    text,
                    key,
                    algorithms=[algorithm],
                    audience=self.audience,
                    issuer=self.issuer or None,
                    leeway=LEEWAY_SECONDS,
                )
            except (jwt.InvalidSignatureError, jwt.InvalidKeyError):  # the other one is a key that is too short
                continue
        return None

    def _keys_for(self, header: dict[str, Any]) -> Iterable[tuple[Any, str]]:
        """The keys that may have signed a token with this header, each with its only algorithm.

        The header selects a key, never its algorithm, so a public key cannot be used as an HS256 secret.
        """
        algorithm = header.get("alg")
        if algorithm == "HS256":
            return [(secret, "HS256") for secret in self.secrets]
        if self._key_set is not None and algorithm in ALGORITHMS:
            return [(key, algorithm) for key in self._key_set.candidates(header.get("kid"), algorithm)]
        return []


def caller_of(text: str) -> Caller | None:
    """As `Verifier.caller_of`, under the settings."""
    return _verifier(
        secrets=secrets_in(settings.MESSAGES_TOKEN_SECRET),
        jwks=settings.MESSAGES_TOKEN_JWKS,
        audience=settings.MESSAGES_TOKEN_AUDIENCE,
        issuer=settings.MESSAGES_TOKEN_ISSUER,
        max_seconds=settings.MESSAGES_TOKEN_MAX_SECONDS,
    ).caller_of(text)


_verifier = lru_cache(maxsize=4)(Verifier)  # one for each configuration


def create(*, recipient: str, scopes: Sequence[str], lifetime: timedelta) -> str:
    """A token for one recipient, signed with the first secret of MESSAGES_TOKEN_SECRET.

    Raises:
        NoTokenSecretError: there is none.
        InvalidInputError: the recipient, a scope, or a lifetime of nothing or above MESSAGES_TOKEN_MAX_SECONDS.
    """
    secrets = secrets_in(settings.MESSAGES_TOKEN_SECRET)
    if not secrets:
        raise NoTokenSecretError(
            "Nothing here can sign a token. Set MESSAGES_TOKEN_SECRET (or MESSAGES_TOKEN_SECRET_FILE) to at least 32"
            " random bytes, for instance from `openssl rand -base64 48`, and start the service anew with it. Where"
            " MESSAGES_TOKEN_JWKS is set, the service that holds the private key makes the tokens."
        )
    limit = timedelta(seconds=settings.MESSAGES_TOKEN_MAX_SECONDS)
    faults = [fault] if (fault := name_fault(recipient, "/recipient")) else []
    faults += [
        Fault("/scopes", "unknown_scope", f"A token cannot hold the scope {scope!r}. It can hold: read, manage.")
        for scope in scopes
        if scope not in TOKEN_SCOPES
    ]
    if not scopes:
        faults.append(Fault("/scopes", "required", "A token needs a scope. It can hold: read, manage."))
    if not timedelta(0) < lifetime <= limit:
        faults.append(Fault("/expires", "out_of_range", f"A token lives up to {limit}. Choose a time within that."))
    if faults:
        raise InvalidInputError(faults)
    now = int(time.time())
    claims = {
        "sub": recipient,
        "aud": settings.MESSAGES_TOKEN_AUDIENCE,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + int(lifetime.total_seconds()),
    }
    if settings.MESSAGES_TOKEN_ISSUER:
        claims["iss"] = settings.MESSAGES_TOKEN_ISSUER
    return _JWT.encode(claims, secrets[0], algorithm="HS256")


def identity_of(recipient: str) -> str:
    """The identity of all tokens of a recipient: a hash, so that logs do not show the name."""
    return f"token:{blake2b(recipient.encode(), digest_size=16).hexdigest()}"
