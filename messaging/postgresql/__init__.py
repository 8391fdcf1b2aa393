"""Django's PostgreSQL backend with two additions; see base.py."""
