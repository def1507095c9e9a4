//go:build !full

package rabbitmq_test

// reconnects are a thousand with the build tag "full".
const reconnects = 40
