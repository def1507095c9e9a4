-- +goose Up
-- A rebase does not lock the whole cursor: a relay that stores it holds the locks on lease and cursor, and has them in the one
-- order the first time and in the other once its statement is prepared. Who stores the cursor needs the lease first.

-- As before, but for the locks, and for what is deleted first: as outbox.mark does it.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.rebase(keep boolean, force boolean, dry_run boolean, who text, why text,
    OUT relayed bigint, OUT pending bigint, OUT audit_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
#variable_conflict use_column
DECLARE
    here     record;
    known    outbox.identity;
    restored boolean;
    own      xid8;
    seen     pg_snapshot;
    fresh    pg_snapshot;
BEGIN
    IF keep IS NULL OR force IS NULL OR dry_run IS NULL THEN
        RAISE EXCEPTION 'keep, force and dry_run must be given' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT dry_run THEN
        LOCK TABLE outbox.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE outbox.leases, outbox.watermarks IN EXCLUSIVE MODE;
    END IF;
    here := outbox.current_identity();
    SELECT * INTO known FROM outbox.identity;
    IF here.in_recovery THEN
        RAISE EXCEPTION 'the server is in recovery: rebase on the primary' USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF known.singleton IS NULL THEN
        RAISE EXCEPTION 'no relay has run yet: there is no cursor to rebase' USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF NOT force AND (known.system_identifier, known.database_oid, known.timeline) = (here.system_identifier, here.database_oid, here.timeline) THEN
        RAISE EXCEPTION 'the cursor fits this server: there is nothing to rebase' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    restored := known.system_identifier <> here.system_identifier; -- elsewhere in one cluster ids go on
    SELECT count(*) FILTER (WHERE r.done), count(*) FILTER (WHERE NOT r.done) INTO relayed, pending
    FROM (
        SELECT outbox.was_relayed(m.transaction_id, m.xmin, m.id, restored AND NOT keep, c.relayed, c.target, c.last_id) AS done
        FROM outbox.messages AS m LEFT JOIN LATERAL (
            SELECT * FROM outbox.cursor AS c WHERE c.partition = m.partition ORDER BY c.seq DESC LIMIT 1) AS c ON true) AS r;
    IF dry_run THEN
        RETURN;
    END IF;
    IF NOT keep THEN
        own := pg_current_xact_id();
        -- What has ended by now, and nothing of what is under way: a writer may have its id already and append when the
        -- lock is gone. A snapshot leaves its own transaction out of those under way; here it belongs to them.
        seen := pg_current_snapshot();
        fresh := format('%s:%s:%s', least(pg_snapshot_xmin(seen), own), greatest(pg_snapshot_xmax(seen), own), (
            SELECT string_agg(x::text, ',' ORDER BY x) FROM (
                SELECT x FROM pg_snapshot_xip(seen) AS x UNION SELECT own WHERE own < pg_snapshot_xmax(seen)) AS running))::pg_snapshot;
        UPDATE outbox.messages AS m
        SET transaction_id = CASE WHEN outbox.was_relayed(m.transaction_id, m.xmin, m.id, restored, c.relayed, c.target, c.last_id) THEN '3'::xid8 ELSE own END
        FROM generate_series(0, 3) AS p LEFT JOIN LATERAL (
            SELECT * FROM outbox.cursor AS c WHERE c.partition = p ORDER BY c.seq DESC LIMIT 1) AS c ON true
        WHERE m.partition = p;
        DELETE FROM outbox.watermarks;
        PERFORM FROM outbox.cursor ORDER BY partition, seq FOR UPDATE; -- as relays delete old rows
        DELETE FROM outbox.cursor;
        INSERT INTO outbox.cursor (partition, relayed, token) SELECT p, fresh, 0 FROM generate_series(0, 3) AS p;
    END IF;
    UPDATE outbox.leases SET token = token + 1, owner = NULL;
    UPDATE outbox.identity
    SET system_identifier = here.system_identifier, database_oid = here.database_oid, timeline = here.timeline, stored_at = clock_timestamp();
    audit_id := ops.append(who, why, 'outbox.rebase', jsonb_build_object('relayed', relayed, 'pending', pending, 'keep', keep, 'force', force,
        'from', format('system %s, database %s, timeline %s', known.system_identifier, known.database_oid, known.timeline),
        'to', format('system %s, database %s, timeline %s', here.system_identifier, here.database_oid, here.timeline)));
END $$;
-- +goose StatementEnd
