//go:build full

package rabbitmq_test

const reconnects = 1000
