-- +goose Up
-- A saga whose deadline cannot be kept is put off by itself, so that the others go on.

-- Writers queue behind whoever waits for the table's lock; what cannot be had in this time is tried again.
SET LOCAL lock_timeout = '1s';

ALTER TABLE saga.instances
    ADD COLUMN deadline_failures int NOT NULL DEFAULT 0,
    ADD COLUMN deadline_next_at  timestamptz;
COMMENT ON COLUMN saga.instances.deadline_next_at IS 'When keeping the deadline is tried again, after it failed.';

GRANT UPDATE (deadline_failures, deadline_next_at) ON saga.instances TO saga_service;
