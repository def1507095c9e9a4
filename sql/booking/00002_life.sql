-- +goose Up
-- The whole life of a booking: what is known of tickets and payment, how it may end, until when it waits, and every step.

ALTER TABLE booking.bookings
    ADD COLUMN inventory      text NOT NULL DEFAULT 'asked'
        CHECK (inventory IN ('asked', 'held', 'refused', 'released', 'sold')),
    ADD COLUMN payment        text NOT NULL DEFAULT 'asked'
        CHECK (payment IN ('asked', 'prepared', 'unavailable', 'failed', 'expired', 'cancelled', 'completed', 'refunded')),
    ADD COLUMN led            boolean NOT NULL DEFAULT false,
    ADD COLUMN settling       boolean NOT NULL DEFAULT false,
    ADD COLUMN deadline_at    timestamptz,
    ADD COLUMN ended_at       timestamptz,
    ADD COLUMN correlation_id text,
    DROP CONSTRAINT bookings_status_check,
    DROP CONSTRAINT rejected_with_a_reason,
    DROP CONSTRAINT awaits_payment_of_tickets,
    DROP CONSTRAINT payment_is_whole;

UPDATE booking.bookings SET
    inventory = CASE WHEN reserved_at IS NOT NULL THEN 'held' WHEN status = 'rejected' THEN 'refused' ELSE 'asked' END,
    payment = CASE WHEN payment_id IS NOT NULL THEN 'prepared' ELSE 'asked' END,
    deadline_at = CASE WHEN status <> 'rejected' THEN expires_at + interval '1 minute' END,
    ended_at = CASE WHEN status = 'rejected' THEN updated_at END;

ALTER TABLE booking.bookings
    ADD CONSTRAINT bookings_status_check CHECK (status IN
        ('pending', 'awaiting_payment', 'confirmed', 'rejected', 'expired', 'payment_failed', 'cancelled')),
    ADD CONSTRAINT rejected_with_a_reason CHECK (CASE status
        WHEN 'rejected' THEN reason IS NOT NULL WHEN 'payment_failed' THEN true ELSE reason IS NULL END),
    ADD CONSTRAINT awaits_payment_of_tickets CHECK (status <> 'awaiting_payment' OR reserved_at IS NOT NULL AND payment_id IS NOT NULL),
    ADD CONSTRAINT confirmed_with_tickets_and_money CHECK (status <> 'confirmed'
        OR inventory IN ('held', 'sold') AND payment = 'completed' AND reserved_at IS NOT NULL AND payment_id IS NOT NULL),
    ADD CONSTRAINT payment_url_of_a_payment CHECK (payment_url IS NULL OR payment_id IS NOT NULL),
    ADD CONSTRAINT waits_with_a_deadline CHECK ((status IN ('pending', 'awaiting_payment')) = (deadline_at IS NOT NULL)),
    ADD CONSTRAINT ended_at_a_time CHECK ((deadline_at IS NULL) = (ended_at IS NOT NULL));

-- The build before knows neither deadlines nor what became of tickets and payment beyond reserved_at and payment_url. While its
-- processes still run, what they write is completed here; no row that this build writes needs it.
-- +goose StatementBegin
CREATE FUNCTION booking.complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.inventory = 'asked' THEN
        NEW.inventory := CASE WHEN NEW.reserved_at IS NOT NULL THEN 'held' WHEN NEW.status = 'rejected' THEN 'refused' ELSE 'asked' END;
    END IF;
    IF NEW.payment = 'asked' AND NEW.payment_url IS NOT NULL THEN
        NEW.payment := 'prepared';
    END IF;
    IF NEW.status IN ('pending', 'awaiting_payment') THEN
        NEW.deadline_at := greatest(NEW.deadline_at, NEW.expires_at + interval '1 minute');
    ELSE
        NEW.deadline_at := NULL;
        NEW.ended_at := coalesce(NEW.ended_at, NEW.updated_at);
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER complete_new BEFORE INSERT ON booking.bookings
    FOR EACH ROW WHEN (NEW.deadline_at IS NULL AND NEW.ended_at IS NULL) EXECUTE FUNCTION booking.complete();
CREATE TRIGGER complete_changed BEFORE UPDATE ON booking.bookings
    FOR EACH ROW WHEN (NEW.inventory = 'asked' AND NEW.reserved_at IS NOT NULL OR NEW.payment = 'asked' AND NEW.payment_url IS NOT NULL
                       OR NEW.status = 'rejected' AND NEW.deadline_at IS NOT NULL)
    EXECUTE FUNCTION booking.complete();

CREATE INDEX bookings_due ON booking.bookings (deadline_at) WHERE deadline_at IS NOT NULL;
COMMENT ON COLUMN booking.bookings.inventory IS 'What the catalog has said of the tickets.';
COMMENT ON COLUMN booking.bookings.payment IS 'What the payment service has said of the payment.';
COMMENT ON COLUMN booking.bookings.led IS 'Whether a coordinator leads the booking, as it was when the booking was made.';
COMMENT ON COLUMN booking.bookings.settling IS 'The coordinator has said that it is confirmed, and the booking waits to hear why.';
COMMENT ON COLUMN booking.bookings.deadline_at IS 'When a booking that still waits expires; null once it has ended.';
COMMENT ON COLUMN booking.bookings.correlation_id IS 'The flow of the request that made the booking; what its deadline sends belongs to it.';

-- Every step of every booking, as booking heard of it. Rows are never changed.
CREATE TABLE booking.timeline (
    booking_id     uuid        NOT NULL REFERENCES booking.bookings,
    seq            bigint      GENERATED ALWAYS AS IDENTITY,
    at             timestamptz NOT NULL,
    step           text        NOT NULL,
    service        text        NOT NULL,
    cause          uuid,
    correlation_id text,
    detail         text,
    status         text        NOT NULL,
    sent           jsonb       NOT NULL DEFAULT '[]',
    PRIMARY KEY (booking_id, seq)
);
COMMENT ON COLUMN booking.timeline.service IS 'Who did it: the sender of the message, or booking itself.';
COMMENT ON COLUMN booking.timeline.cause IS 'The message that told of it; null for a request or a deadline.';
COMMENT ON COLUMN booking.timeline.sent IS 'The messages that booking sent on it: [{"id", "type"}].';

GRANT UPDATE (inventory, payment, settling, deadline_at, ended_at) ON booking.bookings TO booking_service;
GRANT SELECT, INSERT ON booking.timeline TO booking_service;
