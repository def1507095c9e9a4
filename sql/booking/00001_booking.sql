-- +goose Up
-- Booking: who booked what and how far it has come; what is on sale, as the catalog last said; and what was
-- answered under which idempotency key.

-- The catalog's events as booking knows them: enough to price a booking. Older versions never overwrite.
CREATE TABLE booking.events (
    id          uuid        PRIMARY KEY,
    name        text        NOT NULL,
    price_minor bigint      NOT NULL CHECK (price_minor > 0),
    currency    text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    starts_at   timestamptz NOT NULL,
    version     bigint      NOT NULL CHECK (version >= 1)
);
COMMENT ON COLUMN booking.events.price_minor IS 'Of one ticket, in hundredths of the currency.';

-- What was booked never changes; the rest is filled in as the other services answer.
CREATE TABLE booking.bookings (
    id                 uuid        PRIMARY KEY,
    event_id           uuid        NOT NULL,
    user_id            uuid        NOT NULL,
    ticket_count       int         NOT NULL CHECK (ticket_count >= 1),
    price_minor        bigint      NOT NULL CHECK (price_minor > 0),
    amount_minor       bigint      NOT NULL,
    currency           text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    created_at         timestamptz NOT NULL,
    status             text        NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'awaiting_payment', 'rejected')),
    reason             text,
    expires_at         timestamptz NOT NULL,
    reserved_at        timestamptz,
    payment_id         uuid,
    payment_url        text,
    notified           boolean,
    notification_error text,
    updated_at         timestamptz NOT NULL,
    CONSTRAINT adds_up CHECK (amount_minor = price_minor * ticket_count),
    CONSTRAINT rejected_with_a_reason CHECK ((status = 'rejected') = (reason IS NOT NULL)),
    CONSTRAINT awaits_payment_of_tickets CHECK (status <> 'awaiting_payment' OR reserved_at IS NOT NULL AND payment_id IS NOT NULL),
    CONSTRAINT payment_is_whole CHECK ((payment_id IS NULL) = (payment_url IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX bookings_user ON booking.bookings (user_id, id);
COMMENT ON COLUMN booking.bookings.id IS 'A UUIDv7: the order of ids is that of creation.';
COMMENT ON COLUMN booking.bookings.expires_at IS 'Until when the tickets are held for payment.';
COMMENT ON COLUMN booking.bookings.reserved_at IS 'When the catalog took the tickets; null until then.';
COMMENT ON COLUMN booking.bookings.notified IS 'Whether the user was told; null while nobody has tried.';

-- Inserted first in the transaction of a request, so that a second request under the key waits for the first.
CREATE TABLE booking.idempotency_keys (
    key        text        PRIMARY KEY CHECK (octet_length(key) BETWEEN 1 AND 255),
    request    bytea       NOT NULL CHECK (octet_length(request) = 32),
    status     int,
    location   text,
    body       bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT answer_is_whole CHECK (num_nonnulls(status, location, body) IN (0, 3))
);
CREATE INDEX idempotency_keys_age ON booking.idempotency_keys (created_at);
COMMENT ON COLUMN booking.idempotency_keys.request IS 'SHA-256 of what was asked for; another request under the key is refused.';
COMMENT ON COLUMN booking.idempotency_keys.status IS 'With location and body the answer; null only inside the transaction that makes it.';

GRANT SELECT, INSERT, UPDATE ON booking.events TO booking_service;
GRANT SELECT, INSERT,
      UPDATE (status, reason, expires_at, reserved_at, payment_id, payment_url, notified, notification_error, updated_at)
    ON booking.bookings TO booking_service;
GRANT SELECT, INSERT (key, request), UPDATE (status, location, body) ON booking.idempotency_keys TO booking_service;
