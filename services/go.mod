module github.com/jcp/ticketwave/services

go 1.26.0

require (
	github.com/ThreeDotsLabs/watermill v1.5.1
	github.com/google/uuid v1.6.0
	github.com/gorilla/mux v1.8.1
	github.com/jackc/pgx/v5 v5.12.0
	github.com/jcp/ticketwave/contracts v0.0.0
	github.com/jcp/ticketwave/outbox v0.0.0
	github.com/jcp/ticketwave/sql v0.0.0
	github.com/prometheus/client_golang v1.25.0
	github.com/rabbitmq/amqp091-go v1.16.0
	github.com/wneessen/go-mail v0.8.1
	go.uber.org/goleak v1.3.0
	pgregory.net/rapid v1.3.0
)

replace (
	github.com/jcp/ticketwave/contracts => ../contracts
	github.com/jcp/ticketwave/outbox => ../outbox
	github.com/jcp/ticketwave/sql => ../sql
)
