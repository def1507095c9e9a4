module github.com/jcp/ticketwave/sql

go 1.26.0
