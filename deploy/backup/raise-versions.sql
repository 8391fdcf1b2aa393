-- For psql, after an older state of the database was restored and before anything uses it. Clients and caches know later
-- versions of the mailboxes, also of mailboxes that this state lacks, and perhaps those of a restore before this one. None
-- may come to mean another state, and who keeps a copy of a mailbox must start again. So all mailboxes, and those to come,
-- go on above the milliseconds since 1970: no mailbox changes a thousand times a second for long.
\set ON_ERROR_STOP on
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS milliseconds \gset
INSERT INTO messaging_observation (name, value, observed_at) VALUES ('restore', :milliseconds, now())
ON CONFLICT (name) DO UPDATE SET value = greatest(messaging_observation.value + 1, excluded.value),
    observed_at = excluded.observed_at;
UPDATE messaging_mailbox SET version = greatest(version + 1, :milliseconds), log_from = greatest(version + 1, :milliseconds);
