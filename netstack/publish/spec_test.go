package publish

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	ip := netip.MustParseAddr
	for _, c := range []struct {
		in   string
		want Spec
	}{
		{"80", Spec{Network: "tcp", GuestPort: 80}},
		{"53/udp", Spec{Network: "udp", GuestPort: 53}},
		{"8080:80", Spec{Network: "tcp", HostPort: 8080, GuestPort: 80}},
		{"8080:80/tcp", Spec{Network: "tcp", HostPort: 8080, GuestPort: 80}},
		{"0:80", Spec{Network: "tcp", GuestPort: 80}},
		{"5353:53/udp", Spec{Network: "udp", HostPort: 5353, GuestPort: 53}},
		{"127.0.0.1:8080:80", Spec{Network: "tcp", Host: ip("127.0.0.1"), HostPort: 8080, GuestPort: 80}},
		{"127.0.0.1::80", Spec{Network: "tcp", Host: ip("127.0.0.1"), GuestPort: 80}},
		{"0.0.0.0:8080:80", Spec{Network: "tcp", Host: ip("0.0.0.0"), HostPort: 8080, GuestPort: 80}},
		{"[::1]:8080:80", Spec{Network: "tcp", Host: ip("::1"), HostPort: 8080, GuestPort: 80}},
		{"[::]::80/udp", Spec{Network: "udp", Host: ip("::"), GuestPort: 80}},
		{"localhost:8080:80", Spec{Network: "tcp", HostPort: 8080, GuestPort: 80}},
		{"tcp::8080-:80", Spec{Network: "tcp", HostPort: 8080, GuestPort: 80}},
		{"::8080-:80", Spec{Network: "tcp", HostPort: 8080, GuestPort: 80}},
		{"udp:127.0.0.1:8080-10.0.2.15:80", Spec{Network: "udp", Host: ip("127.0.0.1"), HostPort: 8080, Guest: ip("10.0.2.15"), GuestPort: 80}},
		{"tcp:[::1]:8080-[fd00::15]:80", Spec{Network: "tcp", Host: ip("::1"), HostPort: 8080, Guest: ip("fd00::15"), GuestPort: 80}},
		{"tcp:0.0.0.0:22022-:22", Spec{Network: "tcp", Host: ip("0.0.0.0"), HostPort: 22022, GuestPort: 22}},
		{"unix:/run/a-b:c/ssh.sock:22", Spec{Network: "unix", Path: "/run/a-b:c/ssh.sock", GuestPort: 22}},
		{"unix:ssh.sock:22", Spec{Network: "unix", Path: "ssh.sock", GuestPort: 22}},
	} {
		got, err := Parse(c.in)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.in, got, err, c.want)
			continue
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("%s is %s, which reads as %+v, %v", c.in, got, again, err)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "guest's port",
		":":                            "want hostport:guestport",
		":80":                          "want hostport:guestport",
		"8080:":                        "guest's port",
		"8080:0":                       "never 0",
		"8080:65536":                   "65535",
		"-1:80":                        "ranges",
		"+1:80":                        "host's port",
		"8000-8010:8000-8010":          "ranges",
		"8000-8010:80":                 "ranges",
		"8080:80/sctp":                 "neither tcp nor udp",
		"sctp::8080-:80":               "neither tcp nor udp",
		"example.com:8080:80":          "no IP address",
		"tcp:8080:80":                  "no IP address",
		"::1:8080:80":                  "brackets",
		"[127.0.0.1]:8080:80":          "brackets",
		"[::1:8080:80":                 "bracket",
		"[::1]:80":                     "want hostport:guestport",
		"[fe80::1%eth0]:80:80":         "zone",
		"[::ffff:127.0.0.1]:80:80":     "written as IPv4",
		"224.0.0.1:80:80":              "group",
		"tcp::8080-0.0.0.0:80":         "one guest",
		"tcp::8080-80":                 "colon",
		"tcp::x-:80":                   "host's port",
		"unix:/run/x":                  "guestport",
		"unix::22":                     "path",
		"unix:@x:22":                   "abstract",
		"unix:/a\x00b:22":              "control",
		"unix:/a\nb:22":                "control",
		"unix:/x:0":                    "never 0",
		strings.Repeat("8", maxSpec+1): "at most",
		"unix:/" + strings.Repeat("x", maxPath) + ":22": "shorter",
	} {
		if s, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error about %q", in, s, err, want)
		}
	}
}

// FuzzParse: any text is a publication that prints and reads back as itself, or
// an error of one short line.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"80", "8080:80/udp", "127.0.0.1::80", "[::1]:8080:80", "[::]:1:2", "tcp::8080-:80", "udp:[::]:0-[fd00::1]:65535",
		"unix:/run/x.sock:22", "unix::", "-", ":::-:::", "[", "]:1:1", "0-0:0-0", "[::1%a-b]:1:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			if s != (Spec{}) || len(err.Error()) > 4096 || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q: %+v with %v", in, s, err)
			}
			return
		}
		if s.GuestPort == 0 || s.check() != nil {
			t.Fatalf("%q: %+v is %v", in, s, s.check())
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Fatalf("%q: %+v prints as %q, which reads as %+v, %v", in, s, s, again, err)
		}
	})
}
