-- +goose Up
-- The same rules in one expression of the trigger. Checks and generated columns are read from their stored form again
-- for every statement; what a trigger calls is kept for the session. Bodies that are parsed here mean the same under
-- any search_path of the writer, and are inlined: nothing is called unless a rule is broken.

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
             AND NOT jsonb_path_exists(metadata, '$.* ? (@.type() != "string")')
          OR outbox.valid_metadata(metadata))
     AND pg_advisory_xact_lock(hashtextextended(key, 7310294558213)) IS NOT NULL
    THEN nextval('outbox.message_id'::regclass)
    ELSE outbox.refuse(topic, key, payload, metadata)
END;
-- +goose StatementEnd

ALTER FUNCTION outbox.valid_metadata SET search_path = pg_catalog, pg_temp;

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
