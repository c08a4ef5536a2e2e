package netstack

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Flow is a connection, or an exchange of datagrams or pings, as the guest sees it.
type Flow struct {
	// Proto is "tcp", "udp" or "icmp" (echo, of both families).
	Proto string
	// Guest is the guest's end; of an echo flow the port is the identifier.
	Guest netip.AddrPort
	// Peer is the other end in the guest's terms: the gateway where the host is
	// behind it. The port of an echo flow is 0.
	Peer netip.AddrPort
	// Inbound is one that the host began: a published port, DialContext.
	Inbound bool
	// Sent and Received are the bytes of payload that the guest sent and that were
	// taken for it, by now; of pings with the 8 bytes before it (RFC 792).
	Sent, Received uint64
	Since          time.Time
}

// Flows gives what is open now, at most so many, the newest first.
func (s *Stack) Flows(max int) []Flow {
	if max <= 0 {
		return nil
	}
	all := s.udp.list(s.conns.list(nil))
	slices.SortFunc(all, func(a, b Flow) int { return b.Since.Compare(a.Since) })
	return slices.Clip(all[:min(len(all), max)])
}

// connTable has the connections inside the stack that are not closed.
type connTable struct {
	mu  sync.Mutex
	all map[*conn]struct{}
}

func (t *connTable) add(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[*conn]struct{}{}
	}
	t.all[c] = struct{}{}
}

func (t *connTable) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, c)
}

func (t *connTable) list(to []Flow) []Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.all {
		to = append(to, Flow{
			Proto: c.network, Guest: addrPortOf(c.remote), Peer: addrPortOf(c.local), Inbound: c.inbound,
			Sent: c.sent.Load(), Received: c.got.Load(), Since: c.began,
		})
	}
	return to
}

func (t *flowTable) list(to []Flow) []Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.flows {
		proto := "udp"
		if f.key.proto != protoUDP {
			proto = "icmp"
		}
		to = append(to, Flow{
			Proto: proto, Guest: f.key.src, Peer: f.key.dst,
			Sent: f.sent.Load(), Received: f.got.Load(), Since: f.began,
		})
	}
	return to
}

// addrPortOf is an address of netAddr's making; none where there was none.
func addrPortOf(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
