//go:build linux

package agentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// host is this system.
type host struct {
	Processes
	down chan struct{}
}

func (host) Info() agent.Started {
	return agent.Started{PID: os.Getpid(), System: "Linux", Hostname: "here"}
}
func (h host) Shutdown() { close(h.down) }

// rig is a server and the way to it.
type rig struct {
	t    testing.TB
	key  agent.Key
	addr string
	down chan struct{}
	call func() (net.Conn, error)
}

// serve serves by TCP.
func serve(t testing.TB) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
}

// serveOn serves on a listener to which call connects.
func serveOn(t testing.TB, l net.Listener, call func() (net.Conn, error)) *rig {
	t.Helper()
	r := &rig{t: t, key: agent.NewKey(), addr: l.Addr().String(), down: make(chan struct{}), call: call}
	s := &Server{
		Key: r.key, System: host{down: r.down}, Cwd: "/tmp",
		Env: []string{"PATH=/usr/bin:/bin", "HOME=/", "BASE=yes"},
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("a call does not end")
		}
	})
	return r
}

// dial gives a stream that has been greeted.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := r.call()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := agent.Greet(c, r.key); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestCopies(t *testing.T) {
	r := serve(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(data)
	if err := os.WriteFile(filepath.Join(src, "sub/data"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	if skipped, err := agent.Store(t.Context(), r.dial(), src, false, filepath.Join(dir, "there")); err != nil || len(skipped) > 0 {
		t.Fatal(skipped, err)
	}
	if n, err := agent.Fetch(t.Context(), r.dial(), filepath.Join(dir, "there"), false, agent.Place{Dir: dir, Name: "back"}); err != nil || n != int64(len(data)) {
		t.Fatal(n, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "back/sub/data")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for name, f := range map[string]func() error{
		"no such file": func() error {
			_, err := agent.Fetch(t.Context(), r.dial(), "/no/such", false, agent.Place{Dir: dir})
			return err
		},
		"a device": func() error {
			_, err := agent.Fetch(t.Context(), r.dial(), "/dev/null", false, agent.Place{Dir: dir})
			return err
		},
		"no such folder": func() error { _, err := agent.Store(t.Context(), r.dial(), src, false, "/no/such/folder/"); return err },
		"a file in the way": func() error {
			_, err := agent.Store(t.Context(), r.dial(), src, false, "/etc/hostname")
			return err
		},
	} {
		var remote *agent.RemoteError
		if err := f(); !errors.As(err, &remote) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInfoAndShutdown(t *testing.T) {
	r := serve(t)
	s, err := agent.Ask(t.Context(), r.dial(), agent.OpInfo)
	if err != nil || s.PID != os.Getpid() || s.System != "Linux" || s.Hostname != "here" {
		t.Errorf("%+v, %v", s, err)
	}
	select {
	case <-r.down:
		t.Fatal("info has ended the machine")
	default:
	}
	if _, err := agent.Ask(t.Context(), r.dial(), agent.OpShutdown); err != nil {
		t.Error(err)
	}
	<-r.down
	if _, err := agent.Ask(t.Context(), r.dial(), "dance"); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("%v", err)
	}
}

// TestStrangers: callers without the key, and those that say nothing, get and
// cost nothing.
func TestStrangers(t *testing.T) {
	r := serve(t)
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := agent.Greet(c, agent.NewKey()); !errors.Is(err, agent.ErrKey) {
		t.Errorf("%v", err)
	}
	// More silent callers than there are slots: the next is turned away, and
	// as soon as they are gone there is room again.
	var silent []net.Conn
	for range maxCalls + 10 {
		s, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, s)
	}
	for _, s := range silent {
		s.Close()
	}
	var last error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		last = agent.Greet(c, r.key)
		c.Close()
		if last == nil {
			return
		}
	}
	t.Errorf("no room: %v", last)
}

// poorListener fails as accept(2) does when the guest's files are used up.
type poorListener struct {
	net.Listener
	errs []error
}

func (p *poorListener) Accept() (net.Conn, error) {
	if len(p.errs) > 0 {
		err := p.errs[0]
		p.errs = p.errs[1:]
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept", err)}
	}
	return p.Listener.Accept()
}

// TestAcceptFails: a guest that is out of files for a while keeps its agent.
func TestAcceptFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key := agent.NewKey()
	s := &Server{Key: key, System: host{}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&poorListener{l, []error{syscall.EMFILE, syscall.ENFILE}}) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := agent.Greet(c, key); err != nil {
		t.Error(err)
	}
	c.Close()
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := s.Serve(&poorListener{l, []error{syscall.EBADF}}); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a socket that is none: %v", err)
	}
}

func TestMany(t *testing.T) {
	r := serve(t)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			got := r.exec(agent.Command{Argv: sh("cat; exit 4"), Stdin: strings.NewReader(fmt.Sprint(i))})
			if got.fail != nil || got.out != fmt.Sprint(i) || got.status.Code != 4 {
				t.Errorf("%d: %+v", i, got)
			}
		})
	}
	all.Wait()
}

// FuzzCall: what a caller that has the key sends cannot break the server.
func FuzzCall(f *testing.F) {
	seed := func(frames func(c *agent.Conn)) {
		var b bytes.Buffer
		frames(agent.NewConn(&b))
		f.Add(b.Bytes())
	}
	seed(func(c *agent.Conn) {
		_ = c.SendJSON(agent.TypeRequest, agent.Request{Op: agent.OpExec, Argv: []string{"cat"}})
		_ = c.Send(agent.TypeStdin, []byte("in"))
		_ = c.Send(agent.TypeSignal, []byte("SIGTERM"))
		_ = c.Send(agent.TypeStdin)
	})
	seed(func(c *agent.Conn) { _ = c.SendJSON(agent.TypeRequest, agent.Request{Op: agent.OpInfo}) })
	f.Fuzz(func(t *testing.T, in []byte) {
		h, g := net.Pipe()
		s := &Server{System: canned{}, Env: []string{"PATH=/bin"}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn := agent.NewConn(g)
			if r, err := conn.ReceiveRequest(); err == nil && (r.Op == agent.OpExec || r.Op == agent.OpInfo) {
				_ = s.request(g, conn, r)
			}
			g.Close()
		}()
		go io.Copy(io.Discard, h)
		_, _ = h.Write(in)
		h.Close()
		<-done
	})
}

// canned is a System whose processes end at once, whatever they are.
type canned struct{}

func (canned) Start(Spec) (int, <-chan syscall.WaitStatus, error) {
	c := make(chan syscall.WaitStatus, 1)
	c <- 0
	return 1 << 30, c, nil
}
func (canned) Kill(int, syscall.Signal) error { return nil }
func (canned) Info() agent.Started            { return agent.Started{} }
func (canned) Shutdown()                      {}

// BenchmarkCall is all of a call but the process.
func BenchmarkCall(b *testing.B) {
	r := serve(b)
	for b.Loop() {
		c := r.dial()
		if _, err := agent.Ask(context.Background(), c, agent.OpInfo); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
