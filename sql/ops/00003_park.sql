-- +goose Up
-- Verb park: a head that is tried again by itself waits for an operator instead, so that it can be edited.

-- As before, with park.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION ops.check_verb(verb text, seqs bigint[], tries int[], were_parked boolean[], new_payload bytea, new_headers jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text;
BEGIN
    problem := CASE
        WHEN coalesce(verb NOT IN ('replay', 'skip', 'edit', 'park'), true) THEN 'there is no such verb'
        WHEN coalesce(cardinality(seqs) NOT BETWEEN 1 AND 1000, true) THEN 'want 1 to 1000 messages'
        WHEN coalesce(cardinality(tries) <> cardinality(seqs) OR cardinality(were_parked) <> cardinality(seqs), true)
            THEN 'want the attempts and whether it was parked for each message'
        WHEN (SELECT count(DISTINCT s) FROM unnest(seqs) AS s) <> cardinality(seqs) THEN 'want each message once'
        WHEN verb <> 'edit' AND (new_payload IS NOT NULL OR new_headers IS NOT NULL) THEN 'only edit takes a payload or headers'
        WHEN verb = 'edit' AND cardinality(seqs) <> 1 THEN 'edit takes one message'
        WHEN verb = 'edit' AND new_payload IS NULL AND new_headers IS NULL THEN 'edit needs a payload or headers'
        WHEN octet_length(new_payload) > 1048576 THEN 'the payload has more than 1048576 bytes'
    END;
    IF problem IS NULL AND new_headers IS NOT NULL THEN
        problem := CASE WHEN jsonb_typeof(new_headers) <> 'object' OR octet_length(new_headers::text) > 32768 OR pg_column_size(new_headers) > 65536
            OR jsonb_path_exists(new_headers, 'strict $.* ? (@.type() != "string")', '{}', true)
            THEN 'the headers must be an object of strings of at most 32768 bytes' END;
        IF problem IS NULL AND EXISTS (SELECT FROM jsonb_object_keys(new_headers) AS name WHERE octet_length(name) NOT BETWEEN 1 AND 255) THEN
            problem := 'names of headers have 1 to 255 bytes';
        END IF;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;
-- +goose StatementEnd
