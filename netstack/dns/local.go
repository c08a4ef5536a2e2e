package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// blockedText is what a resolver that shows extended errors tells.
const blockedText = "blocked by the machine's egress policy"

// Extended DNS Errors, RFC 8914.
const (
	optionEDE  = 15 // §2
	edeBlocked = 15 // §4.16
)

// toQuestion points at the question's name: compression to offset 12.
var toQuestion = []byte{0xc0, headerLen}

// reply is an answer without records: header, question, and EDNS if the query had it.
func (q *query) reply(rcode dnsmessage.RCode, truncated bool) []byte {
	return q.withOPT(q.answer(rcode, truncated), uint32(rcode>>4)<<24, nil)
}

// blocked is a refusal that says why (RFC 8914).
func (q *query) blocked() []byte {
	ede := binary.BigEndian.AppendUint16(nil, optionEDE)
	ede = binary.BigEndian.AppendUint16(ede, uint16(2+len(blockedText)))
	ede = binary.BigEndian.AppendUint16(ede, edeBlocked)
	return q.withOPT(q.answer(dnsmessage.RCodeRefused, false), 0, append(ede, blockedText...))
}

// answer begins an answer: header, and the question with the case it was asked in.
func (q *query) answer(rcode dnsmessage.RCode, truncated bool) []byte {
	b := make([]byte, headerLen, headerLen+maxWire+64)
	flags := flagQR | flagRA | word(q.msg, 2)&(opcodeMask|flagRD|flagCD) | uint16(rcode)&rcodeMask
	if truncated {
		flags |= flagTC
	}
	binary.BigEndian.PutUint16(b, q.number)
	binary.BigEndian.PutUint16(b[2:], flags)
	if q.end > headerLen {
		b[5] = 1
		b = append(b, q.msg[headerLen:q.end]...)
	}
	return b
}

// withOPT ends an answer with an OPT record (RFC 6891 §6.1.2) if the query had
// one; rcode is the upper part of the response code, where OPT has it.
func (q *query) withOPT(b []byte, rcode uint32, options []byte) []byte {
	if !q.edns {
		return b
	}
	return q.appendOPT(b, maxUDP, rcode, options)
}

func (q *query) appendOPT(b []byte, udp int, rcode uint32, options []byte) []byte {
	if q.do {
		rcode |= ednsDO
	}
	b = append(b, 0)
	b = appendFixed(b, typeOPT, uint16(udp), rcode, len(options))
	b = append(b, options...)
	bump(b, 10)
	return b
}

// appendFixed appends what follows the name of a record.
func appendFixed(b []byte, kind, class uint16, ttl uint32, size int) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, class)
	b = binary.BigEndian.AppendUint32(b, ttl)
	return binary.BigEndian.AppendUint16(b, uint16(size))
}

// bump counts one more record in the section whose count is at this offset.
func bump(b []byte, at int) { binary.BigEndian.PutUint16(b[at:], word(b, at)+1) }

// appendName appends a name of plain labels.
func appendName(b []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return append(b, 0)
}

// local answers what is the gateway's to answer; not ok is for the upstream.
func (s *Server) local(q query) (msg []byte, ok bool) {
	const in, anyClass = uint16(dnsmessage.ClassINET), uint16(dnsmessage.ClassANY)
	inZone := q.name == Zone || strings.HasSuffix(q.name, "."+Zone)
	addrs, static := s.static[q.name]
	owner, reverse := s.owner[q.name]
	if !inZone && !static && !reverse {
		return nil, false
	}
	if q.class != in && q.class != anyClass {
		return q.reply(dnsmessage.RCodeRefused, false), true
	}
	switch {
	case static:
		return s.addresses(q, addrs), true
	case reverse:
		b := q.answer(dnsmessage.RCodeSuccess, false)
		if wants(q, dnsmessage.TypePTR) {
			name := appendName(nil, owner)
			b = append(b, toQuestion...)
			b = appendFixed(b, uint16(dnsmessage.TypePTR), in, uint32(localTTL.Seconds()), len(name))
			b = append(b, name...)
			bump(b, 6)
		} else {
			b = appendSOA(b, q.name)
		}
		return q.withOPT(b, 0, nil), true
	case q.name == Zone:
		return q.withOPT(appendSOA(q.answer(dnsmessage.RCodeSuccess, false), Zone), 0, nil), true
	}
	return q.withOPT(appendSOA(q.answer(dnsmessage.RCodeNameError, false), Zone), 0, nil), true
}

func wants(q query, t dnsmessage.Type) bool {
	return q.qtype == uint16(t) || q.qtype == uint16(dnsmessage.TypeALL)
}

// addresses answers for a static name with those of the type asked for.
func (s *Server) addresses(q query, addrs []netip.Addr) []byte {
	b := q.answer(dnsmessage.RCodeSuccess, false)
	var given []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		t := dnsmessage.TypeAAAA
		if a.Is4() {
			t = dnsmessage.TypeA
		}
		if !wants(q, t) || len(given) == maxPinned {
			continue
		}
		data := a.AsSlice()
		b = append(b, toQuestion...)
		b = appendFixed(b, uint16(t), uint16(dnsmessage.ClassINET), uint32(localTTL.Seconds()), len(data))
		b = append(b, data...)
		bump(b, 6)
		given = append(given, a)
	}
	if len(given) == 0 {
		b = appendSOA(b, q.name)
	} else if s.cfg.Pin != nil {
		s.cfg.Pin(q.name, given, localTTL)
	}
	return q.withOPT(b, 0, nil)
}

// appendSOA says whose a negative answer is and how long it holds (RFC 2308 §2 and §5).
func appendSOA(b []byte, zone string) []byte {
	data := append(appendName(nil, HostName), 0) // the master; no mailbox
	for _, v := range []uint32{1, 3600, 600, 86400, uint32(localTTL.Seconds())} {
		data = binary.BigEndian.AppendUint32(data, v)
	}
	b = appendName(b, zone)
	b = appendFixed(b, uint16(dnsmessage.TypeSOA), uint16(dnsmessage.ClassINET), uint32(localTTL.Seconds()), len(data))
	b = append(b, data...)
	bump(b, 8)
	return b
}

// arpaName is where the name of an address is asked for: RFC 1035 §3.5, RFC 3596 §2.5.
func arpaName(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
	}
	b := a.As16()
	var s strings.Builder
	for i := 15; i >= 0; i-- {
		fmt.Fprintf(&s, "%x.%x.", b[i]&0xf, b[i]>>4)
	}
	return s.String() + "ip6.arpa"
}
