//go:build full

package relay_test

const shortSuite = false
