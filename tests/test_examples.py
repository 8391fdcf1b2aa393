"""The clients in examples/ keep a copy that equals the mailbox, whatever happens meanwhile."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import playwright
import pytest
from playwright.sync_api import Request, sync_playwright

from tests import document
from tests.helpers import Api
from tests.live_servers import Service, token
from tests.programs import program
from tests.servers import PROJECT_DIR, wait_until

SECONDS = 120.0
EXAMPLES = PROJECT_DIR / "examples"
# Playwright brings a Node.js that knows how to leave out types.
NODE = Path(playwright.__file__).parent / "driver" / "node"
STRIP = "console.log(require('module').stripTypeScriptTypes(require('fs').readFileSync(process.argv[1], 'utf8')))"


@pytest.fixture
def web_server() -> str:
    return "gunicorn"


def use(api: Api) -> None:
    """Send, mark and delete more than one answer of /changes holds."""
    ids = []
    for _ in range(2):
        batch = {"messages": [{"recipient": "ada", "content": f"message {n}"} for n in range(150)]}
        ids += [sent["id"] for sent in api.post("/messages/batch", batch).expect(201).json["results"]]
    api.patch("/messages/mark-read", {"ids": ids[::3]}).expect(200)
    api.post("/messages/bulk-delete", {"ids": ids[::7]}).expect(200)


def check(service: Service, messages: Callable[[], list[Any]]) -> None:
    """The copy follows the mailbox, and continues after the live process was killed."""

    def is_equal() -> bool:
        return messages() == service.messages("ada")

    wait_until(is_equal, SECONDS, what="a first copy")
    use(service.api)
    wait_until(is_equal, SECONDS, what="a copy that has followed")
    service.live.kill()
    use(service.api)
    service.live.restart()
    wait_until(is_equal, SECONDS, what="a copy after the live process was away")


def kept(path: Path) -> list[Any]:
    """The messages in the copy of the Python client."""
    with contextlib.closing(sqlite3.connect(path)) as copy:
        try:
            return [json.loads(body) for (body,) in copy.execute("SELECT body FROM message ORDER BY seq")]
        except sqlite3.OperationalError:
            return []  # it has not made its tables yet


@contextlib.contextmanager
def program_in_python(service: Service, path: Path, url: str = "") -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "keep_a_copy.py", url or service.server.url, "ada", path, service.live.url],
        env=os.environ | {"MESSAGES_TOKEN": token("read")},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(30)


def test_the_python_client_keeps_a_copy(service: Service, tmp_path: Path) -> None:
    use(service.api)
    path = tmp_path / "copy.sqlite3"
    with program_in_python(service, path):
        check(service, lambda: kept(path))
    # A database that was restored to an older state has a version below that of the copy.
    with contextlib.closing(sqlite3.connect(path)) as copy, copy:
        copy.execute("UPDATE version SET number = number + 1000000")
        copy.execute("INSERT INTO message VALUES ('gone', 999999999, '{}')")
    with program_in_python(service, path):
        wait_until(lambda: kept(path) == service.messages("ada"), SECONDS, what="a copy that began anew")


def test_the_python_client_survives_an_answer_that_breaks_off_and_waits_as_long_as_it_is_told(
    service: Service, tmp_path: Path
) -> None:
    use(service.api)
    times: list[float] = []

    class Unreliable(BaseHTTPRequestHandler):
        """Breaks off in the middle of its first answer, refuses the second and third request, and passes on all others.

        A proxy on the way may give the time as a date.
        """

        def do_GET(self) -> None:
            times.append(time.monotonic())
            if len(times) in {2, 3}:
                self.send_response(503)
                self.send_header("Retry-After", "5" if len(times) == 2 else "Wed, 21 Oct 2015 07:28:00 GMT")
                self.end_headers()
                return
            headers = {"Authorization": self.headers["Authorization"]}
            with urllib.request.urlopen(
                urllib.request.Request(service.server.url + self.path, headers=headers)
            ) as found:
                body = found.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if len(times) == 1 else body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    path = tmp_path / "copy.sqlite3"
    with ThreadingHTTPServer(("127.0.0.1", 0), Unreliable) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with program_in_python(service, path, f"http://127.0.0.1:{proxy.server_port}"):
            wait_until(lambda: kept(path) == service.messages("ada"), SECONDS, what="a copy")
        proxy.shutdown()
    assert times[2] - times[1] > 5


def test_the_python_client_ends_at_a_refusal_that_lasts(service: Service, tmp_path: Path) -> None:
    use(service.api)
    for arguments, said in (
        ((service.server.url, "ada", tmp_path / "copy", service.live.url), "invalid_key"),
        ((), "keep_a_copy.py https://messages.example.com ada copy.sqlite3"),
    ):
        ended = subprocess.run(
            [sys.executable, EXAMPLES / "keep_a_copy.py", *arguments],
            env=os.environ | {"MESSAGES_TOKEN": "wrong"}, check=False, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert (ended.returncode, said in ended.stderr) == (1, True), ended.stderr


def test_the_typescript_client_knows_every_field_of_a_message() -> None:
    [declared] = re.findall(r"interface Message \{(.*?)\}", (EXAMPLES / "keep-a-copy.ts").read_text(), re.DOTALL)
    fields = document.load()["components"]["schemas"]["Message"]["properties"]
    assert re.findall(r"(\w+): ", declared) == list(fields)


def test_the_typescript_client_keeps_a_copy_and_waits_as_long_as_it_is_told(service: Service) -> None:
    chromium = program("chromium")
    use(service.api)
    script = subprocess.run(
        [NODE, "--no-warnings", "-e", STRIP, EXAMPLES / "keep-a-copy.ts"], check=True, capture_output=True, text=True
    ).stdout.replace("export class", "window.Copy = class")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        streams: list[str] = []
        tickets: list[float] = []

        def note(request: Request) -> None:
            if "/mailbox/events" in request.url:
                streams.append(request.url)
            elif "/mailbox/ticket" in request.url:
                tickets.append(time.monotonic())

        page.on("request", note)
        # The first tickets are refused; a proxy may give the time as a date.
        told = ["5", "Wed, 21 Oct 2015 07:28:00 GMT"]
        page.route(
            "**/mailbox/ticket",
            lambda route: route.fulfill(status=429, headers={"Retry-After": told.pop(0)}),
            times=len(told),
        )
        # The first answer breaks off.
        page.route("**/changes**", lambda route: route.fulfill(body='{"messages": [{"id": '), times=1)
        page.goto(f"{service.server.url}/inbox")  # a page of the API's origin, which may talk to the live process
        page.evaluate(f"() => {{ {script} }}")
        page.evaluate(
            """async ([service, token, live]) => {
                window.copy = await Copy.open(service, token, 'ada', live);
                copy.follow();
            }""",
            [service.server.url, token("read"), service.live.url],
        )

        def messages() -> list[Any]:
            page.wait_for_timeout(50)
            found: list[Any] = page.evaluate("() => copy.messages()")
            return found

        check(service, messages)
        # The copy may be whole before the stream is open.
        wait_until(lambda: bool(messages() and streams), what="a stream")
        assert tickets[1] - tickets[0] > 5
        assert tickets[2] - tickets[1] > 0.5
        assert not [url for url in streams if "undefined" in url]
        page.evaluate(
            """async ([service, live]) => {
                const other = await Copy.open(service, 'wrong', 'other', live);
                other.follow().catch(({ cause }) => (window.refused = cause.status));
            }""",
            [service.server.url, service.live.url],
        )
        page.wait_for_function("() => window.refused === 401")
        browser.close()


@pytest.mark.parametrize("name", ["keep_a_copy.py", "keep-a-copy.ts"])
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 100
