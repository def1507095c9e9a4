-- +goose Up
-- Where a coordinator leads, a booking hears why its payment has failed before it is told to end for that.
ALTER TABLE booking.bookings
    DROP CONSTRAINT rejected_with_a_reason,
    ADD CONSTRAINT rejected_with_a_reason CHECK (CASE
        WHEN status = 'rejected' THEN reason IS NOT NULL
        WHEN status = 'payment_failed' THEN true
        WHEN ended_at IS NULL THEN led OR reason IS NULL
        ELSE reason IS NULL END);
