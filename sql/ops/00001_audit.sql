-- +goose Up
-- What operators did in this database, and why. Rows are appended by one function, and each holds the hash of the one
-- before: what is altered, taken out, put in or moved afterwards shows, whoever did it.

CREATE TABLE ops.audit (
    id       bigint      PRIMARY KEY,
    at       timestamptz NOT NULL,
    actor    text        NOT NULL,
    reason   text        NOT NULL,
    action   text        NOT NULL,
    detail   jsonb       NOT NULL,
    previous bytea       NOT NULL,
    hash     bytea       NOT NULL
);
COMMENT ON COLUMN ops.audit.id IS 'From 1, without a gap.';
COMMENT ON COLUMN ops.audit.detail IS 'Counts, ids and filters; never a payload.';
COMMENT ON COLUMN ops.audit.previous IS 'The hash of the row before; empty in the first.';
CREATE INDEX audit_messages ON ops.audit USING gin ((detail -> 'messages'));

-- +goose StatementBegin
CREATE FUNCTION ops.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'ops.audit is only ever appended to' USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ops.audit
    FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_change();

-- A field with its length, so that no two rows have one text.
-- +goose StatementBegin
CREATE FUNCTION ops.field(value text) RETURNS text LANGUAGE sql IMMUTABLE STRICT
RETURN octet_length(value) || ':' || value || ',';
-- +goose StatementEnd

-- SHA-256 over all fields of a row; the moment in microseconds since 1970.
-- +goose StatementBegin
CREATE FUNCTION ops.hash_of(a ops.audit) RETURNS bytea LANGUAGE sql STABLE
RETURN sha256(convert_to(
    ops.field(a.id::text) || ops.field((extract(epoch FROM a.at) * 1000000)::bigint::text) || ops.field(a.actor) || ops.field(a.reason)
    || ops.field(a.action) || ops.field(a.detail::text) || ops.field(encode(a.previous, 'hex')), 'UTF8'));
-- +goose StatementEnd

-- Appends one row in the caller's transaction, which everybody else who appends then waits for: call it last. Returns
-- the row's id.
-- +goose StatementBegin
CREATE FUNCTION ops.append(actor text, reason text, action text, detail jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a ops.audit;
BEGIN
    IF coalesce(octet_length(btrim(actor)) NOT BETWEEN 1 AND 200, true) THEN
        RAISE EXCEPTION 'the actor must be named in 1 to 200 bytes' USING ERRCODE = 'invalid_parameter_value';
    ELSIF coalesce(octet_length(btrim(reason)) NOT BETWEEN 1 AND 2000, true) OR octet_length(reason) > 2000 THEN
        RAISE EXCEPTION 'the reason must be given in 1 to 2000 bytes' USING ERRCODE = 'invalid_parameter_value';
    ELSIF coalesce(action !~ '^[a-z][a-z_.]{0,62}$', true) THEN
        RAISE EXCEPTION 'bad action %', action USING ERRCODE = 'invalid_parameter_value';
    ELSIF coalesce(jsonb_typeof(detail) <> 'object' OR octet_length(detail::text) > 262144, true) THEN
        RAISE EXCEPTION 'the detail must be an object of at most 262144 bytes' USING ERRCODE = 'invalid_parameter_value';
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the audit log must see what is committed now: use READ COMMITTED' USING ERRCODE = 'active_sql_transaction';
    END IF;
    PERFORM pg_advisory_xact_lock(7310294558220);
    SELECT p.id, p.hash INTO a.id, a.previous FROM ops.audit AS p ORDER BY p.id DESC LIMIT 1;
    a.id := coalesce(a.id, 0) + 1;
    a.previous := coalesce(a.previous, '');
    a.at := clock_timestamp();
    a.actor := actor;
    a.reason := reason;
    a.action := action;
    a.detail := detail;
    a.hash := ops.hash_of(a);
    INSERT INTO ops.audit SELECT (a).*;
    RETURN a.id;
END $$;
-- +goose StatementEnd

-- What an operator's verb did or would do with one row.
CREATE TYPE ops.verdict AS (seq bigint, verdict text, head uuid);

-- Refuses arguments that no verb can be meant with. The limits are those of the outbox.
-- +goose StatementBegin
CREATE FUNCTION ops.check_verb(verb text, seqs bigint[], tries int[], were_parked boolean[], new_payload bytea, new_headers jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text;
BEGIN
    problem := CASE
        WHEN coalesce(verb NOT IN ('replay', 'skip', 'edit'), true) THEN 'there is no such verb'
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

-- What the audit log keeps of an edit.
-- +goose StatementBegin
CREATE FUNCTION ops.edit_detail(old_payload bytea, new_payload bytea, old_headers jsonb, new_headers jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
RETURN CASE WHEN new_payload IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('payload', jsonb_build_object(
        'beforeSha256', encode(sha256(old_payload), 'hex'), 'afterSha256', encode(sha256(new_payload), 'hex'), 'bytes', octet_length(new_payload))) END
    || CASE WHEN new_headers IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('headers', (
        SELECT coalesce(jsonb_agg(name ORDER BY name), '[]') FROM (SELECT jsonb_object_keys(old_headers) UNION SELECT jsonb_object_keys(new_headers)) AS n (name)
        WHERE old_headers -> name IS DISTINCT FROM new_headers -> name)) END;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION ops.refuse_change, ops.field, ops.hash_of, ops.append, ops.check_verb, ops.edit_detail FROM PUBLIC;
GRANT SELECT ON ops.audit TO outbox_operator;
GRANT EXECUTE ON FUNCTION ops.append TO outbox_operator;
