//go:build full

package main_test

const many = 20_000
