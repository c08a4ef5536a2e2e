package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// dhcpMsg is a client's message.
func dhcpMsg(mac [6]byte, kind byte, ciaddr netip.Addr, options ...[]byte) []byte {
	b := make([]byte, dhcpFixed)
	b[0], b[1], b[2] = bootRequest, 1, 6
	copy(b[4:], "xid!")
	if ciaddr.IsValid() {
		copy(b[12:], ciaddr.AsSlice())
	}
	copy(b[28:], mac[:])
	b = binary.BigEndian.AppendUint32(b, dhcpMagic)
	b = append(b, optType, 1, kind)
	for _, o := range options {
		b = append(b, o...)
	}
	return append(b, optEnd)
}

func addrOption(code byte, a string) []byte {
	return append([]byte{code, 4}, netip.MustParseAddr(a).AsSlice()...)
}

// dhcpOptions are a reply's options, by code.
func dhcpOptions(t *testing.T, b []byte) map[byte][]byte {
	t.Helper()
	out := map[byte][]byte{}
	for o := b[dhcpFixed+4:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if out[o[0]] != nil {
			t.Errorf("option %d is there twice", o[0])
		}
		out[o[0]] = o[2 : 2+int(o[1])]
		o = o[2+int(o[1]):]
	}
	return out
}

// dhcpFrame is a client's message on the wire.
func dhcpFrame(mac [6]byte, src, dst netip.Addr, msg []byte) []byte {
	f := udpDatagram(mac, netip.AddrPortFrom(src, dhcpClientPort), netip.AddrPortFrom(dst, dhcpServerPort), msg)
	if dst == netip.MustParseAddr("255.255.255.255") {
		copy(f, "\xff\xff\xff\xff\xff\xff")
	}
	return f
}

// dhcpReplies starts a guest without an address and hands out what the server says.
func dhcpReplies(t *testing.T, cfg Config) (*Stack, *netstacktest.Guest, chan []byte) {
	t.Helper()
	replies := make(chan []byte, 16)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	g, err := netstacktest.New(s, netstacktest.Options{Tap: func(_ [netstacktest.HeaderLen]byte, f []byte) bool {
		ip := header.IPv4(f[ethLen:])
		if f[12] != 8 || f[13] != 0 || !ip.IsValid(len(ip)) || ip.Protocol() != protoUDP {
			return true
		}
		u := header.UDP(ip.Payload())
		if u.SourcePort() != dhcpServerPort || u.DestinationPort() != dhcpClientPort {
			return true
		}
		sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(u)))
		if !ip.IsChecksumValid() || checksum.Checksum(u, sum) != 0xffff {
			t.Errorf("a bad checksum: %x", f)
		}
		replies <- append([]byte(nil), f...)
		return false
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return s, g, replies
}

// TestDHCP: a client gets its lease, step by step, and keeps it.
func TestDHCP(t *testing.T) {
	any4, all := netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")
	guest, gateway := netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.2")
	s, g, replies := dhcpReplies(t, Config{NameServer: answerer{}, SearchDomain: "smolvmm.internal", Hostname: "web", MTU: 9000})
	mac := g.MAC()
	for _, c := range []struct {
		name     string
		src, dst netip.Addr
		msg      []byte
		kind     byte // 0: silence
		to       string
	}{
		{"discover", any4, all, dhcpMsg(mac, dhcpDiscover, netip.Addr{}), dhcpOffer, "10.0.2.15"},
		{"request", any4, all, dhcpMsg(mac, dhcpRequest, netip.Addr{}, addrOption(optServer, "10.0.2.2"), addrOption(optRequested, "10.0.2.15")), dhcpAck, "10.0.2.15"},
		{"another server's", any4, all, dhcpMsg(mac, dhcpRequest, netip.Addr{}, addrOption(optServer, "10.0.2.9"), addrOption(optRequested, "10.0.2.15")), 0, ""},
		{"reboot", any4, all, dhcpMsg(mac, dhcpRequest, netip.Addr{}, addrOption(optRequested, "10.0.2.15")), dhcpAck, "10.0.2.15"},
		{"reboot from elsewhere", any4, all, dhcpMsg(mac, dhcpRequest, netip.Addr{}, addrOption(optRequested, "192.168.1.5")), dhcpNak, "255.255.255.255"},
		{"renew", guest, gateway, dhcpMsg(mac, dhcpRequest, guest), dhcpAck, "10.0.2.15"},
		{"inform", guest, all, dhcpMsg(mac, dhcpInform, guest), dhcpAck, "10.0.2.15"},
		{"release", guest, gateway, dhcpMsg(mac, dhcpRelease, guest), 0, ""},
		{"decline", any4, all, dhcpMsg(mac, dhcpDecline, netip.Addr{}, addrOption(optRequested, "10.0.2.15")), 0, ""},
		{"another's MAC", any4, all, dhcpMsg([6]byte{2, 9}, dhcpDiscover, netip.Addr{}), 0, ""},
	} {
		g.SendFrame(dhcpFrame(mac, c.src, c.dst, c.msg))
		var f []byte
		select { // the server answers within Send, the guest's goroutine takes it
		case f = <-replies:
		case <-time.After(map[bool]time.Duration{true: 50 * time.Millisecond, false: 5 * time.Second}[c.kind == 0]):
		}
		if (f == nil) != (c.kind == 0) {
			t.Errorf("%s: the answer is %x", c.name, f)
			continue
		}
		if f == nil {
			continue
		}
		b := f[ethLen+header.IPv4MinimumSize+header.UDPMinimumSize:]
		o := dhcpOptions(t, b)
		if to := header.IPv4(f[ethLen:]).DestinationAddress().String(); to != c.to || !bytes.Equal(o[optType], []byte{c.kind}) || string(b[4:8]) != "xid!" || !bytes.Equal(b[28:34], mac[:]) {
			t.Errorf("%s: to %s, %v", c.name, to, o)
		}
		if !bytes.Equal(o[optServer], gateway.AsSlice()) {
			t.Errorf("%s: the server is %v", c.name, o[optServer])
		}
		if c.kind == dhcpNak {
			continue
		}
		if given := netip.AddrFrom4([4]byte(b[16:])); given != guest && c.name != "inform" {
			t.Errorf("%s: given %v", c.name, given)
		}
		for code, want := range map[byte][]byte{
			optMask: {255, 255, 255, 0}, optRouter: {10, 0, 2, 2}, optDNS: {10, 0, 2, 3}, optMTU: {0x23, 0x28},
			optBroadcast: {10, 0, 2, 255}, optDomain: []byte("smolvmm.internal"), optHostname: []byte("web"),
		} {
			if !bytes.Equal(o[code], want) {
				t.Errorf("%s: option %d is %v, want %v", c.name, code, o[code], want)
			}
		}
		if (len(o[optLease]) == 4) != (c.name != "inform") {
			t.Errorf("%s: lease %v", c.name, o[optLease])
		}
	}
	if st := s.Stats(); st.DHCP != 6 || st.Spoofed != 0 {
		t.Errorf("%+v", st)
	}
}

// TestDHCPHostOnly: a link that reaches nothing announces no way out.
func TestDHCPHostOnly(t *testing.T) {
	_, g, replies := dhcpReplies(t, Config{HostOnly: true, NameServer: answerer{}, Subnet: netip.MustParsePrefix("10.0.3.0/24")})
	g.SendFrame(dhcpFrame(g.MAC(), netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), dhcpMsg(g.MAC(), dhcpDiscover, netip.Addr{})))
	f := <-replies
	b := f[ethLen+header.IPv4MinimumSize+header.UDPMinimumSize:]
	if o := dhcpOptions(t, b); o[optRouter] != nil || o[optDNS] != nil || o[optMask] == nil || [4]byte(b[16:20]) != [4]byte{10, 0, 3, 15} {
		t.Errorf("%v, %v", o, b[16:20])
	}
}

// FuzzDHCP: no message brings the server to say what is not true.
func FuzzDHCP(f *testing.F) {
	s, err := New(Config{NameServer: answerer{}})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	for kind := byte(1); kind <= 8; kind++ {
		f.Add(dhcpMsg(mac, kind, netip.Addr{}))
		f.Add(dhcpMsg(mac, kind, s.cfg.Guest, addrOption(optServer, "10.0.2.2")))
		f.Add(dhcpMsg(mac, kind, netip.Addr{}, addrOption(optRequested, "10.0.2.15"), []byte{optPad, optPad, 12, 3, 'a', 'b', 'c'}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseDHCP(b)
		if err != nil {
			return
		}
		reply, to := s.answerDHCP(m)
		if reply == nil {
			return
		}
		if len(reply) < dhcpMinLen || len(reply) > 576 || reply[0] != bootReply || !to.Is4() {
			t.Fatalf("%d bytes to %v", len(reply), to)
		}
		if a := netip.AddrFrom4([4]byte(reply[16:])); a != s.cfg.Guest && !a.IsUnspecified() {
			t.Fatalf("it gives away %v", a)
		}
		if to != s.cfg.Guest && to != netip.MustParseAddr("255.255.255.255") {
			t.Fatalf("it answers %v", to)
		}
	})
}
