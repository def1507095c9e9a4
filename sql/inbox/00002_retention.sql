-- +goose Up
-- Retention: daily partitions are made ahead, and dropped when they are old. What is dropped is forgotten on record:
-- a message with an id from before inbox.remembered.since is not handled, because nobody knows whether it was. So a
-- clock that jumps can make the inbox forget early, but never do anything twice.
--
-- Handlers queue behind whoever waits for an exclusive lock, so nothing here waits for one longer than 50 ms. What
-- cannot be had in that time is an error (lock_not_available) for the caller to try again, later.

-- The clock of retention, in a place of its own so that tests can move it.
-- +goose StatementBegin
CREATE FUNCTION inbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN clock_timestamp();
-- +goose StatementEnd

-- One row. It moves only forward, together with the partitions that are dropped.
CREATE TABLE inbox.remembered (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    since     uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO inbox.remembered DEFAULT VALUES;
COMMENT ON COLUMN inbox.remembered.since IS
    'The smallest UUIDv7 that the inbox remembers. Ids of other versions say nothing about time and are not compared.';

-- What time it was, in time passed: a gap between two rows counts for two hours at most and a step back for nothing,
-- so a clock that jumps a month ahead moves age by two hours.
CREATE TABLE inbox.watermarks (
    seq bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at  timestamptz NOT NULL DEFAULT inbox.clock(),
    age interval    NOT NULL
);

-- The newest watermark that is older than the retention time, or null.
-- +goose StatementBegin
CREATE FUNCTION inbox.watermark(retention interval) RETURNS inbox.watermarks LANGUAGE sql STABLE
RETURN (
    SELECT w FROM inbox.watermarks AS w
    WHERE w.age <= (SELECT max(age) FROM inbox.watermarks) - retention
    ORDER BY w.seq DESC LIMIT 1
);
-- +goose StatementEnd

-- Sets a watermark, unless there is a fresh one, and prunes what no longer decides anything.
-- +goose StatementBegin
CREATE FUNCTION inbox.mark(retention interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last   inbox.watermarks;
    passed interval;
BEGIN
    SELECT * INTO last FROM inbox.watermarks ORDER BY seq DESC LIMIT 1;
    passed := coalesce(inbox.clock() - last.at, interval '0');
    IF last.seq IS NULL OR passed NOT BETWEEN interval '0' AND interval '10 minutes' THEN
        INSERT INTO inbox.watermarks (age)
        VALUES (coalesce(last.age, interval '0') + greatest(interval '0', least(passed, interval '2 hours')));
    END IF;
    DELETE FROM inbox.watermarks WHERE seq < (inbox.watermark(retention)).seq;
END $$;
-- +goose StatementEnd

-- Up to when everything may be forgotten, or null: the retention time ago, by two measures.
-- +goose StatementBegin
CREATE FUNCTION inbox.horizon(retention interval) RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'retention must see what is committed now: use READ COMMITTED' USING ERRCODE = 'active_sql_transaction';
    END IF;
    IF coalesce(retention < interval '1 hour', true) THEN
        RAISE EXCEPTION 'retention %: want at least one hour', retention USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN (SELECT CASE WHEN w.seq IS NOT NULL THEN least(w.at, inbox.clock() - retention) END FROM inbox.watermark(retention) AS w);
END $$;
-- +goose StatementEnd

-- The partition of a day, or null.
-- +goose StatementBegin
CREATE FUNCTION inbox.leaf(day date) RETURNS regclass LANGUAGE sql STABLE
RETURN (
    SELECT inhrelid::regclass FROM pg_inherits
    WHERE inhparent = 'inbox.messages'::regclass AND inhrelid = to_regclass('inbox.messages_' || to_char(day, 'YYYYMMDD'))
);
-- +goose StatementEnd

-- When a day begins, in UTC.
-- +goose StatementBegin
CREATE FUNCTION inbox.midnight(day date) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN day::timestamp AT TIME ZONE 'UTC';
-- +goose StatementEnd

-- The few rows that stay when their day goes.
CREATE INDEX messages_kept ON inbox.messages (message_id) WHERE state = 'stuck' OR substr(message_id::text, 15, 1) <> '7';

-- The days from yesterday on that have no partition yet.
-- +goose StatementBegin
CREATE FUNCTION inbox.missing_partitions(ahead int) RETURNS SETOF date
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT day FROM generate_series(-1, least(ahead, 400)) AS n, LATERAL (SELECT (inbox.clock() AT TIME ZONE 'UTC')::date + n AS day) AS d
    WHERE to_regclass('inbox.messages_' || to_char(day, 'YYYYMMDD')) IS NULL
      AND inbox.first_id(inbox.midnight(day)) >= (SELECT since FROM inbox.remembered) ORDER BY day
$$;
-- +goose StatementEnd

-- Makes a day's partition. Returns null when it is there, or why it cannot be made now. A table is made beside and
-- attached, which locks nobody out but those who use the default partition. Rows of that day in the default
-- partition, from a sender whose clock is ahead, are taken along.
-- +goose StatementBegin
CREATE FUNCTION inbox.add_partition(day date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    today date := (inbox.clock() AT TIME ZONE 'UTC')::date;
    lower uuid;
    upper uuid;
    name  text := 'messages_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF day IS NULL OR day NOT BETWEEN today - 400 AND today + 400 THEN
        RAISE EXCEPTION 'no partition is made for day %', day USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7310294558215);
    IF to_regclass('inbox.' || name) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    IF pg_relation_size('inbox.messages_default') > 64 * 1024 * 1024 THEN
        RETURN 'messages_default is so large that attaching a partition would lock it for long';
    END IF;
    lower := inbox.first_id(inbox.midnight(day));
    upper := inbox.first_id(inbox.midnight(day + 1));
    IF (SELECT count(*) > 10000 FROM inbox.messages_default WHERE message_id >= lower AND message_id < upper) THEN
        RETURN 'rows of that day are in messages_default';
    END IF;
    EXECUTE format('CREATE TABLE inbox.%I (LIKE inbox.messages INCLUDING ALL)', name);
    EXECUTE format('
        WITH moved AS (DELETE FROM inbox.messages_default WHERE message_id >= $1 AND message_id < $2 RETURNING *)
        INSERT INTO inbox.%I SELECT * FROM moved', name) USING lower, upper;
    EXECUTE format('ALTER TABLE inbox.messages ATTACH PARTITION inbox.%I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- The days whose partitions may be dropped.
-- +goose StatementBegin
CREATE FUNCTION inbox.old_partitions(retention interval) RETURNS SETOF date
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT day FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid, LATERAL (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day) AS d
    WHERE i.inhparent = 'inbox.messages'::regclass AND c.relname ~ '^messages_[0-9]{8}$'
      AND inbox.midnight(day + 1) <= inbox.horizon(retention)
    ORDER BY day
$$;
-- +goose StatementEnd

-- Drops an old partition, or returns why not. What is stuck, and ids that do not tell their time, go on being
-- remembered, in the default partition. Only the lock on the table is waited for: while it is held handlers wait.
-- +goose StatementBegin
CREATE FUNCTION inbox.drop_partition(day date, retention interval) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' SET enable_seqscan = off AS $$
DECLARE
    leaf regclass := inbox.leaf(day);
    kept inbox.messages[];
BEGIN
    IF leaf IS NULL THEN
        RAISE EXCEPTION 'day % has no partition', day USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(inbox.midnight(day + 1) > inbox.horizon(retention), true) THEN
        RETURN 'it is not old enough';
    END IF;
    LOCK TABLE ONLY inbox.messages IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE ONLY inbox.messages_default, ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', leaf);
    EXECUTE format('
        SELECT array_agg(m) FROM (
            SELECT m FROM ONLY %s AS m
            WHERE state = ''stuck'' OR substr(message_id::text, 15, 1) <> ''7'' LIMIT 10001) AS s', leaf) INTO kept;
    IF cardinality(kept) > 10000 THEN
        RETURN 'more than 10000 of its messages are stuck';
    END IF;
    UPDATE inbox.remembered SET since = greatest(since, inbox.first_id(inbox.midnight(day + 1)));
    EXECUTE format('DROP TABLE %s', leaf);
    INSERT INTO inbox.messages SELECT (unnest(kept)).*;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- Deletes old rows from the default partition, at most so many, and returns how many there were.
-- +goose StatementBegin
CREATE FUNCTION inbox.sweep_default(retention interval, most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    horizon timestamptz := inbox.horizon(retention);
    n       bigint;
BEGIN
    IF coalesce(most NOT BETWEEN 1 AND 100000, true) THEN
        RAISE EXCEPTION 'most %: want 1 to 100000', most USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM ONLY inbox.messages_default WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ONLY inbox.messages_default
        WHERE state = 'done' AND at < horizon AND (substr(message_id::text, 15, 1) <> '7' OR message_id < (SELECT since FROM inbox.remembered))
        LIMIT most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
-- +goose StatementEnd

-- What there is, for people and metrics: days after today with a partition, the oldest day, bytes outside all days.
-- +goose StatementBegin
CREATE FUNCTION inbox.partition_state(OUT ahead int, OUT oldest date, OUT default_bytes bigint, OUT refusal text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (inbox.clock() AT TIME ZONE 'UTC')::date;
BEGIN
    SELECT count(*) FILTER (WHERE day > today), min(day) INTO ahead, oldest
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid, LATERAL (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day) AS d
    WHERE i.inhparent = 'inbox.messages'::regclass AND c.relname ~ '^messages_[0-9]{8}$';
    default_bytes := pg_relation_size('inbox.messages_default');
END $$;
-- +goose StatementEnd

-- For programs older than this migration.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION inbox.add_partitions(ahead int) RETURNS int LANGUAGE sql AS $$
    SELECT count(coalesce(inbox.add_partition(day), ''))::int FROM inbox.missing_partitions(ahead) AS day
$$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION inbox.clock, inbox.watermark, inbox.mark, inbox.horizon, inbox.leaf, inbox.midnight,
    inbox.missing_partitions, inbox.add_partition, inbox.old_partitions, inbox.drop_partition, inbox.sweep_default,
    inbox.partition_state FROM PUBLIC;
GRANT EXECUTE ON FUNCTION inbox.mark, inbox.missing_partitions, inbox.add_partition, inbox.old_partitions, inbox.drop_partition,
    inbox.sweep_default, inbox.partition_state TO inbox_consumer;
GRANT SELECT ON inbox.remembered, inbox.watermarks TO inbox_consumer;
