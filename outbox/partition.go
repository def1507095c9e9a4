package outbox

import (
	"encoding/binary"
	"math/bits"
)

// PartitionOf is the partition of a key, as outbox.partition_of has it in the database:
// mod(hashtextextended(key, 0) & 4611686018427387903, 4), for a server with little-endian byte order.
func PartitionOf(key string) int { return int(hashText(key) & (1<<62 - 1) % Partitions) }

// hashText is PostgreSQL's hashtextextended with seed 0: Bob Jenkins' lookup3 (burtleburtle.net/bob/c/lookup3.c) with
// another start, and 64 bits of its state.
func hashText(text string) uint64 {
	k := []byte(text)
	start := 0x9e3779b9 + uint32(len(k)) + 3923095
	a, b, c := start, start, start
	for ; len(k) >= 12; k = k[12:] {
		a, b, c = a+binary.LittleEndian.Uint32(k), b+binary.LittleEndian.Uint32(k[4:]), c+binary.LittleEndian.Uint32(k[8:])
		a, b, c = mix(a, b, c)
	}
	var last [12]byte // of what is left, the last word begins at its second byte
	if len(k) > 8 {
		copy(last[9:], k[8:])
		k = k[:8]
	}
	copy(last[:8], k)
	a, b, c = a+binary.LittleEndian.Uint32(last[:]), b+binary.LittleEndian.Uint32(last[4:]), c+binary.LittleEndian.Uint32(last[8:])
	b, c = final(a, b, c)
	return uint64(b)<<32 | uint64(c)
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a, c = (a-c)^bits.RotateLeft32(c, 4), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 6), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 8), b+a
	a, c = (a-c)^bits.RotateLeft32(c, 16), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 19), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 4), b+a
	return a, b, c
}

func final(a, b, c uint32) (uint32, uint32) {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	c = (c ^ b) - bits.RotateLeft32(b, 24)
	return b, c
}
