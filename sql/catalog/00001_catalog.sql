-- +goose Up
-- The catalog: events on sale, and what each booking got of them.
-- For every event, capacity - available is the sum of the quantities reserved.

CREATE TABLE catalog.events (
    id          uuid        PRIMARY KEY,
    name        text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    starts_at   timestamptz NOT NULL,
    price_minor bigint      NOT NULL CHECK (price_minor BETWEEN 1 AND 100000000),
    currency    text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    capacity    int         NOT NULL CHECK (capacity BETWEEN 1 AND 1000000),
    available   int         NOT NULL,
    version     bigint      NOT NULL DEFAULT 1 CHECK (version >= 1),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT never_oversold CHECK (available BETWEEN 0 AND capacity)
) WITH (fillfactor = 50);
COMMENT ON COLUMN catalog.events.price_minor IS 'Of one ticket, in hundredths of the currency.';
COMMENT ON COLUMN catalog.events.version IS 'Counts the changes of the row.';

-- One row per booking that ever asked, with the answer it got: asked again, it gets the same one.
-- A row begins as unknown_event, in the transaction that then takes the tickets or finds too few.
CREATE TABLE catalog.reservations (
    booking_id       uuid        PRIMARY KEY,
    event_id         uuid        NOT NULL,
    quantity         int         NOT NULL CHECK (quantity BETWEEN 1 AND 1000000),
    outcome          text        NOT NULL DEFAULT 'unknown_event' CHECK (outcome IN ('reserved', 'sold_out', 'unknown_event')),
    available_before int         NOT NULL DEFAULT 0,
    available_after  int         NOT NULL DEFAULT 0,
    version          bigint      NOT NULL DEFAULT 0,
    answered_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT adds_up CHECK (available_before - available_after = CASE outcome WHEN 'reserved' THEN quantity ELSE 0 END)
) WITH (fillfactor = 80);
COMMENT ON COLUMN catalog.reservations.event_id IS 'As asked for; not a foreign key, since there may be no such event.';
COMMENT ON COLUMN catalog.reservations.version IS 'Of the event, after the answer.';

-- What an event is and what a booking asked for never change; nothing is deleted.
GRANT SELECT, INSERT, UPDATE (available, version) ON catalog.events TO catalog_service;
GRANT SELECT, INSERT (booking_id, event_id, quantity), UPDATE (outcome, available_before, available_after, version, answered_at)
    ON catalog.reservations TO catalog_service;
