-- +goose Up
-- The coordinator: how far each booking has come that it leads, and what happened to it.

CREATE TABLE saga.instances (
    id             uuid        PRIMARY KEY,
    version        int         NOT NULL CHECK (version >= 1),
    state          text        NOT NULL CHECK (state IN
                   ('running', 'settling', 'committing', 'compensating', 'committed', 'compensated', 'stuck')),
    body           jsonb       NOT NULL,
    revision       bigint      NOT NULL DEFAULT 1,
    due_at         timestamptz,
    correlation_id text        NOT NULL,
    trace_parent   text        NOT NULL,
    caused_by      uuid        NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX instances_due ON saga.instances (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX instances_state ON saga.instances (state, id);
CREATE INDEX instances_unended ON saga.instances (version, id) WHERE state NOT IN ('committed', 'compensated');
COMMENT ON COLUMN saga.instances.id IS 'The booking.';
COMMENT ON COLUMN saga.instances.version IS 'Of the definition that it began with and goes on under.';
COMMENT ON COLUMN saga.instances.revision IS 'Counts the changes: who writes says which one he has read.';
COMMENT ON COLUMN saga.instances.due_at IS 'The first deadline of those in body.';
COMMENT ON COLUMN saga.instances.caused_by IS 'The message that was handled last: the cause of what is sent when a deadline passes.';

-- What was heard and sent, in the order in which it was. Nothing is ever changed.
CREATE TABLE saga.history (
    instance_id uuid        NOT NULL REFERENCES saga.instances,
    n           bigint      GENERATED ALWAYS AS IDENTITY,
    at          timestamptz NOT NULL,
    kind        text        NOT NULL CHECK (kind IN ('heard', 'sent', 'timeout', 'operator')),
    step        text        NOT NULL,
    type        text        NOT NULL,
    message_id  uuid,
    note        text        NOT NULL CHECK (char_length(note) <= 1000),
    state       text        NOT NULL,
    PRIMARY KEY (instance_id, n)
);
COMMENT ON COLUMN saga.history.message_id IS 'Of what was heard or sent; null for what came by no message.';
COMMENT ON COLUMN saga.history.state IS 'That of the instance afterwards.';

GRANT SELECT, INSERT, UPDATE (state, body, revision, due_at, caused_by, updated_at) ON saga.instances TO saga_service;
GRANT SELECT, INSERT ON saga.history TO saga_service;
