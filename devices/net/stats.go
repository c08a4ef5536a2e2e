package net

import "sync/atomic"

// counters are added to once a batch.
type counters struct {
	tx, rx struct{ frames, bytes, malformed, oversized, linkDown, throttled atomic.Uint64 }

	filtered, starved, padding atomic.Uint64
	badBuffers                 atomic.Uint64
	ctrlDone, ctrlRefused      atomic.Uint64

	queues [MaxQueuePairs]pairCounters
}

// pairCounters are one pair's, on cache lines that no other pair's worker writes.
type pairCounters struct {
	_                                    [64]byte
	txFrames, txBytes, rxFrames, rxBytes atomic.Uint64
}

// PairStats are what passed one pair of queues.
type PairStats struct{ TXFrames, TXBytes, RXFrames, RXBytes uint64 }

// PairStats reads the counters of each pair that was offered. They begin with the
// device.
func (d *Device) PairStats() []PairStats {
	out := make([]PairStats, d.pairs)
	for i := range out {
		c := &d.stats.queues[i]
		out[i] = PairStats{c.txFrames.Load(), c.txBytes.Load(), c.rxFrames.Load(), c.rxBytes.Load()}
	}
	return out
}

// Flow is what went one way.
type Flow struct {
	Frames uint64 // passed on
	Bytes  uint64 // of those, Ethernet headers included

	// Malformed were dropped: a header that asks for what was not negotiated,
	// or a frame that is none.
	Malformed uint64
	// Oversized were dropped: longer than the MTU allows or, to the guest,
	// than the buffers that it posts.
	Oversized uint64
	LinkDown  uint64 // dropped, as the link was down or the driver gone
	Throttled uint64 // waits for the rate limit: nothing was dropped
}

// Stats count since the device was made; a reset does not clear them.
type Stats struct {
	TX Flow // from the guest
	RX Flow // to the guest

	Filtered   uint64 // to the guest, dropped: not for an address it listens to
	Starved    uint64 // waits for the guest to post buffers
	BadBuffers uint64 // receive buffers given back: too small for a header, or not to be written
	Padding    uint64 // frames made up to give a buffer back for a pause

	Commands uint64 // of the control queue, obeyed
	Refused  uint64 // of the control queue, answered with an error
}

// Stats reads the counters. Safe at any time; each is exact up to the batch
// under way, but they are not read at one instant.
func (d *Device) Stats() Stats {
	s := &d.stats
	flow := func(tx bool) Flow {
		c := &s.rx
		if tx {
			c = &s.tx
		}
		return Flow{
			Frames: c.frames.Load(), Bytes: c.bytes.Load(), Malformed: c.malformed.Load(),
			Oversized: c.oversized.Load(), LinkDown: c.linkDown.Load(), Throttled: c.throttled.Load(),
		}
	}
	return Stats{
		TX: flow(true), RX: flow(false),
		Filtered: s.filtered.Load(), Starved: s.starved.Load(), BadBuffers: s.badBuffers.Load(), Padding: s.padding.Load(),
		Commands: s.ctrlDone.Load(), Refused: s.ctrlRefused.Load(),
	}
}
