package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, v := range s {
		out = append(out, netip.MustParseAddr(v))
	}
	return out
}

// TestDecide holds rules of addresses to what the package's comment says of
// target, ports, protocol and precedence.
func TestDecide(t *testing.T) {
	for _, c := range []struct {
		rules        string // with ; between
		allow, denie string // proto address:port, with blanks between
	}{
		{"", "tcp/192.0.2.1:80 udp/10.0.0.1:53 icmp/169.254.169.254:0 tcp/[2001:db8::1]:1", "sctp/192.0.2.1:80"},
		{"allow-all", "tcp/192.0.2.1:80", ""},
		{"deny-all", "", "tcp/192.0.2.1:80 udp/10.0.0.1:53 icmp/192.0.2.1:0 tcp/[2001:db8::1]:1"},
		{"deny all", "", "tcp/192.0.2.1:80 tcp/[2001:db8::1]:1"},
		{"deny-all;allow 192.0.2.0/24:443", "tcp/192.0.2.7:443 udp/192.0.2.7:443 tcp/[::ffff:192.0.2.7]:443", "tcp/192.0.2.7:80 tcp/192.0.3.7:443 icmp/192.0.2.7:0 tcp/[64:ff9b::192.0.2.7]:443"},
		{"allow 192.0.2.7;deny-all", "tcp/192.0.2.7:443 icmp/192.0.2.7:0", "tcp/192.0.2.8:443"},
		{"deny-all;allow tcp 192.0.2.7", "tcp/192.0.2.7:443", "udp/192.0.2.7:443 icmp/192.0.2.7:0"},
		{"deny-all;allow icmp", "icmp/192.0.2.7:0 icmp/[2001:db8::1]:0", "udp/192.0.2.7:443"},
		{"deny-all;allow tcp :443", "tcp/192.0.2.7:443 tcp/[2001:db8::1]:443", "tcp/192.0.2.7:80 udp/192.0.2.7:443"},
		{"deny-all;allow [2001:db8::]/32:80,8000-8080", "tcp/[2001:db8::1]:80 tcp/[2001:db8::1]:8000 tcp/[2001:db8::1]:8080", "tcp/[2001:db8::1]:8081 tcp/[2001:db9::1]:80 tcp/[2001:db8::1]:7999"},
		{"deny-all;allow [2001:db8::/32]:80", "tcp/[2001:db8::1]:80", "tcp/[2001:db8::1]:81"},
		{"deny-all;allow 2001:db8::/32", "tcp/[2001:db8::1]:80 tcp/[2001:db8::1%eth0]:80", "tcp/[2001:db9::1]:81"},
		{"deny-all;allow 2001:db8::1", "tcp/[2001:db8::1]:80", "tcp/[2001:db8::2]:80"},
		{"deny-all;allow ::ffff:192.0.2.0/120", "tcp/192.0.2.1:80", "tcp/192.0.3.1:80"},
		{"deny tcp any:25", "tcp/192.0.2.7:26 udp/192.0.2.7:25", "tcp/192.0.2.7:25 tcp/[2001:db8::1]:25"},
		{"allow 10.1.2.3:5432;deny private", "tcp/10.1.2.3:5432 tcp/192.0.2.1:80", "tcp/10.1.2.3:22 tcp/10.1.2.4:5432"},
		{"deny private;allow 10.1.2.3:5432", "", "tcp/10.1.2.3:5432"}, // the first counts
		{"deny-all;allow private", "tcp/10.1.2.3:22 tcp/192.168.0.1:1", "tcp/8.8.8.8:53 tcp/[64:ff9b::10.0.0.1]:1"},
		{"deny udp;allow udp 192.0.2.1", "tcp/192.0.2.1:1", "udp/192.0.2.1:1"},
		{"DENY-ALL;Allow TCP 192.0.2.1", "tcp/192.0.2.1:1", "udp/192.0.2.1:1"},
	} {
		p := rulesOf(t, strings.Split(c.rules, ";")...)
		for want, list := range map[bool]string{true: c.allow, false: c.denie} {
			for _, f := range strings.Fields(list) {
				proto, dst, _ := strings.Cut(f, "/")
				d := p.Decide(proto, ap(dst))
				if d.Allow != want || want == (d.Reason != "") || len(d.CheckSNI) > 0 {
					t.Errorf("%s: %s: %+v, want allow=%v", c.rules, f, d, want)
				}
			}
		}
	}
}

// TestClosedWordsHold: no form of an address gets around the words.
func TestClosedWordsHold(t *testing.T) {
	metadata := []string{
		"169.254.169.254", "169.254.0.1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd20:ce::254",
		"::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254",
		"2002:a9fe:a9fe::1",                       // 6to4
		"2001:0:a9fe:a9fe::1",                     // Teredo: the server
		"2001:0:c000:201:0:ffff:5601:5601",        // Teredo: the client, turned over
		"2002:a9fe:a9fe:1234:5678:9abc:def0:1234", // 6to4, a host
	}
	private := append([]string{
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3",
		"224.0.0.251", "239.255.255.250", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.0.8",
		"::", "::1", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "64:ff9b:1::a00:1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3", "::10.0.0.1", "::ffff:0:192.168.0.1", "2002:c0a8:0001::1", "2002:7f00:1::",
	}, metadata...)
	public := []string{"192.0.2.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "1.1.1.1", "2001:4860:4860::8888", "64:ff9b::8.8.8.8", "2002:808:808::1", "2a00::1", "223.255.255.255"}
	for _, c := range []struct {
		rule         string
		closed, open []string
	}{
		{"deny private", private, public},
		{"deny metadata", metadata, append([]string{"10.0.0.1", "127.0.0.1", "fd12::1", "64:ff9b::10.0.0.1"}, public...)},
		{"deny 10.0.0.0/8", []string{"10.1.1.1", "::ffff:10.1.1.1", "64:ff9b::10.1.1.1", "2002:a01:101::1"}, append([]string{"11.0.0.1"}, public...)},
	} {
		p := rulesOf(t, c.rule)
		for want, list := range map[bool][]string{false: c.closed, true: c.open} {
			for _, a := range list {
				for _, proto := range []string{"tcp", "udp", "icmp"} {
					if d := p.Decide(proto, netip.AddrPortFrom(netip.MustParseAddr(a), 80)); d.Allow != want {
						t.Errorf("%s: %s to %s: %+v", c.rule, proto, a, d)
					}
				}
			}
		}
	}
}

func TestDecideNames(t *testing.T) {
	p := rulesOf(t, "deny-all", "allow api.example.com:443", "allow *.cdn.test:443")
	dst := ap("192.0.2.1:443")
	if d := p.Decide("tcp", dst); d.Allow || !strings.Contains(d.Reason, "no name") {
		t.Errorf("before any answer: %+v", d)
	}
	p.Pin("API.example.com.", addrs("192.0.2.1"), time.Minute)
	d := p.Decide("tcp", dst)
	if !d.Allow || !slices.Equal(d.CheckSNI, []string{"api.example.com"}) || d.Name != "api.example.com" {
		t.Fatalf("%+v", d)
	}
	for name, want := range map[string]bool{"api.example.com": true, "API.Example.COM.": true, "evil.test": false, "": false, "a.cdn.test": false} {
		if got := d.TLS(name); got.Allow != want || want == (got.Reason != "") {
			t.Errorf("SNI %q: %+v", name, got)
		}
	}
	if got := d.TLS("evil.test"); got.Name != "evil.test" {
		t.Errorf("the audit would not name what was asked for: %+v", got)
	}
	// The same address under two names: either is right, and below a wildcard any.
	p.Pin("a.cdn.test", addrs("192.0.2.1"), time.Minute)
	d = p.Decide("tcp", dst)
	for name, want := range map[string]bool{"api.example.com": true, "a.cdn.test": true, "b.cdn.test": true, "cdn.test": false, "xcdn.test": false, ".cdn.test": false} {
		if got := d.TLS(name); got.Allow != want {
			t.Errorf("SNI %q of two names: %+v", name, got)
		}
	}
	if d := p.Decide("tcp", ap("192.0.2.1:80")); d.Allow || d.Name == "" {
		t.Errorf("another port: %+v", d)
	}
	if d := p.Decide("tcp", ap("192.0.2.2:443")); d.Allow {
		t.Errorf("another address: %+v", d)
	}
	if d := p.Decide("udp", dst); d.Allow {
		t.Errorf("QUIC, whose name is not seen: %+v", d)
	}
	// What no rule matches, pins nothing.
	p.Pin("evil.test", addrs("192.0.2.66"), time.Minute)
	if d := p.Decide("tcp", ap("192.0.2.66:443")); d.Allow || d.Name != "evil.test" {
		t.Errorf("a name without a rule: %+v", d)
	}
}

func TestNameProtocols(t *testing.T) {
	p := rulesOf(t, "deny-all", "allow udp quic.test:443", "allow any.test", "allow db.:5432")
	p.Pin("quic.test", addrs("192.0.2.1"), 0)
	p.Pin("any.test", addrs("192.0.2.2"), 0)
	p.Pin("db", addrs("10.0.0.1", "2001:db8::1"), 0)
	for f, want := range map[string]bool{
		"udp 192.0.2.1:443": true, "tcp 192.0.2.1:443": false,
		"udp 192.0.2.2:443": false, "udp 192.0.2.2:123": true, "icmp 192.0.2.2:0": true, "tcp 192.0.2.2:22": true,
		"tcp 10.0.0.1:5432": true, "tcp [2001:db8::1]:5432": true, "icmp 10.0.0.1:0": false,
	} {
		proto, dst, _ := strings.Cut(f, " ")
		if d := p.Decide(proto, ap(dst)); d.Allow != want || proto != "tcp" && d.CheckSNI != nil {
			t.Errorf("%s: %+v", f, d)
		}
	}
}

// TestNamesOpenNothingClosed: rebinding. Who runs a name's DNS points it at what
// the rules, or sense, have closed.
func TestNamesOpenNothingClosed(t *testing.T) {
	never := []string{"169.254.169.254", "127.0.0.1", "0.0.0.0", "::1", "::", "fd00:ec2::254", "64:ff9b::169.254.169.254", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255", "100.100.100.200"}
	private := []string{"10.0.0.1", "192.168.1.1", "fd12::1", "100.64.0.1", "64:ff9b::10.0.0.1"}
	for _, c := range []struct {
		rules      []string
		closed, ok []string
	}{
		{[]string{"deny-all", "allow evil.test"}, never, append([]string{"192.0.2.1"}, private...)},
		{[]string{"deny-all", "deny private", "allow evil.test"}, slices.Concat(never, private), []string{"192.0.2.1"}},
		{[]string{"deny-all", "allow evil.test", "deny private"}, slices.Concat(never, private), []string{"192.0.2.1"}},
		{[]string{"allow evil.test", "deny metadata"}, []string{"169.254.169.254", "64:ff9b::169.254.169.254"}, private},
		{[]string{"deny-all", "allow 10.0.0.1", "allow evil.test", "deny private"}, never, []string{"10.0.0.1", "192.0.2.1"}},
	} {
		p := rulesOf(t, c.rules...)
		p.Pin("evil.test", addrs(slices.Concat(c.closed, c.ok)...), time.Hour)
		for want, list := range map[bool][]string{false: c.closed, true: c.ok} {
			for _, a := range list {
				if d := p.Decide("tcp", netip.AddrPortFrom(netip.MustParseAddr(a), 80)); d.Allow != want {
					t.Errorf("%v: %s: %+v", c.rules, a, d)
				}
			}
		}
	}
}

// TestDenyNames: with the default open a name can be closed.
func TestDenyNames(t *testing.T) {
	p := rulesOf(t, "deny evil.test", "deny *.ads.test", "deny half.test:25")
	for name, want := range map[string]bool{"evil.test": false, "EVIL.test.": false, "x.y.ads.test": false, "ads.test": true, "good.test": true, "half.test": true} {
		if p.AllowQuery(name) != want {
			t.Errorf("query for %s: want %v", name, want)
		}
	}
	d := p.Decide("tcp", ap("192.0.2.1:443"))
	if !d.Allow || !slices.Equal(d.CheckSNI, []string{"!evil.test", "!*.ads.test"}) {
		t.Fatalf("%+v", d)
	}
	for name, want := range map[string]bool{"evil.test": false, "a.ads.test": false, "good.test": true, "": true} {
		if got := d.TLS(name); got.Allow != want {
			t.Errorf("SNI %q: %+v", name, got)
		}
	}
	p.Pin("half.test", addrs("192.0.2.1"), 0)
	if d := p.Decide("tcp", ap("192.0.2.1:25")); d.Allow || !strings.Contains(d.Reason, "half.test") {
		t.Errorf("%+v", d)
	}
	if d := p.Decide("tcp", ap("192.0.2.1:26")); !d.Allow {
		t.Errorf("%+v", d)
	}
	// An exception before, for one name on an address that another closes.
	p = rulesOf(t, "deny-all", "deny bad.example.com", "allow *.example.com:443")
	p.Pin("good.example.com", addrs("192.0.2.1"), 0)
	d = p.Decide("tcp", ap("192.0.2.1:443"))
	if !d.TLS("good.example.com").Allow || d.TLS("bad.example.com").Allow || p.AllowQuery("bad.example.com") || !p.AllowQuery("good.example.com") {
		t.Errorf("%+v", d)
	}
	// Where a name can change nothing, streams are not looked at.
	p = rulesOf(t, "allow good.test:443")
	p.Pin("good.test", addrs("192.0.2.1"), 0)
	if d := p.Decide("tcp", ap("192.0.2.1:443")); !d.Allow || d.CheckSNI != nil || !d.TLS("other.test").Allow {
		t.Errorf("%+v", d)
	}
}

// TestAllowQuery: DNS carries nothing out of what is closed.
func TestAllowQuery(t *testing.T) {
	for _, c := range []struct{ rules, yes, no string }{
		{"", "a.test .", ""},
		{"deny private;deny tcp :25", "a.test .", ""},
		{"deny-all", "", "a.test . 4.3.2.1.in-addr.arpa"},
		{"deny-all;allow 10.0.0.0/8;allow 192.0.2.1;allow private;allow icmp", "", "a.test"},
		{"deny-all;allow a.test:443;allow *.b.test", "a.test A.Test. x.b.test x.y.b.test", "b.test xb.test a.test.evil.test data.a.test ."},
		{"deny-all;allow tcp :443", "a.test", ""},
		{"deny-all;deny evil.test;allow tcp :443", "a.test", "evil.test"},
		{"deny-all;deny b.a.test:25;allow *.a.test", "b.a.test", "a.test"},
	} {
		p := rulesOf(t, strings.Split(c.rules, ";")...)
		for want, list := range map[bool]string{true: c.yes, false: c.no} {
			for _, name := range strings.Fields(list) {
				if p.AllowQuery(name) != want {
					t.Errorf("%s: query for %s: want %v", c.rules, name, want)
				}
			}
		}
	}
}

func TestNilIsOpen(t *testing.T) {
	var p *Policy
	p.Pin("a.test", addrs("192.0.2.1"), 0)
	if !p.Decide("tcp", ap("169.254.169.254:80")).Allow || !p.AllowQuery("a.test") {
		t.Error("no policy denies")
	}
}

func TestPinsLiveAndRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := rulesOf(t, "deny-all", "allow a.test")
		allowed := func(a string) bool {
			return p.Decide("tcp", netip.AddrPortFrom(netip.MustParseAddr(a), 80)).Allow
		}
		p.Pin("a.test", addrs("192.0.2.1"), time.Minute)
		time.Sleep(time.Minute + grace - time.Second)
		if !allowed("192.0.2.1") {
			t.Error("expired before its time")
		}
		// The addresses rotate: the new one is let in, the old one for its time.
		p.Pin("a.test", addrs("192.0.2.2"), time.Minute)
		if !allowed("192.0.2.1") || !allowed("192.0.2.2") {
			t.Error("rotation")
		}
		time.Sleep(time.Second)
		if allowed("192.0.2.1") || !allowed("192.0.2.2") {
			t.Error("an expired pin still opens")
		}
		p.Pin("a.test", addrs("192.0.2.2"), time.Hour)
		p.Pin("a.test", addrs("192.0.2.2"), 0) // takes nothing back
		time.Sleep(time.Hour)
		if !allowed("192.0.2.2") {
			t.Error("not renewed")
		}
		p.Pin("a.test", addrs("192.0.2.3"), 1<<62)
		p.Pin("a.test", addrs("192.0.2.4"), -1<<62)
		time.Sleep(grace)
		if allowed("192.0.2.4") || !allowed("192.0.2.3") {
			t.Error("a TTL below nothing counts, or one for ever does not")
		}
		time.Sleep(maxTTL)
		if allowed("192.0.2.3") {
			t.Error("a pin for ever")
		}
	})
}

// TestPinsAreBounded: an upstream or guest that asks for ever fills one table only,
// and what came last is in it.
func TestPinsAreBounded(t *testing.T) {
	p := rulesOf(t, "deny-all", "allow *.a.test", "allow b.test")
	var last netip.Addr
	for i := range 4 * maxPins {
		last = netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)})
		p.Pin(fmt.Sprintf("n%d.a.test", i), []netip.Addr{last}, time.Duration(i)*time.Millisecond)
		p.Pin(fmt.Sprintf("n%d.a.test", i), addrs("198.51.100.1"), time.Minute)
		p.Pin(fmt.Sprintf("n%d.other.test", i), []netip.Addr{last}, time.Minute)
	}
	for _, tab := range []*table{&p.pins, &p.seen} {
		pairs := 0
		for a, list := range tab.of {
			if pairs += len(list); len(list) > maxNames || len(list) == 0 {
				t.Errorf("%d names of %v", len(list), a)
			}
		}
		if pairs != tab.pairs || pairs > tab.max || pairs < tab.max/2 {
			t.Errorf("%d pairs, counted %d, at most %d", pairs, tab.pairs, tab.max)
		}
	}
	if !p.Decide("tcp", netip.AddrPortFrom(last, 80)).Allow {
		t.Error("the newest pin is not there")
	}
	p.Pin(strings.Repeat("a", 300)+".a.test", addrs("198.51.100.7"), 0)
	many := make([]netip.Addr, 10*maxAddresses)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
	}
	p.Pin("b.test", many, 0)
	if p.Decide("tcp", ap("198.51.100.7:80")).Allow || p.Decide("tcp", netip.AddrPortFrom(many[maxAddresses], 80)).Allow {
		t.Error("a name or an answer beyond every bound")
	}
}

func TestConcurrent(t *testing.T) {
	p := rulesOf(t, "deny-all", "allow *.a.test", "deny private")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				a := netip.AddrFrom4([4]byte{192, 1, byte(i % 7), byte(i)})
				name := fmt.Sprintf("n%d.a.test", i%100)
				p.Pin(name, []netip.Addr{a}, time.Duration(g)*time.Second)
				if d := p.Decide("tcp", netip.AddrPortFrom(a, 443)); !d.Allow || !d.TLS(name).Allow || !p.AllowQuery(name) {
					t.Errorf("%+v", d)
					return
				}
			}
		})
	}
	wg.Wait()
}
