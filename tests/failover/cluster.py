"""The deployment of deploy/ha on one machine: a network namespace for each of its machines, and one for the service.

A machine is cut off by taking its link down, and crashes by SIGKILL to everything in it.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.programs import program, without
from tests.servers import PROJECT_DIR, wait_until

HA = PROJECT_DIR / "deploy" / "ha"
# A namespace that is deleted goes with its last process, so its names may not be free at once.
BRIDGE, NETWORK = f"ha{os.getpid()}", "10.213.77"
ADDRESSES = {"node1": f"{NETWORK}.11", "node2": f"{NETWORK}.12", "node3": f"{NETWORK}.13", "app": f"{NETWORK}.20"}
NODES = ("node1", "node2", "node3")
# PostgreSQL refuses root; the interpreter may stand where only root can read.
AS_POSTGRES = [
    "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]  # fmt: skip


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(without("PostgreSQL of the system", "apt-get install postgresql"))


class Cluster:
    """Three machines with etcd, Patroni and PostgreSQL, and one with HAProxy, PgBouncer and the service."""

    def __init__(self) -> None:
        if os.geteuid():
            pytest.skip("network namespaces need root")
        self._programs = {name: program(name) for name in ("haproxy", "pgbouncer", "ip", "setpriv")}
        self._programs["etcd"] = program("etcd", install="apt-get install etcd-server")
        patroni = Path(sys.executable).with_name("patroni")
        self._programs["patroni"] = (
            str(patroni) if patroni.exists() else program("patroni", install="pip install patroni[etcd3,psycopg3]")
        )
        self._postgres = _postgres_programs()
        self._home = Path(tempfile.mkdtemp(prefix="messages-ha-"))
        self._home.chmod(0o755)
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in ADDRESSES}
        self._passwords = {name: secrets.token_hex(16) for name in ("superuser", "replication", "messages")}
        (self._home / "password").write_text(self._passwords["messages"])
        try:
            self._start_all()
        except BaseException:
            for name in ("app", *NODES):
                sys.stdout.write(f"--- {name}\n{self.log(name)[-4000:]}\n")
            self.__exit__()
            raise

    def _start_all(self) -> None:
        self._make_network()
        users, pgbouncer = self._home / "userlist.txt", self._home / "pgbouncer.ini"
        users.write_text(f'"messages" "{self._passwords["messages"]}"\n')
        pgbouncer.write_text((HA / "pgbouncer.ini").read_text().replace("/etc/pgbouncer/userlist.txt", str(users)))
        for name in NODES:
            (self._home / name).mkdir()
            shutil.chown(self._home / name, "postgres", "postgres")
            self._start_etcd(name)
        for name in NODES:
            self._start_patroni(name)
        wait_until(self._is_whole, 90, what="a leader with two standbys")
        self._start_app()

    def _is_whole(self) -> bool:
        for name, processes in self._processes.items():
            assert all(process.poll() is None for process in processes), f"a process of {name} has ended"
        return self.followers() == 2

    # --- network

    def _make_network(self) -> None:
        self._remove_network()
        ip = self._programs["ip"]
        _run(ip, "link", "add", BRIDGE, "type", "bridge")
        _run(ip, "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _run(ip, "link", "set", BRIDGE, "up")
        for name, address in ADDRESSES.items():
            _run(ip, "netns", "add", self._namespace(name))
            _run(ip, "link", "add", f"{BRIDGE}-{name}", "type", "veth", "peer", "name", "eth0", "netns",
                 self._namespace(name))  # fmt: skip
            _run(ip, "link", "set", f"{BRIDGE}-{name}", "master", BRIDGE, "up")
            for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _run(ip, "-n", self._namespace(name), *command.split())

    def _remove_network(self) -> None:
        ip = self._programs["ip"]
        for name in ADDRESSES:
            subprocess.run([ip, "netns", "del", self._namespace(name)], capture_output=True, check=False)
        subprocess.run([ip, "link", "del", BRIDGE], capture_output=True, check=False)

    @staticmethod
    def _namespace(name: str) -> str:
        return f"{BRIDGE}-{name}"

    def cut_off(self, name: str) -> None:
        """Let nothing reach this machine, and it reach nothing."""
        _run(self._programs["ip"], "link", "set", f"{BRIDGE}-{name}", "down")

    def connect(self, name: str) -> None:
        """End that."""
        _run(self._programs["ip"], "link", "set", f"{BRIDGE}-{name}", "up")

    # --- processes

    def _start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self._home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self._programs["ip"], "netns", "exec", self._namespace(name), *command],
                env=os.environ | environment, cwd=PROJECT_DIR, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._processes[name].append(process)
        return process

    def _start_etcd(self, name: str) -> None:
        text = (HA / "etcd.yaml").read_text()
        values = {"NAME": name, "DATA": str(self._home / name / "etcd"), "ADDRESS": ADDRESSES[name]}
        for number in (1, 2, 3):
            text = text.replace(f"NODE_{number}", ADDRESSES[f"node{number}"])
        for word, value in values.items():
            text = text.replace(f" {word}\n", f" {value}\n").replace(f"//{word}:", f"//{value}:")
        (self._home / f"{name}-etcd.yaml").write_text(text)
        self._start(name, *AS_POSTGRES, self._programs["etcd"], "--config-file", str(self._home / f"{name}-etcd.yaml"))

    def _start_patroni(self, name: str) -> None:
        self._start(
            name, *AS_POSTGRES, self._programs["patroni"], str(HA / "patroni.yml"),
            PATRONI_NAME=name,
            PATRONI_RESTAPI_CONNECT_ADDRESS=f"{ADDRESSES[name]}:8008",
            PATRONI_POSTGRESQL_CONNECT_ADDRESS=f"{ADDRESSES[name]}:5432",
            PATRONI_POSTGRESQL_DATA_DIR=str(self._home / name / "data"),
            PATRONI_POSTGRESQL_BIN_DIR=str(self._postgres),
            PATRONI_ETCD3_HOSTS=",".join(f"{ADDRESSES[f'node{number}']}:2379" for number in (1, 2, 3)),
            PATRONI_SUPERUSER_PASSWORD=self._passwords["superuser"],
            PATRONI_REPLICATION_PASSWORD=self._passwords["replication"],
            MESSAGES_PASSWORD_FILE=str(self._home / "password"),
            CREATE_DATABASE=str(HA / "create-database"),
            HOME=str(self._home / name),
            PATH=f"{self._postgres}:{os.environ['PATH']}",
        )  # fmt: skip

        self._start(name, self._programs["pgbouncer"], "-u", "nobody", str(self._home / "pgbouncer.ini"))

    def _start_app(self) -> None:
        nodes = {f"NODE_{number}": ADDRESSES[f"node{number}"] for number in (1, 2, 3)}
        self._start("app", self._programs["haproxy"], "-db", "-f", str(HA / "haproxy.cfg"), **nodes)
        # Straight to the leader, past PgBouncer. HAProxy refuses connections until it has found the leader.
        migrate = (sys.executable, "manage.py", "migrate")
        wait_until(lambda: self._start("app", *migrate, **self.variables("5002")).wait(60) == 0, what="migrations")
        self.url = f"http://{ADDRESSES['app']}:8000"
        self._start(
            "app", sys.executable, "-m", "messages_project",
            **self.variables("5000"), POSTGRES_BEHIND_PGBOUNCER="true", BIND="0.0.0.0", PORT="8000",
            POSTGRES_REPLICAS=",".join(f"{ADDRESSES[name]}:6432" for name in NODES),
            ALLOWED_HOSTS=ADDRESSES["app"], MESSAGES_ACCESS="open", MESSAGES_OPEN_BIND_IS_LOCAL="true",
            PLAIN_HTTP="true", ACCESS_LOG="false", WEB_CONCURRENCY="2",
        )  # fmt: skip
        wait_until(lambda: self._status(f"{self.url}/readyz") == 200, 90, what="a ready service")

    def variables(self, port: str) -> dict[str, str]:
        """The service's variables of the database, inside the service's machine."""
        return {
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": port, "POSTGRES_DB": "messages", "POSTGRES_USER": "messages",
            "POSTGRES_PASSWORD": self._passwords["messages"],
        }  # fmt: skip

    def manage(self, *arguments: str) -> str:
        """What a command of manage.py prints, run against the leader."""
        done = subprocess.run(
            [self._programs["ip"], "netns", "exec", self._namespace("app"), sys.executable, "manage.py", *arguments],
            cwd=PROJECT_DIR, env=os.environ | self.variables("5002"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def kill(self, name: str) -> None:
        """SIGKILL to everything on this machine at once."""
        for _ in range(3):  # PostgreSQL's and Patroni's children have sessions of their own
            found = subprocess.run(
                [self._programs["ip"], "netns", "pids", self._namespace(name)],
                capture_output=True,
                text=True,
                check=True,
            )
            for pid in found.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self._processes[name]:
            process.wait(20)
        self._processes[name].clear()

    def restart(self, name: str) -> None:
        """Start a killed machine again."""
        self._start_etcd(name)
        self._start_patroni(name)

    # --- state, as Patroni tells it

    @staticmethod
    def _status(url: str) -> int:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def leader(self, among: tuple[str, ...] = NODES) -> str | None:
        """The machine that accepts writes."""
        return next((name for name in among if self._status(f"http://{ADDRESSES[name]}:8008/primary") == 200), None)

    def followers(self) -> int:
        """How many standbys stream from the leader, none while commits wait for no one of them."""
        leader = self.leader()
        if leader is None:
            return 0
        with urllib.request.urlopen(f"http://{ADDRESSES[leader]}:8008/patroni", timeout=2) as answer:
            state: dict[str, Any] = json.load(answer)
        # Not those that copy the data for a new standby.
        standbys = [each for each in state.get("replication", []) if each["application_name"] in NODES]
        if all(standby["sync_state"] == "async" for standby in standbys):
            return 0
        return sum(standby["state"] == "streaming" for standby in standbys)

    def log(self, name: str) -> str:
        """What the processes of this machine have printed."""
        log = self._home / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        for name in ADDRESSES:
            self.kill(name)
        self._remove_network()
        shutil.rmtree(self._home, ignore_errors=True)
