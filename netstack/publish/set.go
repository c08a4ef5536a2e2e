package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Dialer reaches the guest: network is "tcp" or "udp", and address host:port,
// where the host "guest" stands for whichever address the guest has. A
// connection that it gives should have CloseWrite, for half-closed connections
// to stay so, and SetLinger, for a reset to be passed on as one; without them it
// is closed whole.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config bounds what publications may use. The zero value of a field is its
// default.
type Config struct {
	// MaxConns is how many connections one publication relays at a time; those
	// beyond it wait in the listener's backlog, in the kernel.
	MaxConns int
	// MaxFlows is how many UDP clients one publication tells apart.
	MaxFlows int
	// Wait is how long a connection waits for the guest's service to answer for
	// the first time.
	Wait time.Duration
	// Idle is how long a UDP flow lives without a datagram either way.
	Idle time.Duration
	// Log hears of what ended other than it should; nil is silence.
	Log *slog.Logger
}

const (
	// defaultConns is what a guest of a few hundred MiB serves. An idle
	// connection costs some 20 KiB, a busy one two buffers of bigBuffer.
	defaultConns = 1024
	// defaultFlows bounds the memory of UDP: each flow has a buffer for the
	// largest datagram, 32 MiB for all of them.
	defaultFlows = 512
	// defaultWait covers a slow boot: smolBSD's images need seconds on a busy
	// host.
	defaultWait = 30 * time.Second
	// defaultIdle is the least that RFC 4787 §4.3 allows for a UDP mapping.
	defaultIdle = 2 * time.Minute
)

func (c Config) withDefaults() Config {
	if c.MaxConns <= 0 {
		c.MaxConns = defaultConns
	}
	if c.MaxFlows <= 0 {
		c.MaxFlows = defaultFlows
	}
	if c.Wait <= 0 {
		c.Wait = defaultWait
	}
	if c.Idle <= 0 {
		c.Idle = defaultIdle
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Set is a guest's publications. Its methods may be called from any goroutine.
type Set struct {
	config Config

	mu      sync.Mutex // guards ports and serving, and that Close is once
	ports   []*port
	serving bool

	ctx       context.Context // ends with Serve's, and by Close
	cancel    context.CancelFunc
	closeOnce sync.Once
	closeErr  error
	served    sync.WaitGroup // the Serve under way

	waiting atomic.Int32 // ports with a connection that waits for the guest
	hintMu  sync.Mutex   // guards hint
	hint    chan struct{}
}

// port is a publication with its listeners, one for each address.
type port struct {
	spec    Spec
	streams []net.Listener
	packets []net.PacketConn
	unlink  func() error // removes the Unix socket's file

	slots    chan struct{} // a place for each connection
	answered chan struct{} // closed when the guest's service first answered
	first    sync.Once     // closes answered
	probe    chan struct{} // the right to try, one connection at a time
	warned   atomic.Bool   // that nothing answers has been logged
	flows    atomic.Int32  // UDP flows, of all sockets

	counts counts
}

// counts are a port's counters.
type counts struct {
	accepted, refused, open, waiting    atomic.Int64
	toGuest, fromGuest, dropped, resets atomic.Int64
}

// Stats are counters of one publication since Open.
type Stats struct {
	Accepted int64 // connections, and UDP flows
	Refused  int64 // of them, those that the guest did not take
	Resets   int64 // of them, those that ended otherwise than by both sides' FIN
	Open     int64 // connections and UDP flows at the moment
	Waiting  int64 // of them, those that wait for the guest's service
	Dropped  int64 // datagrams for which there was no flow free, or no way
	// ToGuest and FromGuest are bytes of payload.
	ToGuest, FromGuest int64
}

// Published is an open publication.
type Published struct {
	Spec  Spec       // with the port that was chosen, where it was 0
	Addrs []net.Addr // what it listens on
	Stats Stats
}

// NewSet makes a set without publications, for sockets that the caller has.
func NewSet(c Config) *Set {
	s := &Set{config: c.withDefaults(), hint: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Open opens every publication. From here on the host's side is there: who
// connects waits until Serve. The error names the publication that could not be
// opened, and why; then none is.
func Open(specs []Spec, c Config) (*Set, error) {
	s := NewSet(c)
	for _, spec := range specs {
		if err := s.open(spec); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Set) open(spec Spec) error {
	if err := spec.check(); err != nil {
		return fmt.Errorf("publish %v: %w", spec, err)
	}
	p := newPort(spec, s.config)
	var err error
	switch spec.Network {
	case "unix":
		err = p.openUnix()
	default:
		err = p.openPorts()
	}
	if err != nil {
		var taken *takenError
		if errors.As(err, &taken) {
			for _, other := range s.ports {
				if other.covers(spec.Network, taken.at) {
					return fmt.Errorf("publish %v: %s is taken by another publication, %v", spec, taken.at, other.spec)
				}
			}
		}
		return fmt.Errorf("publish %v: %w", spec, err)
	}
	s.ports = append(s.ports, p)
	return nil
}

func newPort(spec Spec, c Config) *port {
	return &port{
		spec: spec, slots: make(chan struct{}, c.MaxConns),
		answered: make(chan struct{}), probe: make(chan struct{}, 1),
	}
}

// Add publishes what arrives at a listener of the caller's, which the set closes
// from now on. spec says where it leads; what it says of the host's side is for
// Addrs only. It is an error once Serve has begun.
func (s *Set) Add(spec Spec, l net.Listener) error {
	return s.add(spec, "udp", func(p *port) { p.streams = append(p.streams, l) })
}

// AddPacket publishes what arrives at a socket for datagrams, as Add does.
func (s *Set) AddPacket(spec Spec, c net.PacketConn) error {
	if spec.Network != "udp" {
		return fmt.Errorf("publish %v: a socket for datagrams is udp's", spec)
	}
	return s.add(spec, "", func(p *port) { p.packets = append(p.packets, c) })
}

func (s *Set) add(spec Spec, not string, attach func(*port)) error {
	if spec.Network == not {
		return fmt.Errorf("publish %v: a listener is not udp's", spec)
	}
	if err := spec.check(); err != nil {
		return fmt.Errorf("publish %v: %w", spec, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving || s.ctx.Err() != nil {
		return fmt.Errorf("publish %v: too late: the set is in use", spec)
	}
	p := newPort(spec, s.config)
	attach(p)
	s.ports = append(s.ports, p)
	return nil
}

// Addrs gives the publications in the order they were opened, with the ports
// that were chosen and their counters.
func (s *Set) Addrs() []Published {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Published, len(s.ports))
	for i, p := range s.ports {
		out[i] = Published{Spec: p.spec, Addrs: p.addrs(), Stats: p.counts.load()}
	}
	return out
}

func (p *port) addrs() []net.Addr {
	var out []net.Addr
	for _, l := range p.streams {
		out = append(out, l.Addr())
	}
	for _, c := range p.packets {
		out = append(out, c.LocalAddr())
	}
	return out
}

// covers says whether the publication has a port of at's address.
func (p *port) covers(network string, at netip.AddrPort) bool {
	for _, a := range p.addrs() {
		own := addrPort(a)
		same := own.Addr() == at.Addr() || own.Addr().IsUnspecified() || at.Addr().IsUnspecified()
		if p.spec.Network == network && own.Port() == at.Port() && own.Addr().Is4() == at.Addr().Is4() && same {
			return true
		}
	}
	return false
}

func (c *counts) load() Stats {
	return Stats{
		Accepted: c.accepted.Load(), Refused: c.refused.Load(), Resets: c.resets.Load(),
		Open: c.open.Load(), Waiting: c.waiting.Load(), Dropped: c.dropped.Load(),
		ToGuest: c.toGuest.Load(), FromGuest: c.fromGuest.Load(),
	}
}

// Serve relays until ctx is done or Close, and returns when the last connection
// of it has ended; those still open are reset. It is called once. The error is
// that of a listener that failed; the end by ctx or Close is none.
func (s *Set) Serve(ctx context.Context, d Dialer) error {
	s.mu.Lock()
	if s.serving {
		s.mu.Unlock()
		return errors.New("publish: Serve is called once")
	}
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return nil
	}
	s.serving = true
	s.served.Add(1)
	ports := s.ports
	s.mu.Unlock()
	defer s.served.Done()
	defer context.AfterFunc(ctx, s.cancel)()

	r := &relay{set: s, dialer: d, ctx: s.ctx, config: s.config, began: time.Now()}
	var listeners sync.WaitGroup
	var mu sync.Mutex // guards failed
	var failed error
	serve := func(c io.Closer, f func() error) {
		listeners.Go(func() {
			// Whoever waits in Accept or a read learns of the end by this.
			defer context.AfterFunc(s.ctx, func() { _ = c.Close() })()
			if err := f(); err != nil && s.ctx.Err() == nil {
				s.config.Log.Error("a published port has failed", "error", err)
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			}
		})
	}
	for _, p := range ports {
		for _, l := range p.streams {
			serve(l, func() error { return r.accept(p, l) })
		}
		for _, c := range p.packets {
			serve(c, func() error { return r.datagrams(p, c) })
		}
	}
	<-s.ctx.Done()
	listeners.Wait()
	r.conns.Wait() // nothing is added to it without a listener
	return failed
}

// Hint says that the guest shows a sign of life, such as a lease that it took or
// a port that it opened: connections that wait for it try again at once. It does
// not block.
func (s *Set) Hint() {
	if s.waiting.Load() == 0 {
		return
	}
	s.hintMu.Lock()
	defer s.hintMu.Unlock()
	close(s.hint)
	s.hint = make(chan struct{})
}

func (s *Set) hinted() <-chan struct{} {
	s.hintMu.Lock()
	defer s.hintMu.Unlock()
	return s.hint
}

// Close ends Serve, closes every socket and removes the files of Unix sockets.
// It returns when all of it is done.
func (s *Set) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.cancel()
		ports := s.ports
		s.mu.Unlock()
		var errs []error
		for _, p := range ports {
			errs = append(errs, p.close())
		}
		s.closeErr = errors.Join(errs...)
	})
	s.served.Wait()
	return s.closeErr
}

func (p *port) close() error {
	var errs []error
	closing := func(c io.Closer) {
		// Serve closes them too, when its context ends first.
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	// The file goes first: who comes later finds nothing, instead of a socket
	// that refuses.
	if p.unlink != nil {
		errs = append(errs, p.unlink())
	}
	for _, l := range p.streams {
		closing(l)
	}
	for _, c := range p.packets {
		closing(c)
	}
	return errors.Join(errs...)
}
