"""Django's settings: one pure file for every environment, safe by default.

It reads the environment through env.py and has no side effects. Loading it reports every fault at once. README.md lists
the variables, and docs/operations.md explains them to operators.
"""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from messages_project import api_settings
from messages_project.env import Env
from messages_project.logs import logging_config

env = Env()

BASE_DIR = Path(__file__).resolve().parent.parent

# Where the process listens, and what reaches it
BIND = env.server("BIND", "127.0.0.1")
PORT = env.port("PORT", 8000)
# The URL at which a browser on this machine reaches it.
LOCAL_HOST = "localhost" if BIND in {"0.0.0.0", "::"} else f"[{BIND}]" if ":" in BIND else BIND  # noqa: S104 - a comparison
LOCAL_URL = f"http://{LOCAL_HOST}:{PORT}"
WEB_SERVER = env.choice("WEB_SERVER", ("gunicorn", "granian"), "gunicorn")
WEB_CONCURRENCY = env.integer("WEB_CONCURRENCY", min(4, max(2, os.cpu_count() or 1)), minimum=1, maximum=256)
# One thread waits for PostgreSQL while another computes. More than four compete for the interpreter lock.
WEB_THREADS = env.integer("WEB_THREADS", 4, minimum=1, maximum=64)
GRACEFUL_TIMEOUT_SECONDS = env.integer("GRACEFUL_TIMEOUT_SECONDS", 20, maximum=3600)
# How long /readyz answers 503 while requests are still served, so that a load balancer notices first.
SHUTDOWN_DELAY_SECONDS = env.integer("SHUTDOWN_DELAY_SECONDS", 0, maximum=600)
DATABASE_WAIT_SECONDS = env.integer("DATABASE_WAIT_SECONDS", 30, maximum=3600)
MIGRATE_ON_START = env.flag("MIGRATE_ON_START", default=True)
WITH_COMPANIONS = env.flag("WITH_COMPANIONS")  # whether the process that serves also runs `live` and `upkeep`
# The URL of the service if a proxy changes host or path; otherwise links are made from the request's Host.
_public_url = env.public_url("PUBLIC_URL")
PUBLIC_URL = _public_url.origin + _public_url.prefix
# Django adds it to the paths of links; public_url.py removes it from those of requests.
FORCE_SCRIPT_NAME = _public_url.prefix or None
ALLOWED_HOSTS = env.hosts("ALLOWED_HOSTS", ("localhost", "127.0.0.1", "[::1]"))
# The live process; see messaging/live.
LIVE_PORT = env.port("LIVE_PORT", 8001 if PORT != 8001 else 8002)
if WITH_COMPANIONS and LIVE_PORT == PORT:
    env.fault(f"PORT and LIVE_PORT are both {PORT}; choose another LIVE_PORT, or leave it out.")
LIVE_MAX_STREAMS = env.integer("LIVE_MAX_STREAMS", 10_000, minimum=1, maximum=1_000_000)
# The URL at which browsers reach it, if not the origin of the API.
_live_url = env.public_url("LIVE_URL")
LIVE_URL = _live_url.origin + _live_url.prefix
ALLOWED_HOSTS += [url.host for url in (_public_url, _live_url) if url.host]
# How long a stream lasts, plus or minus a tenth.
LIVE_STREAM_SECONDS = env.integer("LIVE_STREAM_SECONDS", 600, minimum=1, maximum=86_400)

# Security
DEBUG = env.flag("DEBUG")
# Browsers reach the process without TLS, so cookies are not "Secure". For development.
PLAIN_HTTP = env.flag("PLAIN_HTTP", default=DEBUG)
# An empty key is allowed here for commands that need none. checks.py refuses to serve with it, and with the development
# key if other machines can reach the process. The embedded PostgreSQL keeps a key of its own in its directory.
SECRET_KEY = env.secret("SECRET_KEY", "development-only-and-known-to-everyone" if PLAIN_HTTP else "")
SECRET_KEY_FALLBACKS = env.listing("SECRET_KEY_FALLBACKS")
HSTS_SECONDS = env.integer("HSTS_SECONDS", 0)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.flag("TRUST_FORWARDED_PROTO") else None
CSRF_TRUSTED_ORIGINS = env.origins("CSRF_TRUSTED_ORIGINS")
CSRF_TRUSTED_ORIGINS += [_public_url.origin] if PUBLIC_URL else []  # the proxy may have changed the Host
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not PLAIN_HTTP
CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{_public_url.prefix}/"
if _public_url.prefix:  # another application of Django may be beside it, whose cookies are sent here too
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "messages_sessionid", "messages_csrftoken"
CSRF_FAILURE_VIEW = "messaging.admin.refusals.csrf_failure"
SESSION_COOKIE_AGE = 12 * 3600
LOGIN_REDIRECT_URL = "admin:index"  # after a login without a `next` that is a page of this site

# PostgreSQL
POSTGRES_BEHIND_PGBOUNCER = env.flag("POSTGRES_BEHIND_PGBOUNCER")
_statement_timeout = env.integer("POSTGRES_STATEMENT_TIMEOUT_MS", 2_500)
_lock_timeout = env.integer("POSTGRES_LOCK_TIMEOUT_MS", 2_000)
POSTGRES_LOCK_TIMEOUT_SECONDS = _lock_timeout / 1000
# Every statement may wait this long for a lock. Half of the threads may wait longer, up to the limit above; all but one
# may while no standby confirms commits. The others continue to serve.
_first_lock_timeout = min(500, _lock_timeout)
POSTGRES_FIRST_LOCK_TIMEOUT_SECONDS = _first_lock_timeout / 1000
POSTGRES_MAX_WAITING_THREADS = max(1, WEB_THREADS // 2)
POSTGRES_MAX_STALLED_THREADS = max(1, WEB_THREADS - 1)
# PostgreSQL enforces statement_timeout itself; this is for a server that hangs or cannot be reached any more.
POSTGRES_CLIENT_TIMEOUT_SECONDS = _statement_timeout / 1000 + 0.3 if _statement_timeout else None
_idle_in_transaction_timeout = env.integer("POSTGRES_IDLE_IN_TRANSACTION_TIMEOUT_MS", 30_000)

_tls = {
    "sslmode": env.choice(
        "POSTGRES_SSLMODE", ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), ""
    ),
    "sslrootcert": env.text("POSTGRES_SSLROOTCERT"),
    "sslcert": env.text("POSTGRES_SSLCERT"),
    "sslkey": env.text("POSTGRES_SSLKEY"),
}

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "messaging.postgresql",
        "NAME": env.text("POSTGRES_DB", "messages"),
        "USER": env.text("POSTGRES_USER", "messages"),
        "PASSWORD": env.secret("POSTGRES_PASSWORD"),
        "HOST": env.server("POSTGRES_HOST", "localhost"),
        "PORT": env.port("POSTGRES_PORT", 5432, of_service=True),
        # A server-side cursor needs one connection throughout, which PgBouncer's transaction mode does not give.
        "DISABLE_SERVER_SIDE_CURSORS": POSTGRES_BEHIND_PGBOUNCER,
        "OPTIONS": {
            "application_name": "messages",
            "connect_timeout": 2,  # the minimum of libpq; a dead database must be reported within 3 s
            # A statement is prepared the first time it runs; None never prepares.
            "prepare_threshold": 0 if env.flag("POSTGRES_PREPARE", default=not POSTGRES_BEHIND_PGBOUNCER) else None,
            # A dead peer is detected after 5 + 3 * 2 s on an idle connection, or 5 s with unacknowledged data.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            # Without POSTGRES_SSLMODE, libpq uses TLS if the server offers it, and does not verify the certificate.
            **{name: value for name, value in _tls.items() if value},
            "tcp_user_timeout": 5_000,
            "pool": {
                "min_size": 1,
                # One connection for each thread; a thread never holds two.
                "max_size": max(2, WEB_THREADS),
                "timeout": 2,
                "max_lifetime": 3600,
                # Time for two attempts. Then the next request makes one at once. The pool doubles its pause before each
                # further attempt, and would find a server only seconds after it is back.
                "reconnect_timeout": 1,
            },
        },
    }
}
if not POSTGRES_BEHIND_PGBOUNCER:
    # PgBouncer refuses start-up options; ALTER ROLE ... SET replaces them there.
    DATABASES["default"]["OPTIONS"]["options"] = (
        # Statements, and the text form of values, depend on these; they override ALTER DATABASE and ALTER ROLE.
        "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c bytea_output=hex -c extra_float_digits=1"
        " -c standard_conforming_strings=on -c default_transaction_isolation=read\\ committed"
        " -c default_transaction_deferrable=off -c array_nulls=on -c transform_null_equals=off"
        # Refuses statements from which row level security would hide rows.
        " -c row_security=off"
        # PostgreSQL reports a commit that no standby confirmed only as a warning.
        " -c client_min_messages=notice"
        f" -c statement_timeout={_statement_timeout} -c lock_timeout={_first_lock_timeout}"
        f" -c idle_in_transaction_session_timeout={_idle_in_transaction_timeout} -c idle_session_timeout=0"
        # The default of 4 is for spinning disks. With it, and many small mailboxes, the planner reads and sorts all of
        # a large mailbox for one page.
        " -c random_page_cost=1.1"
        # Each prepared statement is planned once. By default PostgreSQL plans some of them for each execution, which
        # takes as long as executing them. Statements whose plan must depend on the values are not prepared.
        " -c plan_cache_mode=force_generic_plan"
    )
# The aliases of the read replicas; how far behind the primary one may be, and how long a read waits for one that hangs
# before it goes to the primary.
POSTGRES_REPLICAS: list[str] = []
POSTGRES_REPLICA_MAX_LAG_MS = env.integer("POSTGRES_REPLICA_MAX_LAG_MS", 1_000, minimum=100, maximum=60_000)
POSTGRES_REPLICA_TIMEOUT_SECONDS = 1.0
for _host, _port in env.servers("POSTGRES_REPLICAS", DATABASES["default"]["PORT"]):
    POSTGRES_REPLICAS.append(_alias := f"replica{len(DATABASES)}")
    DATABASES[_alias] = deepcopy(DATABASES["default"]) | {"HOST": _host, "PORT": _port, "TEST": {"MIRROR": "default"}}
    # None is kept open to a server that may be away for long.
    DATABASES[_alias]["OPTIONS"]["pool"] |= {"min_size": 0, "timeout": 0.25}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The product
MESSAGES_ACCESS = env.choice("MESSAGES_ACCESS", ("keys", "open"), "keys")
# What publishes this process (a compose file, a tunnel) limits it to loopback.
MESSAGES_OPEN_BIND_IS_LOCAL = env.flag("MESSAGES_OPEN_BIND_IS_LOCAL")
MESSAGES_MAX_CONTENT_LENGTH = env.integer("MESSAGES_MAX_CONTENT_LENGTH", 10_000, minimum=1, maximum=1_000_000)
MESSAGES_MAX_METADATA_BYTES = env.integer("MESSAGES_MAX_METADATA_BYTES", 4_096, minimum=2, maximum=1_000_000)
MESSAGES_MAX_BULK = env.integer("MESSAGES_MAX_BULK", 1_000, minimum=1, maximum=10_000)
MESSAGES_MAX_PAGE_SIZE = env.integer("MESSAGES_MAX_PAGE_SIZE", 200, minimum=1, maximum=1_000)
MESSAGES_CHANGES_DAYS = env.integer("MESSAGES_CHANGES_DAYS", 30, minimum=1, maximum=36_500)
# Of each worker, for pages whose mailbox has not changed; 0 for none.
MESSAGES_PAGE_CACHE_BYTES = env.integer("MESSAGES_PAGE_CACHE_BYTES", 20 * 1_048_576, maximum=2**40)
MESSAGES_MAX_BODY_BYTES = env.integer("MESSAGES_MAX_BODY_BYTES", 1_048_576, minimum=1_024, maximum=2**30)
# A configuration of PostgreSQL's full text search: the admin finds a word of that language in all its forms.
MESSAGES_SEARCH_LANGUAGE = env.choice(
    "MESSAGES_SEARCH_LANGUAGE",
    (
        "simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french",
        "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian",
        "portuguese", "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
    ),
    "simple",
)  # fmt: skip
MESSAGES_RETRY_SECONDS = env.integer("MESSAGES_RETRY_SECONDS", 2, maximum=60)
MESSAGES_RATE_LIMIT_READ = env.rate("MESSAGES_RATE_LIMIT_READ")
MESSAGES_RATE_LIMIT_WRITE = env.rate("MESSAGES_RATE_LIMIT_WRITE")
# Of each client address, in each process.
MESSAGES_RATE_LIMIT_INVALID_KEYS = env.rate("MESSAGES_RATE_LIMIT_INVALID_KEYS", "60/min")
# Upkeep deletes messages older than this (0 for none), and runs this often.
MESSAGES_RETENTION_DAYS = env.integer("MESSAGES_RETENTION_DAYS", 0, maximum=36_500)
MESSAGES_UPKEEP_SECONDS = env.integer("MESSAGES_UPKEEP_SECONDS", 15, minimum=1, maximum=3600)
MESSAGES_TRUSTED_PROXIES = env.integer("MESSAGES_TRUSTED_PROXIES", 0, maximum=16)
REDIS_URL = env.secret("REDIS_URL")
# End-user tokens are disabled unless one of the first two is set.
MESSAGES_TOKEN_SECRET = env.secret("MESSAGES_TOKEN_SECRET")
MESSAGES_TOKEN_JWKS = env.text("MESSAGES_TOKEN_JWKS")
MESSAGES_TOKEN_AUDIENCE = env.text("MESSAGES_TOKEN_AUDIENCE", "messages")
MESSAGES_TOKEN_ISSUER = env.text("MESSAGES_TOKEN_ISSUER")
MESSAGES_TOKEN_MAX_SECONDS = env.integer("MESSAGES_TOKEN_MAX_SECONDS", 86_400, minimum=60, maximum=30 * 86_400)

# The parsers of messaging enforce the limits above. Django's are for forms of the admin, of which none has a file.
DATA_UPLOAD_MAX_MEMORY_SIZE = max(2_621_440, 16 * MESSAGES_MAX_BODY_BYTES)
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.MemoryFileUploadHandler"]

# Cross-origin requests (django-cors-headers). No credentials: callers send a key, never a cookie.
CORS_ALLOWED_ORIGINS = env.origins("MESSAGES_CORS_ORIGINS", any_scheme=True)
if PLAIN_HTTP:
    # In development the live process is another origin for the page /inbox, since no proxy routes its paths.
    CORS_ALLOWED_ORIGINS += [f"http://{host}:{PORT}" for host in ALLOWED_HOSTS if host[0] not in "*."]
CORS_URLS_REGEX = r"^/(?!admin(?:/|$))"
CORS_ALLOW_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
CORS_ALLOW_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "X-Request-ID", "Messages-Min-Version",
    "Last-Event-ID", "traceparent", "tracestate", *env.header_names("MESSAGES_CORS_HEADERS"),
)  # fmt: skip
CORS_EXPOSE_HEADERS = (
    "ETag", "Link", "Location", "Retry-After", "RateLimit", "RateLimit-Policy", "Idempotency-Replayed", "X-Request-ID",
    "Messages-Version",
)  # fmt: skip
CORS_PREFLIGHT_MAX_AGE = 3600

# Django
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "corsheaders",
    "messages_project.checks.DeploymentConfig",
    "messaging.apps.MessagingConfig",
]
# With the extra `otel`; the SDK reads its variables itself.
TRACING = bool(env.text("OTEL_EXPORTER_OTLP_ENDPOINT") or env.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
MIDDLEWARE = [
    *(["messages_project.tracing.TracingMiddleware"] if TRACING else []),
    "messages_project.middleware.RequestMiddleware",
    *(["corsheaders.middleware.CorsMiddleware"] if CORS_ALLOWED_ORIGINS else []),
    "messages_project.middleware.StaticFilesMiddleware",
    "messages_project.middleware.AdminMiddleware",
    "messages_project.middleware.HostMiddleware",
]
# AdminMiddleware runs the middleware that these checks look for, and RequestMiddleware replaces SecurityMiddleware. The
# proxy in front is responsible for TLS and its redirect.
SILENCED_SYSTEM_CHECKS = ["admin.E408", "admin.E409", "admin.E410", "security.W001", "security.W002", "security.W003"]
ROOT_URLCONF = "messages_project.urls"
WSGI_APPLICATION = "messages_project.wsgi.application"
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "messages_project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
USE_I18N = False
TIME_ZONE = "UTC"
STATIC_URL = f"{_public_url.prefix}/static/"
# WhiteNoise serves the files of installed packages, so collectstatic is not needed.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_MAX_AGE = 3600
LOGGING = logging_config(
    style=env.choice("LOG_FORMAT", ("console", "json"), "console"),
    level=env.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
    access=env.flag("ACCESS_LOG", default=True),
)

# Django REST framework, and drf-spectacular for the OpenAPI document
REST_FRAMEWORK = api_settings.REST_FRAMEWORK
SPECTACULAR_SETTINGS = api_settings.SPECTACULAR_SETTINGS | {
    "SERVERS": [{"url": PUBLIC_URL or "/", "description": "The service that serves this document."}]
}

env.misspelt("MESSAGES_")
env.verify()
