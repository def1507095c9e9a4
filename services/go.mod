module github.com/jcp/ticketwave/services

go 1.26.0
