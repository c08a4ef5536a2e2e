package blk

import "sync/atomic"

type kind int

const (
	kindRead kind = iota
	kindWrite
	kindFlush
	kindDiscard
	kindZeroes
	kindGetID
	numKinds
)

func (k kind) String() string {
	return [numKinds]string{"read", "write", "flush", "discard", "write zeroes", "get ID"}[k]
}

type counters struct {
	kinds [numKinds]struct{ requests, bytes, errors atomic.Uint64 }

	malformed, unsupported atomic.Uint64
}

// Count is what was asked of a disk in one way.
type Count struct {
	Requests uint64 // well-formed ones, failed or not
	Bytes    uint64 // of those that succeeded
	Errors   uint64 // the host's failures
}

// Stats count since the device was made; a reset does not clear them.
type Stats struct {
	Read, Write, Flush, Discard, WriteZeroes, GetID Count

	Malformed   uint64 // answered with IOERR, or not at all where there was no room
	Unsupported uint64 // answered with UNSUPP
}

// Stats reads the counters. Safe at any time; each is exact, but they are not
// read at one instant.
func (d *Device) Stats() Stats {
	get := func(k kind) Count {
		c := &d.stats.kinds[k]
		return Count{c.requests.Load(), c.bytes.Load(), c.errors.Load()}
	}
	return Stats{
		Read: get(kindRead), Write: get(kindWrite), Flush: get(kindFlush), Discard: get(kindDiscard),
		WriteZeroes: get(kindZeroes), GetID: get(kindGetID),
		Malformed: d.stats.malformed.Load(), Unsupported: d.stats.unsupported.Load(),
	}
}
