-- The service's role owns its database and is no superuser. psql's variable: password.
CREATE ROLE messages LOGIN PASSWORD :'password';
-- PgBouncer takes no start-up options, by which the service sets these otherwise.
ALTER ROLE messages SET statement_timeout = '2500ms';
ALTER ROLE messages SET lock_timeout = '2s';
ALTER ROLE messages SET idle_in_transaction_session_timeout = '30s';
CREATE DATABASE messages OWNER messages ENCODING 'UTF8' TEMPLATE template0;
