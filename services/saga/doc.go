// Package saga leads bookings through their process where nobody else does: the coordinator of the orchestration style.
package saga
