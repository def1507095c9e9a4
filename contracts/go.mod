module github.com/jcp/ticketwave/contracts

go 1.26.0
