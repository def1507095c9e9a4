-- +goose Up
-- Notifications: what users were told, by which message, and how it went.

CREATE TABLE notification.notifications (
    id         uuid        PRIMARY KEY,
    message_id uuid        NOT NULL UNIQUE,
    booking_id uuid        NOT NULL,
    user_id    uuid        NOT NULL,
    event_id   uuid        NOT NULL,
    type       text        NOT NULL,
    channel    text        NOT NULL,
    recipient  text        NOT NULL,
    success    boolean     NOT NULL,
    error      text        CHECK (char_length(error) <= 1000),
    sent_at    timestamptz NOT NULL,
    CONSTRAINT error_means_failure CHECK (success = (error IS NULL))
);
COMMENT ON COLUMN notification.notifications.message_id IS 'Of the request; the e-mail''s Message-ID is made from it.';
CREATE INDEX notifications_booking ON notification.notifications (booking_id, id);

GRANT SELECT, INSERT ON notification.notifications TO notification_service;
