-- +goose Up
-- Stuck messages that are being published are claimed, so that an operator never changes one that is on its way; and
-- what waits for a route is found by its topic.

ALTER TABLE outbox.stuck
    ADD COLUMN claim   bigint,
    ADD COLUMN exposed boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN outbox.stuck.claim IS
    'Token of the lease under which the message is being published now, or was when its relay died.';
COMMENT ON COLUMN outbox.stuck.exposed IS
    'The outcome of an attempt is not known, or was not the same for all queues: some consumer may have the message.';

CREATE INDEX stuck_head ON outbox.stuck (key, message_id);
CREATE INDEX stuck_route ON outbox.stuck (partition, topic, message_id) WHERE NOT parked;
DROP INDEX outbox.stuck_key;

-- Whoever claims, replays, skips or edits stuck messages of a partition takes this lock first, in a statement before the
-- one that looks.
-- +goose StatementBegin
CREATE FUNCTION outbox.lock_stuck(partition smallint) RETURNS void LANGUAGE sql VOLATILE
RETURN pg_advisory_xact_lock(731029455, partition);
-- +goose StatementEnd
