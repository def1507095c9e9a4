-- +goose Up
-- A reservation is written once, with its answer.
REVOKE UPDATE (outcome, available_before, available_after, version, answered_at) ON catalog.reservations FROM catalog_service;
GRANT INSERT (outcome, available_before, available_after, version) ON catalog.reservations TO catalog_service;
