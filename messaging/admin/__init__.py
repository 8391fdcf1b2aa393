"""Django's admin for staff. Importing this package registers its pages; what they change, the services change."""

from messaging.admin import keys, log, mailboxes, messages

__all__ = ["keys", "log", "mailboxes", "messages"]
