// Package dns is the gateway's name server. It answers for the host and for
// names that the machine's owner gives, and forwards every other question, of
// whatever type, to the resolvers of the host, and their answer as it came. It keeps no cache: the host's resolver
// has one, and an answer is as fresh as the host's own.
package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Zone is below which the gateway answers itself: HostName is in it, and no name
// below it is ever asked upstream.
const (
	Zone     = "smolvmm.internal"
	HostName = "host." + Zone
)

const (
	// DefaultConcurrent is how many queries may wait for an upstream at once. A
	// guest's resolver has a handful under way, a busy server some dozen.
	DefaultConcurrent = 128
	// DefaultTimeout is how long an upstream, all tries together, may take:
	// longer than that no resolver waits (5 s in most, RFC 1536 §1).
	DefaultTimeout = 8 * time.Second

	// localTTL is how long a guest may keep what the gateway itself says.
	localTTL = 60 * time.Second
	// maxUDP is the largest answer over UDP, in bytes, however much a query's EDNS
	// allows: it fits into three frames of 1,500.
	maxUDP = 4096
	// minUDP is what every resolver takes: RFC 1035 §4.2.1, RFC 6891 §6.2.3.
	minUDP = 512
	// maxQuery bounds a query, in bytes: a name, and EDNS with a cookie or padding.
	maxQuery = 4096
	// maxStatic bounds the static names of a machine.
	maxStatic = 4096
)

// Exchange asks an upstream: it sends a query and gives the answer to it. tcp says
// that UDP will not do. The answer may come from anyone: the Server checks it.
type Exchange func(ctx context.Context, query []byte, tcp bool) ([]byte, error)

// Config says what a Server answers. All but Exchange may be left out.
type Config struct {
	Exchange Exchange // nil: nothing is forwarded, and such queries fail

	Host   []netip.Addr            // the addresses of HostName: where the guest reaches the host
	Names  map[string][]netip.Addr // static names; without a dot in it, a name is also answered below Search
	Search string                  // the search domain that DHCP tells

	// AllowQuery says whether a name may be asked upstream; nil: every one.
	AllowQuery func(name string) bool
	// Denied is told of a name that AllowQuery refused, and of the query's type ("A").
	Denied func(name, qtype string)
	// Pin is told of the addresses in an answer for a name that the guest asked for,
	// before the guest has it, and for how long they hold.
	Pin func(name string, addrs []netip.Addr, ttl time.Duration)

	Concurrent int           // queries upstream at once; 0: DefaultConcurrent
	Timeout    time.Duration // of one of them; 0: DefaultTimeout
}

// Stats counts since the Server was made.
type Stats struct {
	Queries   uint64 // all that came
	Local     uint64 // answered by the gateway itself
	Forwarded uint64 // answered by an upstream
	Refused   uint64 // by AllowQuery
	Failed    uint64 // no upstream answered in a way that could be used
	Malformed uint64 // not a query that a server has to understand
	Busy      uint64 // too many at once
	Truncated uint64 // answers too long for UDP
}

type counters struct {
	queries, local, forwarded, refused, failed, malformed, busy, truncated atomic.Uint64
}

// Server answers queries. It has no goroutines and no sockets; what calls Answer does.
type Server struct {
	cfg    Config
	static map[string][]netip.Addr // by name, lower case, without the last dot
	owner  map[string]string       // by the name of an address below arpa
	slots  chan struct{}
	count  counters
}

// New makes a server. Errors are names that DNS cannot have, and too many of them.
func New(cfg Config) (*Server, error) {
	if cfg.Concurrent <= 0 {
		cfg.Concurrent = DefaultConcurrent
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if len(cfg.Names) > maxStatic {
		return nil, fmt.Errorf("dns: %d static names, at most %d", len(cfg.Names), maxStatic)
	}
	s := &Server{cfg: cfg, static: map[string][]netip.Addr{}, owner: map[string]string{}, slots: make(chan struct{}, cfg.Concurrent)}
	search, err := hostName(cfg.Search)
	if err != nil && cfg.Search != "" {
		return nil, fmt.Errorf("dns: search domain %w", err)
	}
	add := func(name string, addrs []netip.Addr) {
		s.static[name] = addrs
		for _, a := range addrs {
			if arpa := arpaName(a.Unmap()); s.owner[arpa] == "" {
				s.owner[arpa] = name
			}
		}
	}
	if len(cfg.Host) > 0 {
		add(HostName, cfg.Host)
	}
	for _, given := range slices.Sorted(maps.Keys(cfg.Names)) {
		name, err := hostName(given)
		if err != nil {
			return nil, fmt.Errorf("dns: static name %w", err)
		}
		addrs := cfg.Names[given]
		if len(addrs) == 0 || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" }) {
			return nil, fmt.Errorf("dns: static name %q needs addresses, without zones", given)
		}
		if name == HostName {
			return nil, fmt.Errorf("dns: static name %q is the gateway's own", given)
		}
		if full := name + "." + search; search != "" && !strings.Contains(name, ".") && full != HostName {
			add(full, addrs)
		}
		add(name, addrs)
	}
	return s, nil
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	c := &s.count
	return Stats{
		Queries: c.queries.Load(), Local: c.local.Load(), Forwarded: c.forwarded.Load(), Refused: c.refused.Load(),
		Failed: c.failed.Load(), Malformed: c.malformed.Load(), Busy: c.busy.Load(), Truncated: c.truncated.Load(),
	}
}

// Answer gives the answer to a query, or nil where none is due. overTCP says how
// the query came; the two bytes of length that TCP has are not in either. It
// returns when ctx is done or after Config.Timeout, and can be called from any
// goroutine; over UDP, queries above Config.Concurrent get no answer.
func (s *Server) Answer(ctx context.Context, query []byte, overTCP bool) []byte {
	s.count.queries.Add(1)
	q, rcode := parseQuery(query)
	if rcode != dnsmessage.RCodeSuccess {
		s.count.malformed.Add(1)
		if rcode == drop {
			return nil
		}
		return q.reply(rcode, false)
	}
	if a, ok := s.local(q); ok {
		s.count.local.Add(1)
		return s.fit(q, a, overTCP)
	}
	if s.cfg.AllowQuery != nil && !s.cfg.AllowQuery(q.name) {
		s.count.refused.Add(1)
		if s.cfg.Denied != nil {
			s.cfg.Denied(q.name, typeName(q.qtype))
		}
		return q.blocked()
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.count.busy.Add(1)
		if overTCP {
			return q.reply(dnsmessage.RCodeServerFailure, false)
		}
		return nil // a resolver asks again after a while; told of a failure it gives up
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	answer, err := s.forward(ctx, q, overTCP)
	if err != nil {
		s.count.failed.Add(1)
		return q.reply(dnsmessage.RCodeServerFailure, false)
	}
	s.count.forwarded.Add(1)
	s.pin(q, answer)
	return s.fit(q, answer, overTCP)
}

// hostName gives a name as it is compared, and an error if DNS cannot have it.
func hostName(s string) (string, error) {
	name := lower(strings.TrimSuffix(s, "."))
	if len(name) > maxText {
		return "", fmt.Errorf("%.40q…: too long", s)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return "", fmt.Errorf("%q: a label has 1 to %d letters", s, maxLabel)
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("%q: only letters, digits, - and _ are in a name", s)
			}
		}
	}
	return name, nil
}

var errNoUpstream = errors.New("dns: no upstream")
