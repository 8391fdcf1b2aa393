"""Django's PostgreSQL backend with additions: see base.py."""
