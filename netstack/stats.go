package netstack

import "sync/atomic"

// Stats are counters since New, and what is open now.
type Stats struct {
	GuestFrames, GuestBytes uint64 // of the guest's, taken by Send
	HostFrames, HostBytes   uint64 // for the guest, queued

	HostDropped uint64 // frames for the guest that its queue had no room for
	GuestBad    uint64 // frames of the guest's that were malformed, too large or of no known kind
	Spoofed     uint64 // frames whose source is not the guest's to use
	TooBig      uint64 // packets larger than the MTU of the link or of the path
	Unroutable  uint64 // packets to where no guest may send: loopback, multicast, the subnet itself
	Denied      uint64 // connections and packets that the policy refused

	Connections      int    // TCP connections relayed now
	ConnectionsTotal uint64 // made since New
	Refused          uint64 // by the destination, and passed on
	Unreachable      uint64 // destinations that the host cannot reach
	TimedOut         uint64 // destinations that did not answer
	OverLimit        uint64 // connections reset and datagrams dropped because a limit was reached

	Flows      int    // UDP and echo flows now
	FlowsTotal uint64 // since New
	Expired    uint64 // flows ended as idle, or for newer ones
	FlowDrops  uint64 // datagrams dropped because the host's socket took no more

	PingForbidden uint64 // echo requests not sent because the host forbids them (net.ipv4.ping_group_range)
	DHCP          uint64 // messages answered
	DNSQueries    uint64
}

type counters struct {
	guestFrames, guestBytes, hostFrames, hostBytes             atomic.Uint64
	hostDropped, guestBad, spoofed, unroutable, denied, tooBig atomic.Uint64
	connectionsTotal, refused, unreachable, timedOut           atomic.Uint64
	overLimit, flowsTotal, expired, flowDrops                  atomic.Uint64
	pingForbidden, dhcp, dnsQueries                            atomic.Uint64
	connections, flows                                         atomic.Int64
}

func (c *counters) snapshot() Stats {
	return Stats{
		GuestFrames: c.guestFrames.Load(), GuestBytes: c.guestBytes.Load(),
		HostFrames: c.hostFrames.Load(), HostBytes: c.hostBytes.Load(),
		HostDropped: c.hostDropped.Load(), GuestBad: c.guestBad.Load(), Spoofed: c.spoofed.Load(),
		Unroutable: c.unroutable.Load(), TooBig: c.tooBig.Load(), Denied: c.denied.Load(),
		Connections: int(c.connections.Load()), ConnectionsTotal: c.connectionsTotal.Load(),
		Refused: c.refused.Load(), Unreachable: c.unreachable.Load(), TimedOut: c.timedOut.Load(),
		OverLimit: c.overLimit.Load(),
		Flows:     int(c.flows.Load()), FlowsTotal: c.flowsTotal.Load(), Expired: c.expired.Load(),
		FlowDrops: c.flowDrops.Load(), PingForbidden: c.pingForbidden.Load(),
		DHCP: c.dhcp.Load(), DNSQueries: c.dnsQueries.Load(),
	}
}
