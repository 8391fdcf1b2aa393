"""System checks of the settings of messaging, for what messages_project/env.py cannot find in one variable."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core import checks

from messaging.auth import limits


@checks.register(checks.Tags.security)
def check_write_limit(**_options: Any) -> Iterator[checks.CheckMessage]:
    """A limit that is lower than the cost of the largest call."""
    policy = limits.policy("write")
    largest = 1 + settings.MESSAGES_MAX_BULK / limits.HUNDREDTHS
    if policy is not None and policy.quota < largest:
        yield checks.Warning(
            f"MESSAGES_RATE_LIMIT_WRITE={policy.text} has less room than one bulk call of MESSAGES_MAX_BULK ids, which"
            f" costs {largest:g} requests.",
            hint="Such a call passes only as the first of its window. Raise the limit, or its unit of time.",
            id="messaging.W001",
        )


@checks.register(checks.Tags.security)
def check_redis_url(**_options: Any) -> Iterator[checks.CheckMessage]:
    """An invalid REDIS_URL. Whether Redis answers is not checked."""
    if settings.REDIS_URL:
        import redis

        try:
            # A connection that is not opened: a misspelt parameter fails here and not in the pool, an unknown encoding
            # when it is used.
            connection: Any = redis.ConnectionPool.from_url(settings.REDIS_URL).make_connection()
            connection.encoder.encode("")
        except (ValueError, TypeError, LookupError, redis.RedisError):
            # Neither the URL nor the error's text is shown: they may hold a password.
            yield checks.Error(
                "REDIS_URL is no URL of a Redis.",
                hint="Write it like redis://host:6379/0 or rediss://:password@host:6379/0, or leave it empty.",
                id="messaging.E004",
            )


@checks.register(checks.Tags.security)
def check_token_secrets(**_options: Any) -> Iterator[checks.CheckMessage]:
    """Secrets that are too short. Tokens signed with one are refused."""
    if not settings.MESSAGES_TOKEN_SECRET:
        return
    # Imported only if tokens are enabled, as in authentication.py.
    from messaging.auth import tokens

    for place, secret in enumerate(tokens.secrets_in(settings.MESSAGES_TOKEN_SECRET), start=1):
        if len(secret.encode()) < tokens.MIN_SECRET_BYTES:
            yield checks.Error(
                f"Secret {place} of MESSAGES_TOKEN_SECRET is shorter than {tokens.MIN_SECRET_BYTES} bytes.",
                hint="Make one with: openssl rand -base64 48",
                id="messaging.E005",
            )


@checks.register(checks.Tags.security)
def check_token_keys(**_options: Any) -> Iterator[checks.CheckMessage]:
    """A JWKS that is invalid, fetched without TLS, or shared with other services."""
    source = settings.MESSAGES_TOKEN_JWKS
    if not source:
        return
    from messaging.auth import signing_keys

    if source.startswith("http://"):
        yield checks.Warning(
            "MESSAGES_TOKEN_JWKS is fetched without TLS: whoever is on the way can sign tokens.",
            hint="Use an https URL, or a file.",
            id="messaging.W002",
        )
    elif not signing_keys.is_url(source):
        try:
            signing_keys.load(source)
        except signing_keys.UNREADABLE as error:
            yield checks.Error(
                f"MESSAGES_TOKEN_JWKS={source!r} cannot be used: {error}",
                hint="Name a readable file with a JSON Web Key Set, or an https URL.",
                id="messaging.E006",
            )
    if not settings.MESSAGES_TOKEN_ISSUER:
        yield checks.Warning(
            "MESSAGES_TOKEN_JWKS is set and MESSAGES_TOKEN_ISSUER is not.",
            hint="Name the issuer, so that only its tokens are taken where several services share keys.",
            id="messaging.W003",
        )
