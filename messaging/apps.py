"""The app's registration."""

from django.apps import AppConfig


class MessagingConfig(AppConfig):
    name = "messaging"

    def ready(self) -> None:
        # Importing them registers the checks and the steps; not before the models are there.
        from messaging import checks, citus  # noqa: F401
