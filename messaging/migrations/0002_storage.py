"""Storage parameters that Django's models cannot state; they change no column and take no long lock."""

from django.db import migrations

SETTINGS = {
    # Every change of a mailbox updates its one row, which no index but the recipient's covers: with room on the page
    # those updates stay on it (HOT), and its dead versions are pruned in passing.
    "messaging_mailbox": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0",
    # Marking a message moves it in or out of the index of the unread ones, so it writes a new row version and new
    # index entries: room for that version beside the old one, and vacuum after 2 % of changes instead of 20 %.
    "messaging_message": "fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02,"
    " autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02",
}


def reset(parameters: str) -> str:
    """The names of the parameters alone, as RESET takes them."""
    return ", ".join(setting.partition("=")[0].strip() for setting in parameters.split(","))


class Migration(migrations.Migration):
    dependencies = [("messaging", "0001_mailboxes_and_messages")]

    operations = [
        migrations.RunSQL(
            sql=f"ALTER TABLE {table} SET ({parameters})",
            reverse_sql=f"ALTER TABLE {table} RESET ({reset(parameters)})",
        )
        for table, parameters in SETTINGS.items()
    ]
