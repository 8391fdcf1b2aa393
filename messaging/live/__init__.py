"""The live process: server-sent events and long polls of mailboxes, as an ASGI application."""
