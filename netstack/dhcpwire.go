package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// DHCP's message types (RFC 2132 §9.6).
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpDecline  = 4
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpRelease  = 7
	dhcpInform   = 8
)

// DHCP's options (RFC 2132).
const (
	optPad       = 0
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostname  = 12
	optDomain    = 15
	optMTU       = 26
	optBroadcast = 28
	optRequested = 50
	optLease     = 51
	optType      = 53
	optServer    = 54
	optEnd       = 255
)

const (
	dhcpFixed  = 236 // before the magic cookie (RFC 2131 §2)
	dhcpMagic  = 0x63825363
	dhcpMinLen = 300 // what BOOTP's clients expect at least (RFC 951 §3)

	bootRequest, bootReply = 1, 2
)

// dhcpMessage is what a request says that this server acts on.
type dhcpMessage struct {
	xid       [4]byte
	broadcast bool
	ciaddr    netip.Addr // unspecified where the client has none yet
	chaddr    [6]byte
	kind      byte
	requested netip.Addr // invalid where the option is not there
	server    netip.Addr // the same
}

var (
	errDHCPShort  = errors.New("the message is too short")
	errDHCPForm   = errors.New("no request of an Ethernet client")
	errDHCPOption = errors.New("an option is malformed")
	errDHCPRelay  = errors.New("it came through a relay")
)

// parseDHCP reads a client's message, strictly: options of a wrong length, given
// twice or running over the end make it an error.
func parseDHCP(b []byte) (m dhcpMessage, err error) {
	if len(b) < dhcpFixed+4 {
		return m, errDHCPShort
	}
	if b[0] != bootRequest || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[dhcpFixed:]) != dhcpMagic {
		return m, errDHCPForm
	}
	if [4]byte(b[24:]) != ([4]byte{}) {
		return m, errDHCPRelay
	}
	m.xid = [4]byte(b[4:])
	m.broadcast = b[10]&0x80 != 0
	m.ciaddr = netip.AddrFrom4([4]byte(b[12:]))
	m.chaddr = [6]byte(b[28:])
	if m.chaddr[0]&1 != 0 {
		return m, errDHCPForm
	}
	for o := b[dhcpFixed+4:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return m, errDHCPOption
		}
		code, v := o[0], o[2:2+int(o[1])]
		o = o[2+len(v):]
		switch code {
		case optType:
			if len(v) != 1 || m.kind != 0 || v[0] == 0 {
				return m, errDHCPOption
			}
			m.kind = v[0]
		case optRequested, optServer:
			a := &m.requested
			if code == optServer {
				a = &m.server
			}
			if len(v) != 4 || a.IsValid() {
				return m, errDHCPOption
			}
			*a = netip.AddrFrom4([4]byte(v))
		}
	}
	if m.kind == 0 { // BOOTP
		return m, errDHCPForm
	}
	return m, nil
}

// dhcpLease is for how long an address is given: nobody else wants it, so this
// only says how often a client asks again.
const dhcpLease = 24 * time.Hour

// answerDHCP says what a server with one client answers (RFC 2131 §4.3); nil
// where it says nothing. to is where the answer goes.
func (s *Stack) answerDHCP(m dhcpMessage) (reply []byte, to netip.Addr) {
	c := &s.cfg
	if m.server.IsValid() && m.server != c.Gateway { // it has chosen another server
		return nil, to
	}
	kind := byte(dhcpAck)
	switch m.kind {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		want := m.requested
		if !want.IsValid() { // renewing
			want = m.ciaddr
		}
		if want != c.Guest {
			kind = dhcpNak
		}
	case dhcpInform:
		if !s.isGuest(m.ciaddr) {
			return nil, to
		}
	default: // decline and release change nothing: there is one address
		return nil, to
	}

	b := make([]byte, dhcpFixed, 576) // what every client takes (RFC 2131 §2)
	b[0], b[1], b[2] = bootReply, 1, 6
	copy(b[4:], m.xid[:])
	if m.broadcast {
		b[10] = 0x80
	}
	copy(b[28:], m.chaddr[:])
	b = binary.BigEndian.AppendUint32(b, dhcpMagic)
	b = append(b, optType, 1, kind)
	b = append(append(b, optServer, 4), c.Gateway.AsSlice()...)
	to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if kind == dhcpNak {
		return finishDHCP(b), to
	}
	if m.kind != dhcpInform {
		copy(b[16:], c.Guest.AsSlice()) // yiaddr
		b = append(b, optLease, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(dhcpLease/time.Second))
	}
	if !m.ciaddr.IsUnspecified() {
		copy(b[12:], m.ciaddr.AsSlice())
		if s.isGuest(m.ciaddr) {
			to = m.ciaddr
		}
	} else if !m.broadcast {
		to = c.Guest
	}
	b = append(b, optMask, 4)
	b = binary.BigEndian.AppendUint32(b, ^uint32(0)<<(32-c.Subnet.Bits()))
	b = append(append(b, optBroadcast, 4), lastAddr(c.Subnet).AsSlice()...)
	b = append(b, optMTU, 2)
	b = binary.BigEndian.AppendUint16(b, uint16(c.MTU))
	if !c.HostOnly {
		b = append(append(b, optRouter, 4), c.Gateway.AsSlice()...)
		if c.NameServer != nil {
			b = append(append(b, optDNS, 4), c.DNS.AsSlice()...)
		}
	}
	if c.Hostname != "" {
		b = append(append(b, optHostname, byte(len(c.Hostname))), c.Hostname...)
	}
	if c.SearchDomain != "" {
		b = append(append(b, optDomain, byte(len(c.SearchDomain))), c.SearchDomain...)
	}
	return finishDHCP(b), to
}

func finishDHCP(b []byte) []byte {
	b = append(b, optEnd)
	for len(b) < dhcpMinLen {
		b = append(b, optPad)
	}
	return b
}
