//go:build !full

package relay_test

// shortSuite runs Watermill's suite with fewer messages; the build tag "full" with all.
const shortSuite = true
