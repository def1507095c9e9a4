module github.com/jcp/ticketwave/bench

go 1.26.0
