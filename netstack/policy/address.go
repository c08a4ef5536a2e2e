package policy

import "net/netip"

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i, v := range s {
		out[i] = netip.MustParsePrefix(v)
	}
	return out
}

// metadataPrefixes is the word "metadata": link-local addresses, where most clouds serve
// an instance's data and credentials, and those that do it elsewhere.
func metadataPrefixes() []netip.Prefix {
	return prefixes(
		"169.254.0.0/16",     // link-local, RFC 3927; 169.254.169.254 of EC2, GCE, Azure, OpenStack
		"168.63.129.16/32",   // Azure's platform, a public address that only its machines reach
		"100.100.100.200/32", // Alibaba Cloud
		"192.0.0.192/32",     // Oracle Cloud
		"fd00:ec2::/32",      // EC2's services of an instance; fd00:ec2::254 among them
		"fd20:ce::254/128",   // GCE
		"fe80::/10",          // link-local, RFC 4291 §2.5.6
	)
}

// neverByName is what a name's owner has no business to point at.
func neverByName() []netip.Prefix {
	return append(metadataPrefixes(), prefixes(
		"0.0.0.0/8",          // this host on this network, RFC 1122 §3.2.1.3; Linux takes 0.0.0.0 for loopback
		"127.0.0.0/8",        // loopback, RFC 1122 §3.2.1.3
		"224.0.0.0/4",        // multicast, RFC 5771
		"255.255.255.255/32", // limited broadcast, RFC 919 §7
		"::/128",             // unspecified, RFC 4291 §2.5.2
		"::1/128",            // loopback, RFC 4291 §2.5.3
		"ff00::/8",           // multicast, RFC 4291 §2.7
	)...)
}

// privatePrefixes is the word "private": what is not globally reachable by the
// registries of special-purpose addresses (RFC 6890 and its updates).
func privatePrefixes() []netip.Prefix {
	return append(neverByName(), prefixes(
		"10.0.0.0/8",     // RFC 1918
		"172.16.0.0/12",  // RFC 1918
		"192.168.0.0/16", // RFC 1918
		"100.64.0.0/10",  // carrier-grade NAT, RFC 6598
		"192.0.0.0/24",   // IETF protocol assignments, RFC 6890 §2.1
		"198.18.0.0/15",  // benchmarks, RFC 2544
		"240.0.0.0/4",    // reserved, RFC 1112 §4
		"fc00::/7",       // unique local, RFC 4193
		"fec0::/10",      // site-local, deprecated by RFC 3879
		"64:ff9b:1::/48", // a network's own translation to IPv4, RFC 8215: the IPv4 address's place is not known
	)...)
}

// canonical is the address as rules see it: without zone, and IPv4 if it is
// IPv4-mapped, as the host would connect to that.
func canonical(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

// carried gives the IPv4 addresses that a router may take an IPv6 address for.
func carried(a netip.Addr) []netip.Addr {
	if !a.Is6() {
		return nil
	}
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	is := func(prefix ...byte) bool { return string(b[:len(prefix)]) == string(prefix) }
	switch {
	case is(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), // IPv4-compatible, RFC 4291 §2.5.5.1
		is(0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0),    // IPv4-translated, RFC 7915 (once RFC 2765)
		is(0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0): // NAT64, RFC 6052 §2.1
		return []netip.Addr{at(12)}
	case is(0x20, 0x02): // 6to4, RFC 3056 §2
		return []netip.Addr{at(2)}
	case is(0x20, 0x01, 0, 0): // Teredo, RFC 4380 §4: the server, and the client with its bits turned over
		for i := 12; i < 16; i++ {
			b[i] ^= 0xff
		}
		return []netip.Addr{at(4), at(12)}
	}
	return nil
}

func within(a netip.Addr, ps []netip.Prefix) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// withinAny is within for an address or one that it carries.
func withinAny(a netip.Addr, carried []netip.Addr, ps []netip.Prefix) bool {
	if within(a, ps) {
		return true
	}
	for _, c := range carried {
		if within(c, ps) {
			return true
		}
	}
	return false
}
