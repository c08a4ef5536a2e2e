package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// PingSocket opens one of Linux's unprivileged echo sockets (socket(2) with
// SOCK_DGRAM and IPPROTO_ICMP), connected to dst. The kernel sets the identifier
// of what is written, and gives back answers to it only. The error is EACCES
// where net.ipv4.ping_group_range leaves the process out.
func PingSocket(_ context.Context, dst netip.Addr) (net.Conn, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr
	if dst.Is4() {
		sa = &unix.SockaddrInet4{Addr: dst.As4()}
	} else {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("echo socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "echo socket")
	defer f.Close() // FileConn has a duplicate
	if err := unix.Connect(fd, sa); err != nil {
		return nil, fmt.Errorf("echo socket to %v: %w", dst, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("echo socket: %w", err)
	}
	return c, nil
}

const echoHeaderLen = 8 // type, code, checksum, identifier, sequence (RFC 792, RFC 4443 §4.1)

// handleICMP4 gets ICMP messages, whole ones; an echo request that is not for the
// gateway goes out as one of the host's. gVisor answers none but its own.
func (s *Stack) handleICMP4(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	dst := addrPort(id.LocalAddress, 0).Addr()
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo || s.place(dst) != placeWorld || s.cfg.HostOnly {
		return true
	}
	if header.ICMPv4Checksum(h, pkt.Data().Checksum()) != h.Checksum() && !pkt.RXChecksumValidated {
		s.stats.guestBad.Add(1)
		return true
	}
	payload := pkt.Data().AsRange().ToSlice()
	s.echo(addrPort(id.RemoteAddress, 0).Addr(), dst, append(append([]byte(nil), h...), payload...), quotePacket(pkt))
	return true
}

// echo carries one echo request, from its type on, to the world. quote is the
// packet or its beginning.
func (s *Stack) echo(src, dst netip.Addr, m, quote []byte) {
	if len(m) < echoHeaderLen || len(m) > maxDatagram {
		s.stats.guestBad.Add(1)
		return
	}
	key := flowKey{
		proto: protoICMPv6,
		src:   netip.AddrPortFrom(src, binary.BigEndian.Uint16(m[4:])),
		dst:   netip.AddrPortFrom(dst, 0),
	}
	f := s.udp.lookup(key)
	if f == nil {
		if d := s.cfg.Policy.Decide("icmp", key.dst); !d.Allow {
			s.deny("icmp", key.dst, d)
			s.unreachable(protocolOf(dst), quote, unreachAdmin)
			return
		}
		if f = s.udp.open(key, "", echoIdle); f == nil {
			return
		}
	}
	f.last.Store(time.Now().UnixNano())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quote = append(f.quote[:0], quote[:min(len(quote), maxQuote)]...)
	f.write(m, false)
}

// deliverEcho passes an echo reply on, with the guest's own identifier.
func (s *Stack) deliverEcho(f *flow, from, to tcpip.Address, m []byte) {
	want := byte(header.ICMPv4EchoReply)
	if from.Len() == header.IPv6AddressSize {
		want = byte(header.ICMPv6EchoReply)
	}
	if len(m) < echoHeaderLen || m[0] != want {
		return
	}
	s.replyEcho(from, to, f.key.src.Port(), want, m)
}

// replyEcho sends the guest an echo reply of a type, with the sequence number and
// data of m.
func (s *Stack) replyEcho(from, to tcpip.Address, id uint16, typ byte, m []byte) {
	proto := header.IPv4ProtocolNumber
	if from.Len() == header.IPv6AddressSize {
		proto = header.IPv6ProtocolNumber
	}
	s.sendICMP(from, to, proto, append([]byte(nil), m[echoHeaderLen:]...), echoHeaderLen, func(h []byte) {
		h[0] = typ
		binary.BigEndian.PutUint16(h[4:], id)
		copy(h[6:8], m[6:8])
	})
}
