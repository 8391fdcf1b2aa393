# Run once, when the volume is empty.
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres -v password="$(cat /run/secrets/postgres_password)" \
    -f /etc/postgresql/create-database.sql
