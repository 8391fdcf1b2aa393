"""Distributes the tables of messages by bucket over the servers of Citus."""

from collections.abc import Callable

from django.db import transaction

from messaging.management.partitioning import (
    DistributeError,
    constrain_ids,
    distributed_by_citus,
    ids_end_in_buckets,
    lock,
    partitions,
    run,
    value,
)
from messaging.sharding import TABLES


def distributed_tables() -> int:
    """How many of the tables are distributed. Raises DistributeError if Citus cannot distribute them."""
    if partitions() > 1:
        raise DistributeError("The tables are partitioned: run manage.py distribute --partitions 1 first.")
    if not value("SELECT count(*) FROM pg_extension WHERE extname = 'citus'"):
        raise DistributeError(
            "The database lacks the extension citus: CREATE EXTENSION citus in it on each server, then name the"
            " servers on this one by citus_set_coordinator_host() and citus_add_node()."
        )
    return distributed_by_citus()


def distribute(say: Callable[[str], None]) -> None:
    """Distribute the tables, in one transaction; nothing is done where they are distributed already.

    Raises DistributeError as above, or if there are messages whose ids do not end in their buckets; and DatabaseError.
    """
    if distributed_tables() == len(TABLES):
        return
    with transaction.atomic():
        lock("ACCESS EXCLUSIVE", say)
        constrain_ids()
        if not ids_end_in_buckets():
            raise DistributeError(
                "Some messages are from before there were buckets, so their ids name no server. Delete them first."
            )
        # All of it over one connection to each server, since the tables refer to each other.
        run("SET LOCAL citus.multi_shard_modify_mode = sequential")
        for table in TABLES:
            beside = "none" if table == TABLES[0] else TABLES[0]
            run(
                "SELECT create_distributed_table(%(table)s, 'bucket', colocate_with => %(beside)s)",
                table=table,
                beside=beside,
            )
        # The rows have been copied to the shards; the originals on the coordinator are not used any more.
        for table in reversed(TABLES):
            run("SELECT truncate_local_data_after_distributing_table(%(table)s)", table=table)
