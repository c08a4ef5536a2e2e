package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

var testMAC = mac{0x52, 0x54, 0, 0x12, 0x34, 0x56}

const testXid = 0x01020304

// answer is a server's message as a payload, with options given as bytes.
func answer(kind byte, change func(p []byte), opts ...byte) []byte {
	p := make([]byte, bootpFixed, 400)
	p[0], p[1], p[2] = 2, 1, 6
	binary.BigEndian.PutUint32(p[4:], testXid)
	copy(p[16:], []byte{10, 0, 2, 15})
	copy(p[28:], testMAC[:])
	p = append(p, dhcpCookie[:]...)
	p = append(p, optType, 1, kind, optServer, 4, 10, 0, 2, 2, optMask, 4, 255, 255, 255, 0)
	p = append(append(p, opts...), optEnd)
	if change != nil {
		change(p)
	}
	return p
}

// answerFrame is the same on the wire.
func answerFrame(payload []byte) []byte {
	return udpFrame(mac{0x52, 0x55, 10, 0, 2, 2}, macBroadcast, [4]byte{10, 0, 2, 2}, [4]byte{255, 255, 255, 255}, portServer, portClient, payload)
}

func TestDHCPAsk(t *testing.T) {
	for _, c := range []struct {
		ask  dhcpAsk
		opts string // hex, up to the end
	}{
		{dhcpAsk{kind: dhcpDiscover, xid: testXid, from: testMAC},
			"350101" + "390205dc" + "370701030" + "60c0f1a77" + "ff"},
		{dhcpAsk{kind: dhcpRequest, xid: testXid, from: testMAC, secs: 3, hostname: "web",
			requested: netip.MustParseAddr("10.0.2.15"), server: netip.MustParseAddr("10.0.2.2")},
			"350103" + "390205dc" + "3707010306" + "0c0f1a77" + "32040a00020f" + "36040a000202" + "0c03776562" + "ff"},
	} {
		f := c.ask.frame()
		if !bytes.Equal(f[:14], append(append(bytes.Repeat([]byte{0xff}, 6), testMAC[:]...), 8, 0)) {
			t.Errorf("Ethernet %x", f[:14])
		}
		// From 0.0.0.0:68 to 255.255.255.255:67, both checksums right.
		ip, udp := f[14:34], f[34:]
		if hex.EncodeToString(ip[12:20]) != "00000000ffffffff" || hex.EncodeToString(udp[:4]) != "00440043" || int(binary.BigEndian.Uint16(ip[2:])) != len(f)-14 ||
			sum(ip, 0) != 0xffff || sum(udp, uint32(sum(ip[12:20], protoUDP+uint32(len(udp))))) != 0xffff {
			t.Errorf("headers %x", f[14:42])
		}
		p := udp[8:]
		if len(p) != bootpMin || p[0] != 1 || binary.BigEndian.Uint32(p[4:]) != testXid || binary.BigEndian.Uint16(p[8:]) != c.ask.secs || !bytes.Equal(p[28:34], testMAC[:]) {
			t.Errorf("%d bytes: %x", len(p), p[:44])
		}
		want, err := hex.DecodeString(c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := p[bootpFixed+4:]; !bytes.HasPrefix(got, want) || len(bytes.Trim(got[len(want):], "\x00")) != 0 {
			t.Errorf("options %x\nwant    %x", got, want)
		}
	}
}

func TestDHCPReply(t *testing.T) {
	at := netip.MustParsePrefix
	host := netip.MustParseAddr
	base := setup{Address: at("10.0.2.15/24")}
	with := func(change func(*setup)) setup { s := base; change(&s); return s }
	for _, c := range []struct {
		name string
		opts []byte
		want setup
	}{
		{"the least", nil, base},
		{"all", joined(
			[]byte{optRouter, 8, 10, 0, 2, 2, 10, 0, 2, 1}, []byte{optDNS, 8, 10, 0, 2, 3, 10, 0, 2, 4}, []byte{optMTU, 2, 5, 220},
			[]byte{optHostname, 3, 'w', 'e', 'b'}, []byte{optDomain, 9}, []byte("a.example")),
			setup{at("10.0.2.15/24"), host("10.0.2.2"), []netip.Addr{host("10.0.2.3"), host("10.0.2.4")}, []string{"a.example"}, 1500, "web"}},
		{"a search list cut off", []byte{optDomain, 1, 'x', optSearch, 14, 1, 'a', 0}, with(func(s *setup) { s.Search = []string{"x"} })},
		{"a search list, in place of the domain", joined([]byte{optDomain, 1, 'x', optSearch, 15, 1, 'a', 7}, []byte("example"), []byte{0, 1, 'b', 0xc0, 2}),
			with(func(s *setup) { s.Search = []string{"a.example", "b.example"} })},
		{"a name server that is none", []byte{optDNS, 12, 0, 0, 0, 0, 224, 0, 0, 1, 10, 0, 2, 3}, with(func(s *setup) { s.DNS = []netip.Addr{host("10.0.2.3")} })},
		{"a router elsewhere", []byte{optRouter, 4, 192, 0, 2, 1}, base},
		{"a router that is the client", []byte{optRouter, 4, 10, 0, 2, 15}, base},
		{"names that are none", joined([]byte{optHostname, 3, 'a', '\n', 'b', optDomain, 3, 'a', ' ', 'b'}), base},
		{"too small an MTU", []byte{optMTU, 2, 0, 68}, base},
		{"an option cut off", []byte{optDNS, 200, 1, 2}, base},
	} {
		r, err := parseDHCP(answer(dhcpAck, nil, c.opts...), testXid, testMAC)
		if err != nil || r.kind != dhcpAck || r.server != host("10.0.2.2") || !reflect.DeepEqual(r.setup, c.want) {
			t.Errorf("%s: %+v, %v\nwant %+v", c.name, r, err, c.want)
		}
	}
	// Options where the file's name was.
	over := answer(dhcpAck, func(p []byte) { copy(p[108:], []byte{optRouter, 4, 10, 0, 2, 2, optEnd}) }, optOverload, 1, 1)
	if r, err := parseDHCP(over, testXid, testMAC); err != nil || r.Gateway != host("10.0.2.2") {
		t.Errorf("overloaded: %+v, %v", r, err)
	}
	if r, err := parseDHCP(answer(dhcpNak, func(p []byte) { clear(p[16:20]) }), testXid, testMAC); err != nil || r.kind != dhcpNak {
		t.Errorf("a refusal: %+v, %v", r, err)
	}
}

// joined joins bytes.
func joined(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestDHCPReplyRefused(t *testing.T) {
	for name, c := range map[string]struct {
		p    []byte
		says string // empty: not ours
	}{
		"short":             {answer(dhcpAck, nil)[:bootpFixed], ""},
		"a request":         {answer(dhcpAck, func(p []byte) { p[0] = 1 }), ""},
		"another's xid":     {answer(dhcpAck, func(p []byte) { p[7]++ }), ""},
		"another's address": {answer(dhcpAck, func(p []byte) { p[33]++ }), ""},
		"BOOTP":             {answer(dhcpAck, func(p []byte) { p[bootpFixed]++ }), ""},
		"no type":           {answer(77, nil), ""},
		"no address":        {answer(dhcpAck, func(p []byte) { clear(p[16:20]) }), "usable address"},
		"multicast":         {answer(dhcpAck, func(p []byte) { p[16] = 224 }), "usable address"},
		"a mask with holes": {answer(dhcpAck, func(p []byte) { p[len(p)-2], p[len(p)-3] = 255, 0 }), "netmask"},
	} {
		_, err := parseDHCP(c.p, testXid, testMAC)
		if err == nil || (c.says == "") != errors.Is(err, errNotOurs) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDHCPPayload(t *testing.T) {
	p := answer(dhcpOffer, nil)
	if got, err := dhcpPayload(append(answerFrame(p), 0, 0, 0)); err != nil || !bytes.Equal(got, p) {
		t.Errorf("%x, %v", got, err)
	}
	for name, c := range map[string]struct {
		change func(f []byte)
		says   string
	}{
		"ARP":             {func(f []byte) { f[13] = 6 }, ""},
		"IPv6 inside":     {func(f []byte) { f[14] = 0x65 }, ""},
		"a short header":  {func(f []byte) { f[14] = 0x44 }, ""},
		"too long":        {func(f []byte) { f[16] = 0xff }, ""},
		"a fragment":      {func(f []byte) { f[20] = 0x20 }, ""},
		"TCP":             {func(f []byte) { f[23] = 6 }, ""},
		"another port":    {func(f []byte) { f[37]++ }, ""},
		"UDP too long":    {func(f []byte) { f[38] = 0xff }, ""},
		"UDP too short":   {func(f []byte) { f[38], f[39] = 0, 7 }, ""},
		"IP's checksum":   {func(f []byte) { f[24]++ }, "IPv4 header"},
		"UDP's checksum":  {func(f []byte) { f[60]++ }, "UDP datagram"},
		"no UDP checksum": {func(f []byte) { f[40], f[41], f[60] = 0, 0, 9 }, "-"},
	} {
		f := answerFrame(p)
		c.change(f)
		_, err := dhcpPayload(f)
		if c.says == "-" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || (c.says == "") != errors.Is(err, errNotOurs) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDomainAt(t *testing.T) {
	for _, c := range []struct {
		in   string // hex
		list []string
	}{
		{"0161076578616d706c6500", []string{"a.example"}},
		{"c000", nil},     // to itself
		{"0161c000", nil}, // to its own beginning
		{"01610001620001 63c003", []string{"a", "b", "c.b"}}, // to an earlier one
		{"0161c0", nil}, {"40", nil}, {"05616263", nil}, {"016100c005", []string{"a"}}, {"00", nil},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.in, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := searchList(b); !reflect.DeepEqual(got, c.list) {
			t.Errorf("%s: %q, want %q", c.in, got, c.list)
		}
	}
}

func TestMaskBits(t *testing.T) {
	for bits := 1; bits <= 32; bits++ {
		if got := maskBits(binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-bits))); got != bits {
			t.Errorf("/%d: %d", bits, got)
		}
	}
	for _, b := range [][]byte{nil, {255}, {0, 0, 0, 0}, {255, 0, 255, 0}, {0, 255, 255, 255}} {
		if got := maskBits(b); got != -1 {
			t.Errorf("%v: %d", b, got)
		}
	}
}

// FuzzFrame takes anything from the wire through all that reads it: what comes
// out must be fit for the kernel and for a resolv.conf.
func FuzzFrame(f *testing.F) {
	f.Add(answerFrame(answer(dhcpAck, nil, optRouter, 4, 10, 0, 2, 2, optDNS, 4, 10, 0, 2, 3, optDomain, 1, 'x')))
	f.Add(answerFrame(answer(dhcpOffer, nil, optSearch, 7, 1, 'a', 0, 1, 'b', 0xc0, 0, optOverload, 1, 3)))
	f.Add(answerFrame(answer(dhcpNak, nil)))
	f.Add(advertFrame(advertOptions()))
	f.Fuzz(func(t *testing.T, frame []byte) {
		fit := func(s setup) {
			if s.Address.IsValid() && !usable(s.Address.Addr()) || s.Gateway.IsValid() && !s.Gateway.IsLinkLocalUnicast() && !s.Address.Contains(s.Gateway) ||
				len(s.DNS) > maxServers || len(s.Search) > maxSearch || s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU) || strings.ContainsFunc(s.Hostname, notHostname) {
				t.Errorf("%+v", s)
			}
			for _, line := range strings.Split(strings.TrimSuffix(resolvConf([]setup{s}), "\n"), "\n") {
				if line != "" && !strings.HasPrefix(line, "nameserver ") && !strings.HasPrefix(line, "search ") {
					t.Errorf("resolv.conf gets %q", line)
				}
			}
		}
		if p, err := dhcpPayload(frame); err == nil {
			for _, q := range [][]byte{p, append(answer(dhcpAck, nil)[:bootpFixed+4:bootpFixed+4], p[min(len(p), bootpFixed+4):]...)} {
				if r, err := parseDHCP(q, testXid, testMAC); err == nil && r.kind != dhcpNak {
					if !r.Address.IsValid() {
						t.Errorf("no address: %+v", r)
					}
					fit(r.setup)
				}
			}
		}
		if a, err := parseRA(frame); err == nil {
			s := setup{DNS: a.DNS}
			if a.Prefix.IsValid() {
				s.Address = a.address(testMAC)
				s.Gateway = a.Router
			}
			fit(s)
		}
		packets(frame)
		parseIfconf(frame)
	})
}
