-- The service's role owns its database and is no superuser. psql's variable: password.
CREATE ROLE messages LOGIN PASSWORD :'password';
-- PgBouncer takes no start-up options, by which the service sets these otherwise.
ALTER ROLE messages SET statement_timeout = '2500ms';
ALTER ROLE messages SET lock_timeout = '500ms';
ALTER ROLE messages SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE messages SET idle_session_timeout = 0;
ALTER ROLE messages SET random_page_cost = 1.1;
ALTER ROLE messages SET DateStyle = 'ISO';
ALTER ROLE messages SET IntervalStyle = 'postgres';
ALTER ROLE messages SET TimeZone = 'UTC';
ALTER ROLE messages SET bytea_output = 'hex';
ALTER ROLE messages SET extra_float_digits = 1;
ALTER ROLE messages SET standard_conforming_strings = on;
ALTER ROLE messages SET array_nulls = on;
ALTER ROLE messages SET transform_null_equals = off;
ALTER ROLE messages SET row_security = off;
ALTER ROLE messages SET default_transaction_isolation = 'read committed';
ALTER ROLE messages SET default_transaction_deferrable = off;
ALTER ROLE messages SET client_min_messages = 'notice';
CREATE DATABASE messages OWNER messages ENCODING 'UTF8' TEMPLATE template0;
