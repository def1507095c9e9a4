-- +goose Up
-- A ticket is available, held for a booking, or sold. What was reserved so far is held.
ALTER TABLE catalog.events
    ADD COLUMN held int NOT NULL DEFAULT 0 CHECK (held >= 0),
    ADD COLUMN sold int NOT NULL DEFAULT 0 CHECK (sold >= 0);
UPDATE catalog.events SET held = capacity - available WHERE available <> capacity;
ALTER TABLE catalog.events ADD CONSTRAINT conserved CHECK (available + held + sold = capacity);
COMMENT ON COLUMN catalog.events.held IS 'Of bookings that are not paid yet.';
COMMENT ON COLUMN catalog.events.sold IS 'Of confirmed bookings. Nothing undoes a sale.';

-- outcome stays the answer to the booking's request; hold says what became of the tickets. A booking whose release came
-- before its request has outcome 'released' and no quantity: the request then takes nothing.
ALTER TABLE catalog.reservations
    ADD COLUMN hold text NOT NULL DEFAULT 'none' CHECK (hold IN ('none', 'held', 'released', 'sold')),
    ADD COLUMN settled_at timestamptz,
    DROP CONSTRAINT reservations_quantity_check,
    DROP CONSTRAINT reservations_outcome_check;
UPDATE catalog.reservations SET hold = 'held' WHERE outcome = 'reserved';
ALTER TABLE catalog.reservations
    ADD CONSTRAINT reservations_outcome_check CHECK (outcome IN ('reserved', 'sold_out', 'unknown_event', 'released')),
    ADD CONSTRAINT reservations_quantity_check CHECK (CASE outcome WHEN 'released' THEN quantity = 0 ELSE quantity BETWEEN 1 AND 1000000 END),
    ADD CONSTRAINT holds_what_was_reserved CHECK (CASE outcome
        WHEN 'reserved' THEN hold <> 'none'
        WHEN 'released' THEN hold = 'released'
        ELSE hold IN ('none', 'released') END),
    ADD CONSTRAINT settled_once CHECK ((settled_at IS NOT NULL) = (hold IN ('released', 'sold')));
COMMENT ON COLUMN catalog.reservations.hold IS 'held until the tickets are released or sold; none where none were taken.';
COMMENT ON COLUMN catalog.reservations.settled_at IS 'When the tickets were released or sold.';

-- The build before takes tickets without saying that they are held. While its processes still run, that is completed here; no
-- row that this build writes needs it.
-- +goose StatementBegin
CREATE FUNCTION catalog.complete_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.held := OLD.held + OLD.available - NEW.available;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER complete BEFORE UPDATE ON catalog.events
    FOR EACH ROW WHEN (NEW.available < OLD.available AND NEW.held = OLD.held AND NEW.sold = OLD.sold AND NEW.version = OLD.version + 1)
    EXECUTE FUNCTION catalog.complete_event();
-- +goose StatementBegin
CREATE FUNCTION catalog.complete_reservation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.hold := 'held';
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER complete BEFORE INSERT ON catalog.reservations
    FOR EACH ROW WHEN (NEW.outcome = 'reserved' AND NEW.hold = 'none' AND NEW.version > 0) EXECUTE FUNCTION catalog.complete_reservation();

GRANT UPDATE (held, sold) ON catalog.events TO catalog_service;
GRANT INSERT (hold, settled_at), UPDATE (hold, settled_at) ON catalog.reservations TO catalog_service;
