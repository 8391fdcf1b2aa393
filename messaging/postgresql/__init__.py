"""Django's PostgreSQL backend with three additions; see base.py."""
