// Package outboxtest gives tests a real PostgreSQL database and a real RabbitMQ vhost of their own.
//
// The servers come from the environment (TW_POSTGRES_URL, TW_AMQP_URL, TW_RABBITMQ_MANAGEMENT_URL) or from the
// file .run/env that "make up" writes, found in a parent of the working directory.
package outboxtest
