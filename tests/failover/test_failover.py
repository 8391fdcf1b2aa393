"""PostgreSQL's leader is killed, then its successor cut off, under load: nothing acknowledged is lost or doubled, and
reads that say how new the answer must be go on.
"""

import sys
import time

import pytest

from tests.failover.cluster import NODES, Cluster
from tests.failover.ledger import DONE, Ledger
from tests.servers import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

# From the fault to the first write that is acknowledged again: 20 to 30 s where nothing else runs on the machine.
LIMIT_SECONDS = 45
# Of reads that a replica may answer. A thread waits for the dead primary for up to 3.1 s, and other reads for a thread.
FOLLOW_LIMIT_SECONDS = 8


def wait_for_answers(ledger: Ledger, since: float) -> dict[str, float]:
    """Wait until writes and reads that began after the fault are answered; return the longest time without, of each."""

    def are_answered() -> bool:
        return all(ledger.last[kind] > since + 3 and ledger.gap[kind] > 3 for kind in ("write", "read"))

    wait_until(are_answered, 90, what="answers after the fault")
    return dict(ledger.gap)


def test_no_acknowledged_message_is_lost_when_leaders_die_or_are_cut_off() -> None:
    lines = []
    with Cluster() as cluster:
        try:
            ledger = Ledger(cluster.url)
            wait_until(lambda: sum(ledger.answers.values()) > 200, what="a load")
            for fault, end in ((cluster.kill, cluster.restart), (cluster.cut_off, cluster.connect)):
                leader = cluster.leader()
                assert leader is not None
                ledger.begin_measurement()
                since = time.monotonic()
                fault(leader)
                gap = wait_for_answers(ledger, since)
                refused = [began - since for began in ledger.refused]
                lines.append(f"{fault.__name__} {leader}, seconds without: {gap}, refused after {refused}")
                successor = cluster.leader(tuple(name for name in NODES if name != leader))
                assert successor is not None
                end(leader)
                # Back as a standby of the one that leads now, rewound if it was ahead.
                wait_until(lambda: cluster.followers() == 2, 60, what="two standbys again")
                assert cluster.leader() == successor
                assert gap["write"] < LIMIT_SECONDS
                assert gap["follow"] < FOLLOW_LIMIT_SECONDS
            wrong = ledger.stop()
            lines += [
                f"{kind} {status} {code or ''}: {n}"
                for (kind, status, code), n in sorted(ledger.answers.items(), key=str)
            ]
            assert not wrong, wrong[:20]
            refusals = {(kind, status, code) for kind, status, code in ledger.answers if status not in DONE}
            kinds = ("write", "read", "follow")
            assert refusals <= {
                ("write", 503, "outcome_unknown"),
                *((kind, 503, "database_unavailable") for kind in kinds),
            }
            assert "nothing is wrong" in cluster.manage("check_mailboxes")
        except BaseException:
            for name in ("app", *NODES):
                sys.stdout.write(f"--- {name}\n{cluster.log(name)[-20000:]}\n")
            raise
        finally:
            sys.stdout.write("\n".join(lines) + "\n")
