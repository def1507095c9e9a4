-- +goose Up
-- What the relay's metrics tell of transactions that stay open: ages, and nothing of whose they are.

-- +goose StatementBegin
CREATE FUNCTION outbox.open_transactions(OUT kind text, OUT oldest float8, OUT long bigint)
RETURNS SETOF record LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.kind, coalesce(extract(epoch FROM clock_timestamp() - min(t.since)), 0)::float8,
           count(*) FILTER (WHERE t.since < clock_timestamp() - interval '1 minute')
    FROM unnest(ARRAY['open', 'prepared']) AS k (kind) LEFT JOIN (
        SELECT 'open' AS kind, a.xact_start AS since FROM pg_stat_activity AS a
        WHERE a.backend_type = 'client backend' AND a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
        UNION ALL
        SELECT 'prepared', p.prepared FROM pg_prepared_xacts AS p WHERE p.database = current_database()) AS t ON t.kind = k.kind
    GROUP BY k.kind
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.open_transactions IS 'Of open and of prepared transactions: the age of the oldest in seconds, and how many are older than a minute.';
REVOKE ALL ON FUNCTION outbox.open_transactions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.open_transactions TO outbox_relay;
