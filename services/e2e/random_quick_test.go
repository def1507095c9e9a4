//go:build !full

package e2e_test

import "time"

// randomBookings and randomPatience are for each style: how many bookings are made, and how long all of it may take.
const (
	randomBookings = 30
	randomPatience = 12 * time.Minute
)
