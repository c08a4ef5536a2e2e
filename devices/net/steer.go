package net

import (
	"encoding/binary"
	"sync/atomic"
)

const (
	// flows is the size of the steering table. Flows that share an entry share
	// a pair: that costs order nothing and balance little.
	flows = 1 << 10

	// flowPeek is how much of a frame names its flow, in bytes: an Ethernet
	// header with a tag, an IPv4 header with all its options, and two ports.
	flowPeek = etherHeader + vlanTag + 60 + 4
)

// steering remembers the pair that each flow was last sent on (VirtIO 1.2
// §5.1.6.5.6, automatic receive steering). Transmit queues write it and the
// receive side reads it without a lock: an entry is a word.
type steering [flows]atomic.Uint32

func (s *steering) learn(frame []byte, pair uint32) {
	// Most frames find their entry right: a load keeps the line shared.
	if e := &s[flowHash(frame)%flows]; e.Load() != pair {
		e.Store(pair)
	}
}

func (s *steering) pair(frame []byte) uint32 { return s[flowHash(frame)%flows].Load() }

func (s *steering) forget() {
	for i := range s {
		s[i].Store(0)
	}
}

// flowHash gives the same number for both directions of a flow: of the addresses
// and, for whole TCP and UDP packets, the ports. What is not IP is one flow.
func flowHash(p []byte) uint64 {
	if len(p) < etherHeader {
		return 0
	}
	be := binary.BigEndian
	typ, p := be.Uint16(p[12:]), p[etherHeader:]
	if (typ == 0x8100 || typ == 0x88a8) && len(p) >= vlanTag {
		typ, p = be.Uint16(p[2:]), p[vlanTag:]
	}
	var src, dst uint64
	var proto byte
	switch {
	case typ == 0x0800 && len(p) >= 20: // RFC 791 §3.1
		src, dst = uint64(be.Uint32(p[12:])), uint64(be.Uint32(p[16:]))
		if be.Uint16(p[6:])&0x3fff == 0 { // no fragment: all have the ports, or none
			proto = p[9]
		}
		p = p[min(int(p[0]&15)*4, len(p)):]
	case typ == 0x86dd && len(p) >= 40: // RFC 8200 §3
		src = be.Uint64(p[8:])*31 + be.Uint64(p[16:])
		dst = be.Uint64(p[24:])*31 + be.Uint64(p[32:])
		proto, p = p[6], p[40:]
	default:
		return 0
	}
	if (proto == 6 || proto == 17) && len(p) >= 4 {
		src = mix(src) + uint64(be.Uint16(p))
		dst = mix(dst) + uint64(be.Uint16(p[2:]))
	}
	return mix(mix(src) + mix(dst)) // a sum: it has no direction
}

// mix spreads a number over all bits: the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
