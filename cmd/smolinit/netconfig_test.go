package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestNetConfig(t *testing.T) {
	var c Config
	image := `{"net": [{"dhcp": true, "mtu": 1400}, {"if": "vioif1", "address": "192.0.2.5/24"}]}`
	host := `{"net": [{"dhcp": true, "address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3", "fd00::3"], "search": ["a.example"]},
		{"address6": "fd00::5/64", "gateway6": "fe80::1", "slaac": false}]}`
	for _, doc := range []string{image, host} {
		if err := c.merge([]byte(doc), "test"); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing of the image's entries is left.
	no := false
	want := []Net{
		{DHCP: true, Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
			DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")}, Search: []string{"a.example"}},
		{Address6: netip.MustParsePrefix("fd00::5/64"), Gateway6: netip.MustParseAddr("fe80::1"), SLAAC: &no},
	}
	if !reflect.DeepEqual(*c.Net, want) {
		t.Errorf("%+v\nwant %+v", *c.Net, want)
	}
	if !want[0].slaac() || want[1].slaac() {
		t.Error("SLAAC is where DHCP is, unless told")
	}
	if err := c.merge([]byte(`{"net": []}`), "test"); err != nil || c.Net == nil || len(*c.Net) != 0 {
		t.Errorf("%v, %v", c.Net, err)
	}
}

func TestNetConfigErrors(t *testing.T) {
	for doc, says := range map[string]string{
		`{}`:                                                    "nothing to do",
		`{"if": "a b", "dhcp": true}`:                           "if",
		`{"if": "aninterfacewithalongname"}`:                    "if",
		`{"address": "10.0.2.15"}`:                              "no '/'",
		`{"address": "fd00::1/64"}`:                             "address fd00::1/64",
		`{"address6": "10.0.2.15/24"}`:                          "address6 10.0.2.15/24",
		`{"address": "0.0.0.0/0"}`:                              "address",
		`{"address": "224.0.0.1/24"}`:                           "address",
		`{"dhcp": true, "gateway": "10.0.2.2"}`:                 "needs an address",
		`{"dhcp": true, "dns": ["0.0.0.0"]}`:                    "dns",
		`{"dhcp": true, "dns": ["fe80::1%lo0"]}`:                "dns",
		`{"dhcp": true, "search": ["a\nb"]}`:                    "search",
		`{"dhcp": true, "search": [""]}`:                        "search",
		`{"dhcp": true, "mtu": 500}`:                            "mtu",
		`{"dhcp": true, "mtu": 70000}`:                          "mtu",
		`{"dhcp": true, "ntp": "10.0.2.4"}`:                     `"ntp"`,
		`{"address": "10.0.2.15/24", "gateway": "10.0.3.2"}`:    "not on the network",
		`{"address": "10.0.2.15/24", "gateway": "fe80::1"}`:     "gateway",
		`{"address6": "fd00::5/64", "gateway6": "fe80::1%lo0"}`: "gateway6",
		`{"dhcp": true, "dns": [` + strings.Repeat(`"10.0.0.1",`, 8) + `"10.0.0.1"]}`: "servers",
		`{"dhcp": true, "search": [` + strings.Repeat(`"a",`, 6) + `"a"]}`:            "domains",
	} {
		var c Config
		if err := c.merge([]byte(`{"net": [`+doc+`]}`), "test"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", doc, err, says)
		}
	}
	var c Config
	if err := c.merge([]byte(`{"net": [`+strings.Repeat(`{"dhcp": true},`, maxNets)+`{"dhcp": true}]}`), "test"); err == nil {
		t.Error("too many interfaces are taken")
	}
}

func TestPlan(t *testing.T) {
	machine := []iface{{name: "lo0"}, {name: "vioif0", index: 1, mac: mac{2}}, {name: "vioif1", index: 2}}
	names := func(tasks []task) (list []string) {
		for _, t := range tasks {
			list = append(list, t.name)
		}
		return list
	}
	for _, c := range []struct {
		name       string
		cfg        *[]Net
		have       []iface
		want       []string
		complaints int
	}{
		{"no configuration", nil, machine, []string{"vioif0", "vioif1"}, 0},
		{"no configuration and no interface", nil, machine[:1], nil, 0},
		{"nothing is wanted", &[]Net{}, machine, nil, 0},
		{"by place", &[]Net{{DHCP: true}, {DHCP: true}}, machine, []string{"vioif0", "vioif1"}, 0},
		{"by name", &[]Net{{If: "vioif1", DHCP: true}}, machine, []string{"vioif1"}, 0},
		{"one that is not there", &[]Net{{DHCP: true}, {If: "vioif7", DHCP: true}}, machine, []string{"vioif0"}, 1},
		{"one twice", &[]Net{{DHCP: true}, {If: "vioif0", DHCP: true}}, machine, []string{"vioif0"}, 1},
	} {
		tasks, complaints := plan(c.cfg, c.have)
		if !reflect.DeepEqual(names(tasks), c.want) || len(complaints) != c.complaints {
			t.Errorf("%s: %v, %q", c.name, names(tasks), complaints)
		}
	}
	tasks, _ := plan(nil, machine)
	if !tasks[0].DHCP || !tasks[0].slaac() || tasks[0].index != 1 || tasks[0].mac != (mac{2}) {
		t.Errorf("%+v", tasks[0])
	}
}

func TestSetup(t *testing.T) {
	n := Net{DHCP: true, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, MTU: 1400}
	got := n.over(setup{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
		DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Search: []string{"a.example"}, MTU: 1500})
	if s := got.String(); s != "10.0.2.15/24, gateway 10.0.2.2, DNS 192.0.2.53" || got.MTU != 1400 || got.Search[0] != "a.example" {
		t.Errorf("%+v: %s", got, s)
	}
	other := setup{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fd00::3")}, Search: []string{"a.example", "b.example"}}
	if s := resolvConf([]setup{got, other}); s != "search a.example b.example\nnameserver 192.0.2.53\nnameserver fd00::3\n" {
		t.Errorf("%q", s)
	}
	if s := resolvConf([]setup{{Search: []string{"a"}}}); s != "" {
		t.Errorf("without a server: %q", s)
	}
}
