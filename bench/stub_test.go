package bench

import "testing"

func backlog(*testing.B, *Row)  {}
func latency(*testing.B, *Row)  {}
func writing(*testing.B, *Row)  {}
func whole(*testing.B, *Row)    {}
func fairness(*testing.B, *Row) {}
func size(*testing.B, *Row)     {}
func plotDrain(*Row) error      { return nil }
func plotLatency(*Row) error    { return nil }
