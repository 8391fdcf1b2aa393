"""System checks of a deployment, each with an id and a hint. An error among them prevents a start."""

import ipaddress
import os
from collections.abc import Iterator
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

_PATHS_WITH_OTHERS_BELOW = frozenset({"admin", "mailbox", "messages", "static"})
_KEY_HINT = (
    "Set SECRET_KEY or SECRET_KEY_FILE to 50 or more random characters, for instance from: "
    "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
)


class DeploymentConfig(AppConfig):
    """Has no models. Its import registers the checks."""

    name = "messages_project"
    label = "deployment"


def is_exposed() -> bool:
    """Whether other machines may reach the process, as far as the settings show."""
    try:
        is_local = settings.BIND == "localhost" or ipaddress.ip_address(settings.BIND).is_loopback
    except ValueError:
        is_local = False  # a name
    return not is_local and not settings.MESSAGES_OPEN_BIND_IS_LOCAL


# Deployment checks: they run before serving and by `check --deploy`. Other commands need neither a key nor an address.
@checks.register(checks.Tags.security, deploy=True)
def check_secret_key(**_options: Any) -> Iterator[checks.CheckMessage]:
    try:
        key = settings.SECRET_KEY
    except ImproperlyConfigured:
        key = ""
    if not key:
        yield checks.Error("No SECRET_KEY is set.", hint=_KEY_HINT, id="messages.E001")
    elif len(key) < 32 or len(set(key)) < 8 or key.startswith(("development-only", "django-insecure")):
        kind, number = (checks.Error, "messages.E002") if is_exposed() else (checks.Warning, "messages.W002")
        yield kind("SECRET_KEY is short, or known to others.", hint=_KEY_HINT, id=number)


@checks.register(checks.Tags.security, deploy=True)
def check_exposure(**_options: Any) -> Iterator[checks.CheckMessage]:
    if settings.DEBUG and is_exposed():
        yield checks.Error(
            f"DEBUG is on while the process listens on {settings.BIND}.",
            hint="Unset DEBUG, or listen on this machine only: BIND=127.0.0.1.",
            id="messages.E003",
        )
    if settings.MESSAGES_ACCESS == "open" and is_exposed():
        yield checks.Error(
            f"Access is open to anyone who reaches {settings.BIND}.",
            hint="Set MESSAGES_ACCESS=keys and create a key: "
            "manage.py create_api_key NAME --scopes send,read,manage. Or, if whatever publishes this process "
            "limits it to this machine, set MESSAGES_OPEN_BIND_IS_LOCAL=true.",
            id="messages.E004",
        )
    first = (settings.FORCE_SCRIPT_NAME or "/").split("/")[1]
    if first in _PATHS_WITH_OTHERS_BELOW:
        yield checks.Error(
            f"The path of PUBLIC_URL begins with /{first}, which is a path of the service itself.",
            hint="Let the proxy serve it below another path, such as /messaging.",
            id="messages.E005",
        )
    options = settings.DATABASES["default"]["OPTIONS"]
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE")
    # With `system` libpq verifies the certificate in any case.
    if options.get("sslrootcert", "system") != "system" and mode not in {"require", "verify-ca", "verify-full"}:
        yield checks.Warning(
            "POSTGRES_SSLROOTCERT has no effect: the certificate of the server is not verified.",
            hint="Set POSTGRES_SSLMODE=verify-full.",
            id="messages.W004",
        )
    if any(host.strip() in {"*", "."} for host in settings.ALLOWED_HOSTS):
        yield checks.Warning(
            "ALLOWED_HOSTS accepts any host name, so links in answers can be made to point anywhere.",
            hint="Name the hosts that clients use: ALLOWED_HOSTS=api.example.com.",
            id="messages.W003",
        )
