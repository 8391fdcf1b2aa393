"""A bucket in every key of mailboxes and messages, and an instant at which a message expires.

The table of messages is rewritten once, together with its indexes, under an exclusive lock: about a minute for ten
million messages. Messages that exist keep their ids, so these do not end in their bucket.
"""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

from messaging.ids import bucket_of

ROWS = 10_000  # mailboxes in one statement

# One ALTER TABLE, so that the table is written once. A function, since USING takes no subquery; not in pg_temp, since a
# role that may create tables need not have the privilege TEMPORARY.
# Before the mailboxes have their new key: their rows have been updated, and the transaction that did so cannot use an
# index made afterwards (broken HOT chains). The function would read all mailboxes for each message.
MESSAGES = """
CREATE FUNCTION messaging_bucket_of_mailbox(bigint) RETURNS smallint LANGUAGE sql STABLE
    AS 'SELECT bucket FROM messaging_mailbox WHERE id = $1';
ALTER TABLE messaging_message
    DROP CONSTRAINT messaging_message_pkey,
    DROP CONSTRAINT message_order,
    ALTER COLUMN bucket TYPE smallint USING messaging_bucket_of_mailbox(mailbox_id),
    ALTER COLUMN bucket SET NOT NULL,
    ADD CONSTRAINT messaging_message_pkey PRIMARY KEY (id, bucket),
    ADD CONSTRAINT message_order UNIQUE (mailbox_id, seq, bucket);
DROP FUNCTION messaging_bucket_of_mailbox(bigint)"""

MESSAGES_BACK = """
ALTER TABLE messaging_message
    DROP CONSTRAINT messaging_message_pkey,
    DROP CONSTRAINT message_order,
    ALTER COLUMN bucket DROP NOT NULL,
    ADD CONSTRAINT messaging_message_pkey PRIMARY KEY (id),
    ADD CONSTRAINT message_order UNIQUE (mailbox_id, seq)"""

MAILBOXES = """
ALTER TABLE messaging_mailbox
    DROP CONSTRAINT messaging_mailbox_pkey,
    DROP CONSTRAINT mailbox_recipient_unique,
    ALTER COLUMN bucket SET NOT NULL,
    ADD CONSTRAINT messaging_mailbox_pkey PRIMARY KEY (id, bucket),
    ADD CONSTRAINT mailbox_recipient_unique UNIQUE (recipient, bucket);
ALTER TABLE messaging_message
    ADD CONSTRAINT message_mailbox FOREIGN KEY (mailbox_id, bucket) REFERENCES messaging_mailbox (id, bucket)
        DEFERRABLE INITIALLY DEFERRED"""

MAILBOXES_BACK = """
ALTER TABLE messaging_message DROP CONSTRAINT message_mailbox;
ALTER TABLE messaging_mailbox
    DROP CONSTRAINT messaging_mailbox_pkey,
    DROP CONSTRAINT mailbox_recipient_unique,
    ALTER COLUMN bucket DROP NOT NULL,
    ADD CONSTRAINT messaging_mailbox_pkey PRIMARY KEY (id),
    ADD CONSTRAINT mailbox_recipient_unique UNIQUE (recipient)"""


def fill_buckets(_apps: Any, schema_editor: Any) -> None:
    """Compute the bucket of every mailbox: PostgreSQL has no BLAKE2b."""
    with schema_editor.connection.cursor() as cursor:
        position = 0
        while True:
            cursor.execute(
                "SELECT id, recipient FROM messaging_mailbox WHERE id > %s ORDER BY id LIMIT %s", [position, ROWS]
            )
            rows = cursor.fetchall()
            if not rows:
                return
            position = rows[-1][0]
            cursor.execute(
                "UPDATE messaging_mailbox m SET bucket = v.bucket"
                " FROM unnest(%s::bigint[], %s::smallint[]) v (id, bucket) WHERE v.id = m.id",
                [[row[0] for row in rows], [bucket_of(row[1]) for row in rows]],
            )


class Migration(migrations.Migration):
    dependencies = [("messaging", "0005_message_sender")]

    operations = [
        migrations.AddField(
            model_name="mailbox",
            name="bucket",
            field=models.SmallIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="message",
            name="bucket",
            field=models.SmallIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="message",
            name="expires_at",
            field=models.DateTimeField(blank=True, help_text="When it is deleted; empty for never.", null=True),
        ),
        # Drops the constraint that Django has made, on `mailbox_id` alone.
        migrations.AlterField(
            model_name="message",
            name="mailbox",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="messages",
                to="messaging.mailbox",
            ),
        ),
        migrations.RunPython(fill_buckets, migrations.RunPython.noop),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(MESSAGES, MESSAGES_BACK),
                migrations.RunSQL(MAILBOXES, MAILBOXES_BACK),
            ],
            state_operations=[
                migrations.AlterField(
                    model_name="mailbox",
                    name="bucket",
                    field=models.SmallIntegerField(
                        editable=False, help_text="12 bits of a hash of the recipient; see ids.py."
                    ),
                ),
                migrations.AlterField(
                    model_name="message",
                    name="bucket",
                    field=models.SmallIntegerField(editable=False, help_text="That of its mailbox."),
                ),
                migrations.RemoveConstraint(model_name="mailbox", name="mailbox_recipient_unique"),
                migrations.AddConstraint(
                    model_name="mailbox",
                    constraint=models.UniqueConstraint(fields=("recipient", "bucket"), name="mailbox_recipient_unique"),
                ),
                migrations.RemoveConstraint(model_name="message", name="message_order"),
                migrations.AddConstraint(
                    model_name="message",
                    constraint=models.UniqueConstraint(fields=("mailbox", "seq", "bucket"), name="message_order"),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="mailbox",
            constraint=models.CheckConstraint(
                condition=models.Q(("bucket__gte", 0), ("bucket__lt", 4096)), name="mailbox_bucket_range"
            ),
        ),
        migrations.AddIndex(
            model_name="message",
            index=models.Index(
                condition=models.Q(("expires_at__isnull", False)), fields=["expires_at"], name="message_expiry"
            ),
        ),
    ]
