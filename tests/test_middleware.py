"""What every answer carries: a request id, its length, security headers; and what only the admin and CORS get."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings as current
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings

from messages_project import middleware
from messages_project.env import Env, SettingsError
from tests import document
from tests.servers import PROJECT_DIR

ORIGIN = "https://app.example.com"


@pytest.fixture
def client() -> Client:
    return Client(headers={"host": "localhost"})


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128])
def test_a_request_id_of_the_client_comes_back(client: Client, given: str) -> None:
    assert client.get("/livez", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", " ", "x" * 129, "a b", "a\nb", "ä", "a;b", "<script>", "\u0661"])
def test_any_other_request_id_is_replaced(client: Client, given: str) -> None:
    answer = client.get("/livez", headers={"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/static/admin/css/base.css", "/docs", "/admin/login/"])
@pytest.mark.django_db
def test_every_answer_carries_its_id_and_forbids_sniffing(client: Client, path: str) -> None:
    answer = client.get(path)
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert "Content-Length" in answer.headers
    answer.close()


def test_a_static_file_refuses_other_methods_with_a_problem(client: Client) -> None:
    answer = client.post("/static/messaging/inbox.js")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=5-2", "bytes=0-1", "nonsense"])
def test_a_static_file_is_given_whole(client: Client, asked: str) -> None:
    answer: Any = client.get("/static/messaging/inbox.js", headers={"Range": asked})
    assert answer.status_code == 200
    assert len(b"".join(answer.streaming_content)) == int(answer.headers["Content-Length"])


@pytest.mark.parametrize(("method", "has_body"), [("HEAD", False), ("head", True)])
def test_only_head_in_upper_case_is_head(method: str, has_body: bool) -> None:
    request = RequestFactory().generic(method, "/")
    answer: Any = middleware.RequestMiddleware(lambda _request: HttpResponse("text"))(request)
    assert answer.content == (b"text" if has_body else b"")
    assert answer.headers["Content-Length"] == "4"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/admin/login/"])
@pytest.mark.django_db
def test_a_page_runs_only_scripts_of_the_application(client: Client, path: str) -> None:
    answer = client.get(path)
    page = answer.content.decode()
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"<script(?![^>]*\bsrc=)", page), "a script inside the page, which the policy blocks"
    sources = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert sources
    assert not [source for source in sources if "//" in source], "something from another site"
    for source in sources:
        if source.startswith("/static/"):
            asset = client.get(source)
            assert asset.status_code == 200
            asset.close()


def test_strict_transport_security_is_sent_only_when_asked_for(client: Client) -> None:
    assert "Strict-Transport-Security" not in client.get("/livez").headers
    with override_settings(HSTS_SECONDS=3600):
        assert Client().get("/livez").headers["Strict-Transport-Security"] == "max-age=3600"


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "a b", "localhost:8000:9", "[::1"])
def test_a_foreign_host_is_refused_and_logged_and_not_reflected(
    client: Client, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/docs", headers={"host": host})
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    assert host.encode() not in answer.content
    assert f"refused the Host {host!r}, which ALLOWED_HOSTS does not name" in caplog.messages


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
@pytest.mark.django_db
def test_health_endpoints_accept_any_host(client: Client, path: str) -> None:
    assert client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200


@pytest.mark.parametrize(("access", "status"), [("keys", 401), ("open", 400)])
@pytest.mark.django_db
def test_metrics_accept_any_host_where_they_need_a_key(access: str, status: int) -> None:
    with override_settings(MESSAGES_ACCESS=access):
        assert Client().get("/metrics", headers={"host": "10.1.2.3:8000"}).status_code == status


def test_the_cache_of_accepted_hosts_is_bounded() -> None:
    with override_settings(ALLOWED_HOSTS=[".example.com"]):
        guard = middleware.HostMiddleware(lambda request: HttpResponse())
        for number in range(300):
            guard(RequestFactory().get("/docs", headers={"host": f"h{number}.example.com"}))
    assert len(guard.known) <= 100


@pytest.mark.django_db
def test_cookies_and_csrf_are_for_the_admin_only(client: Client) -> None:
    assert not client.get("/livez").cookies
    assert not client.get("/docs").cookies
    login = client.get("/admin/login/")
    assert login.cookies["csrftoken"]["httponly"]
    assert login.cookies["csrftoken"]["secure"] == (not current.PLAIN_HTTP or "")
    strict = Client(enforce_csrf_checks=True, headers={"host": "localhost"})
    assert strict.post("/admin/login/", {"username": "a", "password": "b"}).status_code == 403


@pytest.mark.parametrize("target", ["/admin/", "https://evil.example/", "//evil.example/admin/"])
@pytest.mark.django_db
def test_staff_can_log_in_and_out(client: Client, django_user_model: Any, target: str) -> None:
    django_user_model.objects.create_superuser("ada", password="a long enough one")
    answer = client.post(f"/admin/login/?next={target}", {"username": "ada", "password": "a long enough one"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")
    assert client.get("/admin/").status_code == 200
    assert client.get("/admin").status_code == 200
    client.post("/admin/logout/")
    assert client.get("/admin/").status_code == 302


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/docs", "/redoc", "/openapi.json"])
@pytest.mark.django_db
def test_a_path_answers_with_and_without_its_trailing_slash(client: Client, path: str) -> None:
    assert client.get(path).status_code == client.get(f"{path}/").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_a_health_endpoint_is_only_read(client: Client, path: str) -> None:
    answer = client.post(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.fixture
def cors_client(settings: Any) -> Client:
    settings.CORS_ALLOWED_ORIGINS = [ORIGIN, "capacitor://localhost"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:1], "corsheaders.middleware.CorsMiddleware", *settings.MIDDLEWARE[1:]]
    return Client(headers={"host": "localhost"})


def test_without_the_setting_no_origin_is_allowed(client: Client) -> None:
    answer = client.get("/livez", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("origin", [ORIGIN, "capacitor://localhost"])
@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/mailbox"])
def test_an_allowed_origin_may_read_the_response_and_its_headers(cors_client: Client, origin: str, path: str) -> None:
    answer = cors_client.get(path, headers={"Origin": origin})
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "origin" in answer.headers["Vary"].lower()
    exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed == document.load()["components"]["headers"].keys() - {"WWW-Authenticate"}
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_refused_host_may_be_read_by_an_allowed_origin(cors_client: Client) -> None:
    answer = cors_client.get("/docs", headers={"Origin": ORIGIN, "host": "evil.example"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (400, ORIGIN)


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "http://app.example.com", "null"])
def test_another_origin_may_not_read(cors_client: Client, origin: str) -> None:
    answer = cors_client.get("/livez", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "origin" in answer.headers["Vary"].lower(), "a cache would hand this answer to the allowed origin"


@pytest.mark.django_db
def test_no_origin_may_read_the_admin(cors_client: Client) -> None:
    for path in ("/admin", "/admin/", "/admin/login/"):
        assert "Access-Control-Allow-Origin" not in cors_client.get(path, headers={"Origin": ORIGIN}).headers


def preflight(client: Client, origin: str, *headers: str) -> Any:
    wanted = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": ",".join(headers)}
    return client.options("/messages/mark-read", headers=wanted | {"Origin": origin})


def test_a_preflight_is_answered_without_a_key(cors_client: Client) -> None:
    answer = preflight(cors_client, ORIGIN, "authorization")
    assert (answer.status_code, answer.content) == (200, b"")
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Methods" not in preflight(cors_client, "https://evil.example").headers


def test_a_preflight_allows_the_headers_of_the_api_and_those_of_traces(cors_client: Client) -> None:
    operations = [each for path in document.load()["paths"].values() for each in path.values()]
    named = [document.resolve(each) for operation in operations for each in operation.get("parameters", [])]
    wanted = {each["name"].lower() for each in named if each["in"] == "header"}
    assert {"idempotency-key", "last-event-id"} < wanted
    wanted |= {"authorization", "content-type", "traceparent", "tracestate"}
    answer = preflight(cors_client, ORIGIN, *wanted)
    assert wanted <= {name.lower() for name in answer.headers["Access-Control-Allow-Headers"].split(", ")}


def test_origins_and_headers_come_from_the_environment() -> None:
    script = """
import django; django.setup()
from django.test import Client
asked = {"Origin": "app://obsidian.md", "Access-Control-Request-Method": "POST", "host": "localhost"}
answer = Client().options("/messages/", headers=asked)
print(answer.headers["Access-Control-Allow-Origin"], "X-Trace" in answer.headers["Access-Control-Allow-Headers"])
"""
    variables = {
        "DJANGO_SETTINGS_MODULE": "messages_project.settings",
        "MESSAGES_CORS_ORIGINS": "app://obsidian.md,ionic://localhost,chrome-extension://abcdefghijklmnop,http://[::1]:8080",
        "MESSAGES_CORS_HEADERS": "X-Trace, baggage",
    }
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_DIR, env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == "app://obsidian.md True\n"


@pytest.mark.parametrize(
    "origin", ["https://app.example.com/", "app.example.com", "HTTPS://APP.EXAMPLE.COM", "*", "a b"]
)
def test_an_invalid_origin_is_refused_at_the_start(origin: str) -> None:
    env = Env({"MESSAGES_CORS_ORIGINS": origin})
    env.origins("MESSAGES_CORS_ORIGINS", any_scheme=True)
    with pytest.raises(SettingsError, match="is no origin"):
        env.verify()


def test_cookies_of_an_app_s_own_scheme_are_not_trusted() -> None:
    env = Env({"CSRF_TRUSTED_ORIGINS": "capacitor://localhost"})
    env.origins("CSRF_TRUSTED_ORIGINS")
    with pytest.raises(SettingsError, match="is no origin"):
        env.verify()
