package demo

import (
	"hash/fnv"
	"testing"
)

// The sum does not depend on how a stream came in pieces, and does depend on
// every byte and on its place.
func TestStreamSum(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 9, 100, 65521*2 + 3} {
		p := make([]byte, size)
		FillStream(p, 0)
		var whole StreamSum
		whole.Write(p)
		for _, piece := range []int{1, 2, 3, 7, 8, 9, 1460} {
			var s StreamSum
			for rest := p; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
				if n, err := s.Write(rest[:min(piece, len(rest))]); n != min(piece, len(rest)) || err != nil {
					t.Fatal(n, err)
				}
			}
			if s.Sum64() != whole.Sum64() || s.Bytes() != uint64(size) {
				t.Errorf("%d bytes, %d at a time: %x, at once %x", size, piece, s.Sum64(), whole.Sum64())
			}
		}
		if size == 0 {
			if whole.Sum64() != fnv.New64a().Sum64() {
				t.Errorf("nothing has %x", whole.Sum64())
			}
			continue
		}
		p[size/2] ^= 1
		var other StreamSum
		other.Write(p)
		if other.Sum64() == whole.Sum64() {
			t.Errorf("%d bytes: a bit changes nothing", size)
		}
	}
}

// A stream's bytes are those of their place, wherever one begins.
func TestFillStream(t *testing.T) {
	p, q := make([]byte, 3*streamPeriod), make([]byte, 1000)
	FillStream(p, 0)
	for _, off := range []int{0, 1, 65000, 65520, 65521, 131000} {
		FillStream(q, uint64(off))
		if string(q) != string(p[off:off+len(q)]) {
			t.Errorf("from byte %d", off)
		}
	}
}
