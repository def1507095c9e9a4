-- +goose Up
-- Verb park: a head that is tried again by itself waits for an operator instead, so that it can be edited. What waits
-- behind it goes on waiting.

-- As before, with park; and with the verdict parked: it waits for an operator already.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION inbox.operate(verb text, seqs bigint[], tries int[], were_parked boolean[], new_payload bytea, new_headers jsonb,
    dry_run boolean, who text, why text, chosen_by jsonb)
RETURNS TABLE (row_seq bigint, verdict text, head uuid, audit_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    free   bigint[];
    locked bigint[];
    judged ops.verdict[];
    chosen bigint[];
    detail jsonb;
    logged bigint;
BEGIN
    PERFORM ops.check_verb(verb, seqs, tries, were_parked, new_payload, new_headers);
    WITH keys AS MATERIALIZED (
        SELECT DISTINCT s.consumer, s.key FROM inbox.stuck AS s WHERE s.seq = ANY (seqs)
    ), tried AS MATERIALIZED (
        SELECT k.consumer, k.key, pg_try_advisory_xact_lock(hashtextextended(k.consumer || chr(31) || k.key, 452823510904)) AS got FROM keys AS k
    )
    SELECT coalesce(array_agg(s.seq), '{}') INTO free
    FROM inbox.stuck AS s JOIN tried AS t ON t.consumer = s.consumer AND t.key = s.key
    WHERE s.seq = ANY (seqs) AND t.got;
    locked := ARRAY(SELECT s.seq FROM inbox.stuck AS s WHERE s.seq = ANY (free) ORDER BY s.seq FOR UPDATE SKIP LOCKED);
    SELECT array_agg((w.seq, CASE
            WHEN s.seq IS NULL THEN 'gone'
            WHEN s.seq <> ALL (locked) THEN 'busy'
            WHEN s.attempts <> w.attempts OR s.parked <> w.parked THEN 'changed'
            WHEN verb IN ('replay', 'park') AND h.message_id IS NOT NULL THEN 'behind'
            WHEN verb = 'park' AND s.parked THEN 'parked'
            WHEN verb = 'edit' AND NOT s.parked AND h.message_id IS NULL THEN 'retrying'
            ELSE 'ok'
        END, h.message_id)::ops.verdict)
    INTO judged
    FROM unnest(seqs, tries, were_parked) AS w (seq, attempts, parked)
    LEFT JOIN inbox.stuck AS s ON s.seq = w.seq
    LEFT JOIN LATERAL (
        SELECT e.message_id FROM inbox.stuck AS e WHERE e.consumer = s.consumer AND e.key = s.key AND e.seq < s.seq ORDER BY e.seq LIMIT 1) AS h ON true;
    chosen := ARRAY(SELECT v.seq FROM unnest(judged) AS v WHERE v.verdict = 'ok');
    IF NOT dry_run AND cardinality(chosen) > 0 THEN
        SELECT jsonb_build_object('changed', count(*), 'consumers', jsonb_agg(DISTINCT s.consumer), 'messages', jsonb_agg(s.message_id ORDER BY s.seq),
            'filter', chosen_by)
        INTO detail FROM inbox.stuck AS s WHERE s.seq = ANY (chosen);
        IF verb = 'replay' THEN
            UPDATE inbox.stuck AS s SET parked = false, attempts = 0, next_attempt = clock_timestamp() WHERE s.seq = ANY (chosen);
        ELSIF verb = 'park' THEN
            UPDATE inbox.stuck AS s SET parked = true, next_attempt = NULL WHERE s.seq = ANY (chosen);
        ELSIF verb = 'skip' THEN
            WITH gone AS (DELETE FROM inbox.stuck AS s WHERE s.seq = ANY (chosen) RETURNING s.message_id, s.consumer, s.replay)
            UPDATE inbox.messages AS m SET state = 'skipped', at = clock_timestamp()
            FROM gone AS g WHERE m.message_id = g.message_id AND m.consumer = g.consumer AND m.replay = g.replay;
        ELSE
            IF new_headers IS NOT NULL AND EXISTS (
                SELECT FROM inbox.stuck AS s, unnest(ARRAY['cloudEvents_id', 'cloudEvents_type', 'cloudEvents_subject']) AS name
                WHERE s.seq = chosen[1] AND s.headers -> name IS DISTINCT FROM new_headers -> name) THEN
                RAISE EXCEPTION 'a message keeps its id, type and key: leave those headers as they are' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            detail := detail || (SELECT ops.edit_detail(s.payload, new_payload, s.headers, new_headers) FROM inbox.stuck AS s WHERE s.seq = chosen[1]);
            UPDATE inbox.stuck AS s
            SET original_payload = CASE WHEN s.edited_at IS NULL THEN s.payload ELSE s.original_payload END,
                original_headers = CASE WHEN s.edited_at IS NULL THEN s.headers ELSE s.original_headers END,
                payload = coalesce(new_payload, s.payload), headers = coalesce(new_headers, s.headers), edited_at = clock_timestamp()
            WHERE s.seq = chosen[1];
        END IF;
        logged := ops.append(who, why, 'inbox.' || verb, detail);
    END IF;
    RETURN QUERY SELECT v.seq, v.verdict, v.head, logged FROM unnest(judged) AS v;
END $$;
-- +goose StatementEnd
