// Package e2e tests TicketWave as its users meet it: real processes on real servers, over HTTP.
//
// Every way that a booking can go is tried in both styles, with the same outcome wanted. Random bookings, 60 in each style and
// 2,000 with the build tag full, go every way at once while programs are killed and messages repeated:
//
//	go test -tags full -run TestRandomBookings ./e2e -bookings 500 -seed 7
//
// makes 500 of the seed 7. When all is at rest, every seat and every cent must be accounted for.
package e2e
