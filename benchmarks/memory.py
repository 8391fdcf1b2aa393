"""What a worker of the product keeps in memory: after many requests of every kind, and after very large batches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.load import Request, run_wrk
from benchmarks.report import Claim
from benchmarks.rounds import Rounds
from benchmarks.works import recipients

WORKER_MB, RISE_MB = 120, 100
LARGE_CONTENT = "0123456789" * 1_000


def resident(pids: Sequence[int]) -> float:
    """The largest resident set among processes, in MB."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def large_batches(contender: Contender, seconds: int) -> None:
    """Batches of 1,000 messages of 10,000 characters, four at a time."""
    messages = [{"recipient": name, "content": LARGE_CONTENT} for name in recipients()]
    body = json.dumps({"messages": messages})
    run_wrk(contender, [Request("POST", "/messages/batch", body)] * 20, seconds=seconds, again=True, connections=4)
    contender.settle()


def run(rounds: Rounds, requests: int, *, say: Callable[[str], None]) -> list[Claim]:
    [contender] = rounds.contenders
    say(f"before the first request {resident(contender.pids()):.0f} MB")
    rounds.warm_up()
    number = 0
    while sum(each.requests for found in rounds.results.values() for each in found) < requests:
        number += 1
        rounds.play(number)
        done = sum(each.requests for found in rounds.results.values() for each in found)
        say(f"{done:,} requests: {resident(contender.pids()):.0f} MB")
    settled = resident(contender.pids())
    large_batches(contender, 10)
    raised = resident(contender.pids())
    say(f"after batches of 1,000 x 10,000 characters: {raised:.0f} MB")
    return [
        Claim("a worker's memory after them", settled, WORKER_MB, at_most=True, unit="MB"),
        Claim("its rise by the largest batches", raised - settled, RISE_MB, at_most=True, unit="MB"),
    ]
