package policy

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// grace is how long an address outlives its TTL: programs keep addresses for
	// longer than DNS says, for the life of a pool or a retry.
	grace = 5 * time.Minute
	// maxTTL bounds what an upstream may ask for; RFC 8767 §4 has a week as the
	// most, a day is more than a rotating address ever needs.
	maxTTL = 24 * time.Hour
	// maxPins bounds pairs of name and address that decide, at some 100 bytes
	// each; a guest that fills the table pushes out its own.
	maxPins = 8192
	// maxSeen bounds those that only name a denial.
	maxSeen = 1024
	// maxNames bounds the names of one address, as each connection to it
	// compares them: shared addresses of a CDN serve thousands.
	maxNames = 64
	// maxAddresses bounds what one answer pins: more than a UDP answer of 4,096 bytes can have of AAAA.
	maxAddresses = 160
)

type pin struct {
	name    string
	expires time.Time
}

// table has the names of addresses, each for a time.
type table struct {
	mu    sync.RWMutex
	max   int
	pairs int
	of    map[netip.Addr][]pin
}

func (t *table) init(pairs int) { t.max, t.of = pairs, map[netip.Addr][]pin{} }

// names gives those that are valid now, the newest first.
func (t *table) names(a netip.Addr) []string {
	now := time.Now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []string
	for _, p := range t.of[a] {
		if now.Before(p.expires) {
			out = append(out, p.name)
		}
	}
	return out
}

func (t *table) add(name string, addrs []netip.Addr, ttl time.Duration) {
	if name == "" || len(name) > maxName {
		return
	}
	name = strings.Clone(name)
	now := time.Now()
	expires := now.Add(min(max(ttl, 0), maxTTL) + grace)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range addrs[:min(len(addrs), maxAddresses)] {
		if a = canonical(a); a.IsValid() {
			t.put(a, pin{name, expires}, now)
		}
	}
}

func (t *table) put(a netip.Addr, p pin, now time.Time) {
	list := t.of[a]
	if i := slices.IndexFunc(list, func(q pin) bool { return q.name == p.name }); i >= 0 {
		// A shorter TTL does not take back what an earlier answer gave.
		if list[i].expires.After(p.expires) {
			p.expires = list[i].expires
		}
		list = slices.Delete(list, i, i+1)
		t.pairs--
	}
	if len(list) >= maxNames {
		list = slices.Delete(list, len(list)-1, len(list))
		t.pairs--
	}
	if t.pairs >= t.max {
		t.of[a] = list
		t.evict(now)
		list = t.of[a]
	}
	t.of[a] = slices.Insert(list, 0, p)
	t.pairs++
}

// evict makes room: what has expired goes; if that is nothing, then an eighth,
// what expires first, so that it is rarely done however fast a guest asks.
func (t *table) evict(now time.Time) {
	drop := func(until time.Time) {
		for a, list := range t.of {
			before := len(list)
			list = slices.DeleteFunc(list, func(p pin) bool { return !p.expires.After(until) })
			t.pairs -= before - len(list)
			if len(list) == 0 {
				delete(t.of, a)
			} else {
				t.of[a] = list
			}
		}
	}
	drop(now)
	if t.pairs < t.max {
		return
	}
	all := make([]time.Time, 0, t.pairs)
	for _, list := range t.of {
		for _, p := range list {
			all = append(all, p.expires)
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	drop(all[len(all)/8])
}
