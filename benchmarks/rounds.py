"""Takes the measurements: every work, every contender in turn, round after round; and checks that it was done."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.contenders import Contender, Opponent, Product, count_messages, processor_seconds
from benchmarks.load import CONNECTIONS, Measurement, Request, run_pgbench, run_wrk
from benchmarks.works import DEEP_MAILBOX, DEEP_MESSAGES, MAILBOXES, MESSAGES, Work, message

# Enough for the first, short round; from then on the rate measured so far says more.
FIRST_GUESS = {"delete": 6_000, "delete100": 1_500}

Results = dict[tuple[str, str], list[Measurement]]


@dataclass
class Rounds:
    """The contenders that are up, and what has been measured: a list, by name of the work and of the contender."""

    contenders: Sequence[Contender]
    works: Sequence[Work]
    seconds: int
    results: Results = field(default_factory=lambda: defaultdict(list))

    def fill(self) -> None:
        for contender in self.contenders:
            contender.add_mailboxes([f"user-{number}" for number in range(1, MAILBOXES + 1)])
            contender.add_messages("user-%", MESSAGES // MAILBOXES, days=30)
            if any(work.name == "deep" for work in self.works):
                contender.add_mailboxes([DEEP_MAILBOX])
                contender.add_messages(DEEP_MAILBOX, DEEP_MESSAGES, days=30)

    def warm_up(self) -> None:
        """A short round that does not count: statements are planned, caches filled, rates known."""
        for work in self.works:
            for contender in self.entrants(work):
                # Of the longest requests not one may end within a second.
                self.measure(work, contender, self.seconds * work.patience if work.patience > 1 else 1)

    def play(self, number: int) -> None:
        """One round. Who goes first changes from round to round."""
        self.contenders[0].server.checkpoint()
        for work in self.works:
            for contender in self.entrants(work)[:: 1 if number % 2 else -1]:
                found = self.measure(work, contender, self.seconds * work.patience)
                self.results[work.name, contender.name].append(found)
            if work.name == "send":
                self.play_pgbench()

    def entrants(self, work: Work) -> list[Contender]:
        return [each for each in self.contenders if not (work.product_only and isinstance(each, Opponent))]

    def play_pgbench(self) -> None:
        for contender in self.contenders:
            if type(contender) is Product:
                script = send_script(contender.send_statement())
                found = run_pgbench(contender.server, contender.name, script, seconds=self.seconds)
                self.results["send", "pgbench"].append(found)

    def measure(self, work: Work, contender: Contender, seconds: int) -> Measurement:
        known = contender.kept.get(("rate", work.name))
        needed = max(FIRST_GUESS.get(work.name, 0), round((known or 0) * seconds * 3))
        requests = work.prepare(contender, needed)
        messages = count_messages(contender)
        check_first(work, contender, requests[-1])
        processes = contender.pids(), contender.backends()
        spent = [processor_seconds(pids) for pids in processes]
        found = run_wrk(contender, requests, seconds=seconds, again=work.again)
        contender.settle(looks=work.patience)  # since long requests have idle moments
        server, database = (
            (processor_seconds(pids) - before) * 1e6 / found.requests
            for pids, before in zip(processes, spent, strict=True)
        )
        found = replace(found, server_us=server, database_us=database)
        check_effect(work, contender, found, count_messages(contender) - messages)
        contender.kept["rate", work.name] = max(found.rate, known or 0)
        return found


def check_first(work: Work, contender: Contender, request: Request) -> None:
    """One request by hand: wrk counts answers above 399, and would take a 200 for a 304."""
    status, _, content = contender.ask(request.method, request.path, request.body, request.etag)
    if status != work.status:
        raise SystemExit(f"{contender.name}: {work.title}: {status} instead of {work.status}: {content[:500]!r}")


def check_effect(work: Work, contender: Contender, found: Measurement, change: int) -> None:
    """As many messages came or went as requests were answered, and those under way when wrk stopped, and the first."""
    least, most = found.requests, found.requests + CONNECTIONS + 1
    if not least <= (change // work.messages if work.messages else least) <= most:
        raise SystemExit(f"{contender.name}: {work.title}: {found.requests} requests changed {change} messages")
    if work.largest_answer and found.bytes_each > work.largest_answer:
        raise SystemExit(f"{contender.name}: {work.title}: answers of {found.bytes_each:.0f} bytes")


def send_script(statement: str) -> str:
    """The product's own statement for pgbench, whose variables take the place of its parameters."""
    # pgbench would take a colon and a letter for a variable, inside a literal too.
    statement = re.sub(r"'[^']*'", lambda found: "E" + found[0].replace(":", r"\x3A"), statement)
    content = message("")["content"]
    values = {
        "id": "uuidv7()",
        "recipient": "'user-' || :number",
        # The service computes it. PostgreSQL has no BLAKE2, so here it is looked up.
        "bucket": "(SELECT bucket FROM messaging_mailbox WHERE recipient = 'user-' || :number)",
        "sender": "'benchmark'",
        "content": f"'{content}'",
        "metadata": "'{}'",
        "expires_at": "NULL",
    }
    statement %= values
    return f"\\set number random(1, {MAILBOXES})\n{' '.join(statement.split())};\n"
