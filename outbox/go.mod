module github.com/jcp/ticketwave/outbox

go 1.26.0
