package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// advertOptions are a prefix, an MTU and a name server.
func advertOptions() []byte {
	prefix := make([]byte, 32)
	prefix[0], prefix[1], prefix[2], prefix[3] = ndPrefix, 4, 64, 0xc0
	binary.BigEndian.PutUint32(prefix[4:], 86400)
	copy(prefix[16:], netip.MustParseAddr("fd00:1::").AsSlice())
	mtu := []byte{5, 1, 0, 0, 0, 0, 5, 220}
	dns := append([]byte{ndRDNSS, 3, 0, 0, 0, 0, 14, 16}, netip.MustParseAddr("fd00:1::3").AsSlice()...)
	return joined(prefix, mtu, dns)
}

// advertFrame is a router's message with options, and right checksums.
func advertFrame(options []byte) []byte {
	f := make([]byte, ethHeader+ip6Header+raFixed, 256)
	binary.BigEndian.PutUint16(f[12:], typeIPv6)
	ip := f[ethHeader:]
	ip[0], ip[6], ip[7] = 0x60, protoICMPv6, 255
	binary.BigEndian.PutUint16(ip[4:], uint16(raFixed+len(options)))
	copy(ip[8:], netip.MustParseAddr("fe80::2").AsSlice())
	copy(ip[24:], netip.MustParseAddr("ff02::1").AsSlice())
	ip[40] = icmpRouterAdv
	binary.BigEndian.PutUint16(ip[46:], 1800)
	return fixSum(append(f, options...))
}

func fixSum(f []byte) []byte {
	ip := f[ethHeader:]
	ip[42], ip[43] = 0, 0
	n := len(ip) - ip6Header
	binary.BigEndian.PutUint16(ip[42:], ^sum(ip[40:], uint32(sum(ip[8:40], protoICMPv6+uint32(n)))))
	return f
}

func TestRouterSolicitation(t *testing.T) {
	f := routerSolicitation(testMAC)
	// Made by hand: RFC 4861 §4.1, the checksum over the pseudo-header of RFC 8200 §8.1.
	want := "333300000002" + "525400123456" + "86dd" + "6000000000083aff" + strings.Repeat("00", 16) + "ff020000000000000000000000000002" + "85007bb8" + "00000000"
	if got := hex.EncodeToString(f); got != want {
		t.Errorf("%s\n%s", got, want)
	}
}

func TestRouterAdvertisement(t *testing.T) {
	a, err := parseRA(append(advertFrame(advertOptions()), 0, 0))
	want := advert{Router: netip.MustParseAddr("fe80::2"), Default: true, Prefix: netip.MustParsePrefix("fd00:1::/64"),
		DNS: []netip.Addr{netip.MustParseAddr("fd00:1::3")}}
	if err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, %v", a, err)
	}
	if got := a.address(testMAC).String(); got != "fd00:1::5054:ff:fe12:3456/64" {
		t.Errorf("address %s", got)
	}
	for name, c := range map[string]struct {
		change func(f []byte)
		says   string
		want   func(a *advert)
	}{
		"not a router":        {change: func(f []byte) { f[54+6], f[54+7] = 0, 0 }, want: func(a *advert) { a.Default = false }},
		"another length":      {change: func(f []byte) { f[70+2] = 48 }, want: func(a *advert) { a.Prefix = netip.Prefix{} }},
		"not for addresses":   {change: func(f []byte) { f[70+3] = 0x80 }, want: func(a *advert) { a.Prefix = netip.Prefix{} }},
		"a prefix that ended": {change: func(f []byte) { clear(f[70+4 : 70+8]) }, want: func(a *advert) { a.Prefix = netip.Prefix{} }},
		"a link-local one":    {change: func(f []byte) { f[70+16], f[70+17] = 0xfe, 0x80 }, want: func(a *advert) { a.Prefix = netip.Prefix{} }},
		"multicast":           {change: func(f []byte) { f[70+16] = 0xff }, want: func(a *advert) { a.Prefix = netip.Prefix{} }},
		"a server that ended": {change: func(f []byte) { clear(f[110+4 : 110+8]) }, want: func(a *advert) { a.DNS = nil }},
		"no option":           {change: func(f []byte) { f[70+1] = 0 }, says: "malformed"},
		"too long":            {change: func(f []byte) { f[70+1] = 200 }, says: "malformed"},
		"from elsewhere":      {change: func(f []byte) { f[21] = 64 }, says: "not from this link"},
		"not a link's":        {change: func(f []byte) { f[22] = 0x20 }, says: "not from this link"},
		"another code":        {change: func(f []byte) { f[55] = 1 }, says: "not from this link"},
		"another type":        {change: func(f []byte) { f[54] = 135 }},
		"not ICMPv6":          {change: func(f []byte) { f[20] = 6 }},
		"not IPv6":            {change: func(f []byte) { f[14] = 0x45 }},
		"longer than it is":   {change: func(f []byte) { f[18] = 9 }},
	} {
		f := advertFrame(advertOptions())
		c.change(f)
		got, err := parseRA(fixSum(f))
		if c.want != nil {
			w := want
			c.want(&w)
			if err != nil || !reflect.DeepEqual(got, w) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if err == nil || (c.says == "") != errors.Is(err, errNotOurs) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := advertFrame(nil)
	f[60]++
	if _, err := parseRA(f); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a wrong checksum: %v", err)
	}
}
