package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/smolvmm/smolvmm/netstack/audit"
	"github.com/smolvmm/smolvmm/netstack/policy"
)

const dnsPort = 53

// target is where a packet of the guest's goes, in the host's terms.
type target struct {
	addr  string   // for Dial
	proto string   // "tcp", "udp"
	names []string // what TLS must name (policy.Decision.CheckSNI)
	rule  policy.Decision
	dns   bool // our own name server
}

// resolve says where a destination of the guest's is: denied is why the policy
// has it closed; !ok, without that, that nobody listens there.
func (s *Stack) resolve(proto string, dst netip.AddrPort) (t target, denied string, ok bool) {
	t.proto = proto
	if s.isOurs(dst.Addr()) {
		if dst.Port() == dnsPort && s.cfg.NameServer != nil && !s.cfg.HostOnly {
			t.dns = true
			return t, "", true
		}
		if (dst.Addr() == s.cfg.Gateway || dst.Addr() == s.gateway6) && s.isHostService(dst.Port()) {
			host := "127.0.0.1"
			if dst.Addr().Is6() {
				host = "::1"
			}
			t.addr = net.JoinHostPort(host, strconv.Itoa(int(dst.Port())))
			return t, "", true
		}
		return t, "", false
	}
	if s.place(dst.Addr()) != placeWorld || s.cfg.HostOnly { // the filter has seen to it; this is what must never fail
		return t, "", false
	}
	t.rule = s.cfg.Policy.Decide(proto, dst)
	if !t.rule.Allow {
		s.deny(proto, dst, t.rule)
		return t, t.rule.Reason, false
	}
	t.names = t.rule.CheckSNI
	t.addr = dst.String()
	return t, "", true
}

func (s *Stack) isHostService(port uint16) bool {
	for _, p := range s.cfg.HostServices {
		if p == port {
			return true
		}
	}
	return false
}

// deny counts a denial and tells the audit log.
func (s *Stack) deny(proto string, dst netip.AddrPort, d policy.Decision) {
	s.stats.denied.Add(1)
	if s.cfg.Audit != nil {
		s.cfg.Audit(audit.Event{
			Event: audit.EgressDenied, Name: d.Name, Address: dst.Addr().String(), Port: dst.Port(),
			Proto: proto, Reason: d.Reason,
		})
	}
}

// tcpForwarder makes the guest's connections to the world: it connects first,
// and only then lets the guest's handshake complete, so that the guest learns
// what the world said.
type tcpForwarder struct {
	gvisor *tcp.Forwarder

	mu       sync.Mutex
	attempts map[stack.TransportEndpointID]*attempt
	open     int // attempts and connections, against Limits.Connections
}

// attempt is a SYN that is being dealt with.
type attempt struct {
	proto  tcpip.NetworkProtocolNumber
	quote  []byte
	target target
	dst    netip.AddrPort
}

func (f *tcpForwarder) init(s *Stack) {
	f.attempts = map[stack.TransportEndpointID]*attempt{}
	// gVisor's own bound on attempts drops silently: ours comes first.
	f.gvisor = tcp.NewForwarder(s.stack, bufDefault, s.cfg.Limits.Handshakes+1, s.connect)
}

// handleTCP gets segments that no connection inside the stack is there for. What
// it returns false for is reset by gVisor.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
	if flags&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	f := &s.tcp
	f.mu.Lock()
	if _, known := f.attempts[id]; known { // sent again: the answer is under way
		f.mu.Unlock()
		return true
	}
	if len(f.attempts) >= s.cfg.Limits.Handshakes || f.open >= s.cfg.Limits.Connections {
		f.mu.Unlock()
		s.stats.overLimit.Add(1)
		return false
	}
	f.mu.Unlock()

	dst := addrPort(id.LocalAddress, id.LocalPort)
	t, _, ok := s.resolve("tcp", dst)
	if !ok || !s.enter() {
		return false
	}
	a := &attempt{proto: pkt.NetworkProtocolNumber, quote: quotePacket(pkt), target: t, dst: dst}
	f.mu.Lock()
	if _, known := f.attempts[id]; known { // by another queue's Send meanwhile
		f.mu.Unlock()
		s.wg.Done()
		return true
	}
	f.attempts[id] = a
	f.open++
	f.mu.Unlock()
	if !f.gvisor.HandlePacket(id, pkt) { // a bad checksum
		f.settled(id)
		f.ended()
		s.wg.Done()
		s.stats.guestBad.Add(1)
		return true
	}
	return true
}

// settled removes an attempt; the connection counts until ended.
func (f *tcpForwarder) settled(id stack.TransportEndpointID) *attempt {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.attempts[id]
	delete(f.attempts, id)
	return a
}

func (f *tcpForwarder) ended() {
	f.mu.Lock()
	f.open--
	f.mu.Unlock()
}

// count is how many connections there are.
func (f *tcpForwarder) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// connect is the life of one connection, in a goroutine of gVisor's making.
func (s *Stack) connect(req *tcp.ForwarderRequest) {
	defer s.wg.Done()
	defer s.tcp.ended()
	id := req.ID()
	s.tcp.mu.Lock()
	a := s.tcp.attempts[id]
	s.tcp.mu.Unlock()

	var host net.Conn
	if !a.target.dns {
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Limits.DialTimeout)
		c, err := s.cfg.Dial(ctx, "tcp", a.target.addr)
		cancel()
		if err != nil {
			req.Complete(s.refuse(a, err))
			s.tcp.settled(id)
			return
		}
		host = c
	}
	wq := new(waiter.Queue)
	var ep tcpip.Endpoint
	var terr tcpip.Error = &tcpip.ErrAborted{}
	if !s.isClosed() {
		ep, terr = req.CreateEndpoint(wq)
	}
	req.Complete(false)
	s.tcp.settled(id)
	if terr != nil { // the guest did not go through with it
		if host != nil {
			abort(host)
		}
		return
	}
	s.tuneConn(ep)
	guest := s.newConn("tcp", ep, wq, false)
	s.stats.connectionsTotal.Add(1)
	s.stats.connections.Add(1)
	defer s.stats.connections.Add(-1)
	if a.target.dns {
		s.serveDNS(guest)
		return
	}
	s.relay(guest, host, a)
}

// refuse passes on to the guest why the world was not reached; reset says that it
// is by RST.
func (s *Stack) refuse(a *attempt, err error) (reset bool) {
	if why, ok := whyUnreachable(err); ok {
		s.stats.unreachable.Add(1)
		s.unreachable(a.proto, a.quote, why)
		return false
	}
	switch {
	case s.isClosed():
		return false
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		s.stats.refused.Add(1)
		return true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		s.stats.timedOut.Add(1)
		return false
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		s.stats.overLimit.Add(1)
		s.cfg.Log.Warn("the host has nothing left for a connection of the guest's", "to", a.dst, "err", err)
		return true
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		s.stats.timedOut.Add(1)
		return false
	}
	s.stats.refused.Add(1)
	s.cfg.Log.Debug("connection not made", "to", a.dst, "err", err)
	return true
}

// abort closes a connection with RST, where it knows how.
func abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// dnsIdle is how long a connection to the name server may say nothing (RFC 7766 §6.2.3).
const dnsIdle = 10 * time.Second

// serveDNS answers queries on one connection, in their order (RFC 1035 §4.2.2).
func (s *Stack) serveDNS(c *conn) {
	defer c.Close()
	stop := context.AfterFunc(s.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var length [2]byte
	for s.ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(dnsIdle))
		if readFull(c, length[:]) != nil {
			return
		}
		query := make([]byte, int(length[0])<<8|int(length[1]))
		if readFull(c, query) != nil {
			return
		}
		s.stats.dnsQueries.Add(1)
		answer := s.cfg.NameServer.Answer(s.ctx, query, true)
		if answer == nil || len(answer) > 65535 {
			return
		}
		out := append([]byte{byte(len(answer) >> 8), byte(len(answer))}, answer...)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

func readFull(c net.Conn, b []byte) error {
	for len(b) > 0 {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
