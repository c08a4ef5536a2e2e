package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// IPv6 by stateless autoconfiguration (RFC 4862). NetBSD's kernel has left it to
// a program since its release 10: there is no accept_rtadv any more.

const (
	ip6Header     = 40
	protoICMPv6   = 58
	icmpRouterSol = 133 // RFC 4861 §4.1
	icmpRouterAdv = 134 // RFC 4861 §4.2
	raFixed       = 16
	ndPrefix      = 3  // RFC 4861 §4.6.2
	ndRDNSS       = 25 // RFC 8106 §5.1
	prefixAuto    = 0x40
)

// advert is what a router said.
type advert struct {
	Router  netip.Addr   // the router's link-local address
	Default bool         // it is a default router
	Prefix  netip.Prefix // the first one that addresses may be made from
	DNS     []netip.Addr
}

// routerSolicitation is a frame that asks every router on the link, from the
// unspecified address as no other is certain to be there yet (RFC 4861 §4.1).
func routerSolicitation(from mac) []byte {
	f := make([]byte, ethHeader+ip6Header+8)
	copy(f, []byte{0x33, 0x33, 0, 0, 0, 2}) // RFC 2464 §7
	copy(f[6:], from[:])
	binary.BigEndian.PutUint16(f[12:], typeIPv6)
	ip := f[ethHeader:]
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], 8)
	ip[6], ip[7] = protoICMPv6, 255
	to := netip.MustParseAddr("ff02::2").As16()
	copy(ip[24:], to[:])
	icmp := ip[ip6Header:]
	icmp[0] = icmpRouterSol
	binary.BigEndian.PutUint16(icmp[2:], ^sum(icmp, uint32(sum(ip[8:40], protoICMPv6+8))))
	return f
}

// parseRA reads a router advertisement. The bytes are the network's.
func parseRA(frame []byte) (a advert, err error) {
	if len(frame) < ethHeader+ip6Header+raFixed || binary.BigEndian.Uint16(frame[12:]) != typeIPv6 {
		return a, errNotOurs
	}
	ip := frame[ethHeader:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != protoICMPv6 || length < raFixed || ip6Header+length > len(ip) || ip[ip6Header] != icmpRouterAdv {
		return a, errNotOurs
	}
	icmp := ip[ip6Header : ip6Header+length]
	a.Router = netip.AddrFrom16([16]byte(ip[8:24]))
	// RFC 4861 §6.1.2: no router could have let it through from elsewhere.
	if ip[7] != 255 || icmp[1] != 0 || !a.Router.IsLinkLocalUnicast() {
		return a, errors.New("a router advertisement that is not from this link")
	}
	if sum(icmp, uint32(sum(ip[8:40], protoICMPv6+uint32(length)))) != 0xffff {
		return a, errors.New("a router advertisement with a wrong checksum")
	}
	a.Default = binary.BigEndian.Uint16(icmp[6:]) != 0
	for o := icmp[raFixed:]; len(o) > 0; {
		n := 0
		if len(o) >= 2 {
			n = int(o[1]) * 8
		}
		if n == 0 || n > len(o) { // RFC 4861 §6.1.2: the whole message is to be dropped
			return advert{}, errors.New("a router advertisement with a malformed option")
		}
		a.option(o[:n])
		o = o[n:]
	}
	return a, nil
}

// option reads one; its length is a multiple of eight and not zero.
func (a *advert) option(o []byte) {
	switch {
	case o[0] == ndPrefix && len(o) == 32:
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:32])), 64)
		// RFC 4862 §5.5.3: Ethernet's identifier has 64 bits, so has the prefix.
		if o[2] == 64 && o[3]&prefixAuto != 0 && binary.BigEndian.Uint32(o[4:]) != 0 && !a.Prefix.IsValid() &&
			!p.Addr().IsLinkLocalUnicast() && usable(p.Masked().Addr().Next()) {
			a.Prefix = p.Masked()
		}
	case o[0] == ndRDNSS && binary.BigEndian.Uint32(o[4:]) != 0:
		for o = o[8:]; len(o) >= 16 && len(a.DNS) < maxServers; o = o[16:] {
			// A link-local server would need its interface's name in resolv.conf.
			if d := netip.AddrFrom16([16]byte(o)); usable(d) && !d.IsLinkLocalUnicast() {
				a.DNS = append(a.DNS, d)
			}
		}
	}
}

// address is the interface's own in the advertised prefix, by its modified
// EUI-64 (RFC 4291, appendix A): a machine's is the same at each boot.
func (a *advert) address(m mac) netip.Prefix {
	b := a.Prefix.Addr().As16()
	copy(b[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
