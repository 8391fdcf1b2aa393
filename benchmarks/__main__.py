"""`python -m benchmarks`: starts everything, measures, prints the table, writes results.json and the picture."""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from contextlib import ExitStack

from benchmarks import change_log, growth, layers, live, memory, partitions, postgres, report
from benchmarks.contenders import ROOT, Contender, Granian, Opponent, Product
from benchmarks.load import find_wrk
from benchmarks.rounds import Rounds
from benchmarks.works import WORKS

SEEDED, SEEDING_SECONDS = 100_000, 30
RESULTS, PICTURE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "performance.svg"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement; whole ones")
    parser.add_argument("--only", default="", help=f"some of: {','.join(work.name for work in WORKS)}")
    parser.add_argument("--contenders", default="product,granian,opponent", help="some of: product,granian,opponent")
    parser.add_argument("--hold", action="store_true", help="fill and serve, then wait for Ctrl-C: to profile")
    parser.add_argument("--write", action="store_true", help="write the files even if this is not the whole table")
    parser.add_argument("--growth", action="store_true", help="the product at 300,000 and at many millions of messages")
    parser.add_argument("--millions", type=int, default=10, help="of messages, for --growth")
    parser.add_argument(
        "--partitions", type=int, metavar="N", help="plain tables, and the same in N partitions; also with --growth"
    )
    parser.add_argument(
        "--mailboxes", type=int, default=10_000, help="of 300 messages each, for --partitions: 500 or more"
    )
    parser.add_argument("--memory", type=int, metavar="REQUESTS", help="the workers' memory after so many requests")
    parser.add_argument("--layers", action="store_true", help="where the time of a request goes, layer by layer")
    parts = ",".join(live.PARTS)
    parser.add_argument("--live", nargs="?", const=parts, metavar="PARTS", help=f"the live process; some of: {parts}")
    parser.add_argument("--change-log", action="store_true", help="what marks and deletions cost with their log")
    chosen = parser.parse_args()
    chosen.only = set(filter(None, chosen.only.split(",")))
    chosen.contenders = chosen.contenders.split(",")
    if unknown := chosen.only - {work.name for work in WORKS}:
        parser.error(f"no such work: {', '.join(sorted(unknown))}")
    return chosen


def install_extra(name: str, *modules: str) -> None:
    """What the product does not need: the packages of an extra, if one of their modules is missing."""
    if all(map(importlib.util.find_spec, modules)):
        return
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    print("installing the packages of the benchmarks ...", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *extra], check=True)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    chosen = arguments()
    find_wrk()
    install_extra("bench", "fastapi", "matplotlib", "sqlmodel", "uvicorn")
    if "granian" in chosen.contenders:
        install_extra("granian", "granian")
    if chosen.growth:
        with postgres.running(**growth.settings()) as server:
            size = chosen.millions, chosen.partitions or 0
            return judge(growth.run(server, *size, rounds=chosen.rounds, seconds=chosen.seconds, say=say))
    if chosen.partitions:
        measured = {"mailboxes": chosen.mailboxes, "rounds": chosen.rounds, "seconds": chosen.seconds}
        with postgres.running(**growth.settings()) as server:
            partitions.run(server, chosen.partitions, **measured, say=say)
        return 0
    if chosen.layers:
        with postgres.running() as server:
            layers.run(server, rounds=chosen.rounds, say=say)
            return 0
    if chosen.live or chosen.change_log:
        with postgres.running() as server:
            measured = live.run(server, chosen.live, say=say) if chosen.live else change_log.run(server, say=say)
            return judge(measured)
    if chosen.memory:
        chosen.contenders = ["product"]
    with postgres.running() as server, ExitStack() as serving:
        kinds = {"product": Product, "opponent": Opponent, "granian": Granian}
        contenders: list[Contender] = [kinds[name](name, server) for name in chosen.contenders]
        works = [work for work in WORKS if not chosen.only or work.name in chosen.only]
        rounds = Rounds(contenders, works, chosen.seconds)
        say(f"PostgreSQL {server.version()} on port {server.port}; filling")
        for contender in contenders:
            contender.create()
        rounds.fill()
        for contender in contenders:
            serving.enter_context(contender.serving())
            say(f"{contender.name}: http://127.0.0.1:{contender.port} processes {contender.pids()}")
            for note in contender.notes:
                say(f"{contender.name}: {note}")
        return dispatch(chosen, rounds)


def dispatch(chosen: argparse.Namespace, rounds: Rounds) -> int:
    if chosen.hold:
        say(f"token {next(iter(rounds.contenders[0].tokens), 'none')}; Ctrl-C ends")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0
    if chosen.memory:
        return judge(memory.run(rounds, chosen.memory, say=say))
    return compare(chosen, rounds)


def judge(claims: Iterable[report.Claim]) -> int:
    """Prints them; the exit status says whether every one of them holds."""
    found = list(claims)
    print(*(claim.line() for claim in found), sep="\n")
    return 0 if all(claim.holds for claim in found) else 1


def compare(chosen: argparse.Namespace, rounds: Rounds) -> int:
    """The table of this API, the opponent and pgbench."""
    say("warming up")
    rounds.warm_up()
    for number in range(1, chosen.rounds + 1):
        say(f"round {number} of {chosen.rounds}")
        rounds.play(number)
    print(report.table(rounds.results))
    notes = [note for contender in rounds.contenders for note in contender.notes]
    claims = list(report.claims(rounds.results))
    for contender in rounds.contenders:
        if type(contender) is Product and not chosen.only:
            took = contender.seeding_seconds(SEEDED)
            claims.append(report.Claim(f"seed {SEEDED:,} messages", took, SEEDING_SECONDS, at_most=True, unit="s"))
        if isinstance(contender, Product) and (faults := contender.mailbox_faults()):
            raise SystemExit(f"the run is void, check_mailboxes found: {faults}")
    if chosen.write or not chosen.only:
        server = rounds.contenders[0].server
        found = report.as_json(
            rounds.results, claims, server, rounds=chosen.rounds, seconds=chosen.seconds, notes=notes
        )
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        # Imported here, since the extra may just have been installed.
        importlib.import_module("benchmarks.plot").draw(found, PICTURE)
    return judge(claims)


if __name__ == "__main__":
    sys.exit(main())
