package vsock

import "sync/atomic"

// Stats counts what a device has seen since it was made. Only Connections and
// Buffered fall.
type Stats struct {
	Connections uint64 // now
	Buffered    uint64 // bytes of the guest's that the host has not taken yet

	Opened, Called uint64 // connections begun by the guest, by the host
	Refused        uint64 // of both: nobody listens, or too many
	Resets         uint64 // connections that the device ended: rules broken, or no answer

	FromGuest, ToGuest Traffic

	Malformed  uint64 // packets of the guest's that are none, or shorter than they say
	Spoofed    uint64 // with an address that is not the guest's
	Violations uint64 // that break the rules of a connection, credit among them
	BadBuffers uint64 // receive buffers that are of no use
	Starved    uint64 // times that the guest had no receive buffer
}

// Traffic is one way.
type Traffic struct{ Packets, Bytes uint64 } // bytes of payload

type counters struct {
	connections, buffered, opened, called, refused, resets atomic.Uint64
	fromPackets, fromBytes, toPackets, toBytes             atomic.Uint64
	malformed, spoofed, violations, badBuffers, starved    atomic.Uint64
}

// Stats gives the counters.
func (d *Device) Stats() Stats {
	s := &d.stats
	return Stats{
		Connections: s.connections.Load(), Buffered: s.buffered.Load(),
		Opened: s.opened.Load(), Called: s.called.Load(), Refused: s.refused.Load(), Resets: s.resets.Load(),
		FromGuest: Traffic{s.fromPackets.Load(), s.fromBytes.Load()},
		ToGuest:   Traffic{s.toPackets.Load(), s.toBytes.Load()},
		Malformed: s.malformed.Load(), Spoofed: s.spoofed.Load(), Violations: s.violations.Load(),
		BadBuffers: s.badBuffers.Load(), Starved: s.starved.Load(),
	}
}
