package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// rulesOf makes a policy of lines.
func rulesOf(t testing.TB, lines ...string) *Policy {
	t.Helper()
	p, err := Parse(strings.NewReader(strings.Join(lines, "\n")), "rules")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestDecideNames(t *testing.T) {
	p := rulesOf(t, "deny-all", "allow api.example.com:443", "allow *.cdn.test:443")
	dst := ap("192.0.2.1:443")
	if d := p.Decide("tcp", dst); d.Allow || d.Reason == "" {
		t.Errorf("before any answer: %+v", d)
	}
	p.Pin("API.example.com.", []netip.Addr{dst.Addr()}, time.Minute)
	d := p.Decide("tcp", dst)
	if !d.Allow || len(d.CheckSNI) != 1 || d.CheckSNI[0] != "api.example.com" {
		t.Fatalf("%+v", d)
	}
	if !d.TLS("api.example.com").Allow || d.TLS("evil.test").Allow || d.TLS("").Allow || d.TLS("a.cdn.test").Allow {
		t.Errorf("SNI: %+v", d)
	}
	p.Pin("a.cdn.test", []netip.Addr{dst.Addr()}, time.Minute)
	if d := p.Decide("tcp", dst); !d.TLS("api.example.com").Allow || !d.TLS("b.cdn.test").Allow || d.TLS("cdn.test").Allow {
		t.Errorf("SNI of two names: %+v", d)
	}
}
