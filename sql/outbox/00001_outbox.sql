-- +goose Up
-- The outbox of one database: what has been written and must reach the broker.
-- Rows of outbox.messages are never updated and, one by one, never deleted.

-- +goose StatementBegin
CREATE FUNCTION outbox.partition_of(key text) RETURNS smallint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN mod(hashtextextended(key, 0) & 4611686018427387903, 4)::smallint;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.partition_of IS
    'The partition of a key: the unit of ownership in the relay and the queue suffix at the consumer.';

-- One row. source is the CloudEvents source of everything written here.
CREATE TABLE outbox.config (
    singleton  boolean  PRIMARY KEY DEFAULT true CHECK (singleton),
    partitions smallint NOT NULL DEFAULT 4 CHECK (partitions = 4),
    source     text     NOT NULL CHECK (source ~ '^[a-z][a-z0-9-]{0,62}$'),
    topology   jsonb
);
COMMENT ON COLUMN outbox.config.partitions IS
    'Fixed by partition_of; changing it means draining the outbox first.';
COMMENT ON COLUMN outbox.config.topology IS
    'Exchange, queues and bindings as last applied; the relay declares them again from here.';

-- Ids are handed out one at a time: a cached range would invert the order of a key across sessions.
CREATE SEQUENCE outbox.message_id AS bigint CACHE 1;

-- Names and values within what one AMQP frame and short string can carry.
-- +goose StatementBegin
CREATE FUNCTION outbox.valid_metadata(metadata jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN metadata = '{}'::jsonb OR (
    jsonb_typeof(metadata) = 'object'
    AND pg_column_size(metadata) <= 65536
    AND octet_length(metadata::text) <= 32768
    AND NOT jsonb_path_exists(metadata, '$.* ? (@.type() != "string")')
    AND NOT EXISTS (SELECT FROM jsonb_object_keys(metadata) AS name WHERE octet_length(name) > 255 OR name = '')
);
-- +goose StatementEnd

CREATE TABLE outbox.messages (
    id             bigint      NOT NULL,
    partition      smallint    NOT NULL GENERATED ALWAYS AS (mod(hashtextextended(key, 0) & 4611686018427387903, 4)::smallint) STORED,
    transaction_id xid8        NOT NULL DEFAULT pg_current_xact_id(),
    uuid           uuid        NOT NULL,
    topic          text        NOT NULL,
    key            text        NOT NULL,
    payload        bytea       NOT NULL,
    metadata       jsonb       NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, created_at),
    CONSTRAINT topic_length    CHECK (octet_length(topic) BETWEEN 1 AND 250),
    CONSTRAINT key_length      CHECK (octet_length(key) BETWEEN 1 AND 255),
    CONSTRAINT payload_size    CHECK (octet_length(payload) <= 1048576),
    CONSTRAINT metadata_strings CHECK (outbox.valid_metadata(metadata))
) PARTITION BY RANGE (created_at);
CREATE INDEX messages_cursor ON outbox.messages (partition, transaction_id, id);
CREATE TABLE outbox.messages_default PARTITION OF outbox.messages DEFAULT;

-- Locks the key, then draws the id: ids of one key follow the order in which its transactions commit,
-- whoever writes. A statement that writes several keys must send them sorted, as Append does.
-- +goose StatementBegin
CREATE FUNCTION outbox.assign_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(NEW.key, 7310294558213));
    NEW.id := nextval('outbox.message_id');
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER assign_id BEFORE INSERT ON outbox.messages
    FOR EACH ROW EXECUTE FUNCTION outbox.assign_id();

-- The journal of each partition's cursor, newest row first: transactions visible in relayed are done;
-- those visible in target and not in relayed are the open window, done up to last_id.
CREATE TABLE outbox.cursor (
    seq       bigint      GENERATED ALWAYS AS IDENTITY,
    partition smallint    NOT NULL,
    relayed   pg_snapshot NOT NULL,
    target    pg_snapshot,
    last_id   bigint      NOT NULL DEFAULT 0,
    token     bigint      NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, seq)
);

-- The cluster that the cursor's transaction ids belong to.
CREATE TABLE outbox.identity (
    singleton         boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    system_identifier text        NOT NULL,
    database_oid      oid         NOT NULL,
    timeline          text        NOT NULL,
    stored_at         timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- pg_control_system is for superusers and monitors alone; the relay may read just this.
-- +goose StatementBegin
CREATE FUNCTION outbox.current_identity(OUT system_identifier text, OUT database_oid oid, OUT timeline text, OUT in_recovery boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    in_recovery := pg_is_in_recovery();
    system_identifier := (SELECT c.system_identifier::text FROM pg_control_system() c);
    database_oid := (SELECT oid FROM pg_database WHERE datname = current_database());
    IF in_recovery THEN
        timeline := '';
    ELSE
        timeline := substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);
    END IF;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION outbox.current_identity FROM PUBLIC;

CREATE TABLE outbox.members (
    pool   text        NOT NULL,
    member uuid        NOT NULL,
    label  text        NOT NULL DEFAULT '',
    beat   bigint      NOT NULL DEFAULT 0,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pool, member)
) WITH (fillfactor = 50);

CREATE TABLE outbox.leases (
    pool      text     NOT NULL,
    partition smallint NOT NULL,
    owner     uuid,
    token     bigint   NOT NULL DEFAULT 0,
    beat      bigint   NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, partition)
) WITH (fillfactor = 50);

-- What must wait: the head of each key with its error, and every later message of the key behind it.
CREATE TABLE outbox.stuck (
    seq          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id   bigint      NOT NULL UNIQUE,
    partition    smallint    NOT NULL,
    uuid         uuid        NOT NULL,
    topic        text        NOT NULL,
    key          text        NOT NULL,
    payload      bytea       NOT NULL,
    metadata     jsonb       NOT NULL,
    created_at   timestamptz NOT NULL,
    attempts     int         NOT NULL DEFAULT 0,
    class        text,
    error        text,
    fingerprint  text,
    build        text,
    parked       boolean     NOT NULL DEFAULT false,
    next_attempt timestamptz,
    stuck_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX stuck_key ON outbox.stuck (key, seq);
CREATE INDEX stuck_due ON outbox.stuck (partition, next_attempt) WHERE NOT parked;

-- Daily partitions from today on. A table is made beside and attached: CREATE ... PARTITION OF would
-- queue for an exclusive lock, and every writer behind it.
-- +goose StatementBegin
CREATE FUNCTION outbox.add_partitions(ahead int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    day  date;
    name text;
    made int := 0;
BEGIN
    FOR day IN SELECT (now() AT TIME ZONE 'UTC')::date + n FROM generate_series(0, ahead) AS n LOOP
        name := 'messages_' || to_char(day, 'YYYYMMDD');
        IF to_regclass('outbox.' || name) IS NULL THEN
            EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.messages INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE outbox.%I ADD CONSTRAINT %I CHECK (created_at >= %L AND created_at < %L)',
                name, name || '_range', day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
            EXECUTE format('ALTER TABLE outbox.messages ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
                name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
            EXECUTE format('ALTER TABLE outbox.%I DROP CONSTRAINT %I', name, name || '_range');
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION outbox.add_partitions FROM PUBLIC;
SELECT outbox.add_partitions(7);

-- Writers may append and no more: id, partition, transaction_id and created_at are not theirs to choose.
GRANT USAGE ON SCHEMA outbox TO outbox_writer, outbox_relay;
GRANT INSERT (uuid, topic, key, payload, metadata) ON outbox.messages TO outbox_writer;
GRANT USAGE ON SEQUENCE outbox.message_id TO outbox_writer;
GRANT SELECT ON outbox.config TO outbox_writer, outbox_relay;

GRANT SELECT ON outbox.messages TO outbox_relay;
GRANT SELECT, INSERT, DELETE ON outbox.cursor TO outbox_relay;
GRANT SELECT, INSERT ON outbox.identity TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.current_identity TO outbox_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.members, outbox.leases TO outbox_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.stuck TO outbox_relay;
