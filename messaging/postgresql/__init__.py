"""Django's PostgreSQL backend with four additions; see base.py."""
