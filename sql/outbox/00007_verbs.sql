-- +goose Up
-- What operators may do with stuck messages.

SET LOCAL lock_timeout = '1s';

ALTER TABLE outbox.stuck
    ADD COLUMN original_payload  bytea,
    ADD COLUMN original_metadata jsonb,
    ADD COLUMN edited_at         timestamptz;
CREATE INDEX stuck_uuid ON outbox.stuck (uuid);
COMMENT ON COLUMN outbox.stuck.original_payload IS 'As the message was written, if it was edited; so with original_metadata.';

-- The versions that run, and the last beat by the database's clock, for people alone.
ALTER TABLE outbox.members
    ADD COLUMN build   text        NOT NULL DEFAULT '',
    ADD COLUMN beat_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- Whether a partition's newest cursor has passed a message. One that retention has dropped it has.
-- +goose StatementBegin
CREATE FUNCTION outbox.is_passed(partition smallint, message_id bigint) RETURNS boolean LANGUAGE sql STABLE
RETURN coalesce((
    SELECT pg_visible_in_snapshot(m.transaction_id, c.relayed)
           OR coalesce(pg_visible_in_snapshot(m.transaction_id, c.target) AND m.id <= c.last_id, false)
    FROM outbox.messages AS m, LATERAL (
        SELECT j.relayed, j.target, j.last_id FROM outbox.cursor AS j WHERE j.partition = is_passed.partition ORDER BY j.seq DESC LIMIT 1) AS c
    WHERE m.id = is_passed.message_id), true);
-- +goose StatementEnd
REVOKE ALL ON FUNCTION outbox.is_passed FROM PUBLIC;

-- Does a verb with the rows that nobody has in hand, and appends to the audit log. Of each row the caller says what it
-- saw: a row that has changed since is left. A row is in hand while the lease is held under which its relay claimed it,
-- unless the caller saw the lease's beat stand still for the lease's timeout: beats has it at partition + 1. What was
-- in a dead relay's hand is exposed.
--
-- A message that the cursor has not passed yet would come again after a crash, as it was written: to be skipped or edited
-- it has to wait.
--
-- The verdict is ok, gone, busy, changed, or why the row must not be touched: behind (replay its head), retrying or
-- exposed (not to be edited).
-- +goose StatementBegin
CREATE FUNCTION outbox.operate(verb text, seqs bigint[], tries int[], were_parked boolean[], beats bigint[], new_payload bytea, new_metadata jsonb,
    dry_run boolean, who text, why text, chosen_by jsonb)
RETURNS TABLE (row_seq bigint, verdict text, head uuid, audit_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    p      smallint;
    locked bigint[];
    judged ops.verdict[];
    chosen bigint[];
    detail jsonb;
    logged bigint;
BEGIN
    PERFORM ops.check_verb(verb, seqs, tries, were_parked, new_payload, new_metadata);
    FOR p IN SELECT DISTINCT s.partition FROM outbox.stuck AS s WHERE s.seq = ANY (seqs) ORDER BY s.partition LOOP
        PERFORM outbox.lock_stuck(p);
    END LOOP;
    locked := ARRAY(
        SELECT s.seq FROM outbox.stuck AS s
        WHERE s.seq = ANY (seqs) AND NOT EXISTS (
            SELECT FROM outbox.leases AS l
            WHERE l.pool = 'relay' AND l.partition = s.partition AND l.token = s.claim AND l.owner IS NOT NULL
              AND l.beat IS DISTINCT FROM beats[s.partition + 1])
        ORDER BY s.seq FOR UPDATE SKIP LOCKED);
    SELECT array_agg((w.seq, CASE
            WHEN s.seq IS NULL THEN 'gone'
            WHEN s.seq <> ALL (locked) THEN 'busy'
            WHEN s.attempts <> w.attempts OR s.parked <> w.parked THEN 'changed'
            WHEN verb = 'replay' AND h.uuid IS NOT NULL THEN 'behind'
            WHEN verb = 'edit' AND NOT s.parked AND s.attempts > 0 THEN 'retrying'
            WHEN verb = 'edit' AND (s.exposed OR s.claim IS NOT NULL OR s.class = 'refused') THEN 'exposed'
            WHEN verb <> 'replay' AND NOT outbox.is_passed(s.partition, s.message_id) THEN 'busy'
            ELSE 'ok'
        END, h.uuid)::ops.verdict)
    INTO judged
    FROM unnest(seqs, tries, were_parked) AS w (seq, attempts, parked)
    LEFT JOIN outbox.stuck AS s ON s.seq = w.seq
    LEFT JOIN LATERAL (
        SELECT e.uuid FROM outbox.stuck AS e WHERE e.key = s.key AND e.message_id < s.message_id ORDER BY e.message_id LIMIT 1) AS h ON true;
    chosen := ARRAY(SELECT v.seq FROM unnest(judged) AS v WHERE v.verdict = 'ok');
    IF NOT dry_run AND cardinality(chosen) > 0 THEN
        SELECT jsonb_build_object('changed', count(*), 'messages', jsonb_agg(s.uuid ORDER BY s.message_id), 'filter', chosen_by)
        INTO detail FROM outbox.stuck AS s WHERE s.seq = ANY (chosen);
        IF verb = 'replay' THEN
            UPDATE outbox.stuck AS s
            SET parked = false, attempts = CASE WHEN s.parked THEN 0 ELSE s.attempts END, next_attempt = clock_timestamp(),
                exposed = s.exposed OR s.claim IS NOT NULL, claim = NULL
            WHERE s.seq = ANY (chosen);
        ELSIF verb = 'skip' THEN
            DELETE FROM outbox.stuck AS s WHERE s.seq = ANY (chosen);
        ELSE
            detail := detail || (SELECT ops.edit_detail(s.payload, new_payload, s.metadata, new_metadata) FROM outbox.stuck AS s WHERE s.seq = chosen[1]);
            UPDATE outbox.stuck AS s
            SET original_payload = CASE WHEN s.edited_at IS NULL THEN s.payload ELSE s.original_payload END,
                original_metadata = CASE WHEN s.edited_at IS NULL THEN s.metadata ELSE s.original_metadata END,
                payload = coalesce(new_payload, s.payload), metadata = coalesce(new_metadata, s.metadata), edited_at = clock_timestamp()
            WHERE s.seq = chosen[1];
        END IF;
        logged := ops.append(who, why, 'outbox.' || verb, detail);
    END IF;
    RETURN QUERY SELECT v.seq, v.verdict, v.head, logged FROM unnest(judged) AS v;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION outbox.operate FROM PUBLIC;
GRANT USAGE ON SCHEMA outbox TO outbox_operator;
GRANT SELECT ON outbox.config, outbox.messages, outbox.cursor, outbox.identity, outbox.members, outbox.leases, outbox.stuck, outbox.watermarks
    TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.operate, outbox.current_identity, outbox.partition_state TO outbox_operator;
