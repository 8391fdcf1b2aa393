"""The statements that change messages and mailboxes. Each is written out whole, so it can be pasted into psql.

They rely on PostgreSQL's default isolation, READ COMMITTED. A statement sees the rows of its snapshot, taken when it
starts. But a row that it locks or changes, and that another transaction has changed meanwhile, it re-reads once that
transaction has ended, and checks its conditions on the newest version (EvalPlanQual:
https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED). So whatever has to be current is read
with a lock here.

Every statement locks its mailboxes first, in the order of their recipients (collation "C"). Writers of one mailbox
therefore queue, and no two writers can deadlock.

Lines with `if partitioned`, `if on Citus` or `unless on Citus` are left out where that does not hold: see sharding.py.
"""

# The upsert takes the mailbox's lock. The clock is read by the outer INSERT, which runs under that lock.
# `start` is the version before the first one of a new mailbox: above those of mailboxes that a restore has lost, since
# clients may know these (deploy/backup/raise-versions.sql).
SEND = """
WITH start AS (
    SELECT coalesce((SELECT value FROM messaging_observation WHERE name = 'restore'), 0) AS version
), box AS (
    INSERT INTO messaging_mailbox AS b (recipient, bucket, version, total, unread, log_from)
    SELECT %(recipient)s, %(bucket)s, start.version + 1, 1, 1, start.version FROM start
    ON CONFLICT (recipient, bucket) DO UPDATE SET version = b.version + 1, total = b.total + 1, unread = b.unread + 1
    RETURNING id, bucket, version
)
INSERT INTO messaging_message AS m
    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, expires_at)
SELECT %(id)s, box.bucket, box.id, box.version, %(sender)s, %(content)s, %(metadata)s::json, clock_timestamp(),
    %(expires_at)s::timestamptz
FROM box
RETURNING m.seq, to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# SEND under an Idempotency-Key: the outcome's row is the claim on the key. No row is returned, and nothing is sent, if
# the key has an outcome that has not expired; the statement waits for a request that is writing one.
SEND_ONCE = """
WITH claim AS (
    INSERT INTO messaging_outcome AS o
        (caller, key, bucket, fingerprint, status, body, message_ids, expires_at)
    VALUES (%(caller)s, %(key)s, %(key_bucket)s, %(fingerprint)s, 201, '', ARRAY[%(id)s::uuid],
        clock_timestamp() + make_interval(secs => %(lifetime)s))
    ON CONFLICT (caller, key, bucket) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status,
        body = excluded.body, message_ids = excluded.message_ids, expires_at = excluded.expires_at
    WHERE o.expires_at <= clock_timestamp()
    RETURNING 1
), start AS (
    SELECT coalesce((SELECT value FROM messaging_observation WHERE name = 'restore'), 0) AS version FROM claim
), box AS (
    INSERT INTO messaging_mailbox AS b (recipient, bucket, version, total, unread, log_from)
    SELECT %(recipient)s, %(bucket)s, start.version + 1, 1, 1, start.version FROM start
    ON CONFLICT (recipient, bucket) DO UPDATE SET version = b.version + 1, total = b.total + 1, unread = b.unread + 1
    RETURNING id, bucket, version
)
INSERT INTO messaging_message AS m
    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, expires_at)
SELECT %(id)s, box.bucket, box.id, box.version, %(sender)s, %(content)s, %(metadata)s::json, clock_timestamp(),
    %(expires_at)s::timestamptz
FROM box
RETURNING m.seq, to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# Each mailbox's version rises by its number of messages; each message takes the next of the versions in between, in the
# order given. The messages are one JSON text in UTF-8: psycopg would convert arrays of text string by string.
SEND_BATCH = """
WITH arriving AS (
    SELECT * FROM ROWS FROM (
        jsonb_to_recordset(convert_from(%(messages)s, 'UTF8')::jsonb) AS (
            id uuid, bucket smallint, recipient text, sender text, content text, metadata text, expires_at timestamptz
        )
    ) WITH ORDINALITY AS a (id, bucket, recipient, sender, content, metadata, expires_at, place)
), start AS (
    SELECT coalesce((SELECT value FROM messaging_observation WHERE name = 'restore'), 0) AS version
), box AS (
    INSERT INTO messaging_mailbox AS b (recipient, bucket, version, total, unread, log_from)
    SELECT recipient COLLATE "C", bucket, start.version + count(*), count(*), count(*), start.version
    FROM arriving, start GROUP BY 1, 2, start.version ORDER BY 1
    ON CONFLICT (recipient, bucket) DO UPDATE SET version = b.version + excluded.total,
        total = b.total + excluded.total, unread = b.unread + excluded.unread
    RETURNING id, recipient, version
), placed AS (
    SELECT a.*, box.id AS mailbox_id,
        box.version - count(*) OVER mailbox + row_number() OVER (mailbox ORDER BY a.place) AS seq
    FROM arriving a JOIN box ON box.recipient = a.recipient COLLATE "C"
    WINDOW mailbox AS (PARTITION BY box.id)
)
INSERT INTO messaging_message AS m
    (id, bucket, mailbox_id, seq, sender, content, metadata, created_at, expires_at)
SELECT id, bucket, mailbox_id, seq, sender, content, metadata::json, clock_timestamp(), expires_at
FROM placed ORDER BY mailbox_id, seq
RETURNING m.id::text, m.seq, to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# `found` locks the messages, so it reads their newest versions (EvalPlanQual), and the result of each id is true even
# if this statement had to wait for another writer.
# `mailbox_id + 0` keeps the planner from joining with the mailbox's own index, which would read the whole mailbox.
# `current` adds up instead of joining `locked` with `changed`: the planner expects one row of each, and would compare
# every mailbox with every other. The counts are set from it and not from `b`, whose first version is the snapshot's.
# `logged` writes the log of changes (changes.py).
# Returns a row for each mailbox, by recipient, then one with the ids changed and the ids left alone.
MARK = """
WITH locked AS MATERIALIZED (
    SELECT id, bucket, recipient, version, total, unread FROM messaging_mailbox
    WHERE id = ANY(ARRAY(
            SELECT mailbox_id FROM messaging_message WHERE id = ANY(%(ids)s::uuid[])
                AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
        ))
        AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
        AND recipient = coalesce(%(only_recipient)s, recipient)
    ORDER BY recipient FOR NO KEY UPDATE
), found AS MATERIALIZED (
    SELECT id, mailbox_id, (read_at IS NULL) = %(read)s::boolean AS is_due FROM messaging_message
    WHERE id = ANY(%(ids)s::uuid[]) AND mailbox_id + 0 = ANY(ARRAY(SELECT id FROM locked))
        AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
    FOR NO KEY UPDATE
), changed AS (
    UPDATE messaging_message m SET read_at = CASE WHEN %(read)s::boolean THEN clock_timestamp() END
    WHERE m.id = ANY(ARRAY(SELECT id FROM found WHERE is_due))
        AND m.bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
    RETURNING m.id, m.mailbox_id
), current AS (
    SELECT id, max(bucket) AS bucket, max(recipient) AS recipient,
        max(version) + least(count(message_id), 1) AS version,
        max(total) AS total,
        max(unread) + count(message_id) * CASE WHEN %(read)s::boolean THEN -1 ELSE 1 END AS unread,
        array_agg(message_id) FILTER (WHERE message_id IS NOT NULL) AS message_ids
    FROM (
        SELECT id, bucket, recipient, version, total, unread, NULL::uuid AS message_id FROM locked
        UNION ALL SELECT mailbox_id, NULL, NULL, NULL, NULL, NULL, id FROM changed
    ) rows GROUP BY id
), moved AS (
    UPDATE messaging_mailbox b SET version = c.version, total = c.total, unread = c.unread
    FROM current c WHERE c.id = b.id AND c.message_ids IS NOT NULL
        AND b.bucket = c.bucket -- if partitioned
        AND b.bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
), logged AS ( -- unless on Citus
    INSERT INTO messaging_change (mailbox_id, version, bucket, is_deletion, message_ids, created_at) -- unless on Citus
    SELECT id, version, bucket, false, message_ids, clock_timestamp() FROM current -- unless on Citus
    WHERE message_ids IS NOT NULL -- unless on Citus
)
SELECT recipient, version, total, unread, NULL::text[], NULL::text[]
    , NULL::jsonb -- if on Citus
FROM current
UNION ALL
SELECT NULL, NULL, NULL, NULL, ARRAY(SELECT id::text FROM changed), ARRAY(SELECT id::text FROM found WHERE NOT is_due)
    , (SELECT jsonb_agg(c) FROM current c WHERE message_ids IS NOT NULL) -- if on Citus
ORDER BY recipient NULLS LAST"""

# As MARK. A deletion needs no `found`: it re-reads what another transaction has changed, and returns the row as it was.
DELETE = """
WITH locked AS MATERIALIZED (
    SELECT id, bucket, recipient, version, total, unread FROM messaging_mailbox
    WHERE id = ANY(ARRAY(
            SELECT mailbox_id FROM messaging_message WHERE id = ANY(%(ids)s::uuid[])
                AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
        ))
        AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
        AND recipient = coalesce(%(only_recipient)s, recipient)
    ORDER BY recipient FOR NO KEY UPDATE
), changed AS (
    DELETE FROM messaging_message
    WHERE id = ANY(%(ids)s::uuid[]) AND mailbox_id + 0 = ANY(ARRAY(SELECT id FROM locked))
        AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
    RETURNING id, mailbox_id, read_at
), current AS (
    SELECT id, max(bucket) AS bucket, max(recipient) AS recipient,
        max(version) + least(count(message_id), 1) AS version,
        max(total) - count(message_id) AS total,
        max(unread) - count(message_id) FILTER (WHERE read_at IS NULL) AS unread,
        array_agg(message_id) FILTER (WHERE message_id IS NOT NULL) AS message_ids
    FROM (
        SELECT id, bucket, recipient, version, total, unread, NULL::uuid AS message_id, NULL::timestamptz AS read_at
        FROM locked
        UNION ALL SELECT mailbox_id, NULL, NULL, NULL, NULL, NULL, id, read_at FROM changed
    ) rows GROUP BY id
), moved AS (
    UPDATE messaging_mailbox b SET version = c.version, total = c.total, unread = c.unread
    FROM current c WHERE c.id = b.id AND c.message_ids IS NOT NULL
        AND b.bucket = c.bucket -- if partitioned
        AND b.bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
), logged AS ( -- unless on Citus
    INSERT INTO messaging_change (mailbox_id, version, bucket, is_deletion, message_ids, created_at) -- unless on Citus
    SELECT id, version, bucket, true, message_ids, clock_timestamp() FROM current -- unless on Citus
    WHERE message_ids IS NOT NULL -- unless on Citus
)
SELECT recipient, version, total, unread, NULL::text[], NULL::text[]
    , NULL::jsonb -- if on Citus
FROM current
UNION ALL
SELECT NULL, NULL, NULL, NULL, ARRAY(SELECT id::text FROM changed), '{}'
    , (SELECT jsonb_agg(c) FROM current c WHERE message_ids IS NOT NULL) -- if on Citus
ORDER BY recipient NULLS LAST"""

LOCK_MAILBOX = """
SELECT id, version, total, unread FROM messaging_mailbox
WHERE recipient = %(recipient)s AND bucket = %(bucket)s FOR NO KEY UPDATE"""

# For upkeep: the mailboxes of these messages, except those that another transaction has locked. So it never waits, and
# several may run at once.
LOCK_FREE_MAILBOXES = """
SELECT id FROM messaging_mailbox
WHERE id = ANY(ARRAY(
        SELECT mailbox_id FROM messaging_message WHERE id = ANY(%(ids)s::uuid[])
            AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
    ))
    AND bucket IN (%(buckets)s) -- if partitioned and ids end in their buckets
FOR NO KEY UPDATE SKIP LOCKED"""

# The first unread messages up to one of the mailbox, oldest first. No row if that one is not in the mailbox.
UNREAD_UP_TO = """
SELECT ARRAY(
    SELECT id::text FROM messaging_message
    WHERE mailbox_id = last.mailbox_id AND seq <= last.seq AND read_at IS NULL
        AND bucket = %(bucket)s -- if partitioned
    ORDER BY seq LIMIT %(limit)s
) FROM messaging_message last WHERE id = %(id)s AND mailbox_id + 0 = %(mailbox_id)s
    AND bucket = %(bucket)s -- if partitioned"""

READ_UP_TO = """
SELECT ARRAY(
    SELECT id::text FROM messaging_message
    WHERE mailbox_id = last.mailbox_id AND seq <= last.seq AND read_at IS NOT NULL
        AND bucket = %(bucket)s -- if partitioned
    ORDER BY seq LIMIT %(limit)s
) FROM messaging_message last WHERE id = %(id)s AND mailbox_id + 0 = %(mailbox_id)s
    AND bucket = %(bucket)s -- if partitioned"""
