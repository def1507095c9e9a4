-- +goose Up
-- The inbox of one consumer's database: which messages have had their effect, and which wait.

-- One row per (consumer, message): inserted first in the handler's transaction. done and stuck share the
-- key, so that what one process finished another cannot park. Message ids are UUIDv7, which sort by time:
-- partitions by range of the id still deduplicate across days.
CREATE TABLE inbox.messages (
    message_id uuid        NOT NULL,
    consumer   text        NOT NULL,
    replay     uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    state      text        NOT NULL DEFAULT 'done' CHECK (state IN ('done', 'stuck')),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (message_id, consumer, replay)
) PARTITION BY RANGE (message_id);
CREATE TABLE inbox.messages_default PARTITION OF inbox.messages DEFAULT;

-- The head of each key with its error, and every later message of the key behind it, in order of arrival.
CREATE TABLE inbox.stuck (
    seq          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer     text        NOT NULL,
    message_id   uuid        NOT NULL,
    replay       uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    partition    smallint    NOT NULL,
    type         text        NOT NULL,
    key          text        NOT NULL,
    payload      bytea       NOT NULL,
    headers      jsonb       NOT NULL,
    attempts     int         NOT NULL DEFAULT 0,
    class        text,
    error        text,
    fingerprint  text,
    build        text,
    parked       boolean     NOT NULL DEFAULT false,
    next_attempt timestamptz,
    stuck_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (consumer, message_id, replay)
);
CREATE INDEX stuck_key ON inbox.stuck (consumer, key, seq);
CREATE INDEX stuck_due ON inbox.stuck (consumer, partition, next_attempt) WHERE NOT parked;

CREATE TABLE inbox.members (
    pool   text        NOT NULL,
    member uuid        NOT NULL,
    label  text        NOT NULL DEFAULT '',
    beat   bigint      NOT NULL DEFAULT 0,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pool, member)
) WITH (fillfactor = 50);

CREATE TABLE inbox.leases (
    pool      text     NOT NULL,
    partition smallint NOT NULL,
    owner     uuid,
    token     bigint   NOT NULL DEFAULT 0,
    beat      bigint   NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, partition)
) WITH (fillfactor = 50);

-- The smallest UUIDv7 of a moment: 48 bits of milliseconds, the rest zero.
-- +goose StatementBegin
CREATE FUNCTION inbox.first_id(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT
RETURN rpad(lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
-- +goose StatementEnd

-- Daily partitions from yesterday on, made beside and attached so that no handler waits.
-- +goose StatementBegin
CREATE FUNCTION inbox.add_partitions(ahead int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    day   date;
    name  text;
    lower uuid;
    upper uuid;
    made  int := 0;
BEGIN
    FOR day IN SELECT (now() AT TIME ZONE 'UTC')::date + n FROM generate_series(-1, ahead) AS n LOOP
        name := 'messages_' || to_char(day, 'YYYYMMDD');
        IF to_regclass('inbox.' || name) IS NULL THEN
            lower := inbox.first_id(day::timestamp AT TIME ZONE 'UTC');
            upper := inbox.first_id((day + 1)::timestamp AT TIME ZONE 'UTC');
            EXECUTE format('CREATE TABLE inbox.%I (LIKE inbox.messages INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE inbox.%I ADD CONSTRAINT %I CHECK (message_id >= %L AND message_id < %L)',
                name, name || '_range', lower, upper);
            EXECUTE format('ALTER TABLE inbox.messages ATTACH PARTITION inbox.%I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
            EXECUTE format('ALTER TABLE inbox.%I DROP CONSTRAINT %I', name, name || '_range');
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION inbox.add_partitions FROM PUBLIC;
SELECT inbox.add_partitions(7);

GRANT USAGE ON SCHEMA inbox TO inbox_consumer;
GRANT SELECT, INSERT, UPDATE ON inbox.messages TO inbox_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox.stuck, inbox.members, inbox.leases TO inbox_consumer;
