// Package chaos
package chaos
