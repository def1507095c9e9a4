// Package e2e tests TicketWave as its users meet it: real processes on real servers, over HTTP.
package e2e
