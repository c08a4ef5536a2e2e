package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/client"
)

func dial(t testing.TB, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answered reads an answer's status, or 0 where the server hung up.
func answeredOf(t testing.TB, c net.Conn) int {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("no answer, and not hung up on either")
		}
		return 0
	}
	r.Body.Close()
	return r.StatusCode
}

// What is no request is refused and hung up on.
func TestMalformed(t *testing.T) {
	_, path := serve(t, Config{})
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"noise":            {"\x00\x01\x02\r\n\r\n", 400},
		"a long head":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 4*maxHeader+8192) + "\r\n\r\n", 431},
		"a long path":      {"GET /" + strings.Repeat("a", 4*maxHeader+8192) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
		"no host":          {"GET / HTTP/1.1\r\n\r\n", 400},
		"two lengths":      {"PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400},
		"length and chunk": {"PATCH /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"a huge length":    {"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + strings.Repeat("x", maxBody+1), 413},
		"chunks for ever":  {"PUT /actions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat("x", 4096)+"\r\n", 20), 413},
		"HTTP/2":           {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
	} {
		c2 := dial(t, path)
		_, _ = io.WriteString(c2, c.text)
		if got := answeredOf(t, c2); got != c.want && got != 0 && got != 400 {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if status, _ := ask(t, path, "GET", "/", ""); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}

// Whoever is slow with a head or a body is hung up on; others do not notice.
func TestSlow(t *testing.T) {
	const patience = 200 * time.Millisecond
	s, err := New(Config{Host: newFake()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if h := s.http; h.ReadHeaderTimeout != headerTimeout || h.ReadTimeout != bodyTimeout || h.IdleTimeout != idleTimeout || h.MaxHeaderBytes != maxHeader {
		t.Errorf("the server's patience is %+v", h)
	}
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = patience, 2*patience
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	began := time.Now()
	head, body := dial(t, path), dial(t, path)
	_, _ = io.WriteString(head, "GET / HT")
	_, _ = io.WriteString(body, "PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	if status, _ := ask(t, path, "GET", "/", ""); status != 200 {
		t.Errorf("beside them: %d", status)
	}
	done := make(chan time.Duration, 2)
	for _, c := range []net.Conn{head, body} {
		go func() {
			_, _ = io.Copy(io.Discard, c)
			done <- time.Since(began)
		}()
	}
	for range 2 {
		select {
		case d := <-done:
			if d < patience/2 {
				t.Errorf("hung up on after %v", d)
			}
		case <-time.After(headerTimeout):
			t.Fatal("a slow request is still being waited for")
		}
	}
}

// More connections than the cap are turned away, and those that there are go on.
func TestCrowd(t *testing.T) {
	s, path := serve(t, Config{})
	var held []net.Conn
	for range maxConns {
		held = append(held, dial(t, path))
	}
	for _, c := range held { // each has been accepted when it is answered
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := answeredOf(t, c); got != 200 {
			t.Fatalf("within the cap: %d", got)
		}
	}
	extra := dial(t, path)
	if _, err := extra.Read(make([]byte, 1)); err == nil {
		t.Error("one more was served")
	}
	if n := s.counters.crowded.Load(); n != 1 {
		t.Errorf("%d counted", n)
	}
	held[0].Close()
	for { // its slot is free once the server has seen that
		c := dial(t, path)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if answeredOf(t, c) == 200 {
			break
		}
	}
}

// The kernel says who connects, and another user is refused.
func TestStrangers(t *testing.T) {
	s, err := New(Config{Host: newFake()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own := dial(t, path)
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	p, err := peerOf(c)
	if err != nil || p.uid != os.Getuid() || p.pid != os.Getpid() {
		t.Fatalf("peer %+v, %v", p, err)
	}
	c.Close()
	own.Close()

	// Root is always let in: the rule for others is shown with a server of a
	// user that nobody here is.
	g := &guarded{UnixListener: l, s: s, uid: os.Getuid() + 1, slots: make(chan struct{}, 1)}
	if os.Getuid() == 0 {
		asUser(t, path, g)
	} else {
		dial(t, path)
		refusedBy(t, g)
	}
	if n := s.counters.strangers.Load(); n != 1 {
		t.Errorf("%d strangers counted", n)
	}
}

// refusedBy accepts until the listener is closed: the stranger is not handed on.
func refusedBy(t *testing.T, g *guarded) {
	t.Helper()
	got := make(chan net.Conn, 1)
	go func() {
		c, _ := g.Accept()
		got <- c
	}()
	for deadline := time.Now().Add(5 * time.Second); g.s.counters.strangers.Load() == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the stranger was not counted")
		}
	}
	g.UnixListener.Close()
	if c := <-got; c != nil {
		t.Error("a stranger was let in")
	}
}

// asUser connects as nobody, on a thread of its own that ends with it.
func asUser(t *testing.T, path string, g *guarded) {
	t.Helper()
	for _, p := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends as nobody
		errs <- func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
				return e
			}
			return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}()
	}()
	if err := <-errs; err != nil {
		t.Skipf("NOT RUN: cannot connect as another user: %v", err)
	}
	refusedBy(t, g)
}

// Metrics over TCP are metrics, for those who mean this address.
func TestMetricsOverTCP(t *testing.T) {
	for addr, ok := range map[string]bool{"127.0.0.1:0": true, "[::1]:9": true, "0.0.0.0:9": false, "10.0.0.1:9": false, "localhost:9": false, ":9": false, "": false} {
		if err := Loopback(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
	s, _ := serve(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.ServeMetrics(l)
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/metrics", "", 200}, {"GET", "/metrics", "localhost:1", 200}, {"GET", "/metrics", "evil.example", 403},
		{"PUT", "/metrics", "", 405}, {"GET", "/smolvmm/info", "", 404}, {"PUT", "/smolvmm/kill", "", 404},
	} {
		req := httptest.NewRequest(c.method, "http://"+l.Addr().String()+c.path, nil)
		req.RequestURI = ""
		if c.host != "" {
			req.Host = c.host
		}
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want || c.want == 200 && !strings.Contains(string(b), "smolvmm_info{") {
			t.Errorf("%s %s for %q: %d %s, want %d", c.method, c.path, c.host, resp.StatusCode, b, c.want)
		}
	}
}

// Close ends whatever holds a connection: streams, idlers, the half-spoken.
func TestCloseEndsAll(t *testing.T) {
	before := runtime.NumGoroutine()
	fds := descriptors(t)
	s, path := serve(t, Config{})
	s.Started()
	dial(t, path)
	half := dial(t, path)
	_, _ = io.WriteString(half, "PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	events := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		var last client.Event
		for e, err := range client.New(path).Events(context.Background()) {
			if last.Seq == 0 {
				close(first)
			}
			if err != nil {
				events <- err
				return
			}
			last = e
		}
		if last.Event != client.EventEnded {
			events <- errors.New("the last event was " + last.Event)
			return
		}
		events <- nil
	}()
	<-first
	s.Ended(client.Exit{How: "over"})
	began := time.Now()
	_ = s.Close()
	if d := time.Since(began); d > lastWords+2*time.Second {
		t.Errorf("Close took %v", d)
	}
	if err := <-events; err != nil {
		t.Errorf("the reader of events: %v", err)
	}
	half.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before || descriptors(t) > fds+2; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), before, descriptors(t), fds, buf[:runtime.Stack(buf, true)])
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
