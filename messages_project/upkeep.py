"""`python -m messages_project upkeep`: runs messaging/upkeep.py every MESSAGES_UPKEEP_SECONDS until a signal.

Any number of these processes may run; they share the work.
"""

import logging
import time
from contextlib import suppress

import django
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, Error, connections

from messages_project import boot, health, startup
from messaging.errors import MessagingError
from messaging.management.interruption import interruptible
from messaging.postgresql.sqlstates import reason_of

logger = logging.getLogger(__name__)

# So that a large backlog of one kind, such as that of a retention just set, does not delay the messages that expire.
_SECONDS_OF_A_KIND = 5.0


def main() -> None:
    django.setup()
    startup.wait_for_database()
    from messaging import upkeep  # its models, once Django is set up

    with suppress(KeyboardInterrupt), interruptible() as interruption:
        boot.end_if_stopped()
        while True:
            started_at = time.monotonic()
            try:
                if health.is_migrated():
                    found = upkeep.run_once(seconds=_SECONDS_OF_A_KIND)
                    deleted = [f"{count} {kind}" for kind, count in found.items() if count]
                    if deleted:
                        logger.info("upkeep deleted %s", ", ".join(deleted))
                else:
                    logger.warning("upkeep waits: migrations are missing")
            except (Error, MessagingError) as error:
                # A signal may leave a statement under way; Django's rollback then fails, and hides KeyboardInterrupt.
                interruption.check()
                logger.warning("upkeep goes on later: %s", reason_of(error))
            interruption.check()  # the rollback may have been taken for a lost connection, and its work run again
            # Closed while this process sleeps: other processes may use it, and a lost one cannot fail the next run.
            connections[DEFAULT_DB_ALIAS].close()
            time.sleep(max(0.0, started_at + settings.MESSAGES_UPKEEP_SECONDS - time.monotonic()))
