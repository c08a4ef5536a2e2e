package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// minGap is the least time between two tries of a service that has not
	// answered yet, and what follows the first refusal. It bounds what a guest
	// can bring about by signs of life.
	minGap = 5 * time.Millisecond
	// maxGap is the longest: a service starts to listen without a sign, so this
	// is how late its first connection may be.
	maxGap = 100 * time.Millisecond
	// firstAttempt is how long a try waits for an answer before the next one
	// asks anew: a guest that is there answers within a few milliseconds, and
	// what was sent before it was there is lost. Each try waits twice as long,
	// up to lastAttempt, as a host may be too busy for a quick answer.
	firstAttempt = 250 * time.Millisecond
	lastAttempt  = 5 * time.Second
	// acceptPause is how long Accept rests where the process or the host has no
	// descriptor or memory left, for which there is no event.
	acceptPause = 50 * time.Millisecond
)

// relay is a Serve under way.
type relay struct {
	set    *Set
	dialer Dialer
	ctx    context.Context
	config Config
	began  time.Time

	conns sync.WaitGroup // the connections and flows
	big   sync.Pool      // *[bigBuffer]byte
}

// accept relays the connections of a listener until it is closed.
func (r *relay) accept(p *port, l net.Listener) error {
	for resting := false; ; {
		c, err := l.Accept()
		if err != nil {
			if !passing(err) {
				return fmt.Errorf("publish %v: %w", p.spec, err)
			}
			if !resting { // said once, not twenty times a second
				r.config.Log.Warn("a published port cannot take connections for now", "spec", p.spec.String(), "error", err)
			}
			resting = true
			if !r.sleep(r.ctx, acceptPause, nil) {
				return nil
			}
			continue
		}
		resting = false
		select {
		case p.slots <- struct{}{}:
		case <-r.ctx.Done():
			abort(c)
			return nil
		}
		p.counts.accepted.Add(1)
		p.counts.open.Add(1)
		r.conns.Go(func() {
			defer func() {
				p.counts.open.Add(-1)
				<-p.slots
			}()
			r.serve(p, c)
		})
	}
}

// passing says of an error of accept(2) whether the listener is still good: it
// also hands over errors of the connection, of the network, of memory and of a
// firewall.
func passing(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !slices.Contains([]syscall.Errno{unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EFAULT}, errno)
}

// sleep waits for d or the hint, and says whether ctx goes on.
func (r *relay) sleep(ctx context.Context, d time.Duration, hint <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-hint:
	case <-ctx.Done():
		return false
	}
	return true
}

// serve takes one connection to its end.
func (r *relay) serve(p *port, host net.Conn) {
	// The end of the machine ends a connection at once, whatever it waits for.
	stop := context.AfterFunc(r.ctx, func() { abort(host) })
	guest, err := r.connect(p, host)
	if err != nil {
		stop()
		p.counts.refused.Add(1)
		r.refused(p, err)
		abort(host)
		return
	}
	defer context.AfterFunc(r.ctx, func() { abort(guest) })()
	defer stop()
	r.join(p, host, guest)
}

// refused logs why a client was turned away; that nothing has ever answered is
// told as long as it may be news.
func (r *relay) refused(p *port, err error) {
	level := slog.LevelDebug
	select {
	case <-p.answered:
	default:
		if errors.Is(err, context.DeadlineExceeded) && p.warned.CompareAndSwap(false, true) {
			level = slog.LevelWarn
		}
	}
	r.config.Log.Log(r.ctx, level, "the guest took no connection to a published port", "spec", p.spec.String(), "error", err)
}

// connect reaches the guest's service. Until it first answers, connections wait:
// one of them tries, the others get to know by it. Afterwards the first answer
// is the answer.
func (r *relay) connect(p *port, host net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.config.Wait)
	defer cancel()
	select {
	case <-p.answered:
		return r.dial(ctx, p)
	default:
	}
	p.counts.waiting.Add(1)
	defer p.counts.waiting.Add(-1)
	defer newWatch(host).during(cancel)() // who goes away waits no more
	select {
	case <-p.answered:
	case p.probe <- struct{}{}:
		defer func() { <-p.probe }()
		return r.try(ctx, p)
	case <-ctx.Done():
		return nil, unanswered(ctx, nil)
	}
	return r.dial(ctx, p)
}

func (r *relay) dial(ctx context.Context, p *port) (net.Conn, error) {
	network, address := p.spec.target()
	return r.dialer.DialContext(ctx, network, address)
}

// try dials until the service answers or ctx is done.
func (r *relay) try(ctx context.Context, p *port) (net.Conn, error) {
	select {
	case <-p.answered: // by the one that tried before
		return r.dial(ctx, p)
	default:
	}
	r.set.waiting.Add(1)
	defer r.set.waiting.Add(-1)
	gap, patience := minGap, firstAttempt
	for {
		hint := r.set.hinted()
		began := time.Now()
		c, err := r.attempt(ctx, p, patience, hint)
		if err == nil {
			p.first.Do(func() { close(p.answered) })
			return c, nil
		}
		r.config.Log.Debug("the guest's service does not answer yet", "spec", p.spec.String(), "error", err)
		if !r.sleep(ctx, gap, hint) {
			return nil, unanswered(ctx, err)
		}
		select {
		case <-hint:
			gap, patience = minGap, firstAttempt
			if !r.sleep(ctx, minGap-time.Since(began), nil) {
				return nil, unanswered(ctx, err)
			}
		default:
			gap, patience = min(2*gap, maxGap), min(2*patience, lastAttempt)
		}
	}
}

// unanswered is the error of a wait that has ended; last is that of the last try.
func unanswered(ctx context.Context, last error) error {
	if last == nil {
		return fmt.Errorf("its service has not answered yet: %w", ctx.Err())
	}
	return fmt.Errorf("its service has not answered yet (%w): %w", last, ctx.Err())
}

// attempt dials once; a hint ends it, but leaves it minGap.
func (r *relay) attempt(ctx context.Context, p *port, patience time.Duration, hint <-chan struct{}) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	over := make(chan struct{})
	var watch sync.WaitGroup
	defer watch.Wait()
	defer close(over)
	watch.Go(func() {
		t := time.NewTimer(minGap)
		defer t.Stop()
		select {
		case <-t.C:
		case <-over:
			return
		}
		select {
		case <-hint:
			cancel()
		case <-over:
		}
	})
	return r.dial(ctx, p)
}
