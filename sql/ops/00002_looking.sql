-- +goose Up
-- What operators look at beyond the tables, and the plans that they make.

-- Sessions with an open transaction, without what they say: statements hold people's data.
-- +goose StatementBegin
CREATE FUNCTION ops.sessions(OUT pid int, OUT database text, OUT login text, OUT application text, OUT state text, OUT age float8, OUT writes boolean)
RETURNS SETOF record LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.pid, a.datname::text, a.usename::text, a.application_name, a.state,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8, a.backend_xid IS NOT NULL
    FROM pg_stat_activity AS a
    WHERE a.backend_type = 'client backend' AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
$$;
-- +goose StatementEnd

-- Connections in use and how many there may be.
-- +goose StatementBegin
CREATE FUNCTION ops.connections(OUT used bigint, OUT most bigint) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
           current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
$$;
-- +goose StatementEnd

-- A replay that was planned: what was asked for, and the hash of what would be done. A plan is for one day.
CREATE TABLE ops.plans (
    hash    text        PRIMARY KEY,
    request jsonb       NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

REVOKE ALL ON FUNCTION ops.sessions, ops.connections FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ops.sessions, ops.connections TO outbox_operator;
GRANT SELECT, INSERT, DELETE ON ops.plans TO outbox_operator;
