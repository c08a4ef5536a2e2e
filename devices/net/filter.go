package net

import (
	"encoding/binary"
	"slices"
)

// maxAddrs bounds each of the two address tables of the receive filter. A driver
// that lists more gets all of that kind: the filter may be imprecise (VirtIO 1.2
// §5.1.6.5.2), and so need not be large.
const maxAddrs = 64

// macAddr is an Ethernet address in the low 48 bits, its first byte the highest.
type macAddr uint64

const (
	broadcast macAddr = 0xffff_ffff_ffff
	groupBit  macAddr = 1 << 40 // I/G of the first byte (IEEE 802 §8.2)
)

func macOf(b []byte) macAddr {
	return macAddr(binary.BigEndian.Uint16(b))<<32 | macAddr(binary.BigEndian.Uint32(b[2:]))
}

func (m macAddr) bytes() (b [6]byte) {
	binary.BigEndian.PutUint16(b[:], uint16(m>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(m))
	return b
}

// unicast says whether an interface can have this address.
func (m macAddr) unicast() bool { return m != 0 && m&groupBit == 0 && m <= broadcast }

// filter is what the driver wants to receive (VirtIO 1.2 §5.1.6.5.1, §5.1.6.5.2).
type filter struct {
	promisc, allMulti bool
	uni, multi        table
}

// table is one list of addresses; all says that it had too many.
type table struct {
	all   bool
	addrs []macAddr // capacity maxAddrs, kept
}

func (t *table) has(m macAddr) bool { return t.all || slices.Contains(t.addrs, m) }

func (t *table) reset() { t.all, t.addrs = false, t.addrs[:0] }

func (f *filter) reset() {
	f.promisc, f.allMulti = false, false
	f.uni.reset()
	f.multi.reset()
}

// wants says whether a frame to dst is for an interface with the address own. The
// two lists are one: a driver may file an address under either.
func (f *filter) wants(dst, own macAddr) bool {
	switch {
	case dst == own, dst == broadcast, f.promisc:
		return true
	case dst&groupBit != 0 && f.allMulti:
		return true
	case dst&groupBit != 0:
		return f.multi.has(dst) || slices.Contains(f.uni.addrs, dst)
	}
	return f.uni.has(dst) || slices.Contains(f.multi.addrs, dst)
}
