-- +goose Up
-- What a deadline sends has a cause too: what the booking heard last, or else the request that made it. Where neither is known the
-- booking's own id stands for it.

-- Writers queue behind whoever waits for the table's lock; what cannot be had in this time is tried again.
SET LOCAL lock_timeout = '1s';

ALTER TABLE booking.bookings
    ADD COLUMN causation_id text,
    ADD COLUMN trace_parent text;

COMMENT ON COLUMN booking.bookings.causation_id IS 'The message that changed the booking last, or the request that made it: the cause of what its deadline sends.';
COMMENT ON COLUMN booking.bookings.trace_parent IS 'The trace of the request that made the booking; null without one.';

GRANT UPDATE (causation_id) ON booking.bookings TO booking_service;
