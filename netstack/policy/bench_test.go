package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkDecide is what each new connection costs: without a match in a
// thousand prefixes, and with a name's pin.
func BenchmarkDecide(b *testing.B) {
	lines := []string{"deny-all"}
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("allow 10.%d.%d.0/24:443", i/256, i%256))
	}
	prefixes := rulesOf(b, lines...)
	names := rulesOf(b, "deny-all", "deny private", "allow *.example.com:443")
	dst := netip.MustParseAddrPort("192.0.2.1:443")
	names.Pin("api.example.com", []netip.Addr{dst.Addr()}, time.Hour)
	for _, c := range []struct {
		name  string
		p     *Policy
		allow bool
	}{{"1000-prefixes", prefixes, false}, {"name", names, true}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c.p.Decide("tcp", dst).Allow != c.allow {
					b.Fatal("decided otherwise")
				}
			}
		})
	}
}
