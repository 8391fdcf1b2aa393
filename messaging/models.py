"""The tables: mailboxes and their messages, with the constraints that state each invariant and the indexes they need.

In PostgreSQL the primary keys of mailboxes and messages are (id, bucket), and the foreign key between them holds both
columns: a database that is split by bucket needs it in every key. Django knows of `id` alone, which is unique too.
"""

from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Q
from django.db.models.functions import Now

from messaging.access import Scope
from messaging.ids import BUCKETS, bucket_of
from messaging.sharding import Layout, layout_of


class ExactJSONField(models.JSONField):
    """JSON stored as text: PostgreSQL's `json`.

    `jsonb` would turn 1e23 into an integer that no float equals, sort the keys, and cost a conversion each way. Its
    operators are not needed.
    """

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "json"

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        return value if not isinstance(value, str) else super().from_db_value(value, expression, connection)


class Mailbox(models.Model):
    """All messages of one recipient: version and counts.

    Every change of the mailbox first locks its row.
    """

    recipient = models.CharField(max_length=255, db_collation="C", help_text="Whose messages these are.")
    bucket = models.SmallIntegerField(editable=False, help_text="12 bits of a hash of the recipient; see ids.py.")
    version = models.BigIntegerField(default=0, help_text="Raised by every change to the mailbox.")
    total = models.BigIntegerField(default=0, help_text="Messages in the mailbox.")
    unread = models.BigIntegerField(default=0, help_text="Unread messages in the mailbox.")
    log_from = models.BigIntegerField(db_default=0, help_text="The version after which its log of changes is whole.")

    class Meta:
        verbose_name_plural = "mailboxes"
        constraints = [
            # The mailbox of every read and send. Not `unique=True`, which would add a second index for LIKE; with the C
            # collation one index serves both, and names are compared byte by byte.
            models.UniqueConstraint(fields=["recipient", "bucket"], name="mailbox_recipient_unique"),
            models.CheckConstraint(condition=Q(bucket__gte=0, bucket__lt=BUCKETS), name="mailbox_bucket_range"),
            models.CheckConstraint(condition=~Q(recipient=""), name="mailbox_recipient_not_empty"),
            models.CheckConstraint(
                condition=Q(unread__gte=0, unread__lte=models.F("total")), name="mailbox_unread_within_total"
            ),
            # Each message has increased the version by at least one.
            models.CheckConstraint(condition=Q(version__gte=models.F("total")), name="mailbox_version_covers_total"),
            models.CheckConstraint(condition=Q(log_from__lte=models.F("version")), name="mailbox_log_within_version"),
        ]

    def __str__(self) -> str:
        return self.recipient


class MessageQuerySet(models.QuerySet["Message"]):
    def unread(self) -> Self:
        return self.filter(read_at__isnull=True)

    def of(self, recipient: str) -> Self:
        """Those in the mailbox of a recipient."""
        return self.filter(mailbox__recipient=recipient, mailbox__bucket=bucket_of(recipient))


class _SameBucket:
    """A join condition: on Citus, that the buckets of both tables are equal; elsewhere none.

    Citus joins its tables only by the bucket. On one server the planner would take mailbox and bucket for independent.
    """

    def __init__(self, *aliases: str) -> None:
        self._aliases = aliases

    def as_sql(self, compiler: Any, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        connection.ensure_connection()
        if layout_of(connection.connection) != Layout.CITUS:
            return "true", []
        # Django 5.2 lacks the first.
        quote = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias
        return " = ".join(f"{quote(alias)}.bucket" for alias in self._aliases), []


class MailboxKey(models.ForeignKey[Mailbox, Mailbox]):
    """A foreign key whose joins compare the bucket too, on Citus."""

    def get_extra_restriction(self, alias: str, related_alias: str) -> Any:
        return _SameBucket(alias, related_alias)

    def deconstruct(self) -> tuple[str, str, Any, Any]:
        """In migrations it is Django's ForeignKey."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, kwargs


class Message(models.Model):
    id = models.UUIDField(primary_key=True, editable=False, help_text="UUIDv7.")
    # Its constraint includes the bucket, so a migration makes it. No index of its own: message_order begins with it.
    mailbox = MailboxKey(
        Mailbox, on_delete=models.PROTECT, related_name="messages", db_index=False, db_constraint=False
    )
    bucket = models.SmallIntegerField(editable=False, help_text="That of its mailbox.")
    seq = models.BigIntegerField(help_text="The version of the mailbox at which the message arrived.")
    sender = models.CharField(max_length=255, blank=True, default="", help_text="Who sent it; may be empty.")
    content = models.TextField(help_text="The text, kept exactly as sent.")
    metadata = ExactJSONField(default=dict, blank=True, help_text="A JSON object of the sender's.")
    created_at = models.DateTimeField(help_text="When it arrived, by the database's clock.")
    read_at = models.DateTimeField(null=True, blank=True, help_text="When it was first marked as read.")
    expires_at = models.DateTimeField(null=True, blank=True, help_text="When it is deleted; empty for never.")

    objects = MessageQuerySet.as_manager()

    class Meta:
        constraints = [
            # A page of a mailbox in either direction, from any position.
            models.UniqueConstraint(fields=["mailbox", "seq", "bucket"], name="message_order"),
            models.CheckConstraint(condition=Q(seq__gte=1), name="message_seq_positive"),
            models.CheckConstraint(condition=~Q(content=""), name="message_content_not_empty"),
        ]
        indexes = [
            # A page of the unread messages, and `up_to`: however few of a large mailbox they are.
            models.Index(fields=["mailbox", "seq"], name="message_unread", condition=Q(read_at__isnull=True)),
            # The filter `sender`, and the admin's: a sender's messages in a mailbox, in order.
            models.Index(fields=["mailbox", "sender", "seq"], name="message_sender"),
            # created_after and created_before, where they select a small part of a large mailbox.
            models.Index(fields=["mailbox", "created_at"], name="message_arrival"),
            # Upkeep: the messages that have expired.
            models.Index(fields=["expires_at"], name="message_expiry", condition=Q(expires_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Change(models.Model):
    """Messages of one mailbox that one call has marked or deleted: a row of the mailbox's log (changes.py).

    No foreign key: its check would cost more than inserting the row.
    """

    pk = models.CompositePrimaryKey("mailbox_id", "version", "bucket")
    mailbox_id = models.BigIntegerField()
    version = models.BigIntegerField(help_text="The version of the mailbox that the change made.")
    bucket = models.SmallIntegerField(help_text="That of the mailbox.")
    is_deletion = models.BooleanField()
    message_ids = ArrayField(models.UUIDField())
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            # Upkeep: the oldest rows. BRIN would be smaller, but its ranges never shrink: once the space of purged rows
            # is used again, each range seems to have old rows, and upkeep reads the whole table.
            models.Index(fields=["created_at"], name="change_age"),
        ]

    def __str__(self) -> str:
        return f"{self.version} of mailbox {self.mailbox_id}"


class ApiKey(models.Model):
    """A key that a service calls with: `msg_<prefix>_<secret>`. Of the secret only a SHA-256 is kept.

    The secret has 256 random bits, so a fast hash is enough: there is nothing to guess.
    """

    name = models.CharField(max_length=255, help_text="What or who calls with this key.")
    prefix = models.CharField(max_length=16, editable=False, db_collation="C", help_text="The key's public part.")
    secret_sha256 = models.BinaryField(max_length=32, editable=False)
    scopes = ArrayField(models.CharField(max_length=16), help_text="What the key permits.")
    # Null means not bound, since an empty sender is a valid sender.
    recipient = models.CharField(  # noqa: DJ001
        max_length=255, null=True, blank=True, help_text="The only mailbox the key reaches; empty for all."
    )
    sender = models.CharField(  # noqa: DJ001
        max_length=255, null=True, blank=True, help_text="The sender of all its messages; empty for any."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="Written at most once a minute.")

    class Meta:
        verbose_name = "API key"
        constraints = [
            # Finds the key of a request.
            models.UniqueConstraint(fields=["prefix"], name="api_key_prefix_unique"),
            models.CheckConstraint(
                condition=Q(scopes__contained_by=[scope.value for scope in Scope], scopes__len__gte=1),
                name="api_key_scopes_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"


class Outcome(models.Model):
    """The first outcome of a request that carried an Idempotency-Key, written in the transaction of its change.

    Of messages that were sent it keeps the ids alone: they are read again for a replay, and a message that was deleted
    is nowhere else. A row without a status is a request that is still running, which nobody else sees since it is not
    committed; or a load (loads.py).
    """

    pk = models.CompositePrimaryKey("caller", "key", "bucket")
    caller = models.CharField(max_length=300, db_collation="C")
    key = models.CharField(max_length=255, db_collation="C")
    bucket = models.SmallIntegerField(help_text="That of the caller and the key; see outcomes.py.")
    fingerprint = models.BinaryField(max_length=32, help_text="SHA-256 of method, path, query and body.")
    status = models.PositiveSmallIntegerField(null=True)
    body = models.BinaryField(default=bytes, help_text="The answer's, unless it was messages.")
    message_ids = ArrayField(models.UUIDField(), null=True, help_text="The messages of the answer, in its order.")
    expires_at = models.DateTimeField()

    class Meta:
        indexes = [
            # Upkeep: the outcomes that have expired.
            models.Index(fields=["expires_at"], name="outcome_expiry"),
        ]

    def __str__(self) -> str:
        return f"{self.key} of {self.caller}"


class Observation(models.Model):
    """The last result of a job: the rows that `upkeep` deleted, the mailboxes that `check_mailboxes` found wrong, the
    version above which mailboxes begin after a `restore`.
    """

    name = models.CharField(primary_key=True, max_length=32)
    value = models.BigIntegerField()
    observed_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name

    @classmethod
    def record(cls, name: str, value: int) -> None:
        """Replace the last result."""
        cls.objects.update_or_create(name=name, defaults={"value": value, "observed_at": Now()})

    @classmethod
    def last(cls, name: str) -> Self | None:
        return cls.objects.filter(name=name).first()


class RateWindow(models.Model):
    """How much of a limit a caller has used in the current window, where there is no Redis.

    The table is unlogged: after a crash of PostgreSQL everybody starts a new window.
    """

    # No sequence: see migration 0011.
    bucket = models.CharField(primary_key=True, max_length=350, db_collation="C")
    used = models.BigIntegerField(help_text="Hundredths of a request.")
    ends_at = models.DateTimeField()

    class Meta:
        indexes = [
            # Clearing away windows that have ended.
            models.Index(fields=["ends_at"], name="rate_window_end"),
        ]

    def __str__(self) -> str:
        return self.bucket
