"""Django's admin for staff. Importing this package registers its pages. Services make their changes."""

from messaging.admin import keys, log, mailboxes, messages

__all__ = ["keys", "log", "mailboxes", "messages"]
