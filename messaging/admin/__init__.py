"""Django's admin for staff. Importing this package registers its pages. Services make their changes."""

from messaging.admin import keys, lists, messages  # noqa: F401
