package pcap

import (
	"encoding/binary"
	"math/bits"
)

// Of virtio_net_hdr (VirtIO 1.2 §5.1.6).
const (
	flagNeedsCsum = 1    // flags: the checksum is partial, of the pseudo header only
	gsoNone       = 0    // gso_type
	gsoECN        = 0x80 // a flag of gso_type
)

const (
	etherLen = 14
	vlanLen  = 4
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100
	protoTCP = 6
	protoUDP = 17
	// Where the checksum is in the headers (RFC 9293 §3.1, RFC 768).
	tcpChecksum = 16
	udpChecksum = 6
	ipv4Len     = 20
	ipv6Len     = 40
	maxLength   = 65535
)

var be = binary.BigEndian

// complete does to the copy of a frame what its header leaves to the other side:
// the transport's checksum, and for a segment that is yet to be cut the lengths
// and checksums as they are of the whole. What it does not understand it leaves,
// for the reader of the capture to see. The frame is the guest's or its peer's:
// any bytes.
func complete(h *[headerLen]byte, frame []byte) {
	gso := h[1] &^ gsoECN
	if gso != gsoNone && whole(frame) {
		return
	}
	if h[0]&flagNeedsCsum == 0 {
		return
	}
	// §5.1.6.2.1: the field has the pseudo header's sum, and is to have that of all
	// from csum_start on.
	start, offset := int(le.Uint16(h[6:])), int(le.Uint16(h[8:]))
	if start > len(frame) || offset+2 > len(frame)-start {
		return
	}
	putChecksum(frame[start+offset:], sum(frame[start:], 0), offset == udpChecksum)
}

// whole makes a segment that is to be cut one large segment that is right, and
// says whether it knew how.
func whole(frame []byte) bool {
	if len(frame) < etherLen {
		return false
	}
	kind, ip := be.Uint16(frame[12:]), frame[etherLen:]
	if kind == typeVLAN && len(ip) >= vlanLen {
		kind, ip = be.Uint16(ip[2:]), ip[vlanLen:]
	}
	switch {
	case kind == typeIPv4 && len(ip) >= ipv4Len:
		return wholeIPv4(ip)
	case kind == typeIPv6 && len(ip) >= ipv6Len:
		return wholeIPv6(ip)
	}
	return false
}

func wholeIPv4(ip []byte) bool {
	n := int(ip[0]&15) * 4
	if ip[0]>>4 != 4 || n < ipv4Len || n > len(ip) || len(ip) > maxLength {
		return false
	}
	be.PutUint16(ip[2:], uint16(len(ip)))
	be.PutUint16(ip[10:], 0)
	be.PutUint16(ip[10:], fold(sum(ip[:n], 0)))
	return transport(ip[9], ip[12:20], ip[n:])
}

func wholeIPv6(ip []byte) bool {
	if ip[0]>>4 != 6 || len(ip)-ipv6Len > maxLength {
		return false
	}
	be.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
	return transport(ip[6], ip[8:40], ip[ipv6Len:])
}

// transport sets the checksum of a TCP or UDP segment, and UDP's length.
func transport(proto byte, addrs, seg []byte) bool {
	var at int
	switch {
	case proto == protoTCP && len(seg) >= 20:
		at = tcpChecksum
	case proto == protoUDP && len(seg) >= 8:
		at = udpChecksum
		be.PutUint16(seg[4:], uint16(len(seg)))
	default:
		return false
	}
	be.PutUint16(seg[at:], 0)
	// The pseudo headers of RFC 9293 §3.1 and RFC 8200 §8.1 have one sum: the
	// addresses, the length, the protocol.
	pseudo := sum(addrs, uint64(len(seg))+uint64(proto))
	putChecksum(seg[at:], sum(seg, pseudo), proto == protoUDP)
	return true
}

// putChecksum writes a sum's complement. Of UDP 0 says that there is none, so it
// is all ones instead, which is the same number (RFC 768); of others it stays 0,
// as receivers that compare have it.
func putChecksum(b []byte, s uint64, udp bool) {
	c := fold(s)
	if c == 0 && udp {
		c = 0xffff
	}
	be.PutUint16(b, c)
}

// sum adds up b as 16-bit words in network order, in ones' complement (RFC 1071),
// to s. Words of 64 bits have the same sum modulo 2^16-1.
func sum(b []byte, s uint64) uint64 {
	var carry uint64
	for ; len(b) >= 8; b = b[8:] {
		s, carry = bits.Add64(s, be.Uint64(b), carry)
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, be.Uint64(last[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold brings a sum to 16 bits and complements it.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}
