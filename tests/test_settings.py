"""Configuration: every fault is reported at once, secrets may come from files, and bad deployments are refused."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection

from messages_project.env import Env, SettingsError
from tests.servers import PROJECT_DIR


def faults_of(env: Env) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        env.verify()
    return caught.value.faults


def test_all_faults_are_reported_at_once_and_each_says_what_to_do() -> None:
    env = Env(
        {
            "A": "x",
            "B": "99",
            "C": "maybe",
            "D": "neither",
            "E": "600 per hour",
            "F": "https://example.com/path",
            "G": "X-A, b c",
        }
    )
    env.integer("A", 1)
    env.integer("B", 1, maximum=16)
    env.flag("C")
    env.choice("D", ("keys", "open"), "keys")
    env.rate("E")
    env.origins("F")
    env.header_names("G")
    faults = faults_of(env)
    assert [fault.split("=")[0].split(":")[0] for fault in faults] == list("ABCDEFG")
    assert all(";" in fault for fault in faults), "a fault without its next step"


def test_an_empty_variable_counts_as_not_set() -> None:
    env = Env(dict.fromkeys("ABCDEFG", " "))
    assert (env.text("A", "a"), env.integer("B", 2), env.flag("C", default=True)) == ("a", 2, True)
    assert (env.choice("D", ("x", "y"), "y"), env.listing("E"), env.rate("F")) == ("y", [], "")
    assert env.hosts("G", ("g",)) == ["g"]
    env.verify()


@pytest.mark.parametrize("raw", ["1_000", "\uff11\uff10", "0x10", "1.0", "9" * 13, "-1", "+ 1"])
def test_a_number_is_plain_decimal_digits_within_its_limits(raw: str) -> None:
    env = Env({"N": raw})
    assert env.integer("N", 7) == 7
    assert "N=" in faults_of(env)[0]


def test_a_secret_comes_from_its_file_without_the_last_line_ending(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(" pass word \n")
    assert Env({"KEY_FILE": str(file)}).secret("KEY") == " pass word "


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"", b"\n"])
def test_a_secret_file_that_cannot_be_read_is_a_fault_without_its_content(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    env = Env({"KEY_FILE": str(file)})
    env.secret("KEY")
    assert f"KEY_FILE='{file}' cannot be read" in faults_of(env)[0]


def test_a_secret_and_its_file_together_are_a_fault_that_does_not_show_it() -> None:
    env = Env({"KEY": "hush", "KEY_FILE": "/nowhere"})
    env.secret("KEY")
    [fault] = faults_of(env)
    assert "both set" in fault
    assert "hush" not in fault


@pytest.mark.parametrize(
    "wrong",
    [
        "https://api.example.com", "api.example.com:8000", "https://api.example.com:8443/v1", "api.example.com/",
        "*.example.com", "example.com.", "::1", "[::1]:8000",
    ],
)  # fmt: skip
def test_a_host_with_scheme_port_or_path_is_refused_with_the_right_form(wrong: str) -> None:
    env = Env({"HOSTS": f"localhost, {wrong}"})
    env.hosts("HOSTS", ())
    [fault] = faults_of(env)
    assert fault.startswith(f"HOSTS: {wrong!r} is no host name")
    assert fault.endswith("without scheme, port and path, like api.example.com.")


def test_every_form_of_host_that_django_knows_is_taken() -> None:
    env = Env({"HOSTS": "a.example, .b.example, 10.0.0.1, [::1], localhost, *"})
    assert len(env.hosts("HOSTS", ())) == 6
    env.verify()


def test_a_port_set_by_kubernetes_is_taken_for_the_service_or_counts_as_not_set() -> None:
    env = Env({"POSTGRES_PORT": "tcp://10.96.12.7:6543", "LIVE_PORT": "tcp://10.96.12.8:80"})
    assert env.port("POSTGRES_PORT", 5432, of_service=True) == 6543
    assert env.port("LIVE_PORT", 8001) == 8001
    env.verify()


def test_servers_are_hosts_each_once_with_a_port_where_it_differs() -> None:
    env = Env({"SERVERS": "db2, db3.internal:5433,[::1]:6432, 10.0.0.1"})
    assert env.servers("SERVERS", 5432) == [("db2", 5432), ("db3.internal", 5433), ("::1", 6432), ("10.0.0.1", 5432)]
    env.verify()
    assert Env({}).servers("SERVERS", 5432) == []


@pytest.mark.parametrize(
    "raw", ["db2:", "db2:x", "db2:0", "db2:65536", "postgres://db2", "a b", "::1", "/tmp", "db2,db2:5432"]
)
def test_an_invalid_server_is_a_fault(raw: str) -> None:
    env = Env({"SERVERS": raw})
    env.servers("SERVERS", 5432)
    [fault] = faults_of(env)
    assert fault.startswith("SERVERS: ")
    assert "; " in fault


@pytest.mark.parametrize("raw", ["db.example.com:5432", "127.0.0.1:5433", "[::1]:5433", "postgres://db/messages"])
def test_a_server_with_scheme_or_port_is_a_fault_that_does_not_show_it(raw: str) -> None:
    env = Env({"POSTGRES_HOST": raw})
    env.server("POSTGRES_HOST", "localhost")
    [fault] = faults_of(env)
    assert fault.startswith("POSTGRES_HOST is no host; write its name or address alone")
    assert raw not in fault  # a URL may hold a password


@pytest.mark.parametrize("host", ["db", "10.0.0.1", "::1", "/var/run/postgresql", "/srv/../run", "db1,db2", "[::1]"])
def test_a_server_is_a_name_an_address_or_a_folder(host: str) -> None:
    env = Env({"POSTGRES_HOST": host})
    assert env.server("POSTGRES_HOST", "localhost") == host.strip("[]")
    env.verify()


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "db1,,db2"])
def test_a_name_that_cannot_be_looked_up_is_a_fault(host: str) -> None:
    env = Env({"POSTGRES_HOST": host, "POSTGRES_REPLICAS": host})
    env.server("POSTGRES_HOST", "localhost")
    env.servers("POSTGRES_REPLICAS", 5432)
    assert faults_of(env)[0].startswith("POSTGRES_HOST is no host")


@pytest.mark.parametrize(
    "name",
    ["MESSAGES_ACESS", "MESSAGES_ACCES", "MESSAGES_TOKEN_SECRETS", "MESSAGES_TOKEN_SECRET_FIEL", "MESSAGES_RATE_LIMIT"],
)
def test_a_misspelt_variable_is_a_fault_with_the_name_that_is_meant(name: str) -> None:
    env = Env({"MESSAGES_ACCESS": "keys", name: "geheim"})
    env.text("MESSAGES_ACCESS")
    env.secret("MESSAGES_TOKEN_SECRET")
    env.text("MESSAGES_RATE_LIMIT_READ")
    env.misspelt("MESSAGES_")
    [fault] = faults_of(env)
    assert fault.startswith(f"{name} is no variable of this service; write MESSAGES_")
    assert "geheim" not in fault


def test_variables_of_others_with_the_same_prefix_are_no_fault() -> None:
    # Kubernetes sets these if the namespace has services called `messages` and `messages-live`; a client has the last.
    names = ["MESSAGES_SERVICE_HOST", "MESSAGES_PORT", "MESSAGES_LIVE_PORT_8001_TCP", "MESSAGES_TOKEN"]
    env = Env(dict.fromkeys(names, "tcp://10.96.12.7:8000"))
    env.text("MESSAGES_ACCESS")
    env.text("MESSAGES_TOKEN_JWKS")
    env.misspelt("MESSAGES_")
    env.verify()


def test_a_value_that_is_not_utf_8_is_a_fault_that_does_not_show_it() -> None:
    env = Env({"POSTGRES_DB": "caf\udce9", "POSTGRES_PASSWORD": "geheim\udcff"})
    env.text("POSTGRES_DB", "messages")
    env.secret("POSTGRES_PASSWORD")
    assert faults_of(env) == ["POSTGRES_DB is not UTF-8 text.", "POSTGRES_PASSWORD is not UTF-8 text."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r"])
def test_line_ends_after_a_secret_are_removed(tmp_path: Path, end: str) -> None:
    (tmp_path / "secret").write_bytes(b" pass word " + end.encode())
    assert Env({"KEY": f" pass word {end}"}).secret("KEY") == " pass word "
    assert Env({"KEY_FILE": str(tmp_path / "secret")}).secret("KEY") == " pass word "


def test_a_byte_order_mark_before_a_secret_is_removed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password", encoding="utf-8-sig")
    assert Env({"KEY_FILE": str(tmp_path / "secret")}).secret("KEY") == "password"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("https://example.com/inbox", ("https://example.com", "example.com", "/inbox")),
        ("https://example.com:443/", ("https://example.com", "example.com", "")),
        ("http://localhost:8080/a/b/", ("http://localhost:8080", "localhost", "/a/b")),
        ("https://[::1]:8443", ("https://[::1]:8443", "[::1]", "")),
        ("", ("", "", "")),
    ],
)
def test_a_public_url_has_an_origin_and_a_prefix(raw: str, expected: tuple[str, str, str]) -> None:
    env = Env({"PUBLIC_URL": raw})
    assert env.public_url("PUBLIC_URL") == expected
    env.verify()


@pytest.mark.parametrize(
    "raw",
    [
        "example.com",
        "ftp://example.com",
        "https://a b",
        "https://e.com/a?b",
        "https://u@e.com",
        "https://e.com:0",
        "https://e.com:65536",
        "https://e..com",
        "https://[::::]",
        "https://e.com/../inbox",
        "https://e.com/inbox/.",
    ],
)
def test_an_invalid_public_url_is_refused(raw: str) -> None:
    env = Env({"PUBLIC_URL": raw})
    env.public_url("PUBLIC_URL")
    assert "https://example.com/inbox" in faults_of(env)[0]


@pytest.mark.parametrize("raw", ["https://e.com:0", "https://e.com:65536", "https://[::::]", "https://e.com/"])
def test_an_origin_that_no_browser_can_send_is_refused(raw: str) -> None:
    env = Env({"ORIGINS": raw})
    env.origins("ORIGINS", any_scheme=True)
    assert faults_of(env)[0].startswith(f"ORIGINS: {raw!r} is no origin")


def test_origins_have_no_port_of_their_scheme_as_browsers_send_them() -> None:
    env = Env({"ORIGINS": "https://e.com:443,http://e.com:80,http://e.com:443,app://e.com:80"})
    expected = ["https://e.com", "http://e.com", "http://e.com:443", "app://e.com:80"]
    assert env.origins("ORIGINS", any_scheme=True) == expected


STRONG = "a-strong-key-5b1f0e9d8c7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, set()),
        ({"SECRET_KEY": ""}, {"messages.E001"}),
        ({"SECRET_KEY": "short"}, {"messages.W002"}),
        ({"SECRET_KEY": "development-only-and-known-to-everyone"}, {"messages.W002"}),
        ({"SECRET_KEY": "short", "BIND": "0.0.0.0"}, {"messages.E002"}),
        ({"SECRET_KEY": "short", "BIND": "0.0.0.0", "MESSAGES_OPEN_BIND_IS_LOCAL": True}, {"messages.W002"}),
        ({"DEBUG": True}, set()),
        ({"DEBUG": True, "BIND": "192.0.2.1"}, {"messages.E003"}),
        ({"MESSAGES_ACCESS": "open"}, set()),
        ({"MESSAGES_ACCESS": "open", "BIND": "::1"}, set()),
        ({"MESSAGES_ACCESS": "open", "BIND": "localhost"}, set()),
        ({"MESSAGES_ACCESS": "open", "BIND": "::"}, {"messages.E004"}),
        ({"MESSAGES_ACCESS": "open", "BIND": "api.example.com"}, {"messages.E004"}),
        ({"MESSAGES_ACCESS": "open", "BIND": "0.0.0.0", "MESSAGES_OPEN_BIND_IS_LOCAL": True}, set()),
        ({"ALLOWED_HOSTS": ["*"]}, {"messages.W003"}),
        ({"FORCE_SCRIPT_NAME": "/inbox"}, set()),
        ({"FORCE_SCRIPT_NAME": "/messages/v1"}, {"messages.E005"}),
    ],
)
def test_a_bad_deployment_is_a_system_check_with_an_id_and_a_hint(
    settings: Any, changed: dict[str, Any], expected: set[str]
) -> None:
    values = {"SECRET_KEY": STRONG, "BIND": "127.0.0.1", "DEBUG": False, "MESSAGES_OPEN_BIND_IS_LOCAL": False}
    for name, value in (values | {"MESSAGES_ACCESS": "keys", "ALLOWED_HOSTS": ["localhost"]} | changed).items():
        setattr(settings, name, value)
    known = {f"messages.{number}" for number in ("E001", "E002", "E003", "E004", "E005", "W002", "W003")}
    found = [
        message for message in run_checks(tags=["security"], include_deployment_checks=True) if message.id in known
    ]
    assert {message.id for message in found} == expected
    assert all(message.hint for message in found)


@pytest.mark.parametrize(
    ("mode", "of_libpq", "expected"),
    [
        ("", "", ["messages.W004"]), ("prefer", "verify-full", ["messages.W004"]), ("", "verify-full", []),
        ("require", "", []), ("verify-ca", "prefer", []),
    ],
)  # fmt: skip
def test_a_root_certificate_that_verifies_nothing_is_a_warning(
    settings: Any, monkeypatch: pytest.MonkeyPatch, mode: str, of_libpq: str, expected: list[str]
) -> None:
    monkeypatch.setenv("PGSSLMODE", of_libpq)
    # With `system` libpq verifies by itself.
    for certificate, warnings in {"/run/ca.pem": expected, "system": []}.items():
        monkeypatch.setitem(settings.DATABASES["default"], "OPTIONS", {"sslmode": mode, "sslrootcert": certificate})
        found = run_checks(tags=["security"], include_deployment_checks=True)
        assert [message.id for message in found if message.id == "messages.W004"] == warnings


def test_commands_need_no_key_of_a_deployment(db: None) -> None:
    unset = {"SECRET_KEY", "MESSAGES_ACCESS", "PLAIN_HTTP"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    for arguments, status in ((["list_api_keys"], 0), (["check", "--deploy"], 1)):
        ended = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT_DIR, env=environment | {"POSTGRES_DB": connection.settings_dict["NAME"]},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == status, ended.stderr
        assert ("messages.E001" in ended.stderr) == (status == 1)


def test_disabled_features_take_no_memory(db: None) -> None:
    loads = """
import sys, django; django.setup()
from django.core.checks import run_checks
from django.test import Client
headers = {"host": "localhost", "authorization": "Bearer a.b.c"}
run_checks()
print(Client().get("/mailbox?recipient=a", headers=headers).status_code)
print({"jwt", "redis"} & sys.modules.keys())
"""
    off = {"DJANGO_SETTINGS_MODULE": "messages_project.settings", "MESSAGES_TOKEN_SECRET": "", "REDIS_URL": ""}
    ended = subprocess.run(
        [sys.executable, "-c", loads],
        cwd=PROJECT_DIR, env=os.environ | off | {"POSTGRES_DB": connection.settings_dict["NAME"]},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == "401\nset()\n"


def test_a_wheel_holds_every_file_that_a_process_reads() -> None:
    """Templates and static files are no modules, so setuptools takes those that pyproject.toml names."""
    named = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in named.items():
        folder = PROJECT_DIR / package
        found = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
        assert found == {path for pattern in patterns for path in folder.glob(f"{pattern}/*") if path.is_file()}
