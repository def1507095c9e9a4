//go:build !full

package main_test

// many is enough to be interrupted in the middle.
const many = 5_000
