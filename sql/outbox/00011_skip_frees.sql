-- +goose Up
-- What waited behind a skipped message goes at once, not when the relay comes by on its round over all stuck keys.

-- As before; and of each key that skip has taken a message of, the oldest message left is due, if it was never tried. One
-- that somebody has locked is left to the relay's round.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.operate(verb text, seqs bigint[], tries int[], were_parked boolean[], beats bigint[], new_payload bytea, new_metadata jsonb,
    dry_run boolean, who text, why text, chosen_by jsonb)
RETURNS TABLE (row_seq bigint, verdict text, head uuid, audit_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    p      smallint;
    locked bigint[];
    judged ops.verdict[];
    chosen bigint[];
    freed  text[];
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
            WHEN verb IN ('replay', 'park') AND h.uuid IS NOT NULL THEN 'behind'
            WHEN verb = 'park' AND s.parked THEN 'parked'
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
        ELSIF verb = 'park' THEN
            UPDATE outbox.stuck AS s SET parked = true, next_attempt = NULL, exposed = s.exposed OR s.claim IS NOT NULL, claim = NULL
            WHERE s.seq = ANY (chosen);
        ELSIF verb = 'skip' THEN
            WITH gone AS (DELETE FROM outbox.stuck AS s WHERE s.seq = ANY (chosen) RETURNING s.key)
            SELECT array_agg(DISTINCT g.key) INTO freed FROM gone AS g;
            UPDATE outbox.stuck AS s SET next_attempt = clock_timestamp()
            WHERE s.seq IN (
                SELECT n.seq FROM unnest(freed) AS k, LATERAL (
                    SELECT e.seq FROM outbox.stuck AS e WHERE e.key = k ORDER BY e.message_id LIMIT 1) AS h, outbox.stuck AS n
                WHERE n.seq = h.seq AND n.next_attempt IS NULL AND NOT n.parked
                FOR UPDATE OF n SKIP LOCKED);
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
