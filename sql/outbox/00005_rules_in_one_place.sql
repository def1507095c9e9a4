-- +goose Up
-- The same rules in one expression of the trigger. Checks and generated columns are read from their stored form again
-- for every statement; what a trigger calls is kept for the session. Bodies that are parsed here mean the same under
-- any search_path of the writer, and are inlined: only metadata of more than 255 bytes takes a call.

-- Writers queue behind whoever waits for the table's lock; what cannot be had in this time is tried again.
SET LOCAL lock_timeout = '1s';

-- Says which rule a message breaks.
-- +goose StatementBegin
CREATE FUNCTION outbox.refuse(topic text, key text, payload bytea, metadata jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF topic IS NULL OR octet_length(topic) NOT BETWEEN 1 AND 250 THEN
        RAISE EXCEPTION 'outbox message: topic has % bytes, want 1 to 250', coalesce(octet_length(topic)::text, 'no')
            USING ERRCODE = 'check_violation', CONSTRAINT = 'topic_length', SCHEMA = 'outbox', TABLE = 'messages', COLUMN = 'topic';
    ELSIF key IS NULL OR octet_length(key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'outbox message: key has % bytes, want 1 to 255', coalesce(octet_length(key)::text, 'no')
            USING ERRCODE = 'check_violation', CONSTRAINT = 'key_length', SCHEMA = 'outbox', TABLE = 'messages', COLUMN = 'key';
    ELSIF payload IS NULL OR octet_length(payload) > 1048576 THEN
        RAISE EXCEPTION 'outbox message: payload has % bytes, want 0 to 1048576', coalesce(octet_length(payload)::text, 'no')
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payload_size', SCHEMA = 'outbox', TABLE = 'messages', COLUMN = 'payload';
    END IF;
    RAISE EXCEPTION 'outbox message: metadata must be an object of strings, with names of 1 to 255 bytes and at most 32768 bytes in all'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'metadata_strings', SCHEMA = 'outbox', TABLE = 'messages', COLUMN = 'metadata';
END $$;
-- +goose StatementEnd

-- Checks the message, locks its key, then draws the id: ids of one key follow the order in which its transactions
-- commit, whoever writes. A statement that writes several keys must send them sorted, as Append does.
-- +goose StatementBegin
CREATE FUNCTION outbox.next_id(topic text, key text, payload bytea, metadata jsonb) RETURNS bigint LANGUAGE sql VOLATILE
RETURN CASE
    WHEN octet_length(topic) BETWEEN 1 AND 250 AND octet_length(key) BETWEEN 1 AND 255 AND octet_length(payload) <= 1048576
     AND (metadata = '{}'::jsonb
          OR octet_length(metadata::text) <= 255 AND jsonb_typeof(metadata) = 'object' AND NOT metadata ? ''
             AND NOT jsonb_path_exists(metadata, 'strict $.* ? (@.type() != "string")', '{}', true)
          OR outbox.valid_metadata(metadata))
     AND pg_advisory_xact_lock(hashtextextended(key, 7310294558213)) IS NOT NULL
    THEN nextval('outbox.message_id'::regclass)
    ELSE outbox.refuse(topic, key, payload, metadata)
END;
-- +goose StatementEnd

-- Strict, since a lax path looks into arrays.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.valid_metadata(metadata jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF jsonb_typeof(metadata) <> 'object' OR octet_length(metadata::text) > 32768 OR pg_column_size(metadata) > 65536
        OR jsonb_path_exists(metadata, 'strict $.* ? (@.type() != "string")', '{}', true) THEN
        RETURN false;
    END IF;
    RETURN NOT EXISTS (SELECT FROM jsonb_object_keys(metadata) AS name WHERE octet_length(name) NOT BETWEEN 1 AND 255);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.assign_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.id := outbox.next_id(NEW.topic, NEW.key, NEW.payload, NEW.metadata);
    NEW.partition := outbox.partition_of(NEW.key);
    RETURN NEW;
END $$;
-- +goose StatementEnd

ALTER TABLE outbox.messages
    DROP CONSTRAINT topic_length, DROP CONSTRAINT key_length, DROP CONSTRAINT payload_size, DROP CONSTRAINT metadata_strings,
    ALTER COLUMN partition DROP EXPRESSION;
COMMENT ON COLUMN outbox.messages.partition IS 'partition_of(key), whatever a writer says.';

-- As before, with the partition, which no longer comes by itself.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.add_partition(day date) RETURNS text
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
        INSERT INTO outbox.%I (id, partition, transaction_id, uuid, topic, key, payload, metadata, created_at)
        SELECT id, partition, transaction_id, uuid, topic, key, payload, metadata, created_at FROM moved', name) USING lower, upper, outbox.relayed();
    -- Fails when rows are left that are not relayed yet: nothing has happened then.
    EXECUTE format('ALTER TABLE outbox.messages ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
    RETURN NULL;
END $$;
-- +goose StatementEnd
