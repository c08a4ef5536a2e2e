package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// quicPort is where QUIC is spoken (RFC 9114 §3.1), whose server name is not seen.
const quicPort = 443

// Policy decides. A nil one is open. Its methods can be called from any goroutine.
type Policy struct {
	rules     []Rule // without the defaults
	allow     bool   // the default
	byDefault string // the rule that set the default, as written
	byName    bool   // a rule has a name
	never     []netip.Prefix

	pins table // for names that rules match: they decide
	seen table // for other names: only to tell of them
}

// Decision is what Decide says of a connection, flow or echo.
type Decision struct {
	// Allow: it may be opened.
	Allow bool
	// CheckSNI, where there is any: the stream is to be looked at before the
	// guest's first bytes go out (ServerName), and if it is TLS, TLS decides.
	// It has the names of the rules concerned, in order; of a deny with "!" before it.
	CheckSNI []string
	// Reason says which rule denied, or what was missing. Empty when allowed.
	Reason string
	// Name is one that DNS gave the address for, if that is known: for the audit.
	Name string

	named []*Rule
	last  verdict // when no name matches
}

type verdict struct {
	allow  bool
	reason string
}

// New makes a policy of rules, in their order. Errors are too many of them, and
// defaults that contradict each other.
func New(rules ...Rule) (*Policy, error) {
	if len(rules) > maxRules {
		return nil, fmt.Errorf("egress: %d rules, at most %d", len(rules), maxRules)
	}
	p := &Policy{allow: true, never: neverByName()}
	p.pins.init(maxPins)
	p.seen.init(maxSeen)
	for _, r := range rules {
		switch {
		case r.kind == isDefault && p.byDefault != "" && p.allow != r.allow:
			return nil, fmt.Errorf("egress: %s contradicts %s: keep one", r, p.byDefault)
		case r.kind == isDefault:
			p.allow, p.byDefault = r.allow, r.String()
			continue
		case r.kind == isName:
			p.byName = true
		case r.kind == isPrivate && !r.allow:
			// Ports and protocol of a closing word do not matter to names: what is
			// closed in part is still not a name's owner's to open.
			p.never = append(p.never, r.prefixes...)
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// Decide says whether the guest may reach dst. proto is "tcp", "udp" or "icmp",
// which stands for ICMPv6 as well and has no port; any other is denied.
func (p *Policy) Decide(proto string, dst netip.AddrPort) Decision {
	if p == nil {
		return Decision{Allow: true}
	}
	kind := protocol(proto)
	addr, port := canonical(dst.Addr()), dst.Port()
	if kind == 0 || !addr.IsValid() {
		return Decision{Reason: "neither tcp, udp nor icmp to an address"}
	}
	var names []string
	if p.byName {
		names = p.pins.names(addr)
	}
	d := Decision{last: verdict{allow: p.allow}}
	carried := carried(addr)
	decided := false
	unnamed := false // an allow rule with a name matches but for the SNI
	for i := range p.rules {
		r := &p.rules[i]
		if !r.covers(kind, port) {
			continue
		}
		if r.kind != isName {
			if r.allow && r.has(addr, nil) || !r.allow && r.has(addr, carried) {
				d.last, decided = verdict{r.allow, r.String()}, true
			}
		} else if slices.ContainsFunc(names, r.matches) {
			switch {
			case !r.allow:
				d.last, decided = verdict{false, r.String()}, true
			case withinAny(addr, carried, p.never):
			case kind == udp && port == quicPort && !r.explicit:
			default:
				d.named, unnamed = append(d.named, r), true
			}
		} else if !r.allow && kind == tcp {
			d.named = append(d.named, r)
		}
		if decided {
			break
		}
	}
	if !decided && !p.allow {
		d.last.reason = p.missing(names)
	}
	d.Allow = d.last.allow || unnamed
	if !d.Allow {
		d.Reason = d.last.reason
	}
	// Looking at a stream costs a wait for its first bytes: only where a name can change something.
	changes := func(r *Rule) bool { return r.allow != d.last.allow }
	if d.Allow && kind == tcp && slices.ContainsFunc(d.named, changes) {
		for _, r := range d.named {
			d.CheckSNI = append(d.CheckSNI, r.pattern())
		}
	}
	if len(names) > 0 {
		d.Name = names[0]
	} else if n := p.seen.names(addr); len(n) > 0 {
		d.Name = n[0]
	}
	return d
}

// missing says why nothing allowed.
func (p *Policy) missing(names []string) string {
	switch {
	case len(names) > 0:
		return p.byDefault + ": no rule allows this port or protocol of " + strings.Join(names, ", ")
	case p.byName:
		return p.byDefault + ": no rule allows this address, and DNS gave it for no name that one allows"
	}
	return p.byDefault + ": no rule allows this address"
}

// TLS decides about a stream that turned out to be TLS and to name this server
// ("" for none), given what Decide said when it was opened.
func (d Decision) TLS(serverName string) Decision {
	if !d.Allow || len(d.CheckSNI) == 0 {
		return d
	}
	out := Decision{Allow: d.last.allow, Reason: d.last.reason, Name: d.Name}
	name := normal(serverName)
	for _, r := range d.named {
		if name != "" && r.matches(name) {
			if out.Allow, out.Reason = r.allow, r.String(); out.Allow {
				out.Reason = ""
			}
			out.Name = name
			return out
		}
	}
	if out.Allow {
		out.Reason = ""
	} else if name == "" {
		out.Reason = "TLS without a server name (SNI), where rules allow " + strings.Join(d.CheckSNI, ", ")
	} else {
		out.Reason, out.Name = "TLS server name (SNI) is none of "+strings.Join(d.CheckSNI, ", "), name
	}
	return out
}

// AllowQuery says whether the gateway's DNS may ask upstream for a name: see "DNS"
// in the package's comment.
func (p *Policy) AllowQuery(name string) bool {
	if p == nil {
		return true
	}
	name = normal(name)
	for i := range p.rules {
		switch r := &p.rules[i]; {
		case r.kind == isAll && r.allow && r.protocols&(tcp|udp) != 0:
			return true
		case r.kind != isName || !r.matches(name):
		case r.allow:
			return true
		case len(r.ports) == 0 && !r.explicit:
			return false
		}
	}
	return p.allow
}

// Pin tells what DNS gave for a name that the guest asked for. ttl is the answer's.
func (p *Policy) Pin(name string, addrs []netip.Addr, ttl time.Duration) {
	if p == nil || len(p.rules) == 0 && p.allow {
		return
	}
	name = normal(name)
	t := &p.seen
	if slices.ContainsFunc(p.rules, func(r Rule) bool { return r.kind == isName && r.matches(name) }) {
		t = &p.pins
	}
	t.add(name, addrs, ttl)
}

// covers: the rule is for this protocol and port.
func (r *Rule) covers(kind protocols, port uint16) bool {
	if r.protocols&kind == 0 {
		return false
	}
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p portRange) bool { return p.first <= port && port <= p.last })
}

// has: the rule is for this address.
func (r *Rule) has(a netip.Addr, carried []netip.Addr) bool {
	return r.kind == isAll || withinAny(a, carried, r.prefixes)
}

// matches: the rule is for this name, which is normal.
func (r *Rule) matches(name string) bool {
	if r.wildcard {
		head, ok := strings.CutSuffix(name, r.name)
		return ok && len(head) > 1 && head[len(head)-1] == '.'
	}
	return name == r.name
}

func (r *Rule) pattern() string {
	s := r.name
	if r.wildcard {
		s = "*." + s
	}
	if !r.allow {
		s = "!" + s
	}
	return s
}

// normal is a name as rules have it. Names are ASCII here: no other letter's case
// is touched, so that none becomes a letter of another name.
func normal(name string) string {
	b := []byte(strings.TrimSuffix(name, "."))
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
