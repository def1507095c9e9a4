-- +goose Up
-- The same rules at a lower price: PL/pgSQL evaluates expressions without a query of its own, where a function in
-- SQL, and PERFORM, start the executor at every row.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.valid_metadata(metadata jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    size int;
BEGIN
    IF metadata = '{}'::jsonb THEN
        RETURN true;
    END IF;
    size := octet_length(metadata::text);
    IF jsonb_typeof(metadata) <> 'object' OR size > 32768 OR pg_column_size(metadata) > 65536
        OR metadata ? '' OR jsonb_path_exists(metadata, '$.* ? (@.type() != "string")') THEN
        RETURN false;
    END IF;
    RETURN size <= 255 OR NOT EXISTS (SELECT FROM jsonb_object_keys(metadata) AS name WHERE octet_length(name) > 255);
END $$;
-- +goose StatementEnd

-- Locks the key, then draws the id: ids of one key follow the order in which its transactions commit,
-- whoever writes. A statement that writes several keys must send them sorted, as Append does.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.assign_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.id := CASE WHEN pg_advisory_xact_lock(hashtextextended(NEW.key, 7310294558213)) IS NOT NULL
                   THEN nextval('outbox.message_id') END;
    RETURN NEW;
END $$;
-- +goose StatementEnd
