package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
)

// DHCP for IPv4 (RFC 2131, options RFC 2132), as Ethernet frames: before an
// interface has an address only a packet filter gets broadcasts through it.

// mac is an Ethernet address.
type mac [6]byte

// The message's type, option 53 (RFC 2132 §9.6).
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6
)

// Options that are asked for or read (RFC 2132; 119: RFC 3397).
const (
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostname  = 12
	optDomain    = 15
	optMTU       = 26
	optRequested = 50
	optOverload  = 52
	optType      = 53
	optServer    = 54
	optList      = 55
	optMaxSize   = 57
	optSearch    = 119
	optPad       = 0
	optEnd       = 255
)

const (
	ethHeader  = 14
	ipHeader   = 20
	udpHeader  = 8
	bootpFixed = 236 // RFC 2131 §2: up to the options
	bootpMin   = 300 // RFC 1542 §2.1: what a relay may ask for at least
	typeIPv4   = 0x0800
	typeIPv6   = 0x86dd
	protoUDP   = 17
	portServer = 67
	portClient = 68
)

var (
	dhcpCookie   = [4]byte{99, 130, 83, 99} // RFC 2131 §3
	macBroadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	errNotOurs   = errors.New("not for this client")
)

// dhcpAsk is a message to the servers.
type dhcpAsk struct {
	kind      byte // dhcpDiscover or dhcpRequest
	xid       uint32
	from      mac
	secs      uint16     // since the client began
	requested netip.Addr // dhcpRequest: the address offered
	server    netip.Addr // dhcpRequest: who offered it
	hostname  string     // the client's own, where it has one
}

// frame is the message in an Ethernet broadcast.
func (a *dhcpAsk) frame() []byte {
	p := make([]byte, bootpFixed, bootpMin)
	p[0], p[1], p[2] = 1, 1, 6 // BOOTREQUEST, Ethernet, 6 bytes of address
	binary.BigEndian.PutUint32(p[4:], a.xid)
	binary.BigEndian.PutUint16(p[8:], a.secs)
	copy(p[28:], a.from[:])
	p = append(p, dhcpCookie[:]...)
	p = append(p, optType, 1, a.kind)
	p = append(p, optMaxSize, 2, 1500>>8, 1500&0xff)
	p = append(p, optList, 7, optMask, optRouter, optDNS, optHostname, optDomain, optMTU, optSearch)
	if a.kind == dhcpRequest {
		requested, server := a.requested.As4(), a.server.As4()
		p = append(append(p, optRequested, 4), requested[:]...)
		p = append(append(p, optServer, 4), server[:]...)
	}
	if a.hostname != "" {
		p = append(append(p, optHostname, byte(len(a.hostname))), a.hostname...)
	}
	p = append(p, optEnd)
	for len(p) < bootpMin {
		p = append(p, optPad)
	}
	return udpFrame(a.from, macBroadcast, [4]byte{}, [4]byte{255, 255, 255, 255}, portClient, portServer, p)
}

// udpFrame puts a payload into UDP, IPv4 and Ethernet.
func udpFrame(from, to mac, src, dst [4]byte, srcPort, dstPort uint16, payload []byte) []byte {
	f := make([]byte, ethHeader+ipHeader+udpHeader+len(payload))
	copy(f, to[:])
	copy(f[6:], from[:])
	binary.BigEndian.PutUint16(f[12:], typeIPv4)
	ip := f[ethHeader:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8], ip[9] = 64, protoUDP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:ipHeader], 0))
	udp := ip[ipHeader:]
	binary.BigEndian.PutUint16(udp, srcPort)
	binary.BigEndian.PutUint16(udp[2:], dstPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpHeader:], payload)
	c := ^sum(udp, uint32(sum(ip[12:20], protoUDP+uint32(len(udp)))))
	if c == 0 {
		c = 0xffff // RFC 768: 0 stands for none
	}
	binary.BigEndian.PutUint16(udp[6:], c)
	return f
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte, start uint32) uint16 {
	s := uint64(start)
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// dhcpReply is what a server said.
type dhcpReply struct {
	kind   byte
	server netip.Addr
	setup
}

// dhcpPayload gives the DHCP message in a frame to the client's port.
func dhcpPayload(frame []byte) ([]byte, error) {
	if len(frame) < ethHeader+ipHeader+udpHeader || binary.BigEndian.Uint16(frame[12:]) != typeIPv4 {
		return nil, errNotOurs
	}
	ip := frame[ethHeader:]
	hlen, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || hlen < ipHeader || total < hlen+udpHeader || total > len(ip) || ip[9] != protoUDP ||
		binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // a fragment
		return nil, errNotOurs
	}
	udp := ip[hlen:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp) != portServer || binary.BigEndian.Uint16(udp[2:]) != portClient || length < udpHeader || length > len(udp) {
		return nil, errNotOurs
	}
	udp = udp[:length]
	if sum(ip[:hlen], 0) != 0xffff {
		return nil, errors.New("IPv4 header with a wrong checksum")
	}
	if binary.BigEndian.Uint16(udp[6:]) != 0 && sum(udp, uint32(sum(ip[12:20], protoUDP+uint32(length)))) != 0xffff {
		return nil, errors.New("UDP datagram with a wrong checksum")
	}
	return udp[udpHeader:], nil
}

// parseDHCP reads a server's message to this client. The bytes are the
// network's: what makes no sense is left out, and the message refused where
// nothing could be done with it.
func parseDHCP(p []byte, xid uint32, own mac) (r dhcpReply, err error) {
	if len(p) < bootpFixed+len(dhcpCookie) || p[0] != 2 || p[1] != 1 || p[2] != 6 || // BOOTREPLY
		binary.BigEndian.Uint32(p[4:]) != xid || !bytes.Equal(p[28:28+6], own[:]) || !bytes.Equal(p[bootpFixed:bootpFixed+4], dhcpCookie[:]) {
		return r, errNotOurs
	}
	opts := options{}
	opts.read(p[bootpFixed+len(dhcpCookie):])
	if o := opts[optOverload]; len(o) == 1 { // RFC 2132 §9.3: options where names were
		if o[0]&1 != 0 {
			opts.read(p[108:236])
		}
		if o[0]&2 != 0 {
			opts.read(p[44:108])
		}
	}
	if k := opts[optType]; len(k) == 1 {
		r.kind = k[0]
	}
	r.server = opts.address(optServer)
	switch r.kind {
	case dhcpNak:
		return r, nil
	case dhcpOffer, dhcpAck:
	default:
		return r, errNotOurs
	}
	yours := netip.AddrFrom4([4]byte(p[16:20]))
	if !usable(yours) {
		return r, errors.New("the server's answer has no usable address")
	}
	bits := maskBits(opts[optMask])
	if bits < 0 {
		return r, errors.New("the server's answer has no usable netmask")
	}
	r.Address = netip.PrefixFrom(yours, bits)
	if g := opts.address(optRouter); g.IsValid() && usable(g) && r.Address.Contains(g) && g != yours {
		r.Gateway = g
	}
	for b := opts[optDNS]; len(b) >= 4 && len(r.DNS) < maxServers; b = b[4:] {
		if a := netip.AddrFrom4([4]byte(b)); !a.IsUnspecified() && !a.IsMulticast() && a != broadcast {
			r.DNS = append(r.DNS, a)
		}
	}
	r.Search = searchList(opts[optSearch])
	if d := strings.TrimRight(string(opts[optDomain]), "\x00."); len(r.Search) == 0 && domainName(d) {
		r.Search = []string{d}
	}
	if h := strings.TrimRight(string(opts[optHostname]), "\x00"); h != "" && len(h) <= maxHostname && domainName(h) && !strings.Contains(h, "_") {
		r.Hostname = h
	}
	// Less than a host must take is a slip: RFC 2132 §5.1 has 68 for the least.
	if b := opts[optMTU]; len(b) == 2 {
		if m := int(binary.BigEndian.Uint16(b)); m >= minMTU {
			r.MTU = m
		}
	}
	return r, nil
}

// options are a message's, by code. One that is there again goes on (RFC 3396).
type options map[byte][]byte

func (o options) read(b []byte) {
	for len(b) > 0 {
		code := b[0]
		if code == optEnd {
			return
		}
		if code == optPad {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return
		}
		n := 2 + int(b[1])
		o[code] = append(o[code], b[2:n]...)
		b = b[n:]
	}
}

// address is the first address of an option, not valid where there is none.
func (o options) address(code byte) netip.Addr {
	if b := o[code]; len(b) >= 4 {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.Addr{}
}

// maskBits is the length of the prefix of a netmask, or -1: it must be ones and
// then zeroes, and leave room for a host.
func maskBits(b []byte) int {
	if len(b) != 4 {
		return -1
	}
	m := binary.BigEndian.Uint32(b)
	for bits := 1; bits <= 32; bits++ {
		if m == ^uint32(0)<<(32-bits) {
			return bits
		}
	}
	return -1
}

// searchList reads option 119: domains in DNS's form, with compression pointers
// into the option itself (RFC 3397 §2). A bad one ends the list.
func searchList(b []byte) (list []string) {
	for at := 0; at < len(b) && len(list) < maxSearch; {
		name, next := domainAt(b, at)
		if next < 0 || !domainName(name) {
			return list
		}
		list = append(list, name)
		at = next
	}
	return list
}

// domainAt reads a name (RFC 1035 §4.1.4), and gives where the next one is; -1
// where there is no name. Pointers only go back, so it ends.
func domainAt(b []byte, at int) (name string, next int) {
	next = -1
	low := at
	for {
		if at >= len(b) || len(name) > 253 {
			return "", -1
		}
		n := int(b[at])
		switch {
		case n == 0:
			if next < 0 {
				next = at + 1
			}
			return name, next
		case n < 64:
			if at+1+n > len(b) {
				return "", -1
			}
			if name != "" {
				name += "."
			}
			name += string(b[at+1 : at+1+n])
			at += 1 + n
		case n >= 192 && at+1 < len(b):
			to := (n&63)<<8 | int(b[at+1])
			if next < 0 {
				next = at + 2
			}
			if to >= low {
				return "", -1
			}
			low, at = to, to
		default:
			return "", -1
		}
	}
}
