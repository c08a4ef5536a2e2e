package dns

import (
	"context"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// ask builds a query.
func ask(t testing.TB, name string, qtype dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: qtype, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read unpacks an answer.
func read(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

func TestHostName(t *testing.T) {
	s, err := New(Config{Host: []netip.Addr{netip.MustParseAddr("10.0.2.2")}})
	if err != nil {
		t.Fatal(err)
	}
	m := read(t, s.Answer(context.Background(), ask(t, "Host.smolvmm.internal.", dnsmessage.TypeA), false))
	if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{10, 0, 2, 2} || m.Questions[0].Name.String() != "Host.smolvmm.internal." {
		t.Fatalf("%v", m.GoString())
	}
	if m := read(t, s.Answer(context.Background(), ask(t, "other.smolvmm.internal.", dnsmessage.TypeA), false)); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("%v", m.GoString())
	}
}
