"""Dashboard and alert rules: a real Prometheus scrapes the real /metrics, and every query finds what it asks for."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.conftest import MakeKey
from tests.helpers import Api
from tests.programs import program
from tests.servers import PROJECT_DIR, RunningServer, free_port, wait_until

FOLDER = PROJECT_DIR / "deploy" / "observability"
pytestmark = pytest.mark.process


def queries() -> dict[str, str]:
    """Every query of the dashboard and of the alerts, by the name of its panel or alert."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$job", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    for rule in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]:
        # Without its threshold, which nothing exceeds here.
        found[rule["alert"]] = re.split(r" (?:==|>) ", rule["expr"])[0]
    return found


@pytest.fixture
def web_server() -> str:
    """Either one: both count in the same middleware."""
    return "gunicorn"


@pytest.fixture
def prometheus(run_server: Callable[..., RunningServer], make_key: MakeKey, tmp_path: Path) -> Iterator[HTTPConnection]:
    """A Prometheus that has scraped a service twice, with traffic of every kind before."""
    service = run_server(MESSAGES_ACCESS="keys", MESSAGES_RATE_LIMIT_WRITE="20/min")
    (tmp_path / "key").write_text(make_key("metrics"))
    port = free_port()
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    configuration["rule_files"] = [str(FOLDER / "alerts.yml")]
    (job,) = configuration["scrape_configs"]
    job["authorization"]["credentials_file"] = str(tmp_path / "key")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    use(service.api(make_key()))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
             f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    connection = HTTPConnection("127.0.0.1", port, timeout=20)

    def has_scraped_twice() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            found = ask(connection, "count_over_time(messages_sent_total[1m])")
        except OSError:
            connection.close()
            return False
        return bool(found) and all(int(series["value"][1]) > 1 for series in found)

    try:
        wait_until(has_scraped_twice, what="two scrapes")
        yield connection
    finally:
        connection.close()
        process.kill()
        process.wait(10)


def use(api: Api) -> None:
    """Let every counter count."""
    once = {"Idempotency-Key": "b5a3c2f0-0000-4000-8000-000000000000"}
    message = {"recipient": "ada", "content": "x"}
    sent = api.post("/messages/", message, headers=once).expect(201).json
    api.post("/messages/", message, headers=once).expect(201)
    for path in ("/messages/mark-read", "/messages/mark-unread"):
        api.patch(path, {"ids": [sent["id"]]}).expect(200)
    api.delete(f"/messages/{sent['id']}").expect(204)
    while api.post("/messages/", message).status != 429:
        pass


def ask(connection: HTTPConnection, query: str) -> list[dict[str, Any]]:
    connection.request("GET", f"/api/v1/query?{urlencode({'query': query})}")
    response = connection.getresponse()
    body = response.read()
    if response.status == 503:  # it is starting
        return []
    answer = json.loads(body)
    assert answer["status"] == "success", f"{query}: {answer}"
    series: list[dict[str, Any]] = answer["data"]["result"]
    return series


# What is absent until the commands have run, each of which leaves its time.
NEEDS_A_RUN = {"MessagesUpkeepStopped", "MessagesMailboxDisagrees"}
# Nothing is repeated without a failure.
NEEDS_A_FAILURE = {"MessagesRetries", "MessagesErrors"}


def test_every_query_finds_what_it_asks_for(prometheus: HTTPConnection) -> None:
    found = {name: ask(prometheus, query) for name, query in queries().items()}
    assert len(found) > 20
    assert {name for name, series in found.items() if not series} <= NEEDS_A_RUN | NEEDS_A_FAILURE


def test_every_metric_that_is_asked_for_is_described(prometheus: HTTPConnection) -> None:
    prometheus.request("GET", "/api/v1/metadata")
    described = json.loads(prometheus.getresponse().read())["data"]
    named = set(re.findall(r"\bmessages_\w+", " ".join(queries().values())))
    # OpenMetrics describes the family of a counter, whose name lacks the _total of its samples.
    families = {name.removesuffix("_bucket").removesuffix("_total") for name in named}
    assert families - {name.removesuffix("_total") for name in described} == set()


def test_the_alerts_fire_on_what_they_are_for() -> None:
    promtool = program("promtool", install="apt-get install prometheus")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
