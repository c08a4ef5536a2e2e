package blk

import (
	"math/bits"
	"sync/atomic"
	"time"
)

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

// counters are written by the worker alone; they have cache lines of their own, so
// that whoever reads them costs a request nothing but that.
type counters struct {
	_     [64]byte
	kinds [numKinds]struct {
		requests, bytes, errors, nanoseconds atomic.Uint64
		took                                 [LatencyBuckets]atomic.Uint64
	}

	malformed, unsupported atomic.Uint64
	_                      [64]byte
}

// Latencies are counted in buckets that double: bucket i has what took less than
// LatencyLimit(i) and did not fit the one before, the last one all the rest.
const (
	LatencyBuckets = 24      // up to 4 s, and one for what took longer
	firstBucket    = 1 << 10 // nanoseconds; about what the least request takes
)

// LatencyLimit is the upper end of a bucket; 0 for the last, which has none.
func LatencyLimit(i int) time.Duration {
	if i >= LatencyBuckets-1 {
		return 0
	}
	return firstBucket << i
}

func bucketOf(d time.Duration) int {
	return min(bits.Len64(uint64(max(d, 0))/firstBucket), LatencyBuckets-1)
}

// Count is what was asked of a disk in one way.
type Count struct {
	Requests uint64 // well-formed ones, failed or not
	Bytes    uint64 // of those that succeeded
	Errors   uint64 // the host's failures
}

// Latency is how long the well-formed requests of one kind took, from the ring to
// their end: all together, and counted by how long each took (LatencyLimit).
type Latency struct {
	Total time.Duration
	Took  [LatencyBuckets]uint64
}

// Latencies are those of each kind since the device was made.
type Latencies struct{ Read, Write, Flush, Discard, WriteZeroes Latency }

// Latencies reads the counters, as Stats does.
func (d *Device) Latencies() Latencies {
	get := func(k kind) Latency {
		c := &d.stats.kinds[k]
		out := Latency{Total: time.Duration(c.nanoseconds.Load())}
		for i := range out.Took {
			out.Took[i] = c.took[i].Load()
		}
		return out
	}
	return Latencies{get(kindRead), get(kindWrite), get(kindFlush), get(kindDiscard), get(kindZeroes)}
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
