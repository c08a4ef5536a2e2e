package demo

import "encoding/binary"

// streamPeriod is after how many bytes the guest's TCP stream begins anew: a
// prime, so that bytes that are missing or twice there show.
const streamPeriod = 65521

// FillStream fills p with what the guest sends over TCP from byte off of its
// stream on.
func FillStream(p []byte, off uint64) {
	for i := range p {
		j := (off + uint64(i)) % streamPeriod
		p[i] = byte(j*167 + j>>8*13 + 7)
	}
}

// FNV-1a's numbers for 64 bits.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// StreamSum computes the sum= that the guest reports of a TCP stream: FNV-1a
// over little-endian words of 64 bits, the last one filled up with zeroes. The
// zero value is ready; it is an io.Writer.
type StreamSum struct {
	hash uint64 // exclusive-or of the sum and fnvOffset, so that zero is a start
	word [8]byte
	n    uint64
}

// Write adds bytes. It does not fail.
func (s *StreamSum) Write(p []byte) (int, error) {
	h, n := s.hash^fnvOffset, len(p)
	if have := int(s.n & 7); have != 0 {
		took := copy(s.word[have:], p)
		p = p[took:]
		if have+took == 8 {
			h = (h ^ binary.LittleEndian.Uint64(s.word[:])) * fnvPrime
		}
	}
	if len(p) > 0 || (s.n+uint64(n))&7 == 0 {
		for ; len(p) >= 8; p = p[8:] {
			h = (h ^ binary.LittleEndian.Uint64(p)) * fnvPrime
		}
		clear(s.word[copy(s.word[:], p):])
	}
	s.hash = h ^ fnvOffset
	s.n += uint64(n)
	return n, nil
}

// Bytes is how many bytes were added.
func (s *StreamSum) Bytes() uint64 { return s.n }

// Sum64 is the sum of all bytes so far.
func (s *StreamSum) Sum64() uint64 {
	h := s.hash ^ fnvOffset
	if s.n&7 != 0 {
		h = (h ^ binary.LittleEndian.Uint64(s.word[:])) * fnvPrime
	}
	return h
}
