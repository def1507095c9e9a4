-- +goose Up
-- The whole life of a payment; what is to be done at the gateway; the books; and the sandbox, a gateway of its own.

ALTER TABLE payment.payments
    DROP CONSTRAINT payments_status_check,
    ALTER COLUMN url DROP NOT NULL,
    ADD COLUMN gateway        text NOT NULL DEFAULT 'sandbox' CHECK (gateway IN ('sandbox', 'stripe')),
    ADD COLUMN session        text CHECK (octet_length(session) BETWEEN 1 AND 255),
    ADD COLUMN reason         text,
    ADD COLUMN settled_at     timestamptz,
    ADD COLUMN correlation_id text NOT NULL DEFAULT '' CHECK (octet_length(correlation_id) <= 255),
    ADD COLUMN causation_id   text NOT NULL DEFAULT '' CHECK (octet_length(causation_id) <= 255),
    ADD COLUMN trace_parent   text NOT NULL DEFAULT '' CHECK (octet_length(trace_parent) <= 255);
UPDATE payment.payments SET session = id::text;
ALTER TABLE payment.payments
    ADD CONSTRAINT known_status CHECK (status IN
        ('preparing', 'prepared', 'completed', 'failed', 'expired', 'cancelled', 'refunded', 'unavailable')),
    ADD CONSTRAINT prepared_with_a_page CHECK (status <> 'prepared' OR url IS NOT NULL AND session IS NOT NULL),
    ADD CONSTRAINT whole_session CHECK ((url IS NULL) = (session IS NULL)),
    ADD CONSTRAINT settled_with_a_time CHECK ((status IN ('preparing', 'prepared')) = (settled_at IS NULL)),
    ADD CONSTRAINT failed_with_a_reason CHECK ((status IN ('failed', 'unavailable')) = (reason IS NOT NULL));
CREATE INDEX payments_due ON payment.payments (expires_at) WHERE status IN ('preparing', 'prepared');
COMMENT ON COLUMN payment.payments.session IS 'What the gateway calls the payment; null until it has opened one.';
COMMENT ON COLUMN payment.payments.settled_at IS 'When the payment ended, or was completed.';
COMMENT ON COLUMN payment.payments.correlation_id IS 'With causation_id and trace_parent: the flow and the request that the payment belongs to.';

-- What a payment is never changes, and nothing is deleted.
GRANT UPDATE (status, url, session, reason, settled_at, prepared_at) ON payment.payments TO payment_service;

-- A cancellation that came before its request: that request then prepares nothing.
CREATE TABLE payment.cancellations (
    booking_id   uuid        PRIMARY KEY,
    cancelled_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT, INSERT (booking_id) ON payment.cancellations TO payment_service;

-- What is to be done at the gateway, written with the state that asks for it and done outside any transaction. The id and
-- the round are the gateway's idempotency key. A row is claimed by moving next_at ahead, so that who dies loses it by itself.
CREATE TABLE payment.tasks (
    id             uuid        PRIMARY KEY,
    payment_id     uuid        NOT NULL REFERENCES payment.payments,
    kind           text        NOT NULL CHECK (kind IN ('open', 'close', 'refund')),
    charge         text        NOT NULL DEFAULT '' CHECK (octet_length(charge) <= 255),
    state          text        NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'done', 'refused')),
    attempts       int         NOT NULL DEFAULT 0,
    round          int         NOT NULL DEFAULT 0,
    next_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    error          text        CHECK (char_length(error) <= 1000),
    correlation_id text        NOT NULL DEFAULT '' CHECK (octet_length(correlation_id) <= 255),
    causation_id   text        NOT NULL DEFAULT '' CHECK (octet_length(causation_id) <= 255),
    trace_parent   text        NOT NULL DEFAULT '' CHECK (octet_length(trace_parent) <= 255),
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT once UNIQUE (payment_id, kind, charge),
    CONSTRAINT refunds_a_charge CHECK ((kind = 'refund') = (charge <> ''))
) WITH (fillfactor = 70);
CREATE INDEX tasks_due ON payment.tasks (next_at) WHERE state = 'due';
CREATE INDEX tasks_refused ON payment.tasks (created_at) WHERE state = 'refused';
COMMENT ON COLUMN payment.tasks.charge IS 'Of a refund: the gateway''s name of the capture that is given back.';
COMMENT ON COLUMN payment.tasks.round IS 'Counts the keys that the gateway has answered for good with a failure that may pass.';
COMMENT ON COLUMN payment.tasks.state IS 'refused: the gateway will never do it; somebody has to look.';
GRANT SELECT, INSERT (id, payment_id, kind, charge, correlation_id, causation_id, trace_parent),
      UPDATE (state, attempts, round, next_at, error)
    ON payment.tasks TO payment_service;

-- The books: money that came and money that went back. Rows are added and never changed.
CREATE TABLE payment.ledger (
    id           uuid        PRIMARY KEY,
    payment_id   uuid        NOT NULL REFERENCES payment.payments,
    kind         text        NOT NULL CHECK (kind IN ('captured', 'refunded')),
    amount_minor bigint      NOT NULL CHECK (amount_minor > 0),
    currency     text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    gateway      text        NOT NULL CHECK (gateway IN ('sandbox', 'stripe')),
    reference    text        NOT NULL CHECK (octet_length(reference) BETWEEN 1 AND 255),
    gives_back   uuid        UNIQUE REFERENCES payment.ledger,
    entered_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT once_entered UNIQUE (gateway, kind, reference),
    CONSTRAINT refunds_a_capture CHECK ((kind = 'refunded') = (gives_back IS NOT NULL))
);
CREATE INDEX ledger_payment ON payment.ledger (payment_id);
COMMENT ON COLUMN payment.ledger.reference IS 'The gateway''s name of the capture or refund.';
COMMENT ON COLUMN payment.ledger.gives_back IS 'Of a refund: the capture. A capture is given back once and whole.';
GRANT SELECT, INSERT (id, payment_id, kind, amount_minor, currency, gateway, reference, gives_back) ON payment.ledger TO payment_service;

-- The books against the payments, by currency: when nothing is under way, captured - refunded = completed.
CREATE VIEW payment.books WITH (security_invoker = true) AS
SELECT currency, sum(captured)::bigint AS captured_minor, sum(refunded)::bigint AS refunded_minor, sum(completed)::bigint AS completed_minor
  FROM (SELECT currency,
               CASE kind WHEN 'captured' THEN amount_minor ELSE 0 END AS captured,
               CASE kind WHEN 'refunded' THEN amount_minor ELSE 0 END AS refunded,
               0 AS completed
          FROM payment.ledger
        UNION ALL
        SELECT currency, 0, 0, amount_minor FROM payment.payments WHERE status = 'completed') AS entries
 GROUP BY currency;
GRANT SELECT ON payment.books TO payment_service;

-- Webhooks that took effect.
CREATE TABLE payment.webhooks (
    gateway     text        NOT NULL CHECK (gateway IN ('sandbox', 'stripe')),
    id          text        NOT NULL CHECK (octet_length(id) BETWEEN 1 AND 255),
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (gateway, id)
);
GRANT SELECT, INSERT (gateway, id) ON payment.webhooks TO payment_service;

-- The sandbox's side: its sessions, and the webhooks that it has to deliver. Nobody but the sandbox reads them.
CREATE TABLE payment.sandbox_sessions (
    id           uuid        PRIMARY KEY,
    amount_minor bigint      NOT NULL CHECK (amount_minor > 0),
    currency     text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    expires_at   timestamptz NOT NULL,
    state        text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'paying', 'paid', 'declined', 'closed')),
    refund       text,
    opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at   timestamptz
) WITH (fillfactor = 80);
COMMENT ON COLUMN payment.sandbox_sessions.state IS 'paying: the money is on its way and arrives after the end of the session.';
GRANT SELECT, INSERT (id, amount_minor, currency, expires_at), UPDATE (state, refund, changed_at) ON payment.sandbox_sessions TO payment_service;
INSERT INTO payment.sandbox_sessions (id, amount_minor, currency, expires_at)
SELECT id, amount_minor, currency, expires_at FROM payment.payments;

-- The build before prepares payments without a session. While its processes still run, the sandbox opens one here; no row that
-- this build writes needs it.
-- +goose StatementBegin
CREATE FUNCTION payment.complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.session := NEW.id::text;
    INSERT INTO payment.sandbox_sessions (id, amount_minor, currency, expires_at)
    SELECT NEW.id, NEW.amount_minor, NEW.currency, NEW.expires_at
     WHERE NOT EXISTS (SELECT FROM payment.payments WHERE booking_id = NEW.booking_id);
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER complete BEFORE INSERT ON payment.payments
    FOR EACH ROW WHEN (NEW.status = 'prepared' AND NEW.url IS NOT NULL AND NEW.session IS NULL) EXECUTE FUNCTION payment.complete();

CREATE TABLE payment.sandbox_webhooks (
    id           text        PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 255),
    session_id   uuid        NOT NULL REFERENCES payment.sandbox_sessions,
    body         text        NOT NULL CHECK (octet_length(body) <= 20000),
    attempts     int         NOT NULL DEFAULT 0,
    due_at       timestamptz NOT NULL,
    next_at      timestamptz NOT NULL,
    delivered_at timestamptz,
    given_up_at  timestamptz,
    error        text        CHECK (char_length(error) <= 1000),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX sandbox_webhooks_due ON payment.sandbox_webhooks (next_at) WHERE delivered_at IS NULL AND given_up_at IS NULL;
GRANT SELECT, INSERT (id, session_id, body, due_at, next_at), UPDATE (attempts, next_at, delivered_at, given_up_at, error)
    ON payment.sandbox_webhooks TO payment_service;

-- What the sandbox signs with where no secret is configured: drawn here, so that every process of an installation has the same.
CREATE TABLE payment.sandbox_secret (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    secret bytea   NOT NULL CHECK (octet_length(secret) BETWEEN 24 AND 64)
);
INSERT INTO payment.sandbox_secret (secret)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
GRANT SELECT ON payment.sandbox_secret TO payment_service;
