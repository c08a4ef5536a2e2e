package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// TestErrorsSayWhat: each error names what is wrong, in words of its own.
func TestErrorsSayWhat(t *testing.T) {
	for rule, want := range map[string]string{
		"":                                        "empty",
		"permit all":                              "begins with allow",
		"allow":                                   "target is missing",
		"deny-all tcp":                            "stands alone",
		"allow tcp 192.0.2.1 :80":                 "too much",
		"allow 192.0.2.1 80":                      "too much",
		"allow 192.0.2.1:":                        "ports are missing",
		"allow [::1]:":                            "cannot follow the bracket",
		"allow [::1]x":                            "cannot follow the bracket",
		"allow [::1":                              "closing bracket",
		"allow [192.0.2.1]:80":                    "brackets are for IPv6",
		"allow 192.0.2.1:0":                       "no port",
		"allow 192.0.2.1:+1":                      "no port",
		"allow 192.0.2.1:65536":                   "no port",
		"allow 192.0.2.1:80-":                     "no port",
		"allow 192.0.2.1:80,":                     "no port",
		"allow 192.0.2.1:90-80":                   "backwards",
		"allow icmp 192.0.2.1:80":                 "icmp has no ports",
		"allow 192.0.2.1/24":                      "bits set behind",
		"allow 192.0.2.0/33":                      "no prefix",
		"allow ::ffff:0:0/95":                     "bits set behind",
		"allow ::/0:80":                           "[PREFIX]:PORTS",
		"allow 2001:db8::1::80":                   "[ADDRESS]:PORTS",
		"allow fe80::1%eth0":                      "zone",
		"allow 192.0.2.300":                       "ends in a number",
		"allow privat":                            "none of all, metadata and private",
		"allow exam*ple.com":                      "star",
		"allow *.*.com":                           "star",
		"allow bücher.example":                    "xn--",
		"allow -a.example.com":                    "no name",
		"allow a..example.com":                    "no name",
		"allow *.":                                "no name",
		"allow example.com/path":                  "without path",
		"allow https://example.com":               "without path",
		"allow " + long(70) + ".com":              "no name",
		"allow a." + many("abcd.", 60):            "longer than a name",
		"allow 192.0.2.1:" + many("1,", 70) + "1": "more than",
		"allow " + long(5000):                     "longer than",
	} {
		_, err := ParseRule(rule)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", rule, err, want)
		}
	}
}

func long(n int) string           { return strings.Repeat("a", n) }
func many(s string, n int) string { return strings.Repeat(s, n) }

func TestParseNames(t *testing.T) {
	for rule, want := range map[string]string{
		"allow a.test": "a.test", "allow A.Test.:1-2": "a.test", "deny *.a.test": "!*.a.test", "allow *.test": "*.test", "allow db.": "db",
		"allow _x._tcp.a-b.test": "_x._tcp.a-b.test", "allow tcp 1.2.3.4.test": "1.2.3.4.test",
	} {
		if r, err := ParseRule(rule); err != nil || r.pattern() != want {
			t.Errorf("%q: %q, %v", rule, r.pattern(), err)
		}
	}
}

func TestParseFile(t *testing.T) {
	p := rulesOf(t, "# what the build may reach", "", "deny-all  # nothing else", "\tallow  tcp proxy.example.com:3128 # the proxy\r", "allow 192.0.2.0/24")
	if p.allow || len(p.rules) != 2 || p.rules[0].String() != "allow tcp proxy.example.com:3128 (rules:4)" {
		t.Errorf("%v %v", p.allow, p.rules)
	}
	for file, want := range map[string]string{
		"deny-all\n\n# x\nalow 192.0.2.1\n":            "egress.rules:4: ",
		"deny-all\nallow all":                          "contradicts deny-all (egress.rules:1)",
		"deny-all\n" + long(maxLine+1):                 "egress.rules:2: a line has at most",
		strings.Repeat("deny 192.0.2.1\n", 1+maxRules): "egress.rules:4097: more than",
	} {
		if _, err := Parse(strings.NewReader(file), "egress.rules"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", file, err, want)
		}
	}
	broken := errors.New("disk gone")
	if _, err := Parse(iotest.ErrReader(broken), "egress.rules"); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, err := New(make([]Rule, maxRules+1)...); err == nil {
		t.Error("too many rules are taken")
	}
}

// FuzzParse: any file is read or refused with its line, and what was read decides;
// each rule, written again, is the same rule.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"deny-all\nallow api.example.com:443\nallow *.example.com", "allow tcp 192.0.2.0/24:80,8000-8080 # x\ndeny private\ndeny metadata",
		"deny udp\nallow [2001:db8::]/32:443\nallow ::ffff:10.0.0.0/104", "allow-all\ndeny evil.test\ndeny icmp", "allow db.:5432\nallow :443",
	} {
		f.Add(s, []byte{10, 0, 0, 1, 1, 187})
	}
	f.Fuzz(func(t *testing.T, file string, at []byte) {
		rules, err := ParseRules(strings.NewReader(file), "f")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Fatalf("no line: %v", err)
			}
			return
		}
		for _, r := range rules {
			again, err := ParseRule(r.text)
			if err != nil || again.text != r.text || again.kind != r.kind || again.name != r.name || again.protocols != r.protocols || len(again.ports) != len(r.ports) {
				t.Fatalf("%q is read as %+v, then %+v, %v", r.text, r, again, err)
			}
		}
		p, err := New(rules...)
		if err != nil {
			return
		}
		if len(at) < 6 {
			return
		}
		port := uint16(at[0])<<8 | uint16(at[1])
		a, ok := netip.AddrFromSlice(at[2:min(len(at), 18)])
		if !ok {
			a = netip.AddrFrom4([4]byte(at[2:6]))
		}
		dst := netip.AddrPortFrom(a, port)
		for _, r := range rules {
			p.Pin("x."+r.name, []netip.Addr{a}, time.Second)
			p.Pin(r.name, []netip.Addr{a}, time.Second)
		}
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			d := p.Decide(proto, dst)
			if d.Allow == (d.Reason != "") {
				t.Fatalf("%+v", d)
			}
			mapped := p.Decide(proto, netip.AddrPortFrom(netip.AddrFrom16(a.As16()), port))
			if mapped.Allow != d.Allow {
				t.Fatalf("%v: %+v, in its other form %+v", a, d, mapped)
			}
			for _, r := range rules {
				if s := d.TLS(r.name); s.Allow && !d.Allow {
					t.Fatalf("a server name opens what is closed: %+v", s)
				}
			}
		}
	})
}
