package pcap

import (
	"net/netip"
	"slices"
)

// frame is what a test sends, with its virtio_net_hdr.
type frame struct {
	name  string
	h     [headerLen]byte
	bytes []byte
	// tcp or udp, and whether its checksums are to be found good in the capture
	proto string
	good  bool
}

// sumByHand is RFC 1071 as it stands there, for the tests to be independent of
// the package's.
func sumByHand(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i&1))
		s = s>>16 + s&0xffff
	}
	return uint16(s>>16 + s&0xffff)
}

// build makes a frame of a TCP or UDP segment, with everything right.
func build(v6 bool, proto byte, payload int, vlan bool) []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	if vlan {
		b = append(b, 0x81, 0, 0, 7)
	}
	hdr := 20
	if proto == protoUDP {
		hdr = 8
	}
	seg := make([]byte, hdr+payload)
	be.PutUint16(seg, 40000)
	be.PutUint16(seg[2:], 9)
	if proto == protoTCP {
		seg[12], seg[13] = 5<<4, 0x10 // the header's length; ACK
		be.PutUint16(seg[14:], 65535)
	} else {
		be.PutUint16(seg[4:], uint16(len(seg)))
	}
	for i := range payload {
		seg[hdr+i] = byte(i * 7)
	}
	var addrs, ip []byte
	if v6 {
		src, dst := netip.MustParseAddr("fd00::15").As16(), netip.MustParseAddr("fd00::2").As16()
		addrs = append(src[:], dst[:]...)
		ip = append([]byte{0x60, 0, 0, 0, 0, 0, proto, 64}, addrs...)
		be.PutUint16(ip[4:], uint16(len(seg)))
		b = append(b, 0x86, 0xdd)
	} else {
		addrs = []byte{10, 0, 2, 15, 10, 0, 2, 2}
		ip = append([]byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto, 0, 0}, addrs...)
		be.PutUint16(ip[2:], uint16(20+len(seg)))
		be.PutUint16(ip[10:], ^sumByHand(ip))
		b = append(b, 8, 0)
	}
	be.PutUint16(seg[checksumAt(proto):], ^pseudo(addrs, proto, seg))
	return append(append(b, ip...), seg...)
}

func checksumAt(proto byte) int {
	if proto == protoUDP {
		return 6
	}
	return 16
}

func pseudo(addrs []byte, proto byte, seg []byte) uint16 {
	p := append(slices.Clone(addrs), 0, byte(len(seg)>>16), byte(len(seg)>>8), byte(len(seg)), 0, 0, 0, proto)
	return sumByHand(append(p, seg...))
}

// partial leaves the checksum to the other side, as a driver does.
func partial(f []byte, v6 bool, proto byte) (h [headerLen]byte, b []byte) {
	b = slices.Clone(f)
	ip := etherLen
	if be.Uint16(b[12:]) == typeVLAN {
		ip += vlanLen
	}
	start, addrs := ip+20, b[ip+12:ip+20]
	if v6 {
		start, addrs = ip+40, b[ip+8:ip+40]
	}
	at := checksumAt(proto)
	seg := b[start:]
	n := len(seg)
	be.PutUint16(seg[at:], sumByHand(append(slices.Clone(addrs), 0, byte(n>>16), byte(n>>8), byte(n), 0, 0, 0, proto)))
	h[0] = flagNeedsCsum
	le.PutUint16(h[6:], uint16(start))
	le.PutUint16(h[8:], uint16(at))
	return h, b
}

// zeroPayload is the payload of 2 bytes that makes the checksum 0.
func zeroPayload(v6 bool, proto byte) uint16 {
	f := build(v6, proto, 2, false)
	n := len(f) - 2
	s := uint32(be.Uint16(f[n:])) // the payload that is there
	hdr := 20
	if proto == protoUDP {
		hdr = 8
	}
	s += uint32(be.Uint16(f[n-hdr+checksumAt(proto):])) // what is missing to all ones with it
	return uint16(s>>16 + s&0xffff)
}

// frames are one of each kind.
func frames() []frame {
	var out []frame
	for _, v6 := range []bool{false, true} {
		family, gso := "IPv4", byte(1)
		if v6 {
			family, gso = "IPv6", 4
		}
		for _, p := range []struct {
			name  string
			proto byte
		}{{"tcp", protoTCP}, {"udp", protoUDP}} {
			for _, n := range []int{0, 1, 6, 7, 1333, 1460} {
				f := build(v6, p.proto, n, false)
				out = append(out, frame{family + " " + p.name + " complete", [headerLen]byte{}, f, p.name, true})
				h, part := partial(f, v6, p.proto)
				out = append(out, frame{family + " " + p.name + " partial", h, part, p.name, true})
				if n > 0 {
					bad := slices.Clone(f)
					bad[len(bad)-1] ^= 0xff
					out = append(out, frame{family + " " + p.name + " damaged", [headerLen]byte{}, bad, p.name, false})
				}
			}
			// One whose checksum comes to 0, which for UDP would say that there is none.
			zero := build(v6, p.proto, 2, false)
			be.PutUint16(zero[len(zero)-2:], zeroPayload(v6, p.proto))
			h, part := partial(zero, v6, p.proto)
			out = append(out, frame{family + " " + p.name + " with a sum of 0", h, part, p.name, true})
			h, part = partial(build(v6, p.proto, 100, true), v6, p.proto)
			out = append(out, frame{family + " " + p.name + " with a VLAN tag", h, part, p.name, true})
		}
		for _, n := range []int{2000, 65535 - 40} {
			big := build(v6, protoTCP, n, false)
			h, part := partial(big, v6, protoTCP)
			h[1] = gso | gsoECN
			le.PutUint16(h[2:], 54)
			le.PutUint16(h[4:], 1448)
			out = append(out, frame{family + " tcp to be cut", h, part, "tcp", true})
			// The lengths and the sum of a driver that has them filled in later.
			part = slices.Clone(part)
			if v6 {
				be.PutUint16(part[18:], 0)
			} else {
				be.PutUint16(part[16:], 1488)
				be.PutUint16(part[24:], 0xdead)
			}
			be.PutUint16(part[le.Uint16(h[6:])+16:], 0x1234)
			out = append(out, frame{family + " tcp to be cut, lengths left out", h, part, "tcp", true})
		}
	}
	return out
}
