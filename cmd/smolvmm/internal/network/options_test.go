package network

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestInterfaces(t *testing.T) {
	first, second := prefix("10.0.2.0/24"), prefix("10.0.3.0/24")
	for _, c := range []struct {
		name string
		in   Flags
		want []Interface
	}{
		{"nothing said", Flags{}, []Interface{{Subnet: first}}},
		{"user", Flags{Nets: []string{"user"}}, []Interface{{Subnet: first}}},
		{"none", Flags{Nets: []string{"none"}}, nil},
		{"none and a link", Flags{Nets: []string{"none"}, HostLink: true}, []Interface{{HostOnly: true, Subnet: hostLink}}},
		{"two and a link", Flags{Nets: []string{"user", "user"}, HostLink: true},
			[]Interface{{Subnet: first}, {Subnet: second}, {HostOnly: true, Subnet: hostLink}}},
		{"all options", Flags{Nets: []string{"user,subnet=192.168.7.0/24,mac=02-00-5E-10-00-01,mtu=9000,rate=1M,pps=100,burst=50ms,queues=2,pcap=a,,b"}},
			[]Interface{{Subnet: prefix("192.168.7.0/24"), MAC: MAC{2, 0, 0x5e, 0x10, 0, 1}, MTU: 9000, Queues: 2,
				Rate: Rate{1 << 20, 100, 50 * time.Millisecond}, Capture: "a,b"}}},
		{"flags for what -net does not say", Flags{Nets: []string{"user,mtu=1300", "user,rate=1"}, MTU: "65520", Rate: "2G,pps=7", MAC: "02:00:00:00:00:01", Capture: "f"},
			[]Interface{
				{Subnet: first, MAC: MAC{2, 0, 0, 0, 0, 1}, MTU: 1300, Rate: Rate{Bytes: 2 << 30, Packets: 7}, Capture: "f"},
				{Subnet: second, MTU: 65520, Rate: Rate{Bytes: 1}}}},
		{"packets alone", Flags{Rate: "pps=10"}, []Interface{{Subnet: first, Rate: Rate{Packets: 10}}}},
	} {
		got, err := c.in.parse()
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want\n%+v", c.name, got, err, c.want)
		}
	}
}

func TestBadInterfaces(t *testing.T) {
	net := func(s ...string) Flags { return Flags{Nets: s} }
	none := func(f Flags) Flags { f.Nets = []string{"none"}; return f }
	for _, c := range []struct {
		in   Flags
		want string
	}{
		{net("tap"), `-net "tap": must be none, or user[,subnet=`},
		{net(""), `-net "": must be none`},
		{net("none,mtu=1500"), "must be none"},
		{net("user", "none"), "-net none: leave"},
		{net("user,"), `"" is no option`},
		{net("user,mtu"), `"mtu" is no option`},
		{net("user,mtu="), `"mtu=" is no option`},
		{net("user,mtu=1279"), "from 1280 to 65520"},
		{net("user,mtu=65521"), "from 1280 to 65520"},
		{net("user,speed=9"), "there is no such option"},
		{net("user,queues=0"), "from 1 to 8"},
		{net("user,queues=9"), "from 1 to 8"},
		{net("user,mac=02:00:00:00:00"), "must be a MAC address like"},
		{net("user,mac=2:0:0:0:0:1"), "must be a MAC address like"},
		{net("user,mac=03:00:00:00:00:01"), "first byte must be even"},
		{net("user,mac=00:00:00:00:00:00"), "no one's"},
		{net("user,mac=02:00:00:00:00:01", "user,mac=02:00:00:00:00:01"), "two interfaces have the address 02:00:00:00:00:01"},
		{net("user,pcap=a", "user,pcap=a"), "captured into a"},
		{net("user,subnet=10.0.3.0/24", "user"), "10.0.3.0/24 and 10.0.3.0/24 overlap"},
		{net("user,subnet=10.0.2.1/24"), "did you mean 10.0.2.0/24?"},
		{net("user,subnet=10.0.2.0"), "must be an IPv4 network"},
		{net("user,subnet=fd00::/64"), "must be an IPv4 network"},
		{net("user,subnet=10.0.2.0/28"), "between /8 and /27"},
		{net("user,subnet=224.0.0.0/8"), "no machine can have"},
		{net("user,subnet=127.0.0.0/8"), "no machine can have"},
		{net("user,rate=0"), "must be a number of bytes"},
		{net("user,rate=-1"), "must be a number of bytes"},
		{net("user,rate=9999999G"), "must be a number of bytes"},
		{net("user,pps=0"), "at least 1"},
		{net("user,burst=1s"), "burst needs a rate="},
		{net("user,rate=1M,burst=1K"), "a length of time"},
		{net("user,rate=1M,burst=0s"), "a length of time"},
		{net("user,rate=1M,burst=2m"), "a length of time"},
		{Flags{Rate: "fast"}, `-rate "fast": "fast" must be`},
		{Flags{MTU: "0"}, `-mtu "0": must be`},
		{Flags{MAC: "x"}, `-mac "x": must be`},
		{Flags{Nets: []string{"user,mac=02:00:00:00:00:01"}, MAC: "02:00:00:00:00:02"}, "has a mac= already"},
		{Flags{Nets: []string{"user,pcap=a"}, Capture: "b"}, "has a pcap= already"},
		{none(Flags{MAC: "02:00:00:00:00:01"}), "-mac: there is no network"},
		{none(Flags{Egress: []string{"deny-all"}}), "-egress: there is no network"},
		{none(Flags{Publish: []string{"80:80"}}), "give it -host-link as well"},
		{none(Flags{HostLink: true, Capture: "x"}), "-pcap: there is no network"},
	} {
		if got, err := c.in.parse(); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %+v, %v; want %q", c.in, got, err, c.want)
		}
	}
}

// TestMACs: they are stable for a name, different for each interface and name,
// and no one else's kind of address.
func TestMACs(t *testing.T) {
	of := func(f Flags) []MAC {
		out, err := f.parse()
		if err == nil {
			err = f.addresses(out)
		}
		if err != nil {
			t.Fatal(err)
		}
		var macs []MAC
		for _, i := range out {
			if i.MAC[0]&3 != 2 {
				t.Errorf("%v is not a station's locally administered address", i.MAC)
			}
			macs = append(macs, i.MAC)
		}
		return macs
	}
	seen := map[MAC]bool{}
	two := []string{"user", "user"}
	a := of(Flags{Nets: two, Name: "a", HostLink: true})
	if again := of(Flags{Nets: two, Name: "a", HostLink: true}); !reflect.DeepEqual(a, again) {
		t.Errorf("%v, then %v", a, again)
	}
	// What a guest has configured by its address stays so in the next release.
	if want := "[82:f2:4e:a2:ea:d3 "; !strings.HasPrefix(fmt.Sprint(a), want) {
		t.Errorf("the addresses of machine a are %v, were %s…", a, want)
	}
	for _, m := range append(append(a, of(Flags{Nets: two, Name: "b"})...), of(Flags{Nets: two})...) {
		if seen[m] {
			t.Errorf("%v twice", m)
		}
		seen[m] = true
	}
	if seen[of(Flags{})[0]] {
		t.Error("a random address came again")
	}
}

func TestNames(t *testing.T) {
	got, err := Flags{Names: []string{"DB.internal.=10.1.2.3", "db.internal=fd00::1", "_x=10.0.0.1"}}.names()
	want := map[string][]netip.Addr{"db.internal": {netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::1")}, "_x": {netip.MustParseAddr("10.0.0.1")}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "a", "a=", "=10.0.0.1", "a=b", "a..b=10.0.0.1", "a b=10.0.0.1", "a=fe80::1%eth0", strings.Repeat("a", 64) + "=10.0.0.1"} {
		if got, err := (Flags{Names: []string{s}}).names(); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	for _, s := range []string{"", "-a", "a-", "A", "a.b", strings.Repeat("a", 64)} {
		if CheckName(s) == nil {
			t.Errorf("the name %q was taken", s)
		}
	}
	if err := CheckName("web-1"); err != nil {
		t.Error(err)
	}
	if ports, err := (Flags{Services: []string{"5432", "80"}}).services(); err != nil || !reflect.DeepEqual(ports, []uint16{5432, 80}) {
		t.Errorf("%v, %v", ports, err)
	}
	for _, s := range []string{"", "0", "65536", "http", "80:80"} {
		if ports, err := (Flags{Services: []string{s}}).services(); err == nil {
			t.Errorf("%q: %v", s, ports)
		}
	}
}

// TestSubnet6: networks of one machine do not share IPv6 addresses either.
func TestSubnet6(t *testing.T) {
	a, b := subnet6(subnetOf(0)), subnet6(subnetOf(1))
	if a.Overlaps(b) || a.Bits() != 64 || !a.Addr().IsPrivate() {
		t.Errorf("%v and %v", a, b)
	}
}

// FuzzFlags: what is taken is within its bounds, whatever was typed.
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"user", "none", "user,subnet=10.1.0.0/16,mac=02:00:00:00:00:01,mtu=9000,rate=1M,pps=5,burst=1s,queues=8,pcap=a,,b", "user,,", "=,=", "\x00"} {
		f.Add(s, "10M,pps=5", "02-00-00-00-00-01", "a.b=10.0.0.1")
	}
	f.Fuzz(func(t *testing.T, net, rate, mac, name string) {
		fl := Flags{Nets: []string{net}, Rate: rate, MAC: mac, Names: []string{name}}
		out, err := fl.parse()
		if err == nil {
			err = fl.addresses(out)
		}
		if err != nil {
			return
		}
		for _, i := range out {
			if i.MTU != 0 && (i.MTU < MinMTU || i.MTU > MaxMTU) || i.MAC[0]&1 != 0 || i.Queues > maxQueuePairs || !i.Subnet.IsValid() {
				t.Errorf("%q: %+v", net, i)
			}
			if i.Rate.Burst != 0 && i.Rate.Bytes == 0 && i.Rate.Packets == 0 {
				t.Errorf("%q %q: %+v", net, rate, i.Rate)
			}
		}
		_, _ = fl.names()
	})
}
