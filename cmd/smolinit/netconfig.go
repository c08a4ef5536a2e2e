package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Net is one interface to set up; see docs/smolinit.md. With DHCP the static
// fields are what is used where no server answers.
type Net struct {
	If       string       `json:"if"`    // "": vioifN for the Nth entry, counted from 0
	DHCP     bool         `json:"dhcp"`  // IPv4 by DHCP (RFC 2131)
	SLAAC    *bool        `json:"slaac"` // IPv6 by router advertisements (RFC 4862); nil: where there is DHCP
	Address  netip.Prefix `json:"address"`
	Gateway  netip.Addr   `json:"gateway"`
	Address6 netip.Prefix `json:"address6"`
	Gateway6 netip.Addr   `json:"gateway6"`
	DNS      []netip.Addr `json:"dns"`
	Search   []string     `json:"search"`
	MTU      int          `json:"mtu"` // bytes; 0 is the server's or the kernel's
}

// Bounds of a network configuration.
const (
	maxNets    = 16
	maxServers = 8 // name servers of one interface; a resolver takes three (resolv.h, MAXNS)
	maxSearch  = 6 // domains of one interface (resolv.h, MAXDNSRCH)
	maxIfName  = 15
	// minMTU is what every IPv4 host can take (RFC 791 §3.1). IPv6 is left
	// alone below its own minimum of 1,280.
	minMTU = 576
	maxMTU = 65535
	// netWait is how long the boot waits for a server's answer.
	netWait = 3 * time.Second
	// raWait is how long it waits for a router's advertisement once IPv4 is
	// there; raListen, how long one is waited for beside the command. A link
	// without IPv6 does not hold up the boot.
	raWait   = 100 * time.Millisecond
	raListen = 10 * time.Second
)

// slaac tells whether the interface gets IPv6 by router advertisements.
func (n *Net) slaac() bool {
	if n.SLAAC == nil {
		return n.DHCP
	}
	return *n.SLAAC
}

func (n *Net) check() error {
	if len(n.If) > maxIfName || strings.ContainsFunc(n.If, notHostname) {
		return fmt.Errorf("if %q: want a name like vioif0", n.If)
	}
	for _, a := range []struct {
		what    string
		address netip.Prefix
		gateway netip.Addr
		fits    func(netip.Addr) bool
	}{
		{"", n.Address, n.Gateway, netip.Addr.Is4},
		{"6", n.Address6, n.Gateway6, netip.Addr.Is6},
	} {
		if a.address.IsValid() && (!a.fits(a.address.Addr()) || !usable(a.address.Addr())) {
			return fmt.Errorf("address%s %v: want a host's address of that family", a.what, a.address)
		}
		if !a.gateway.IsValid() {
			continue
		}
		if !a.fits(a.gateway) || !usable(a.gateway) {
			return fmt.Errorf("gateway%s %v: want a host's address of that family", a.what, a.gateway)
		}
		if !a.address.IsValid() {
			return fmt.Errorf("gateway%s %v: it needs an address%s on its network", a.what, a.gateway, a.what)
		}
		if !a.address.Contains(a.gateway) && !a.gateway.IsLinkLocalUnicast() {
			return fmt.Errorf("gateway%s %v: not on the network %v", a.what, a.gateway, a.address.Masked())
		}
	}
	if len(n.DNS) > maxServers {
		return fmt.Errorf("dns: %d servers; at most %d are taken", len(n.DNS), maxServers)
	}
	for _, a := range n.DNS {
		if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("dns %v: want a host's address", a)
		}
	}
	if len(n.Search) > maxSearch {
		return fmt.Errorf("search: %d domains; at most %d are taken", len(n.Search), maxSearch)
	}
	for _, d := range n.Search {
		if !domainName(d) {
			return fmt.Errorf("search %q: want a domain's name", d)
		}
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return fmt.Errorf("mtu %d: want %d to %d bytes", n.MTU, minMTU, maxMTU)
	}
	if !n.DHCP && !n.slaac() && !n.Address.IsValid() && !n.Address6.IsValid() {
		return errors.New(`nothing to do: want "dhcp": true or an address`)
	}
	return nil
}

// usable tells whether an address can be a host's.
func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != broadcast && a.Zone() == "" && !a.Is4In6()
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// domainName tells whether s can stand in a resolv.conf: it may be the network's.
func domainName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool { return notHostname(r) && r != '_' }) &&
		s[0] != '.' && s[0] != '-' && !strings.Contains(s, "..")
}

// task is an interface with what is to be done with it.
type task struct {
	Net
	iface
}

// plan says what is to be done on a machine with the given interfaces: without
// a configuration every VirtIO one gets DHCP and SLAAC. What cannot be done is
// told.
func plan(cfg *[]Net, have []iface) (tasks []task, complaints []string) {
	if cfg == nil {
		for _, i := range have {
			if strings.HasPrefix(i.name, "vioif") {
				tasks = append(tasks, task{Net{If: i.name, DHCP: true}, i})
			}
		}
		return tasks[:min(len(tasks), maxNets)], nil
	}
	for n, want := range *cfg {
		if want.If == "" {
			want.If = "vioif" + strconv.Itoa(n)
		}
		at := slices.IndexFunc(have, func(i iface) bool { return i.name == want.If })
		switch {
		case at < 0:
			complaints = append(complaints, fmt.Sprintf("net[%d]: no interface %s in this machine", n, want.If))
		case slices.ContainsFunc(tasks, func(t task) bool { return t.name == want.If }):
			complaints = append(complaints, fmt.Sprintf("net[%d]: %s is there twice", n, want.If))
		default:
			tasks = append(tasks, task{want, have[at]})
		}
	}
	return tasks, complaints
}

// setup is what an interface is to have, wherever that was learnt.
type setup struct {
	Address  netip.Prefix
	Gateway  netip.Addr
	DNS      []netip.Addr
	Search   []string
	MTU      int
	Hostname string
}

// static is what the configuration gives for IPv4.
func (n *Net) static() setup {
	return setup{Address: n.Address, Gateway: n.Gateway, DNS: n.DNS, Search: n.Search, MTU: n.MTU}
}

// over lays the configuration's own words over what a server said.
func (n *Net) over(s setup) setup {
	if len(n.DNS) > 0 {
		s.DNS = n.DNS
	}
	if len(n.Search) > 0 {
		s.Search = n.Search
	}
	if n.MTU != 0 {
		s.MTU = n.MTU
	}
	return s
}

// String is a line for the console.
func (s setup) String() string {
	var b strings.Builder
	b.WriteString(s.Address.String())
	if s.Gateway.IsValid() {
		fmt.Fprintf(&b, ", gateway %v", s.Gateway)
	}
	for i, d := range s.DNS {
		if i == 0 {
			b.WriteString(", DNS")
		}
		fmt.Fprintf(&b, " %v", d)
	}
	return b.String()
}

// resolvConf is the text of /etc/resolv.conf, of all interfaces in their order;
// empty where no name server is known.
func resolvConf(setups []setup) string {
	var servers []netip.Addr
	var search []string
	for _, s := range setups {
		for _, a := range s.DNS {
			if !slices.Contains(servers, a) {
				servers = append(servers, a)
			}
		}
		for _, d := range s.Search {
			if !slices.Contains(search, d) {
				search = append(search, d)
			}
		}
	}
	if len(servers) == 0 {
		return ""
	}
	var b strings.Builder
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search[:min(len(search), maxSearch)], " ") + "\n")
	}
	for _, a := range servers[:min(len(servers), maxServers)] {
		fmt.Fprintf(&b, "nameserver %v\n", a)
	}
	return b.String()
}
