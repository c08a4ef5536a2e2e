package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxChain bounds the CNAMEs that are followed; BIND follows 16.
	maxChain = 16
	// maxPinned bounds the addresses of one answer, static or not.
	maxPinned = 160
)

var errTruncated = errors.New("dns: the answer is truncated")

// forward asks upstream, and gives an answer that is one to this query: with the
// guest's ID and with the question as the guest wrote it. UDP is always tried
// first, as every upstream has it, and TCP if the answer did not fit.
func (s *Server) forward(ctx context.Context, q query, overTCP bool) ([]byte, error) {
	if s.cfg.Exchange == nil {
		return nil, errNoUpstream
	}
	out := q.upstream()
	once := func(tcp bool) ([]byte, error) {
		answer, err := s.cfg.Exchange(ctx, out, tcp)
		if err != nil {
			return nil, err
		}
		return q.check(answer, out)
	}
	answer, err := once(false)
	if !errors.Is(err, errTruncated) {
		return answer, err
	}
	if answer, err = once(true); err != nil && !overTCP {
		// The guest may do better; it is told that there is more, and nothing of what was cut.
		return q.reply(dnsmessage.RCodeSuccess, true), nil
	}
	return answer, err
}

// upstream is the query as it is sent: the question as it came, the flags that
// ask for something, and what EDNS is for, without options, as those are between
// neighbours (RFC 6891 §6.1.1). Nothing else of the guest's goes with it, where
// data could leave. The ID is a new one: the guest's may be guessed by who wants
// to answer first (RFC 5452 §9.2).
func (q *query) upstream() []byte {
	b := make([]byte, headerLen, len(q.msg)+1+fixedRecord)
	rand.Read(b[:2]) // never fails: crypto/rand
	binary.BigEndian.PutUint16(b[2:], word(q.msg, 2)&(flagRD|flagAD|flagCD))
	b[5] = 1
	b = append(b, q.msg[headerLen:q.end]...)
	if q.edns {
		b = q.appendOPT(b, q.udp, 0, nil)
	}
	return b
}

// check takes an answer if it is to the query that was sent, and makes it one to the guest's.
func (q *query) check(answer, sent []byte) ([]byte, error) {
	if !answers(answer, sent) {
		return nil, errMessage
	}
	flags := word(answer, 2)
	rcode := dnsmessage.RCode(flags & rcodeMask)
	if word(answer, 4) == 0 {
		// Servers that do not understand a query leave the question out (RFC 6891 §7).
		return q.reply(rcode, false), nil
	}
	if flags&flagTC != 0 {
		return nil, errTruncated
	}
	end, err := walk(answer, q.end, nil)
	if err != nil {
		return nil, err
	}
	answer = bytes.Clone(answer[:end]) // what is behind the last record is nobody's
	binary.BigEndian.PutUint16(answer, q.number)
	copy(answer[headerLen:], q.msg[headerLen:q.end])
	return answer, nil
}

// answers: it is an answer to what was sent, by ID and question.
func answers(answer, sent []byte) bool {
	if len(answer) < headerLen || word(answer, 0) != word(sent, 0) {
		return false
	}
	flags := word(answer, 2)
	if flags&flagQR == 0 || flags&opcodeMask != word(sent, 2)&opcodeMask {
		return false
	}
	if word(answer, 4) == 0 {
		return flags&rcodeMask != 0
	}
	if word(answer, 4) != 1 {
		return false
	}
	name, end, ok := readName(sent, headerLen, false)
	if !ok || len(sent) < end+4 || len(answer) < end+4 {
		return false
	}
	// Not compressed, as there is nothing before it, and so of the same length.
	theirs, theirEnd, ok := readName(answer, headerLen, false)
	return ok && theirEnd == end && lower(theirs) == lower(name) && string(answer[end:end+4]) == string(sent[end:end+4])
}

// walk goes through all records from an offset, calls visit for those of the
// answer section, and gives where the last one ends.
func walk(msg []byte, at int, visit func(record)) (end int, err error) {
	for section, kinds := range [3]uint16{word(msg, 6), word(msg, 8), word(msg, 10)} {
		for i := range kinds {
			r, next, ok := readRecord(msg, at)
			if !ok {
				return 0, fmt.Errorf("%w: record %d of section %d", errMessage, i, section+1)
			}
			if section == 0 && visit != nil {
				visit(r)
			}
			at = next
		}
	}
	return at, nil
}

// pin tells of the addresses for the name that was asked for. What else an
// upstream puts into an answer pins nothing: only the asked name's own records
// count, and those that its CNAMEs lead to.
func (s *Server) pin(q query, answer []byte) {
	if s.cfg.Pin == nil || word(answer, 2)&rcodeMask != 0 || q.class != uint16(dnsmessage.ClassINET) {
		return
	}
	if !wants(q, dnsmessage.TypeA) && !wants(q, dnsmessage.TypeAAAA) {
		return
	}
	type alias struct {
		to  string
		ttl uint32
	}
	type address struct {
		addr netip.Addr
		ttl  uint32
	}
	aliases, of := map[string]alias{}, map[string][]address{}
	_, err := walk(answer, q.end, func(r record) {
		if r.class != uint16(dnsmessage.ClassINET) {
			return
		}
		if r.ttl > 1<<31-1 {
			r.ttl = 0 // RFC 2181 §8
		}
		switch t := dnsmessage.Type(r.kind); {
		case t == dnsmessage.TypeCNAME && len(aliases) < maxPinned:
			if to, end, ok := readName(answer, r.data, true); ok && end == r.data+r.size {
				if _, twice := aliases[r.name]; !twice { // a name has one: RFC 2181 §10.1
					aliases[r.name] = alias{lower(to), r.ttl}
				}
			}
		case t == dnsmessage.TypeA && r.size == 4 && wants(q, t), t == dnsmessage.TypeAAAA && r.size == 16 && wants(q, t):
			a, _ := netip.AddrFromSlice(answer[r.data : r.data+r.size])
			of[r.name] = append(of[r.name], address{a, r.ttl})
		}
	})
	if err != nil {
		return
	}
	name, ttl := q.name, uint32(1<<31-1)
	var addrs []netip.Addr
	for range maxChain {
		for _, a := range of[name] {
			if len(addrs) < maxPinned && !slices.Contains(addrs, a.addr) {
				addrs, ttl = append(addrs, a.addr), min(ttl, a.ttl)
			}
		}
		next, ok := aliases[name]
		if !ok {
			break
		}
		name, ttl = next.to, min(ttl, next.ttl)
	}
	if len(addrs) > 0 {
		s.cfg.Pin(q.name, addrs, time.Duration(ttl)*time.Second)
	}
}

// fit gives the answer, or over UDP if it is longer than the guest takes, a
// truncated one without records but OPT (RFC 2181 §9, RFC 6891 §7).
func (s *Server) fit(q query, answer []byte, overTCP bool) []byte {
	if overTCP || len(answer) <= q.udp {
		return answer
	}
	s.count.truncated.Add(1)
	return q.reply(dnsmessage.RCode(word(answer, 2)&rcodeMask), true)
}
