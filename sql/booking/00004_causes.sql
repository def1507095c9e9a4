-- +goose Up
-- What a deadline sends has a cause too: what the booking heard last, or else the request that made it.
ALTER TABLE booking.bookings
    ADD COLUMN causation_id text,
    ADD COLUMN trace_parent text;

UPDATE booking.bookings AS b
   SET causation_id = (SELECT t.cause::text FROM booking.timeline AS t
                        WHERE t.booking_id = b.id AND t.cause IS NOT NULL ORDER BY t.seq DESC LIMIT 1)
 WHERE deadline_at IS NOT NULL;

COMMENT ON COLUMN booking.bookings.causation_id IS 'The message that changed the booking last, or the request that made it: the cause of what its deadline sends.';
COMMENT ON COLUMN booking.bookings.trace_parent IS 'The trace of the request that made the booking; null without one.';

GRANT UPDATE (causation_id) ON booking.bookings TO booking_service;
