-- +goose Up
-- Retention: daily partitions are made ahead, and dropped when everything in them has been relayed for long enough.
--
-- Writers queue behind whoever waits for an exclusive lock, so nothing here waits for one longer than 50 ms. What
-- cannot be had in that time is an error (lock_not_available) for the caller to try again, later.
--
-- Safe is what is relayed: visible in the newest cursor of its partition, looked at again under the lock. Old is
-- what has been relayed for the retention time. No clock can make a row safe, and a clock that jumps makes it old at
-- most the size of one step early: see outbox.watermarks.

-- The clock of retention, in a place of its own so that tests can move it.
-- +goose StatementBegin
CREATE FUNCTION outbox.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN clock_timestamp();
-- +goose StatementEnd

-- What was relayed when. age is the time that has passed between the rows, where a gap counts for two hours at most
-- and a step back for nothing: a clock that jumps a month ahead moves it by two hours.
CREATE TABLE outbox.watermarks (
    seq     bigint        GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz   NOT NULL DEFAULT outbox.clock(),
    age     interval      NOT NULL,
    relayed pg_snapshot[] NOT NULL
);
COMMENT ON COLUMN outbox.watermarks.relayed IS 'Of partition n at subscript n + 1; null where nothing was ever relayed.';

-- The newest cursor of every partition.
-- +goose StatementBegin
CREATE FUNCTION outbox.relayed() RETURNS pg_snapshot[] LANGUAGE sql STABLE
RETURN (
    SELECT array_agg((SELECT c.relayed FROM outbox.cursor AS c WHERE c.partition = p ORDER BY c.seq DESC LIMIT 1) ORDER BY p)
    FROM generate_series(0, 3) AS p
);
-- +goose StatementEnd

-- The newest watermark that is older than the retention time, or null.
-- +goose StatementBegin
CREATE FUNCTION outbox.watermark(retention interval) RETURNS outbox.watermarks LANGUAGE sql STABLE
RETURN (
    SELECT w FROM outbox.watermarks AS w
    WHERE w.age <= (SELECT max(age) FROM outbox.watermarks) - retention
    ORDER BY w.seq DESC LIMIT 1
);
-- +goose StatementEnd

-- The end of the last day that may be old, by two measures of time, or null.
-- +goose StatementBegin
CREATE FUNCTION outbox.horizon(retention interval) RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN (SELECT CASE WHEN w.seq IS NOT NULL THEN least(w.at, outbox.clock() - retention) END FROM outbox.watermark(retention) AS w);
-- +goose StatementEnd

-- Sets a watermark, unless there is a fresh one, and prunes what no longer decides anything.
-- +goose StatementBegin
CREATE FUNCTION outbox.mark(retention interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last   outbox.watermarks;
    passed interval;
BEGIN
    SELECT * INTO last FROM outbox.watermarks ORDER BY seq DESC LIMIT 1;
    passed := coalesce(outbox.clock() - last.at, interval '0');
    IF last.seq IS NULL OR passed NOT BETWEEN interval '0' AND interval '10 minutes' THEN
        INSERT INTO outbox.watermarks (age, relayed)
        VALUES (coalesce(last.age, interval '0') + greatest(interval '0', least(passed, interval '2 hours')), outbox.relayed());
    END IF;
    DELETE FROM outbox.watermarks WHERE seq < (outbox.watermark(retention)).seq;
    DELETE FROM outbox.cursor AS c WHERE c.seq < (
        SELECT n.seq FROM outbox.cursor AS n WHERE n.partition = c.partition ORDER BY n.seq DESC OFFSET 99 LIMIT 1);
END $$;
-- +goose StatementEnd

-- Why nothing at all may be dropped, or null.
-- +goose StatementBegin
CREATE FUNCTION outbox.refusal() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    here  record;
    known outbox.identity;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'retention must see what is committed now: use READ COMMITTED' USING ERRCODE = 'active_sql_transaction';
    END IF;
    here := outbox.current_identity();
    SELECT * INTO known FROM outbox.identity;
    RETURN CASE
        WHEN here.in_recovery THEN 'the server is in recovery'
        WHEN known.singleton IS NULL THEN 'no relay has run yet'
        WHEN (known.system_identifier, known.database_oid, known.timeline) <> (here.system_identifier, here.database_oid, here.timeline)
            THEN 'the cursor belongs to another cluster, database or timeline, and does not say what was relayed'
        WHEN EXISTS (SELECT FROM unnest(outbox.relayed()) AS r WHERE pg_snapshot_xmax(r) > pg_snapshot_xmax(pg_current_snapshot()))
            THEN 'the cursor is ahead of the server, and does not say what was relayed'
    END;
END $$;
-- +goose StatementEnd

-- Whether the leaf has a row that is not visible in its partition's snapshot. Two looks into the index for each.
-- +goose StatementBegin
CREATE FUNCTION outbox.has_beyond(leaf regclass, seen pg_snapshot[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    beyond boolean;
BEGIN
    FOR p IN 0..3 LOOP
        EXECUTE format('
            SELECT EXISTS (SELECT FROM ONLY %1$s WHERE partition = $1 AND ($2 IS NULL OR transaction_id >= pg_snapshot_xmax($2)))
                OR EXISTS (SELECT FROM ONLY %1$s WHERE partition = $1 AND transaction_id = ANY (ARRAY(SELECT pg_snapshot_xip($2))))', leaf)
            INTO beyond USING p::smallint, seen[p + 1];
        IF beyond THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;
-- +goose StatementEnd

-- The partition of a day, or null.
-- +goose StatementBegin
CREATE FUNCTION outbox.leaf(day date) RETURNS regclass LANGUAGE sql STABLE
RETURN (
    SELECT inhrelid::regclass FROM pg_inherits
    WHERE inhparent = 'outbox.messages'::regclass AND inhrelid = to_regclass('outbox.messages_' || to_char(day, 'YYYYMMDD'))
);
-- +goose StatementEnd

-- When a day begins, in UTC.
-- +goose StatementBegin
CREATE FUNCTION outbox.midnight(day date) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN day::timestamp AT TIME ZONE 'UTC';
-- +goose StatementEnd

-- The days from today on that have no partition yet.
-- +goose StatementBegin
CREATE FUNCTION outbox.missing_partitions(ahead int) RETURNS SETOF date
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT day FROM generate_series(0, least(ahead, 400)) AS n, LATERAL (SELECT (outbox.clock() AT TIME ZONE 'UTC')::date + n AS day) AS d
    WHERE to_regclass('outbox.messages_' || to_char(day, 'YYYYMMDD')) IS NULL ORDER BY day
$$;
-- +goose StatementEnd

-- Makes a day's partition. Returns null when it is there, or why it cannot be made now. A table is made beside and
-- attached, which locks nobody out but those who use the default partition; CREATE ... PARTITION OF would lock out
-- all. Rows that a wrong clock has put into the default partition are taken along once they are relayed: a reader
-- that does not know the new partition yet must not need them.
-- +goose StatementBegin
CREATE FUNCTION outbox.add_partition(day date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    today date := (outbox.clock() AT TIME ZONE 'UTC')::date;
    lower timestamptz := outbox.midnight(day);
    upper timestamptz := outbox.midnight(day + 1);
    name  text := 'messages_' || to_char(day, 'YYYYMMDD');
    stray bigint;
BEGIN
    IF day IS NULL OR day NOT BETWEEN today - 400 AND today + 400 THEN
        RAISE EXCEPTION 'no partition is made for day %', day USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7310294558214);
    IF to_regclass('outbox.' || name) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    IF pg_relation_size('outbox.messages_default') > 64 * 1024 * 1024 THEN
        RETURN 'messages_default is so large that attaching a partition would lock it for long';
    END IF;
    SELECT count(*) INTO stray FROM outbox.messages_default WHERE created_at >= lower AND created_at < upper;
    IF stray > 0 AND (day <= today OR stray > 10000 OR outbox.refusal() IS NOT NULL) THEN
        RETURN 'rows of that day are in messages_default';
    END IF;
    EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.messages INCLUDING ALL)', name);
    EXECUTE format('
        WITH moved AS (
            DELETE FROM outbox.messages_default
            WHERE created_at >= $1 AND created_at < $2 AND pg_visible_in_snapshot(transaction_id, $3[partition + 1])
            RETURNING *)
        INSERT INTO outbox.%I (id, transaction_id, uuid, topic, key, payload, metadata, created_at)
        SELECT id, transaction_id, uuid, topic, key, payload, metadata, created_at FROM moved', name) USING lower, upper, outbox.relayed();
    -- Fails when rows are left that are not relayed yet: nothing has happened then.
    EXECUTE format('ALTER TABLE outbox.messages ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- The days whose partitions are candidates for dropping.
-- +goose StatementBegin
CREATE FUNCTION outbox.old_partitions(retention interval) RETURNS SETOF date
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT day FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid, LATERAL (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day) AS d
    WHERE i.inhparent = 'outbox.messages'::regclass AND c.relname ~ '^messages_[0-9]{8}$'
      AND outbox.midnight(day + 1) <= outbox.horizon(retention)
    ORDER BY day
$$;
-- +goose StatementEnd

-- Why the partition of a day must stay, or null.
-- +goose StatementBegin
CREATE FUNCTION outbox.kept_because(day date, retention interval) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    old  outbox.watermarks;
    leaf regclass := outbox.leaf(day);
BEGIN
    IF retention IS NULL OR retention < interval '1 hour' OR leaf IS NULL THEN
        RAISE EXCEPTION 'day % and retention %: want a day that has a partition, and at least one hour', day, retention
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO old FROM outbox.watermark(retention);
    IF coalesce(outbox.midnight(day + 1) > outbox.horizon(retention), true) THEN
        RETURN 'it is not old enough';
    END IF;
    IF outbox.refusal() IS NOT NULL THEN
        RETURN outbox.refusal();
    END IF;
    RETURN CASE
        WHEN outbox.has_beyond(leaf, outbox.relayed()) THEN 'it has messages that are not relayed'
        WHEN outbox.has_beyond(leaf, old.relayed) THEN 'it has messages that were relayed too recently'
    END;
END $$;
-- +goose StatementEnd

-- Frees the space of a partition that may be dropped, or returns why not. Locks out who uses that partition alone, so
-- it succeeds where dropping it has to wait for a long transaction.
-- +goose StatementBegin
CREATE FUNCTION outbox.empty_partition(day date, retention interval) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    reason text := outbox.kept_because(day, retention);
BEGIN
    IF reason IS NOT NULL OR pg_relation_size(outbox.leaf(day)) = 0 THEN
        RETURN reason;
    END IF;
    EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', outbox.leaf(day));
    reason := outbox.kept_because(day, retention);
    IF reason IS NULL THEN
        EXECUTE format('TRUNCATE ONLY %s', outbox.leaf(day));
    END IF;
    RETURN reason;
END $$;
-- +goose StatementEnd

-- Drops a partition that may be dropped, or returns why not. It needs the whole table for a moment: the lock is had
-- when no transaction is open that has appended or read. Only the lock on the table is waited for: while it is held
-- writers wait.
-- +goose StatementBegin
CREATE FUNCTION outbox.drop_partition(day date, retention interval) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    reason text := outbox.kept_because(day, retention);
BEGIN
    IF reason IS NOT NULL THEN
        RETURN reason;
    END IF;
    LOCK TABLE ONLY outbox.messages IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE ONLY outbox.messages_default, ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', outbox.leaf(day));
    reason := outbox.kept_because(day, retention);
    IF reason IS NULL THEN
        EXECUTE format('DROP TABLE %s', outbox.leaf(day));
    END IF;
    RETURN reason;
END $$;
-- +goose StatementEnd

-- Deletes old rows from the default partition, at most so many, and returns how many there were.
-- +goose StatementBegin
CREATE FUNCTION outbox.sweep_default(retention interval, most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old  outbox.watermarks;
    done pg_snapshot[] := outbox.relayed();
    n    bigint;
BEGIN
    SELECT * INTO old FROM outbox.watermark(retention);
    IF coalesce(retention < interval '1 hour' OR most NOT BETWEEN 1 AND 100000, true) THEN
        RAISE EXCEPTION 'retention % and most %: want at least one hour, and 1 to 100000', retention, most USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF old.seq IS NULL OR outbox.refusal() IS NOT NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM ONLY outbox.messages_default WHERE ctid = ANY (ARRAY(
        SELECT d.ctid FROM generate_series(0, 3) AS p, LATERAL (
            SELECT m.ctid FROM ONLY outbox.messages_default AS m
            WHERE m.partition = p AND m.transaction_id < pg_snapshot_xmax(old.relayed[p + 1])
              AND pg_visible_in_snapshot(m.transaction_id, old.relayed[p + 1]) AND pg_visible_in_snapshot(m.transaction_id, done[p + 1])
            LIMIT most) AS d
        LIMIT most));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
-- +goose StatementEnd

-- What there is, for people and metrics: days from today on with a partition, the oldest day, rows outside all days.
-- +goose StatementBegin
CREATE FUNCTION outbox.partition_state(OUT ahead int, OUT oldest date, OUT default_bytes bigint, OUT refusal text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (outbox.clock() AT TIME ZONE 'UTC')::date;
BEGIN
    SELECT count(*) FILTER (WHERE day > today), min(day) INTO ahead, oldest
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid, LATERAL (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day) AS d
    WHERE i.inhparent = 'outbox.messages'::regclass AND c.relname ~ '^messages_[0-9]{8}$';
    default_bytes := pg_relation_size('outbox.messages_default');
    refusal := outbox.refusal();
END $$;
-- +goose StatementEnd

-- For programs older than this migration.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.add_partitions(ahead int) RETURNS int LANGUAGE sql AS $$
    SELECT count(coalesce(outbox.add_partition(day), ''))::int FROM outbox.missing_partitions(ahead) AS day
$$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION outbox.clock, outbox.relayed, outbox.watermark, outbox.horizon, outbox.mark, outbox.refusal, outbox.has_beyond, outbox.leaf,
    outbox.midnight, outbox.missing_partitions, outbox.add_partition, outbox.old_partitions, outbox.kept_because, outbox.empty_partition,
    outbox.drop_partition, outbox.sweep_default, outbox.partition_state FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.mark, outbox.missing_partitions, outbox.add_partition, outbox.old_partitions, outbox.empty_partition,
    outbox.drop_partition, outbox.sweep_default, outbox.partition_state TO outbox_relay;
GRANT SELECT ON outbox.watermarks TO outbox_relay;
