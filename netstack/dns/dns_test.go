package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// ask builds a query.
func ask(t testing.TB, name string, qtype dnsmessage.Type, edns ...int) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: qtype, Class: dnsmessage.ClassINET}},
	}
	for _, size := range edns {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, dnsmessage.RCodeSuccess, false); err != nil {
			t.Fatal(err)
		}
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read unpacks an answer and holds it to what every answer is.
func read(t testing.TB, query, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	if !m.Response || !m.RecursionAvailable || m.ID != binary.BigEndian.Uint16(query) {
		t.Fatalf("no answer to the query: %v", m.GoString())
	}
	if len(m.Questions) == 1 && !bytes.Contains(query, b[12:12+len(m.Questions[0].Name.String())]) {
		t.Fatalf("the question was changed: %q", b)
	}
	return m
}

func answer(t testing.TB, s *Server, query []byte) dnsmessage.Message {
	t.Helper()
	return read(t, query, s.Answer(context.Background(), query, false))
}

func newServer(t testing.TB, c Config) *Server {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, v := range s {
		out = append(out, netip.MustParseAddr(v))
	}
	return out
}

// bodies gives the answers' data in text.
func bodies(m dnsmessage.Message) []string {
	var out []string
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, b.PTR.String())
		case *dnsmessage.CNAMEResource:
			out = append(out, b.CNAME.String())
		default:
			out = append(out, b.GoString())
		}
	}
	return out
}

// nowhere is an upstream that must not be asked.
func nowhere(t testing.TB) Exchange {
	return func(context.Context, []byte, bool) ([]byte, error) {
		t.Error("an upstream was asked")
		return nil, errors.New("asked")
	}
}

func TestLocalNames(t *testing.T) {
	type pinned struct {
		name  string
		addrs []netip.Addr
	}
	var pins []pinned
	s := newServer(t, Config{
		Exchange: nowhere(t), AllowQuery: func(string) bool { return false },
		Host:   addrs("10.0.2.2", "fd00::2"),
		Names:  map[string][]netip.Addr{"db": addrs("10.9.9.9"), "Web.Corp.Test.": addrs("10.9.9.8", "::ffff:10.9.9.7", "2001:db8::8"), "alias": addrs("10.0.2.2")},
		Search: "corp.test",
		Pin:    func(name string, a []netip.Addr, ttl time.Duration) { pins = append(pins, pinned{name, a}) },
	})
	const ok, no = dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError
	for _, c := range []struct {
		name  string
		kind  dnsmessage.Type
		rcode dnsmessage.RCode
		want  string
	}{
		{"host.smolvmm.internal.", dnsmessage.TypeA, ok, "10.0.2.2"},
		{"HOST.SmolVMM.internal.", dnsmessage.TypeAAAA, ok, "fd00::2"},
		{"host.smolvmm.internal.", dnsmessage.TypeALL, ok, "10.0.2.2 fd00::2"},
		{"host.smolvmm.internal.", dnsmessage.TypeMX, ok, ""},
		{"other.smolvmm.internal.", dnsmessage.TypeA, no, ""},
		{"a.host.smolvmm.internal.", dnsmessage.TypeTXT, no, ""},
		{"smolvmm.internal.", dnsmessage.TypeA, ok, ""},
		{"db.", dnsmessage.TypeA, ok, "10.9.9.9"},
		{"db.corp.test.", dnsmessage.TypeA, ok, "10.9.9.9"},
		{"db.corp.test.", dnsmessage.TypeAAAA, ok, ""},
		{"web.corp.test.", dnsmessage.TypeA, ok, "10.9.9.8 10.9.9.7"},
		{"web.corp.test.", dnsmessage.TypeAAAA, ok, "2001:db8::8"},
		{"2.2.0.10.in-addr.arpa.", dnsmessage.TypePTR, ok, "host.smolvmm.internal."},
		{"9.9.9.10.in-addr.arpa.", dnsmessage.TypePTR, ok, "db.corp.test."},
		{"9.9.9.10.in-addr.arpa.", dnsmessage.TypeA, ok, ""},
		{"7.9.9.10.IN-ADDR.ARPA.", dnsmessage.TypePTR, ok, "web.corp.test."},
		{"8." + strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa.", dnsmessage.TypePTR, ok, "web.corp.test."},
	} {
		m := answer(t, s, ask(t, c.name, c.kind))
		if got := strings.Join(bodies(m), " "); got != c.want || m.RCode != c.rcode || !strings.EqualFold(m.Questions[0].Name.String(), c.name) {
			t.Errorf("%s %v: %q, %v", c.name, c.kind, got, m.RCode)
		}
		if c.want == "" && (len(m.Authorities) != 1 || m.Authorities[0].Header.Type != dnsmessage.TypeSOA) {
			t.Errorf("%s %v: a negative answer without SOA is not kept: %v", c.name, c.kind, m.GoString())
		}
	}
	if !slices.ContainsFunc(pins, func(p pinned) bool { return p.name == "db.corp.test" && slices.Equal(p.addrs, addrs("10.9.9.9")) }) {
		t.Errorf("static addresses are not pinned: %v", pins)
	}
	if m := answer(t, s, ask(t, "foreign.test.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("what is not local: %v", m.GoString())
	}
	if m := answer(t, s, ask(t, "xsmolvmm.internal.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("a name beside the zone: %v", m.GoString())
	}
	chaos := ask(t, "host.smolvmm.internal.", dnsmessage.TypeA)
	chaos[len(chaos)-1] = 3
	if m := answer(t, s, chaos); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("class CH: %v", m.GoString())
	}
	if c := s.Stats(); c.Local != c.Queries-2 || c.Refused != 2 {
		t.Errorf("%+v", c)
	}
}

func TestNewErrors(t *testing.T) {
	one := addrs("192.0.2.1")
	for want, c := range map[string]Config{
		"search domain":        {Search: "a..b"},
		"a label has":          {Names: map[string][]netip.Addr{strings.Repeat("a", 64): one}},
		"only letters":         {Names: map[string][]netip.Addr{"a b": one}},
		"too long":             {Names: map[string][]netip.Addr{strings.Repeat("abc.", 70): one}},
		"needs addresses":      {Names: map[string][]netip.Addr{"a": nil}},
		"without zones":        {Names: map[string][]netip.Addr{"a": addrs("fe80::1%eth0")}},
		"is the gateway's own": {Names: map[string][]netip.Addr{"Host.smolvmm.internal.": one}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRefused: a name that the policy closes is not asked for, the guest is told
// so and why, and so is the audit.
func TestRefused(t *testing.T) {
	var denied []string
	s := newServer(t, Config{
		Exchange: nowhere(t), AllowQuery: func(name string) bool { return name != "secret.evil.test" },
		Denied: func(name, qtype string) { denied = append(denied, name+" "+qtype) },
	})
	m := answer(t, s, ask(t, "Secret.evil.TEST.", dnsmessage.TypeA))
	if m.RCode != dnsmessage.RCodeRefused || len(m.Answers) != 0 || m.Questions[0].Name.String() != "Secret.evil.TEST." {
		t.Errorf("%v", m.GoString())
	}
	m = answer(t, s, ask(t, "secret.evil.test.", 65, 1232))
	if m.RCode != dnsmessage.RCodeRefused || len(m.Additionals) != 1 {
		t.Fatalf("%v", m.GoString())
	}
	opt := m.Additionals[0].Body.(*dnsmessage.OPTResource)
	if len(opt.Options) != 1 || opt.Options[0].Code != optionEDE || !bytes.Contains(opt.Options[0].Data, []byte("policy")) {
		t.Errorf("no reason: %v", opt)
	}
	answer(t, s, ask(t, "secret.evil.test.", 64999))
	if !slices.Equal(denied, []string{"secret.evil.test A", "secret.evil.test HTTPS", "secret.evil.test TYPE64999"}) {
		t.Errorf("%q", denied)
	}
}

// TestMalformed: what is no query gets no answer, or one that says so; nothing goes upstream.
func TestMalformed(t *testing.T) {
	s := newServer(t, Config{Exchange: nowhere(t)})
	good := ask(t, "a.test.", dnsmessage.TypeA)
	edns := ask(t, "a.test.", dnsmessage.TypeA, 1232)
	change := func(msg []byte, f func(b []byte) []byte) []byte { return f(bytes.Clone(msg)) }
	const dropped = drop
	for what, c := range map[string]struct {
		query []byte
		want  dnsmessage.RCode
	}{
		"nothing":             {nil, dropped},
		"half a header":       {good[:11], dropped},
		"an answer":           {change(good, func(b []byte) []byte { b[2] |= 0x80; return b }), dropped},
		"too long":            {append(bytes.Clone(good), make([]byte, maxQuery)...), dropped},
		"opcode NOTIFY":       {change(good, func(b []byte) []byte { b[2] |= 4 << 3; return b }), dnsmessage.RCodeNotImplemented},
		"header only":         {good[:12], dnsmessage.RCodeFormatError},
		"no question":         {change(good[:12], func(b []byte) []byte { b[5] = 0; return b }), dnsmessage.RCodeFormatError},
		"two questions":       {change(good, func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), dnsmessage.RCodeFormatError},
		"a cut question":      {good[:len(good)-1], dnsmessage.RCodeFormatError},
		"a byte more":         {append(bytes.Clone(good), 0), dnsmessage.RCodeFormatError},
		"TC in a query":       {change(good, func(b []byte) []byte { b[2] |= 2; return b }), dnsmessage.RCodeFormatError},
		"a compressed name":   {change(good, func(b []byte) []byte { return append(b[:12], 0xc0, 4, 0, 1, 0, 1) }), dnsmessage.RCodeFormatError},
		"a pointer to itself": {change(good, func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), dnsmessage.RCodeFormatError},
		"label type 01":       {change(good, func(b []byte) []byte { b[12] = 0x41; return b }), dnsmessage.RCodeFormatError},
		"two OPTs":            {change(edns, func(b []byte) []byte { b[11] = 2; return append(b, b[len(good):]...) }), dnsmessage.RCodeFormatError},
		"records not there":   {change(good, func(b []byte) []byte { b[6], b[7] = 0xff, 0xff; return b }), dnsmessage.RCodeFormatError},
		"a zone transfer":     {ask(t, "a.test.", dnsmessage.TypeAXFR), dnsmessage.RCodeRefused},
		"a name of 256 bytes": {ask(t, "a.test.", dnsmessage.TypeA)[:12], dnsmessage.RCodeFormatError},
	} {
		b := s.Answer(context.Background(), c.query, false)
		if c.want == dropped {
			if b != nil {
				t.Errorf("%s: answered %x", what, b)
			}
			continue
		}
		if m := read(t, c.query, b); m.RCode != c.want {
			t.Errorf("%s: %v, want %v", what, m.RCode, c.want)
		}
	}
	long := append(bytes.Clone(good[:12]), bytes.Repeat(append([]byte{63}, bytes.Repeat([]byte{'a'}, 63)...), 4)...)
	if m := answer(t, s, append(long, 0, 0, 1, 0, 1)); m.RCode != dnsmessage.RCodeFormatError {
		t.Errorf("a name of 257 bytes: %v", m.RCode)
	}
	if c := s.Stats(); c.Malformed != c.Queries {
		t.Errorf("%+v", c)
	}
}

// TestNamesOnTheWire: bytes that mean something in text do not make one name of another.
func TestNamesOnTheWire(t *testing.T) {
	var asked string
	s := newServer(t, Config{AllowQuery: func(name string) bool { asked = name; return false }})
	raw := append(ask(t, ".", dnsmessage.TypeA)[:12], "\x05a.b\\\n\x04Test\x00\x00\x01\x00\x01"...)
	if b := s.Answer(context.Background(), raw, false); asked != `a\046b\092\010.test` || !bytes.Equal(b[12:], raw[12:]) {
		t.Errorf("%q %q", asked, b)
	}
	if s.Answer(context.Background(), ask(t, ".", dnsmessage.TypeNS), false); asked != "" {
		t.Errorf("the root: %q", asked)
	}
}

// TestBusy: no more than Concurrent wait for an upstream; one that never answers
// costs its timeout.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		s := newServer(t, Config{Concurrent: 3, Exchange: func(ctx context.Context, q []byte, tcp bool) ([]byte, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		query := ask(t, "a.test.", dnsmessage.TypeA)
		begun := time.Now()
		var answered atomic.Int32
		for range 3 {
			go func() {
				if m := answer(t, s, query); m.RCode == dnsmessage.RCodeServerFailure {
					answered.Add(1)
				}
			}()
		}
		synctest.Wait()
		if b := s.Answer(t.Context(), query, false); b != nil {
			t.Errorf("a fourth is answered: %x", b)
		}
		if m := read(t, query, s.Answer(t.Context(), query, true)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("a fourth over TCP: %v", m.RCode)
		}
		time.Sleep(DefaultTimeout)
		synctest.Wait()
		if answered.Load() != 3 || most.Load() != 3 || time.Since(begun) != DefaultTimeout {
			t.Errorf("%d answered, %d at once, %v", answered.Load(), most.Load(), time.Since(begun))
		}
		if c := s.Stats(); c.Busy != 2 || c.Failed != 3 {
			t.Errorf("%+v", c)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if m := read(t, query, s.Answer(ctx, query, false)); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("after the machine's end: %v", m.RCode)
		}
	})
}
