-- +goose Up
-- Payments: one per booking, prepared so that the user can pay.

CREATE TABLE payment.payments (
    id           uuid        PRIMARY KEY,
    booking_id   uuid        NOT NULL UNIQUE,
    user_id      uuid        NOT NULL,
    amount_minor bigint      NOT NULL CHECK (amount_minor > 0),
    currency     text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    status       text        NOT NULL DEFAULT 'prepared' CHECK (status IN ('prepared')),
    url          text        NOT NULL CHECK (octet_length(url) <= 2048),
    expires_at   timestamptz NOT NULL,
    prepared_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN payment.payments.amount_minor IS 'In hundredths of the currency.';

-- A payment never changes yet, and nothing is deleted.
GRANT SELECT, INSERT ON payment.payments TO payment_service;
