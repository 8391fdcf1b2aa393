"""Whether the service can use its database; asked at the start, by /readyz and by `manage.py doctor`."""

from typing import TYPE_CHECKING, Any, NamedTuple

from django.apps import apps

if TYPE_CHECKING:
    import psycopg

# The missing privileges of the service, by table.
_MISSING_PRIVILEGES = """
SELECT format('%%s on %%I', string_agg(privilege, ', ' ORDER BY privilege), relname)
FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE relname = ANY(%s) AND pg_table_is_visible(pg_class.oid) AND NOT has_table_privilege(pg_class.oid, privilege)
GROUP BY relname ORDER BY relname"""


class Fault(NamedTuple):
    """Why the service cannot use the database."""

    reason: str
    cure: str
    is_passing: bool = False  # may end without a restart, so /readyz reports it


def fault_of(connection: "psycopg.Connection[Any]") -> Fault | None:
    """The reason why the service cannot use this database, or None."""
    row = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('transaction_read_only')"
    ).fetchone()
    assert row is not None
    encoding, read_only = row
    if encoding != "UTF8":
        cure = "Make one that holds every text: CREATE DATABASE messages ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;"
        return Fault(f"the database's encoding is {encoding}, not UTF8", cure)
    if read_only == "on":
        cure = "It is a standby, or default_transaction_read_only is on."
        return Fault("the database is read-only", cure, is_passing=True)
    tables = [model._meta.db_table for model in apps.get_app_config("messaging").get_models()]
    if missing := [line for (line,) in connection.execute(_MISSING_PRIVILEGES, (tables,))]:
        cure = f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{connection.info.user}";'
        return Fault(f"the database role lacks {'; '.join(missing)}", cure)
    return None
