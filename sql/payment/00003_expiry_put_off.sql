-- +goose Up
-- A payment whose expiry fails is put off by itself, so that the others go on.

-- Writers queue behind whoever waits for the table's lock; what cannot be had in this time is tried again.
SET LOCAL lock_timeout = '1s';

ALTER TABLE payment.payments
    ADD COLUMN expiry_failures int NOT NULL DEFAULT 0,
    ADD COLUMN expiry_next_at  timestamptz;
COMMENT ON COLUMN payment.payments.expiry_next_at IS 'When the expiry is tried again, after it failed.';

GRANT UPDATE (expiry_failures, expiry_next_at) ON payment.payments TO payment_service;
