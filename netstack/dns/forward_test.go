package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack/policy"
	"golang.org/x/net/dns/dnsmessage"
)

// rr is a record of an answer that a test's upstream gives.
func rr(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

func a(s string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()}
}

func aaaa(s string) *dnsmessage.AAAAResource {
	return &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(s).As16()}
}

func cname(s string) *dnsmessage.CNAMEResource {
	return &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(s)}
}

// reply makes an answer to the query, and change what is wrong with it.
func reply(t testing.TB, query []byte, change func(m *dnsmessage.Message), answers ...dnsmessage.Resource) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		t.Fatalf("what was sent upstream cannot be read: %v", err)
	}
	m.Response, m.RecursionAvailable, m.Answers = true, true, slices.Clone(answers) // Pack writes into them
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPins: only what the asked name's own records and CNAMEs lead to is pinned,
// and only for as long as each of them holds.
func TestPins(t *testing.T) {
	for _, c := range []struct {
		what    string
		kind    dnsmessage.Type
		change  func(*dnsmessage.Message)
		answers []dnsmessage.Resource
		want    string
	}{
		{"plain", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("a.test.", 60, a("192.0.2.1")), rr("A.TEST.", 30, a("192.0.2.2"))}, "a.test [192.0.2.1 192.0.2.2] 30s"},
		{"IPv6", dnsmessage.TypeAAAA, nil, []dnsmessage.Resource{rr("a.test.", 60, aaaa("2001:db8::1"))}, "a.test [2001:db8::1] 1m0s"},
		{"another type than asked", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("a.test.", 60, aaaa("2001:db8::1"))}, ""},
		{"IPv4 where IPv6 was asked", dnsmessage.TypeAAAA, nil, []dnsmessage.Resource{rr("a.test.", 60, a("192.0.2.1"))}, ""},
		{"two CNAMEs of a name", dnsmessage.TypeA, nil, []dnsmessage.Resource{
			rr("a.test.", 60, cname("b.test.")), rr("a.test.", 60, cname("victim.test.")), rr("victim.test.", 60, a("192.0.2.66")), rr("b.test.", 60, a("192.0.2.1")),
		}, "a.test [192.0.2.1] 1m0s"},
		{"a chain, in disorder", dnsmessage.TypeA, nil, []dnsmessage.Resource{
			rr("c.cdn.test.", 300, a("192.0.2.3")), rr("b.cdn.test.", 20, cname("C.cdn.test.")), rr("a.test.", 3600, cname("b.cdn.test.")),
		}, "a.test [192.0.2.3] 20s"},
		{"another name", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("victim.test.", 60, a("192.0.2.66"))}, ""},
		{"another name beside", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("victim.test.", 60, a("192.0.2.66")), rr("a.test.", 60, a("192.0.2.1"))}, "a.test [192.0.2.1] 1m0s"},
		{"a chain that begins elsewhere", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("b.test.", 60, cname("c.test.")), rr("c.test.", 60, a("192.0.2.66"))}, ""},
		{"a circle", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("a.test.", 60, cname("b.test.")), rr("b.test.", 60, cname("a.test.")), rr("b.test.", 60, a("192.0.2.1"))}, "a.test [192.0.2.1] 1m0s"},
		{"another class", dnsmessage.TypeA, nil, []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("a.test."), Class: dnsmessage.ClassCHAOS}, Body: a("192.0.2.1")}}, ""},
		{"an error", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }, []dnsmessage.Resource{rr("a.test.", 60, a("192.0.2.1"))}, ""},
		{"in another section", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Additionals = []dnsmessage.Resource{rr("a.test.", 60, a("192.0.2.1"))} }, nil, ""},
		{"a TTL with its sign bit", dnsmessage.TypeA, nil, []dnsmessage.Resource{rr("a.test.", 1<<31, a("192.0.2.1"))}, "a.test [192.0.2.1] 0s"},
		{"what is not asked by address", dnsmessage.TypeTXT, nil, []dnsmessage.Resource{rr("a.test.", 60, a("192.0.2.1"))}, ""},
	} {
		var got string
		s := newServer(t, Config{
			Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
				return reply(t, q, c.change, c.answers...), nil
			},
			Pin: func(name string, a []netip.Addr, ttl time.Duration) { got += fmt.Sprint(name, " ", a, " ", ttl) },
		})
		answer(t, s, ask(t, "a.test.", c.kind))
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// TestWithPolicy joins the two: a name that a rule allows opens what DNS said of
// it and no more, a rebinding one opens nothing.
func TestWithPolicy(t *testing.T) {
	p, err := policy.Parse(strings.NewReader("deny-all\ndeny private\nallow api.test:443\nallow rebind.test\nallow db.corp.test:5432"), "rules")
	if err != nil {
		t.Fatal(err)
	}
	data := map[string][]dnsmessage.Resource{
		"api.test.":    {rr("api.test.", 60, cname("edge.cdn.test.")), rr("edge.cdn.test.", 60, a("192.0.2.1")), rr("other.test.", 60, a("192.0.2.66"))},
		"rebind.test.": {rr("rebind.test.", 60, a("10.0.0.1")), rr("rebind.test.", 60, a("169.254.169.254"))},
	}
	var upstream []string
	s := newServer(t, Config{
		Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
			name := read2(t, q).Questions[0].Name.String()
			upstream = append(upstream, name)
			return reply(t, q, nil, data[name]...), nil
		},
		AllowQuery: p.AllowQuery, Pin: p.Pin,
		Names: map[string][]netip.Addr{"db.corp.test": addrs("192.0.2.5")},
	})
	allowed := func(dst string) bool { return p.Decide("tcp", netip.MustParseAddrPort(dst)).Allow }
	if allowed("192.0.2.1:443") || allowed("192.0.2.5:5432") {
		t.Error("open before any answer")
	}
	for _, name := range []string{"api.test.", "rebind.test.", "edge.cdn.test.", "c2VjcmV0.evil.test.", "db.corp.test."} {
		answer(t, s, ask(t, name, dnsmessage.TypeA))
	}
	if !slices.Equal(upstream, []string{"api.test.", "rebind.test."}) {
		t.Errorf("asked upstream: %q", upstream)
	}
	for dst, want := range map[string]bool{
		"192.0.2.1:443": true, "192.0.2.5:5432": true, "192.0.2.1:80": false, "192.0.2.66:443": false, "10.0.0.1:80": false, "169.254.169.254:80": false,
	} {
		if allowed(dst) != want {
			t.Errorf("%s: allowed %v", dst, !want)
		}
	}
}

// read2 unpacks what goes upstream.
func read2(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestUpstreamIsNotTrusted: an answer to something else is none.
func TestUpstreamIsNotTrusted(t *testing.T) {
	for what, spoil := range map[string]func(q, b []byte) []byte{
		"nothing":               func(q, b []byte) []byte { return nil },
		"half a header":         func(q, b []byte) []byte { return b[:7] },
		"another ID":            func(q, b []byte) []byte { b[0] ^= 1; return b },
		"the query itself":      func(q, b []byte) []byte { return q },
		"another opcode":        func(q, b []byte) []byte { b[2] |= 5 << 3; return b },
		"another name":          func(q, b []byte) []byte { b[13] ^= 1; return b },
		"another type":          func(q, b []byte) []byte { b[len(q)-3] ^= 1; return b },
		"two questions":         func(q, b []byte) []byte { b[5] = 2; return b },
		"no question, no error": func(q, b []byte) []byte { b[5] = 0; return b },
		"a cut record":          func(q, b []byte) []byte { return b[:len(b)-1] },
		"records not there":     func(q, b []byte) []byte { b[10] = 0xff; return b },
		"a name in a circle":    func(q, b []byte) []byte { binary.BigEndian.PutUint16(b[len(q):], 0xc000|uint16(len(q))); return b },
		"a name pointing on":    func(q, b []byte) []byte { binary.BigEndian.PutUint16(b[len(q):], 0xc000|uint16(len(q)+2)); return b },
	} {
		s := newServer(t, Config{
			Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
				return spoil(bytes.Clone(q), reply(t, q, nil, rr("a.test.", 60, a("192.0.2.1")))), nil
			},
			Pin: func(string, []netip.Addr, time.Duration) { t.Errorf("%s: pinned", what) },
		})
		if m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure || len(m.Answers) > 0 {
			t.Errorf("%s: %v", what, m.GoString())
		}
		if s.Stats().Failed != 1 {
			t.Errorf("%s: %+v", what, s.Stats())
		}
	}
}

// TestForwardedAsItCame: the question's case, flags, EDNS and records of any type go
// both ways unchanged; the ID does not.
func TestForwardedAsItCame(t *testing.T) {
	query := ask(t, "wWw.ExAmple.TeST.", 65280, 1400)
	query[3] |= flagCD
	var sent []byte
	data := []byte("\x00\x01any data \xff\xc0\x0c")
	s := newServer(t, Config{Exchange: func(_ context.Context, q []byte, tcp bool) ([]byte, error) {
		sent = bytes.Clone(q)
		b := reply(t, q, func(m *dnsmessage.Message) { m.Authoritative, m.AuthenticData = true, true },
			rr("wWw.ExAmple.TeST.", 7, &dnsmessage.UnknownResource{Type: 65280, Data: data}))
		copy(b[12:], bytes.ToLower(b[12:30])) // an upstream that does not keep the case
		return append(b, "behind"...), nil
	}})
	ids := map[uint16]bool{}
	for range 8 {
		got := s.Answer(context.Background(), query, false)
		m := read(t, query, got)
		if !bytes.Equal(sent[2:], query[2:]) {
			t.Fatalf("sent %x\nasked %x", sent, query)
		}
		if !bytes.Equal(got[12:12+19], query[12:12+19]) || !m.AuthenticData || !m.Authoritative || !m.CheckingDisabled || len(m.Additionals) != 1 || bytes.HasSuffix(got, []byte("behind")) {
			t.Fatalf("%q\n%v", got, m.GoString())
		}
		if body := m.Answers[0].Body.(*dnsmessage.UnknownResource); !bytes.Equal(body.Data, data) || m.Answers[0].Header.TTL != 7 {
			t.Fatalf("%v", m.GoString())
		}
		ids[binary.BigEndian.Uint16(sent)] = true
	}
	if len(ids) < 7 {
		t.Errorf("%d IDs in 8 queries: they can be guessed", len(ids))
	}
}

// TestNothingElseLeaves: what a guest puts around its question stays here.
func TestNothingElseLeaves(t *testing.T) {
	var m dnsmessage.Message
	if err := m.Unpack(ask(t, "a.test.", dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	secret := []byte("secret")
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(60000, 0, true); err != nil {
		t.Fatal(err)
	}
	extra := rr("a.test.", 60, &dnsmessage.UnknownResource{Type: 65280, Data: secret})
	m.Answers, m.Authorities = []dnsmessage.Resource{extra}, []dnsmessage.Resource{extra}
	m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 65001, Data: secret}}}}, extra}
	m.RCode, m.Authoritative, m.AuthenticData = 7, true, true
	query, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	s := newServer(t, Config{Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
		asked = true
		sent := read2(t, q)
		if bytes.Contains(q, secret) || len(sent.Answers)+len(sent.Authorities) > 0 || len(sent.Additionals) != 1 || sent.RCode != 0 || sent.Authoritative || !sent.AuthenticData || !sent.RecursionDesired {
			t.Errorf("sent %q", q)
		}
		if o := sent.Additionals[0].Header; !o.DNSSECAllowed() || o.Class != maxUDP {
			t.Errorf("EDNS is not kept: %v", o)
		}
		return reply(t, q, nil), nil
	}})
	if m := answer(t, s, query); !asked || m.RCode != 0 || len(m.Additionals) != 1 {
		t.Errorf("%v", m.GoString())
	}
	query = ask(t, "a.test.", dnsmessage.TypeA, 1232)
	query[len(query)-5] = 1 // EDNS version 1
	asked = false
	if m := answer(t, s, query); asked || len(m.Additionals) != 1 || m.Additionals[0].Header.ExtendedRCode(m.RCode) != badVersion {
		t.Errorf("EDNS version 1: %v", m.GoString())
	}
}

// TestTruncation: an answer that the guest does not take over UDP is marked as
// cut and has no records; an upstream's cut one is fetched over TCP.
func TestTruncation(t *testing.T) {
	var many []dnsmessage.Resource
	for i := range 100 {
		many = append(many, rr("a.test.", 60, a(fmt.Sprintf("192.0.2.%d", i))))
	}
	pinned := 0
	s := newServer(t, Config{
		Exchange: func(_ context.Context, q []byte, tcp bool) ([]byte, error) {
			if !tcp {
				return reply(t, q, func(m *dnsmessage.Message) { m.Truncated = true }, many[:1]...), nil
			}
			return reply(t, q, nil, many...), nil
		},
		Pin: func(_ string, a []netip.Addr, _ time.Duration) { pinned = len(a) },
	})
	for _, c := range []struct {
		edns []int
		tcp  bool
		cut  bool
	}{{nil, false, true}, {[]int{100}, false, true}, {[]int{1232}, false, true}, {[]int{maxUDP}, false, false}, {[]int{65535}, false, false}, {nil, true, false}} {
		query := ask(t, "a.test.", dnsmessage.TypeA, c.edns...)
		pinned = 0
		b := s.Answer(context.Background(), query, c.tcp)
		m := read(t, query, b)
		if m.Truncated != c.cut || (len(m.Answers) == 0) != c.cut || len(m.Additionals) != len(c.edns) || c.cut && len(b) > minUDP || pinned != 100 {
			t.Errorf("%+v: TC %v, %d answers, %d bytes, %d pinned", c, m.Truncated, len(m.Answers), len(b), pinned)
		}
	}
	// TCP does not work: over UDP the guest learns that there is more, over TCP that it failed.
	s = newServer(t, Config{Exchange: func(_ context.Context, q []byte, tcp bool) ([]byte, error) {
		if tcp {
			return nil, errors.New("refused")
		}
		return reply(t, q, func(m *dnsmessage.Message) { m.Truncated = true }, many[:1]...), nil
	}})
	query := ask(t, "a.test.", dnsmessage.TypeA)
	if m := read(t, query, s.Answer(context.Background(), query, false)); !m.Truncated || len(m.Answers) > 0 {
		t.Errorf("%v", m.GoString())
	}
	if m := read(t, query, s.Answer(context.Background(), query, true)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%v", m.GoString())
	}
}

// TestErrorsPass: an upstream's own errors reach the guest, also without a question.
func TestErrorsPass(t *testing.T) {
	for _, rcode := range []dnsmessage.RCode{dnsmessage.RCodeNameError, dnsmessage.RCodeRefused, dnsmessage.RCodeFormatError} {
		for _, without := range []bool{false, true} {
			s := newServer(t, Config{Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
				return reply(t, q, func(m *dnsmessage.Message) {
					if m.RCode = rcode; without {
						m.Questions = nil
					}
				}), nil
			}})
			if m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA)); m.RCode != rcode || len(m.Questions) != 1 {
				t.Errorf("%v, without question %v: %v", rcode, without, m.GoString())
			}
		}
	}
	s := newServer(t, Config{})
	if m := answer(t, s, ask(t, "a.test.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("no upstream at all: %v", m.GoString())
	}
}

// FuzzQuery: whatever a guest asks is answered once, to it, in its size; only a
// sound query goes upstream, and as it came.
func FuzzQuery(f *testing.F) {
	for _, q := range [][]byte{
		ask(f, "a.test.", dnsmessage.TypeA), ask(f, "host.smolvmm.internal.", dnsmessage.TypeALL, 1232), ask(f, "2.2.0.10.in-addr.arpa.", dnsmessage.TypePTR),
		ask(f, "closed.test.", dnsmessage.TypeA, 512), ask(f, "x.smolvmm.internal.", dnsmessage.TypeSRV), {0, 1, 0x80}, make([]byte, 12),
	} {
		f.Add(q, false)
		f.Add(q, true)
	}
	f.Fuzz(func(t *testing.T, query []byte, tcp bool) {
		before := bytes.Clone(query)
		asked := 0
		s := newServer(t, Config{
			Host: addrs("10.0.2.2"), AllowQuery: func(n string) bool { return n != "closed.test" },
			Pin: func(string, []netip.Addr, time.Duration) {},
			Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
				theirs, rcode := parseQuery(q)
				end := len(query)
				if mine, _ := parseQuery(query); rcode != 0 || theirs.edns != mine.edns || theirs.do != mine.do || theirs.udp != mine.udp {
					t.Fatalf("sent %x, asked %x", q, query)
				} else if end = mine.end; !bytes.Equal(q[headerLen:theirs.end], query[headerLen:end]) || len(q) > theirs.end+11 {
					t.Fatalf("sent %x, asked %x", q, query)
				}
				asked++
				b := bytes.Clone(q)
				b[2] |= 0x80
				return b, nil
			},
		})
		b := s.Answer(context.Background(), query, tcp)
		if !bytes.Equal(query, before) {
			t.Fatal("the guest's bytes were changed")
		}
		if asked > 1 {
			t.Fatalf("asked %d times", asked)
		}
		if b == nil {
			return
		}
		if len(b) < headerLen || !bytes.Equal(b[:2], query[:2]) || b[2]&0x80 == 0 || !tcp && len(b) > maxUDP {
			t.Fatalf("%x", b)
		}
		if _, err := walk(b, headerLen+questionLen(b), nil); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
	})
}

func questionLen(b []byte) int {
	if word(b, 4) == 0 {
		return 0
	}
	_, end, _ := readName(b, headerLen, false)
	return end + 4 - headerLen
}

// FuzzAnswer: whatever an upstream says, the guest gets an answer to its own
// question, and nothing is pinned for another name.
func FuzzAnswer(f *testing.F) {
	query := ask(f, "a.test.", dnsmessage.TypeA, 4096)
	f.Add(reply(f, query, nil, rr("a.test.", 60, a("192.0.2.1")))[headerLen:], uint16(0x8180), uint16(1))
	f.Add(reply(f, query, nil, rr("a.test.", 60, cname("b.test.")), rr("b.test.", 60, a("192.0.2.1")))[headerLen:], uint16(0x8180), uint16(2))
	f.Add(reply(f, query, nil)[headerLen:], uint16(0x8183), uint16(0))
	f.Add(reply(f, query, nil)[headerLen:], uint16(0x8380), uint16(0))
	f.Fuzz(func(t *testing.T, body []byte, flags, count uint16) {
		s := newServer(t, Config{
			Exchange: func(_ context.Context, q []byte, _ bool) ([]byte, error) {
				b := append(bytes.Clone(q[:headerLen]), body...)
				binary.BigEndian.PutUint16(b[2:], flags)
				binary.BigEndian.PutUint16(b[6:], count)
				return b, nil
			},
			Pin: func(name string, a []netip.Addr, ttl time.Duration) {
				if name != "a.test" || len(a) == 0 || len(a) > maxPinned || ttl < 0 {
					t.Fatalf("pinned %q %v %v", name, a, ttl)
				}
			},
		})
		b := s.Answer(context.Background(), query, false)
		q, _ := parseQuery(query)
		if len(b) < q.end || !bytes.Equal(b[:2], query[:2]) || !bytes.Equal(b[headerLen:q.end], query[headerLen:q.end]) || len(b) > maxUDP {
			t.Fatalf("%x", b)
		}
		if _, err := walk(b, q.end, nil); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
	})
}
