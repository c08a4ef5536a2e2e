package network

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/smolvmm/smolvmm/netstack"
)

// Port is a publication: where it listens and where it leads.
type Port struct {
	Network string   // tcp, udp or unix
	Host    []string // addresses with ports, or a path
	Guest   string   // address with port, or a port alone: the first interface's address
}

// Ports gives what is published.
func (n *Network) Ports() (out []Port) {
	if n.set == nil {
		return nil
	}
	for _, p := range n.set.Addrs() {
		o := Port{Network: p.Spec.Network, Guest: fmt.Sprint(p.Spec.GuestPort)}
		for _, a := range p.Addrs {
			o.Host = append(o.Host, a.String())
		}
		if p.Spec.Guest.IsValid() {
			o.Guest = netip.AddrPortFrom(p.Spec.Guest, p.Spec.GuestPort).String()
		}
		out = append(out, o)
	}
	return out
}

// Flow is what is open behind an interface.
type Flow struct {
	Interface int
	netstack.Flow
}

// Flows gives what is open behind all interfaces, at most so many, the newest first.
func (n *Network) Flows(max int) (out []Flow) {
	for i, l := range n.stacks {
		if s := l.stack.Load(); s != nil {
			for _, f := range s.Flows(max) {
				out = append(out, Flow{i, f})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Flow) int { return b.Since.Compare(a.Since) })
	return out[:min(len(out), max)]
}

// Counters gives those of the stack behind each interface, by name: netstack's
// Stats, with names like host_dropped.
func (n *Network) Counters() []map[string]uint64 {
	out := make([]map[string]uint64, len(n.stacks))
	for i, l := range n.stacks {
		out[i] = map[string]uint64{}
		s := l.stack.Load()
		if s == nil {
			continue
		}
		v := reflect.ValueOf(s.Stats())
		for f := range v.NumField() {
			name := snake(v.Type().Field(f).Name)
			switch f := v.Field(f); {
			case f.CanUint():
				out[i][name] = f.Uint()
			case f.CanInt():
				out[i][name] = uint64(max(0, f.Int()))
			}
		}
	}
	return out
}

// snake spells GuestFrames guest_frames, DNSQueries dns_queries and DHCP dhcp.
func snake(name string) string {
	var b strings.Builder
	rs := []rune(name)
	for i, r := range rs {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
