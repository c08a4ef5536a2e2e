package dns

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Sizes of RFC 1035 §2.3.4, §3.1 and §4.1.
const (
	headerLen   = 12
	fixedRecord = 10 // type, class, TTL, length: what is after a record's name
	maxLabel    = 63
	maxText     = 253 // a name in text, without the last dot
	maxWire     = 255 // a name on the wire
	maxJumps    = 32  // of compression in one name; a label cannot be shorter than 2 bytes, servers make a few
)

// Bits of the header's second word, RFC 1035 §4.1.1.
const (
	flagQR     = 1 << 15
	opcodeMask = 0xf << 11
	flagTC     = 1 << 9
	flagRD     = 1 << 8
	flagRA     = 1 << 7
	flagAD     = 1 << 5 // RFC 6840 §5.7
	flagCD     = 1 << 4 // RFC 4035 §3.2.2
	rcodeMask  = 0xf
)

// Of EDNS, RFC 6891: the OPT record, its DO bit (§6.1.4), BADVERS (§9), which
// has bits above the header's four.
const (
	typeOPT                     = uint16(dnsmessage.TypeOPT)
	ednsDO                      = 1 << 15
	badVersion dnsmessage.RCode = 16
)

// drop stands for a message that gets no answer at all.
const drop dnsmessage.RCode = 0xffff

var errMessage = errors.New("dns: a message that cannot be read")

// query is a query that was read. Its strings and slices are of the guest's message.
type query struct {
	msg    []byte
	end    int    // of the question
	name   string // as asked, lower case, without the last dot; "" for the root
	qtype  uint16
	class  uint16
	edns   bool
	do     bool // it wants DNSSEC's records: RFC 3225 §3
	udp    int  // how much the guest takes over UDP, in bytes
	number uint16
}

func word(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }

// parseQuery reads a query; every byte of it has to belong to it. Where rcode is
// neither success nor drop, the query is good enough for reply.
func parseQuery(msg []byte) (query, dnsmessage.RCode) {
	q := query{msg: msg, udp: minUDP}
	if len(msg) < headerLen || len(msg) > maxQuery {
		return q, drop
	}
	q.number = word(msg, 0)
	q.end = headerLen // without the question, until it is read
	flags := word(msg, 2)
	if flags&flagQR != 0 {
		return q, drop // an answer to an answer makes a loop
	}
	if flags&opcodeMask != 0 {
		return q, dnsmessage.RCodeNotImplemented
	}
	if word(msg, 4) != 1 || flags&flagTC != 0 {
		return q, dnsmessage.RCodeFormatError
	}
	name, end, ok := readName(msg, headerLen, false)
	if !ok || end+4 > len(msg) {
		return q, dnsmessage.RCodeFormatError
	}
	q.name, q.qtype, q.class, q.end = lower(name), word(msg, end), word(msg, end+2), end+4
	at, version := q.end, byte(0)
	for section, kinds := range [3]int{int(word(msg, 6)), int(word(msg, 8)), int(word(msg, 10))} {
		for range kinds {
			r, next, ok := readRecord(msg, at)
			if !ok {
				return q, dnsmessage.RCodeFormatError
			}
			at = next
			if r.kind == typeOPT {
				if section != 2 || q.edns || r.name != "" {
					return q, dnsmessage.RCodeFormatError // RFC 6891 §6.1.1
				}
				q.edns, q.udp, q.do = true, min(max(int(r.class), minUDP), maxUDP), r.ttl&ednsDO != 0
				version = byte(r.ttl >> 16)
			}
		}
	}
	if at != len(msg) {
		return q, dnsmessage.RCodeFormatError
	}
	if version != 0 {
		return q, badVersion // RFC 6891 §6.1.3
	}
	switch dnsmessage.Type(q.qtype) {
	case dnsmessage.TypeAXFR, typeIXFR, dnsmessage.TypeOPT:
		return q, dnsmessage.RCodeRefused // zones are not ours to transfer; OPT is no question
	}
	return q, dnsmessage.RCodeSuccess
}

const typeIXFR dnsmessage.Type = 251 // RFC 1995

// record is one that was read out of a message.
type record struct {
	name  string // lower case, without the last dot
	kind  uint16
	class uint16
	ttl   uint32
	data  int // where its data begins in the message
	size  int
}

func readRecord(msg []byte, at int) (r record, next int, ok bool) {
	name, end, ok := readName(msg, at, true)
	if !ok || end+fixedRecord > len(msg) {
		return r, 0, false
	}
	r = record{
		name: lower(name), kind: word(msg, end), class: word(msg, end+2),
		ttl: binary.BigEndian.Uint32(msg[end+4:]), data: end + fixedRecord, size: int(word(msg, end+8)),
	}
	next = r.data + r.size
	return r, next, next <= len(msg)
}

// readName reads a name, and gives where what follows it begins. A dot or a
// backslash inside a label is written \DDD, so that names are equal in text
// where they are on the wire, and only there.
func readName(msg []byte, at int, compressed bool) (name string, end int, ok bool) {
	var text strings.Builder
	wire, jumps := 1, 0
	for {
		if at >= len(msg) {
			return "", 0, false
		}
		n := int(msg[at])
		switch {
		case n == 0:
			if jumps == 0 {
				end = at + 1
			}
			return text.String(), end, true
		case n <= maxLabel:
			if at+1+n > len(msg) {
				return "", 0, false
			}
			if wire += n + 1; wire > maxWire {
				return "", 0, false
			}
			if text.Len() > 0 {
				text.WriteByte('.')
			}
			for _, c := range msg[at+1 : at+1+n] {
				if c == '.' || c == '\\' || c <= ' ' || c >= 0x7f {
					text.WriteString(string([]byte{'\\', '0' + c/100, '0' + c/10%10, '0' + c%10}))
				} else {
					text.WriteByte(c)
				}
			}
			at += 1 + n
		case n >= 0xc0 && compressed: // RFC 1035 §4.1.4
			if at+2 > len(msg) {
				return "", 0, false
			}
			if jumps == 0 {
				end = at + 2
			}
			to := int(word(msg, at) & 0x3fff)
			if jumps++; jumps > maxJumps || to >= at || to < headerLen {
				return "", 0, false // only to what came before
			}
			at = to
		default:
			return "", 0, false
		}
	}
}

// lower makes ASCII letters lower case; DNS knows no others (RFC 4343 §3).
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// typeName is a type as people know it: "A", or TYPE65 for one without a name here.
func typeName(t uint16) string {
	s := dnsmessage.Type(t).String()
	if n, ok := strings.CutPrefix(s, "Type"); ok {
		return n
	}
	return "TYPE" + s
}
