package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// turnedAway connects and gives the error that comes of it, which may be there
// before connect has returned.
func turnedAway(t *testing.T, a net.Addr) error {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

// TestEarlyConnectionWaits: connections made before the service is there work
// once it is, and one of them alone knocks.
func TestEarlyConnectionWaits(t *testing.T) {
	addr := service(t, echo)
	up := make(chan struct{})
	var inside, most atomic.Int32
	g := towards(addr)
	real := g.dial
	g.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case <-up:
			return real(ctx, network, address)
		default:
		}
		if n := inside.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer inside.Add(-1)
		if g.tries.Load()%2 == 1 {
			return nil, unix.ECONNREFUSED
		}
		select {
		case <-up:
		case <-ctx.Done():
		}
		return nil, unix.EHOSTUNREACH
	}
	s := publish(t, g, Config{}, "80")
	a := s.Addrs()[0].Addrs[0]
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			msg := fmt.Sprint("client ", i)
			if got, err := ask(t, a, msg); err != nil || got != msg {
				t.Errorf("%q, %v; want %q", got, err, msg)
			}
		})
	}
	for s.Addrs()[0].Stats.Waiting < 20 || g.tries.Load() < 4 {
		time.Sleep(time.Millisecond)
	}
	close(up)
	clients.Wait()
	if most.Load() != 1 {
		t.Errorf("%d connections knocked at a time, want 1", most.Load())
	}
	if st := s.Addrs()[0].Stats; st.Accepted != 20 || st.Refused != 0 {
		t.Errorf("%+v", st)
	}
}

// TestHintWakes: where an attempt hangs, as without an answer to ARP, a sign of
// life ends it and the next one comes at once.
func TestHintWakes(t *testing.T) {
	addr := service(t, echo)
	hanging, ended := make(chan struct{}), make(chan error, 1)
	g := towards(addr)
	real := g.dial
	g.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if g.tries.Load() > 1 {
			return real(ctx, network, address)
		}
		close(hanging)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	s := publish(t, g, Config{}, "80")
	s.Hint() // with nobody waiting it is nothing
	a := s.Addrs()[0].Addrs[0]
	c := dial(t, a)
	<-hanging
	s.Hint()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the attempt ended by %v, not by the sign of life", err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("no answer: %v", err)
	}
}

// TestWaitIsBounded: a service that never comes is a reset after Wait.
func TestWaitIsBounded(t *testing.T) {
	g := &guest{dial: func(context.Context, string, string) (net.Conn, error) { return nil, unix.EHOSTUNREACH }}
	var log bytes.Buffer
	s := publish(t, g, Config{Wait: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))}, "80")
	for range 2 {
		if err := turnedAway(t, s.Addrs()[0].Addrs[0]); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after the wait: %v, want a reset", err)
		}
	}
	if st := s.Addrs()[0].Stats; st.Refused != 2 || g.tries.Load() < 4 {
		t.Errorf("%+v after %d tries", st, g.tries.Load())
	}
	s.Close()
	if out := log.String(); strings.Count(out, "\n") != 1 || !strings.Contains(out, "no route to host") || !strings.Contains(out, "tcp::") {
		t.Errorf("logged %q, want one line", out)
	}
}

// tired is a listener that fails now and then, and at last for good.
type tired struct {
	net.Listener
	errs []error
}

func (l *tired) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return l.Listener.Accept()
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

// TestAcceptErrors: what passes is waited out and said once, what does not is
// Serve's error.
func TestAcceptErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := NewSet(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err := s.Add(Spec{Network: "tcp", GuestPort: 80}, &tired{l, []error{unix.EMFILE, unix.EMFILE, unix.ECONNABORTED}}); err != nil {
		t.Fatal(err)
	}
	serve(t, s, towards(service(t, echo)))
	if got, err := ask(t, l.Addr(), "in the end"); err != nil || got != "in the end" {
		t.Errorf("%q, %v", got, err)
	}
	s.Close()
	if out := log.String(); strings.Count(out, "\n") != 1 || !strings.Contains(out, "too many open files") {
		t.Errorf("logged %q, want one line", out)
	}

	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = NewSet(Config{})
	forGood := errors.New("worn out")
	if err := s.Add(Spec{Network: "tcp", GuestPort: 80}, &tired{l, []error{forGood}}); err != nil {
		t.Fatal(err)
	}
	end := make(chan error)
	failed := make(chan struct{})
	s.config.Log = slog.New(slog.NewTextHandler(writer(func(b []byte) (int, error) { close(failed); return len(b), nil }), nil))
	go func() { end <- s.Serve(context.Background(), towards(l.Addr())) }()
	<-failed
	s.Close()
	if err := <-end; !errors.Is(err, forGood) {
		t.Errorf("Serve: %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// TestWhoGoesAwayWaitsNoMore: a client that resets its connection gives its
// place back; one that has only sent its end keeps it.
func TestWhoGoesAwayWaitsNoMore(t *testing.T) {
	addr := service(t, echo)
	var up atomic.Bool
	g := &guest{dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if !up.Load() {
			return nil, unix.ECONNREFUSED
		}
		return towards(addr).dial(ctx, network, address)
	}}
	s := publish(t, g, Config{}, "80")
	a := s.Addrs()[0].Addrs[0]
	wait := func(n int64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); s.Addrs()[0].Stats.Waiting != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %d waiting", s.Addrs()[0].Stats, n)
			}
		}
	}
	var gone [3]*net.TCPConn
	for i := range gone {
		gone[i] = dial(t, a).(*net.TCPConn)
		wait(int64(i + 1))
	}
	patient := dial(t, a).(*net.TCPConn)
	_, _ = io.WriteString(patient, "patient")
	_ = patient.CloseWrite()
	wait(4)
	for _, c := range gone {
		_ = c.SetLinger(0)
		c.Close()
	}
	wait(1)
	up.Store(true)
	if b, err := io.ReadAll(patient); err != nil || string(b) != "patient" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLaterRefusalIsPassedOn: once the service has answered, each refusal is the
// client's, after one try.
func TestLaterRefusalIsPassedOn(t *testing.T) {
	g := towards(service(t, echo))
	real := g.dial
	var down atomic.Bool
	g.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if down.Load() {
			return nil, unix.ECONNREFUSED
		}
		return real(ctx, network, address)
	}
	s := publish(t, g, Config{}, "80")
	a := s.Addrs()[0].Addrs[0]
	if got, err := ask(t, a, "there"); err != nil || got != "there" {
		t.Fatalf("%q, %v", got, err)
	}
	down.Store(true)
	before := g.tries.Load()
	if err := turnedAway(t, a); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	if n := g.tries.Load() - before; n != 1 {
		t.Errorf("%d tries, want 1", n)
	}
	down.Store(false)
	if got, err := ask(t, a, "again"); err != nil || got != "again" {
		t.Errorf("when it is back: %q, %v", got, err)
	}
}

// TestHintsAreBounded: a guest that shows signs of life without end brings about
// a try each minGap, and no more.
func TestHintsAreBounded(t *testing.T) {
	g := &guest{dial: func(context.Context, string, string) (net.Conn, error) { return nil, unix.ECONNREFUSED }}
	s := publish(t, g, Config{}, "80")
	dial(t, s.Addrs()[0].Addrs[0])
	for g.tries.Load() == 0 {
		runtime.Gosched()
	}
	before, began := g.tries.Load(), time.Now()
	for g.tries.Load() < before+20 {
		s.Hint()
	}
	// The first of them may have been under way.
	if took := time.Since(began); took < 18*minGap {
		t.Errorf("20 tries within %v: they are to be %v apart", took, minGap)
	}
}
