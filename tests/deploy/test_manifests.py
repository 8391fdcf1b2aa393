"""The Kubernetes manifests and the compose file: valid by schema, and true to the service's own settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from django.conf import settings

from tests.helpers import Api
from tests.programs import without
from tests.servers import PROJECT_DIR

MANIFESTS = sorted((PROJECT_DIR / "deploy" / "kubernetes").glob("*.yaml"))
VERSIONS = ("1.32", "1.37")


def documents() -> Iterator[tuple[Path, Any]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                yield path, document


def pod_specs() -> Iterator[tuple[str, Any]]:
    for path, document in documents():
        if document["kind"] in {"Deployment", "Job"}:
            yield path.name, document["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(version: str) -> None:
    try:
        import kubernetes_validate
    except ImportError:
        without("kubernetes-validate", "pip install kubernetes-validate")
    for path, document in documents():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{path.name}: {error.message} at {list(error.path)}")


def test_every_manifest_is_applied_but_the_example() -> None:
    kustomization = yaml.safe_load((PROJECT_DIR / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    assert {path.name for path in MANIFESTS} - set(kustomization["resources"]) == {
        "kustomization.yaml", "secrets.example.yaml",
    }  # fmt: skip


def test_pods_are_restricted() -> None:
    found = list(pod_specs())
    assert len(found) == 4
    for name, spec in found:
        assert spec["enableServiceLinks"] is False, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name


def test_the_admin_and_the_metrics_are_for_named_networks() -> None:
    networks = {
        path["path"]: document["metadata"]["annotations"].get("nginx.ingress.kubernetes.io/whitelist-source-range")
        for _, document in documents()
        if document["kind"] == "Ingress"
        for rule in document["spec"]["rules"]
        for path in rule["http"]["paths"]
    }
    assert {path for path, allowed in networks.items() if allowed} == {"/admin", "/metrics"}
    assert "/" in networks


def test_nginx_has_room_for_the_headers_of_a_page_with_the_longest_names(api: Api) -> None:
    name = "\U0001f600" * 255
    api.post("/messages/batch", {"messages": [{"recipient": name, "sender": name, "content": "x"}] * 3}).expect(201)
    query = {"recipient": name, "sender": name, "limit": 1}
    first = api.get("/messages/", query).expect(200)
    query["cursor"] = parse_qs(urlsplit(first.json["next"]).query)["cursor"][0]
    second = api.get("/messages/", query).expect(200)
    longest = sum(len(name) + len(value) + 4 for name, value in second.headers.items())
    assert second.json["previous"]
    assert longest > 12_000
    manifest = (PROJECT_DIR / "deploy/kubernetes/network.yaml").read_text()
    page = (PROJECT_DIR / "docs/operations.md").read_text()
    for text, setting in ((manifest, r"proxy-buffer-size: (\d+)k"), (page, r"proxy_buffer_size (\d+)k;")):
        [kibibytes] = re.findall(setting, text)
        assert int(kibibytes) * 1024 > longest


def test_the_grace_of_what_serves_is_longer_than_its_stop() -> None:
    config = yaml.safe_load((PROJECT_DIR / "deploy" / "kubernetes" / "config.yaml").read_text())["data"]
    for name in ("api.yaml", "live.yaml"):
        grace = dict(pod_specs())[name]["terminationGracePeriodSeconds"]
        assert grace > int(config["SHUTDOWN_DELAY_SECONDS"]) + 20
    services = yaml.safe_load((PROJECT_DIR / "deploy" / "compose.yaml").read_text())["services"]
    for name in ("api-a", "api-b", "live"):
        delay = services[name]["environment"].get("SHUTDOWN_DELAY_SECONDS", 0)
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > int(delay) + 20


def test_deployments_set_what_the_service_knows() -> None:
    known = set(re.findall(r"^\| `([A-Z_]+)`", (PROJECT_DIR / "README.md").read_text(), re.MULTILINE))
    config = yaml.safe_load((PROJECT_DIR / "deploy" / "kubernetes" / "config.yaml").read_text())["data"]
    compose = yaml.safe_load((PROJECT_DIR / "deploy" / "compose.yaml").read_text())["services"]
    named = set(config)
    for service in ("api-a", "live", "upkeep", "migrate"):
        named |= set(compose[service]["environment"])
    assert {name.removesuffix("_FILE") for name in named} <= known


@pytest.mark.parametrize(
    ("compose", "example"), [("docker-compose.yml", ".env.example"), ("deploy/compose.yaml", "deploy/env.example")]
)
def test_the_example_environment_of_compose_names_every_variable(compose: str, example: str) -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (PROJECT_DIR / compose).read_text())) - {"TLS_CERTIFICATE"}
    named = set(re.findall(r"^#?([A-Z_]+)=", (PROJECT_DIR / example).read_text(), re.MULTILINE))
    assert used == named


def test_the_role_is_created_with_the_settings_that_the_page_names() -> None:
    setting = re.compile(r"^ALTER ROLE messages SET .*;$", re.MULTILINE)
    created = setting.findall((PROJECT_DIR / "deploy" / "postgresql" / "create-database.sql").read_text())
    assert created == setting.findall((PROJECT_DIR / "docs" / "operations.md").read_text())
    # Those of a connection that is not behind PgBouncer, where statements are prepared too.
    options = settings.DATABASES["default"]["OPTIONS"]["options"]
    needed = set(re.findall(r"-c (\w+)=", options)) - {"plan_cache_mode"}
    assert {line.split()[4] for line in created} == needed
