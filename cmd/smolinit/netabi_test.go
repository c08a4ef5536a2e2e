package main

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseIfconf(t *testing.T) {
	entry := func(name string, sa ...byte) []byte {
		b := make([]byte, sizeIfreq)
		copy(b, name)
		copy(b[sizeName:], sa)
		return b
	}
	link := func(index, kind, nlen, alen byte, data string) []byte {
		return append([]byte{20, familyLink, index, 0, kind, nlen, alen, 0}, data...)
	}
	got := parseIfconf(joined(
		entry("vioif0", link(1, ifTypeEther, 6, 6, "vioif0RT\x00\x124V")...),
		entry("vioif0", sockaddr(netip.MustParseAddr("10.0.2.15"), 0)...),
		entry("lo0", link(2, 24, 3, 0, "lo0")...),
		entry("vioif1", link(3, ifTypeEther, 6, 6, "vioif1RT\x00\x124W")...),
		entry("bad0", link(4, ifTypeEther, 200, 6, "bad0")...),
		[]byte("vioif2"),
	))
	want := []iface{{"vioif0", 1, testMAC}, {"vioif1", 3, mac{0x52, 0x54, 0, 0x12, 0x34, 0x57}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// The layouts are those of NetBSD's headers for amd64, by hand.
func TestLayouts(t *testing.T) {
	pad := func(s string, n int) string {
		s = strings.ReplaceAll(s, " ", "")
		return s + strings.Repeat("0", 2*n-len(s))
	}
	name := func(s string) string { return pad(hex.EncodeToString([]byte(s)), 16) }
	in := func(s string) string { return pad("1002 0000"+s, 16) }
	in6 := func(s string) string { return "1c18000000000000" + s + "00000000" }
	for _, c := range []struct {
		what string
		got  []byte
		want string
		size int
	}{
		{"ifreq", ifreq("vioif0", []byte{1, 2}), name("vioif0") + "0102", sizeIfreq},
		{"a long name ends with a NUL", ifreq(strings.Repeat("a", 40), nil), strings.Repeat("61", 15) + "00", sizeIfreq},
		{"ifaliasreq", ifalias("vioif0", netip.MustParsePrefix("10.0.2.15/20")), name("vioif0") + in("0a00020f") + in("0a000fff") + in("fffff000"), sizeIfalias},
		{"ifaliasreq of lo0", ifalias("lo0", netip.MustParsePrefix("127.0.0.1/8")), name("lo0") + in("7f000001") + pad("", 16) + in("ff000000"), sizeIfalias},
		{"in6_aliasreq", in6alias("vioif0", netip.MustParsePrefix("fd00::5/64")), name("vioif0") +
			in6("fd000000000000000000000000000005") + pad("", 28) + in6("ffffffffffffffff0000000000000000") + pad("", 4+16) + "ffffffffffffffff", sizeIn6Alias},
		{"rt_msghdr", addDefault(netip.MustParseAddr("10.0.2.2"), 3, 7),
			pad("a800 04 01 0300 0000 03080000 07000000 00000000 07000000", sizeRTHeader) + in("") + in("0a000202") + in(""), sizeRTHeader + 48},
		{"rt_msghdr by a link-local router", addDefault(netip.MustParseAddr("fe80::2"), 3, 7),
			pad("d800 04 01 0300 0000 03080000 07000000 00000000 07000000", sizeRTHeader) +
				pad(in6(strings.Repeat("00", 16)), 32) + pad(in6("fe800003000000000000000000000002"), 32) + pad(in6(strings.Repeat("00", 16)), 32), sizeRTHeader + 96},
	} {
		if got, want := hex.EncodeToString(c.got), pad(c.want, c.size); got != want || len(c.got) != c.size {
			t.Errorf("%s:\n%s\n%s", c.what, got, want)
		}
	}
}

func TestPackets(t *testing.T) {
	one := func(frame string) []byte {
		b := make([]byte, 26, 64)
		binary.LittleEndian.PutUint32(b[16:], uint32(len(frame)))
		binary.LittleEndian.PutUint16(b[24:], 26)
		b = append(b, frame...)
		for len(b)%bpfAlign != 0 {
			b = append(b, 0)
		}
		return b
	}
	var got []string
	for _, f := range packets(joined(one("first"), one("second one"), one("third")[:31])) {
		got = append(got, string(f))
	}
	if !reflect.DeepEqual(got, []string{"first", "second one", "third"}) {
		t.Errorf("%q", got)
	}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"less":           one("x")[:25],
		"no header":      make([]byte, 64),
		"longer than it": func() []byte { b := one("x"); b[16] = 200; return b }(),
		"header too big": func() []byte { b := one("x"); b[24] = 200; return b }(),
	} {
		if f := packets(b); len(f) != 0 {
			t.Errorf("%s: %q", name, f)
		}
	}
}

// filterLets runs the filter's program as the kernel would.
func filterLets(t *testing.T, p []byte) bool {
	var a, x uint32
	load := func(at, n uint32) (uint32, bool) {
		if uint64(at)+uint64(n) > uint64(len(p)) {
			return 0, false
		}
		if n == 1 {
			return uint32(p[at]), true
		}
		return uint32(binary.BigEndian.Uint16(p[at:])), true
	}
	for pc := 0; pc < len(wanted); pc++ {
		i, ok := wanted[pc], true
		switch i.code {
		case 0x28:
			a, ok = load(i.k, 2)
		case 0x30:
			a, ok = load(i.k, 1)
		case 0x48:
			a, ok = load(x+i.k, 2)
		case 0xb1:
			x, ok = load(i.k, 1)
			x = x & 15 * 4
		case 0x15:
			if a == i.k {
				pc += int(i.jt)
			} else {
				pc += int(i.jf)
			}
		case 0x06:
			return i.k != 0
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.code)
		}
		if !ok { // beyond the packet: dropped
			return false
		}
	}
	t.Fatal("the program does not end")
	return false
}

func TestFilter(t *testing.T) {
	dhcp, ra := answerFrame(answer(dhcpOffer, nil)), advertFrame(advertOptions())
	long := joined(dhcp[:14], []byte{0x46}, dhcp[15:34], []byte{1, 1, 1, 1}, dhcp[34:]) // with an IP option
	set := func(f []byte, at int, v byte) []byte { f = append([]byte{}, f...); f[at] = v; return f }
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"DHCP": {dhcp, true}, "DHCP behind an IP option": {long, true}, "RA": {ra, true},
		"TCP": {set(dhcp, 23, 6), false}, "another port": {set(dhcp, 37, 53), false}, "ARP": {set(dhcp, 13, 6), false},
		"NA": {set(ra, 54, 136), false}, "UDP over IPv6": {set(ra, 20, 17), false}, "short": {dhcp[:20], false},
	} {
		if got := filterLets(t, c.frame); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
