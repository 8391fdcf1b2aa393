"""Behind a proxy that changes host and path, every link leads to PUBLIC_URL."""

import http.client
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.test import Client, override_settings

from messages_project import public_url
from tests.live_servers import RunningLive
from tests.routes import api_routes, other_paths
from tests.servers import RunningServer, free_port

PREFIX = "/inbox"


class Proxy(http.server.ThreadingHTTPServer):
    """Serves `target` below PREFIX, which it strips or not, under a Host of its own making."""

    def __init__(self, port: int, target: int, *, strips: bool) -> None:
        self.target, self.strips = target, strips
        super().__init__(("127.0.0.1", port), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        if not self.path.startswith(PREFIX):
            self.send_error(404)
            return
        path = self.path.removeprefix(PREFIX) or "/" if self.server.strips else self.path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
        behind = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        behind.request(self.command, path, body, kept | {"Host": "localhost:1"})
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "date", "server"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_arguments: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(params=["strips the prefix", "passes the prefix on"])
def url(request: pytest.FixtureRequest, run_server: Callable[..., RunningServer]) -> Iterator[str]:
    """The public URL of the service."""
    port = free_port()
    found = f"http://127.0.0.1:{port}{PREFIX}"
    server = run_server(PUBLIC_URL=found, MESSAGES_ACCESS="open", WEB_CONCURRENCY="1", PLAIN_HTTP="true")
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(port, server.port, strips=request.param == "strips the prefix"))
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(proxy.shutdown)
        yield found


def ask(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of an answer; redirects are not followed."""
    parts = re.fullmatch(r"http://([^/]+)(.*)", url)
    assert parts is not None
    connection = http.client.HTTPConnection(parts[1], timeout=30)
    connection.request(
        method, parts[2], json.dumps(body) if body else None, {"Content-Type": "application/json"} | headers
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_every_link_leads_to_the_public_url(url: str) -> None:
    for _ in range(2):
        status, headers, _ = ask(f"{url}/messages/", "POST", {"recipient": "ada", "content": "x"})
        assert status == 201
        assert headers["Location"].startswith(f"{url}/messages/")
        assert ask(headers["Location"])[0] == 200
    status, headers, body = ask(f"{url}/messages/?recipient=ada&limit=1")
    page = json.loads(body)
    assert page["next"].startswith(f"{url}/messages/?")
    assert f"<{page['next']}>" in headers["Link"]
    assert len(json.loads(ask(page["next"])[2])["results"]) == 1

    [server] = json.loads(ask(f"{url}/openapi.json")[2])["servers"]
    assert server["url"] == url
    addresses = json.loads(ask(f"{url}/")[2])
    assert addresses["docs"] == f"{url}/docs"
    assert json.loads(ask(f"{url}/nowhere")[2])["instance"] == f"{PREFIX}/nowhere"


def test_pages_load_their_assets_below_the_prefix(url: str) -> None:
    origin = url.removesuffix(PREFIX)
    status, headers, _ = ask(f"{url}/", Accept="text/html")
    assert (status, headers["Location"]) == (302, f"{PREFIX}/docs")
    for page in ("/docs", "/redoc", "/admin/login/"):
        status, _, body = ask(f"{url}{page}")
        assert status == 200
        sources = re.findall(r"""(?:src|href|spec-url|data-url)=["'](/[^"']+)""", body.decode())
        assert sources
        for source in sources:
            assert source.startswith(f"{PREFIX}/")
            assert ask(f"{origin}{source}")[0] in {200, 302}


def test_staff_can_log_in(url: str, django_user_model: Any) -> None:
    django_user_model.objects.create_superuser("ada", password="a long enough one")
    status, headers, _ = ask(f"{url}/admin/")
    assert (status, headers["Location"]) == (302, f"{PREFIX}/admin/login/?next={PREFIX}/admin/")
    origin = url.removesuffix(PREFIX)
    _, headers, body = ask(f"{origin}{headers['Location']}")
    token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', body)
    assert token is not None
    form = f"csrfmiddlewaretoken={token[1].decode()}&username=ada&password=a+long+enough+one&next={PREFIX}/admin/"
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=30)
    # As beside another application of Django, whose cookies come last.
    cookie = headers["Set-Cookie"].partition(";")[0] + "; csrftoken=another; sessionid=another"
    sent = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie, "Origin": origin}
    connection.request("POST", f"{PREFIX}/admin/login/", form, sent)
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["Location"]) == (302, f"{PREFIX}/admin/")
    # They are not for what else the host serves.
    cookies = [headers["Set-Cookie"], *answer.headers.get_all("Set-Cookie", [])]
    assert all(f"; Path={PREFIX}/" in cookie for cookie in cookies)
    own = "; ".join([*(cookie.partition(";")[0] for cookie in cookies), "csrftoken=another", "sessionid=another"])
    assert ask(f"{url}/admin/", Cookie=own)[0] == 200
    connection.close()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mail/messages/", "/messages/"),
        ("/messages/", "/messages/"),
        ("/mail/", "/"),
        ("/mail", "/"),
        ("/mails", "/mails"),
        ("/mail/mail", "/mail"),
        ("/livez", "/livez"),
    ],
)
def test_the_prefix_is_taken_off_whether_or_not_the_proxy_has_done_so(path: str, expected: str) -> None:
    with override_settings(FORCE_SCRIPT_NAME="/mail"):
        assert public_url.without_prefix(path) == expected


def test_a_path_equal_to_the_prefix_is_kept_if_the_service_has_it() -> None:
    with override_settings(FORCE_SCRIPT_NAME="/inbox"):
        assert public_url.without_prefix("/inbox") == "/inbox"
        assert public_url.without_prefix("/inbox/inbox") == "/inbox"
        assert public_url.without_prefix("/inbox/") == "/"


def test_the_live_process_takes_the_prefix_off_too(run_live: Callable[..., RunningLive]) -> None:
    live = run_live(PUBLIC_URL="https://example.com/mail", MESSAGES_ACCESS="open")
    for path in ("/mailbox/wait", "/mail/mailbox/wait"):
        assert ask(f"{live.url}{path}?recipient=ada&version=1")[0] == 200
        assert json.loads(ask(f"{live.url}{path}")[2])["instance"] == "/mail/mailbox/wait"


@pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "text/html"])
def test_the_root_leads_a_browser_to_the_documentation(accept: str) -> None:
    answer = Client(headers={"host": "localhost"}).get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/docs")
    assert "Accept" in answer.headers["Vary"].split(", ")


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_the_root_lists_the_addresses_for_programs(accept: str | None) -> None:
    client = Client(headers={"host": "localhost"})
    answer = client.get("/", headers={"Accept": accept} if accept else {})
    assert answer.status_code == 200
    found = answer.json()
    assert (found.pop("service"), found.pop("version")) == ("messages", "0.1.0")
    named = {url.removeprefix("http://localhost").rstrip("/") for url in found.values()}
    # All but itself, scripts, pages of the admin, and what works on messages named by an id or in a body.
    there = {path.rstrip("/") for path in other_paths()} - {"", "/redoc/redoc.js", "/admin/overview"}
    there |= {path for _, path in api_routes() if not path.startswith("/messages/")}
    assert named == there
    assert client.post("/").status_code == 405
