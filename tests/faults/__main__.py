"""Runs the scenarios against the service with each web server, and prints what clients saw of them.

    make faults                                     both servers, all scenarios
    make faults ARGS="--server granian --only disk"

Exit status 1 if an acknowledged change was lost, doubled, misordered or miscounted, or an answer was not true.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack

from tests.faults.load import Load
from tests.faults.scenarios import SCENARIOS, NotPossibleError, Stage, small_disk
from tests.helpers import Api, Network
from tests.redis_servers import RedisServer
from tests.servers import PROJECT_DIR

HEAL_SECONDS = 40.0
ALL_SECONDS = 570.0  # after which no further scenario begins
COLUMNS = "{:<42} {:>9} {:>8} {:>8} {:>7} {:>6}  {}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=("gunicorn", "granian"), action="append", help="this one only")
    parser.add_argument("--only", default="", metavar="TEXT", help="only scenarios whose name has this in it")
    options = parser.parse_args()
    chosen = [name for name in SCENARIOS if options.only in name]
    if not chosen:
        parser.error(f"no scenario has {options.only!r} in its name")
    violations = sum(run(web_server, chosen) for web_server in options.server or ["gunicorn", "granian"])
    print(f"{violations} violations." if violations else "Nothing was lost, doubled, misordered, miscounted or untrue.")
    return 1 if violations else 0


_started = time.monotonic()


def run(web_server: str, names: list[str]) -> int:
    """The number of violations."""
    with ExitStack() as open_things:
        disk = open_things.enter_context(small_disk())
        redis = open_things.enter_context(RedisServer()) if shutil.which("redis-server") else None
        stage = Stage(web_server, open_things, disk, redis)
        print(COLUMNS.format(web_server, "answered", "refused", "unknown", "silent", "heals", "violations"), flush=True)
        found = sum(report(stage, name) for name in names)
        return found + (not check_mailboxes(stage))


def report(stage: Stage, name: str) -> int:
    """Run one scenario and print its line; the number of its violations."""
    ledger = stage.ledger
    ledger.ended, ledger.violations = Counter(), []
    if time.monotonic() > _started + ALL_SECONDS:
        print(f"{name:<42} not run: ten minutes are over", flush=True)
        return 0
    heals = 0.0
    reason = None
    with Load(stage.url, ledger):
        time.sleep(0.5)
        try:
            SCENARIOS[name](stage)
        except NotPossibleError as error:
            reason = str(error)
        else:
            heals = seconds_to_heal(stage)
            time.sleep(0.5)
    with stage.postgres.session() as session:
        ledger.compare(session)
    if reason:
        print(f"{name:<42} not run: {reason}", flush=True)
        return 0
    ended = ledger.ended
    print(
        COLUMNS.format(
            name, ended["answered"], ended["database_unavailable"], ended["outcome_unknown"], ended["no answer"],
            f"{heals:.1f} s", len(ledger.violations),
        ),
        flush=True,
    )  # fmt: skip
    for violation in ledger.violations[:20]:
        print(f"    {violation}")
    return len(ledger.violations)


def seconds_to_heal(stage: Stage) -> float:
    """How long after the end of a fault everything is served again."""
    started = time.monotonic()
    network = Network(stage.url, timeout_seconds=5)
    api = Api(network)
    message = {"recipient": "probe", "content": "x"}
    while True:
        try:
            statuses = (
                api.get("/readyz").status, api.get("/mailbox?recipient=own-1").status,
                api.post("/messages/", message, headers={"Idempotency-Key": f"{started}"}).status,
            )  # fmt: skip
            if statuses == (200, 200, 201):
                return time.monotonic() - started
        except OSError:
            network.close()
        if time.monotonic() > started + HEAL_SECONDS:
            stage.ledger.blame(f"not served again within {HEAL_SECONDS:g} s")
            return HEAL_SECONDS
        time.sleep(0.05)


def check_mailboxes(stage: Stage) -> bool:
    """Whether the operators' command agrees."""
    command = [sys.executable, "manage.py", "check_mailboxes"]
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env=os.environ | stage.variables, capture_output=True, text=True, check=False
    )
    print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
