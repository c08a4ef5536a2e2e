package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDatagram is the largest UDP payload, in bytes: the length field of
	// RFC 768 less the header, as IPv6 has it.
	maxDatagram = 65535 - 8
	// maxControl has room for the one control message that is asked for.
	maxControl = 64
	// dialFlow bounds the opening of a flow: nothing is sent for it.
	dialFlow = time.Second
	// readPause is how long a socket that cannot be read rests, as Accept does.
	readPause = acceptPause
)

// wantDestination has a socket that is bound to every address of the host tell
// which of them a datagram was sent to: the reply has to come from there.
func wantDestination(a netip.Addr) func(string, string, syscall.RawConn) error {
	if !a.IsUnspecified() {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		e := c.Control(func(fd uintptr) {
			if a.Is4() {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		})
		return errors.Join(e, err)
	}
}

// client is whom a datagram is from, and which of the host's addresses it was
// sent to, as the control message that has a reply leave from there.
type client struct {
	from    netip.AddrPort
	foreign string // an address that is no IP's, of a caller's own socket
	info    [maxControl]byte
	infoLen int
}

// flows is the table of a socket's clients.
type flows struct {
	relay *relay
	port  *port
	conn  net.PacketConn

	mu sync.Mutex // guards m; the flows leave it from goroutines of their own
	m  map[client]*flow
}

// flow is one client's way into the guest.
type flow struct {
	client client
	addr   net.Addr // the client's, where conn is not a UDPConn
	guest  net.Conn
	used   atomic.Int64 // when a datagram last went either way, a Duration since the relay began
}

// datagrams relays what arrives at a socket until it is closed.
func (r *relay) datagrams(p *port, c net.PacketConn) error {
	f := &flows{relay: r, port: p, conn: c, m: map[client]*flow{}}
	buf := make([]byte, maxDatagram)
	for {
		n, cl, addr, err := f.read(buf)
		if err != nil {
			// Errors of a socket without a peer are another datagram's, ours that
			// could not be delivered, or of memory; the end of it is ErrClosed.
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			var sys syscall.Errno
			if !errors.As(err, &sys) {
				return fmt.Errorf("publish %v: %w", p.spec, err)
			}
			if !r.sleep(r.ctx, readPause, nil) {
				return nil
			}
			continue
		}
		fl := f.flow(cl, addr)
		if fl == nil {
			p.counts.dropped.Add(1)
			continue
		}
		fl.used.Store(int64(time.Since(r.began)))
		p.counts.toGuest.Add(int64(n)) // before an answer to it can be counted
		if _, err := fl.guest.Write(buf[:n]); err != nil {
			p.counts.toGuest.Add(-int64(n))
			p.counts.dropped.Add(1)
		}
	}
}

// read takes a datagram and says whom it is from.
func (f *flows) read(buf []byte) (n int, cl client, addr net.Addr, err error) {
	u, ok := f.conn.(*net.UDPConn)
	if !ok {
		n, addr, err = f.conn.ReadFrom(buf)
		if err == nil {
			cl.foreign = addr.String()
		}
		return n, cl, addr, err
	}
	var oob [maxControl]byte
	n, oobn, _, from, err := u.ReadMsgUDPAddrPort(buf, oob[:])
	cl.from = from
	cl.infoLen = copy(cl.info[:], replyFrom(oob[:oobn]))
	return n, cl, nil, err
}

// replyFrom makes the control message for a reply from that of a datagram: the
// address is the same, the way is the routing table's to choose, except where a
// link-local address says nothing without its link (ip(7), RFC 3542 §6.1).
func replyFrom(oob []byte) []byte {
	if len(oob) == 0 {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ipi_ifindex, ipi_spec_dst (where it arrived, never a group's address), ipi_addr
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:8])})
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			a := netip.AddrFrom16([16]byte(m.Data[:16]))
			if a.IsMulticast() {
				return nil
			}
			info := unix.Inet6Pktinfo{Addr: a.As16()}
			if a.IsLinkLocalUnicast() {
				info.Ifindex = uint32(m.Data[16]) | uint32(m.Data[17])<<8 | uint32(m.Data[18])<<16 | uint32(m.Data[19])<<24
			}
			return unix.PktInfo6(&info)
		}
	}
	return nil
}

// flow gives the client's flow, a new one if need be, or nil where there is no
// room for it or no way.
func (f *flows) flow(cl client, addr net.Addr) *flow {
	f.mu.Lock()
	fl := f.m[cl]
	f.mu.Unlock()
	if fl != nil {
		return fl
	}
	p, r := f.port, f.relay
	if int(p.flows.Add(1)) > r.config.MaxFlows {
		p.flows.Add(-1)
		return nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, dialFlow)
	defer cancel()
	guest, err := r.dial(ctx, p)
	if err != nil {
		p.flows.Add(-1)
		p.counts.refused.Add(1)
		return nil
	}
	fl = &flow{client: cl, addr: addr, guest: guest}
	fl.used.Store(int64(time.Since(r.began)))
	f.mu.Lock()
	f.m[cl] = fl
	f.mu.Unlock()
	p.counts.accepted.Add(1)
	p.counts.open.Add(1)
	r.conns.Go(func() {
		defer context.AfterFunc(r.ctx, func() { _ = guest.Close() })()
		f.replies(fl)
		f.mu.Lock()
		delete(f.m, cl)
		f.mu.Unlock()
		_ = guest.Close()
		p.flows.Add(-1)
		p.counts.open.Add(-1)
	})
	return fl
}

// replies passes on what the guest answers, until the flow has been idle or the
// guest's side fails, as when it says that nobody is there: the client's next
// datagram makes a new flow.
func (f *flows) replies(fl *flow) {
	big, _ := f.relay.big.Get().(*[bigBuffer]byte)
	if big == nil {
		big = new([bigBuffer]byte)
	}
	defer f.relay.big.Put(big)
	r, idle := f.relay, f.relay.config.Idle
	for {
		if err := fl.guest.SetReadDeadline(r.began.Add(time.Duration(fl.used.Load()) + idle)); err != nil {
			return
		}
		n, err := fl.guest.Read(big[:])
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			if time.Since(r.began)-time.Duration(fl.used.Load()) < idle {
				continue // the client has sent meanwhile
			}
			return
		}
		if err != nil {
			return
		}
		fl.used.Store(int64(time.Since(r.began)))
		f.port.counts.fromGuest.Add(int64(n)) // before the client can look
		if f.write(big[:n], fl) != nil {
			f.port.counts.fromGuest.Add(-int64(n))
			f.port.counts.dropped.Add(1)
		}
	}
}

func (f *flows) write(b []byte, fl *flow) error {
	if u, ok := f.conn.(*net.UDPConn); ok {
		_, _, err := u.WriteMsgUDPAddrPort(b, fl.client.info[:fl.client.infoLen], fl.client.from)
		return err
	}
	_, err := f.conn.WriteTo(b, fl.addr)
	return err
}
