package muxer_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/vsock"
	"github.com/smolvmm/smolvmm/devices/vsock/muxer"
	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// hungUp waits for the other side to hang up without a word.
func hungUp(t *testing.T, what string, c net.Conn) {
	t.Helper()
	b, err := io.ReadAll(c)
	if len(b) != 0 || err != nil && !strings.Contains(err.Error(), "reset by peer") {
		t.Errorf("%s: %q, %v", what, b, err)
	}
}

// TestBadLines: what is no CONNECT is hung up on; a line may come in pieces, and
// bytes for the guest right behind it.
func TestBadLines(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	for _, line := range []string{
		"\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\r\n", strings.Repeat("x", 32), strings.Repeat(" ", 1<<20),
	} {
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, line) // who is hung up on cannot write
		hungUp(t, fmt.Sprintf("%.20q", line), c)
		c.Close()
	}
	r.Quiet()
	if s := r.dev.Stats(); s.Called != 0 {
		t.Errorf("%+v", s)
	}
	c := r.client("CON")
	for _, piece := range []string{"NECT", " 5", "2", "\nearly b"} {
		io.WriteString(c, piece)
	}
	io.WriteString(c, "ytes")
	g := r.Accept(52)
	if b := g.Read(11); string(b) != "early bytes" {
		t.Errorf("%q", b)
	}
	r.read(c, fmt.Sprintf("OK %d\n", g.Host))
	// One that hangs up before the guest has answered.
	c = r.client("CONNECT 53\n")
	p := r.Recv()
	c.Close()
	r.Expect(vsocktest.RST, 53, p.SrcPort)
}

// TestSilentClients: who connects and says nothing keeps nobody out.
func TestSilentClients(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	silent := make([]net.Conn, 300)
	for i := range silent {
		silent[i] = r.client("CONNEC")
	}
	c, g := r.call(52)
	hungUp(t, "the oldest", silent[0])
	io.WriteString(c, "x")
	g.Read(1)
	last := silent[len(silent)-1]
	io.WriteString(last, "T 53\n")
	r.Accept(53)
	for _, s := range silent {
		s.Close()
	}
}

// TestManyClients: a thousand at once, and as soon as some go others come.
func TestManyClients(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	clients := make([]net.Conn, 1000)
	ends := make([]*vsocktest.Conn, len(clients))
	for i := range clients {
		clients[i], ends[i] = r.call(uint32(i))
	}
	for i, c := range clients {
		fmt.Fprintf(c, "%04d", i)
		if b := ends[i].Read(4); string(b) != fmt.Sprintf("%04d", i) {
			t.Fatalf("%d: %q", i, b)
		}
		ends[i].Write([]byte{byte(i)})
		r.read(c, string([]byte{byte(i)}))
	}
	if n := r.dev.Stats().Connections; n != 1000 {
		t.Errorf("%d connections", n)
	}
	for i, c := range clients {
		c.Close()
		ends[i].WaitShut(vsocktest.ShutBoth)
		ends[i].Send(vsocktest.Packet{Op: vsocktest.RST})
	}
	r.Quiet()
	if s := r.dev.Stats(); s.Connections != 0 || s.Buffered != 0 {
		t.Errorf("%+v", s)
	}
	r.call(1)
}

// TestSlowHost: a client that does not read costs a buffer; the others go on, and the
// bytes are there when it does.
func TestSlowHost(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	slow, g := r.call(1)
	sent := 0
	for b := make([]byte, 10000); g.Room() >= 10000; sent += len(b) {
		for i := range b {
			b[i] = byte((sent + i) * 31)
		}
		g.Write(b)
		r.Send(vsocktest.Packet{Op: vsocktest.CreditRequest, SrcPort: 1, DstPort: g.Host, BufAlloc: vsocktest.Window})
		g.Step()
	}
	quick, o := r.call(2)
	o.Write([]byte("hello"))
	r.read(quick, "hello")
	if s := r.dev.Stats(); s.Buffered == 0 || s.Buffered > 256<<10 {
		t.Errorf("%+v", s)
	}
	g.Shut(vsocktest.ShutSend)
	b, err := io.ReadAll(slow)
	if err != nil || len(b) != sent {
		t.Fatalf("%d bytes, %v: want %d", len(b), err, sent)
	}
	for i := range b {
		if b[i] != byte(i*31) {
			t.Fatalf("byte %d is wrong", i)
		}
	}
}

// TestListening: the socket's file, and what may be in its place.
func TestListening(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "v.sock")
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	first, err := muxer.New(muxer.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	before := fds()
	if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if _, err := muxer.New(muxer.Config{Path: path}); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("%v", err)
	}
	// A file that took the name is somebody else's.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	second, err := muxer.New(muxer.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	// One that was left behind, and one that is handed over.
	if third, err := muxer.New(muxer.Config{Path: path + ".old"}); err != nil {
		t.Error(err)
	} else {
		third.Close()
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	m, err := muxer.New(muxer.Config{Path: path, Listener: f})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a socket of the caller's was removed: %v", err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := muxer.New(muxer.Config{Path: path, Listener: null}); err == nil {
		t.Error("/dev/null was listened on")
	}
	l.Close()
	if n := fds(); n > before {
		t.Errorf("%d descriptors, %d with one open", n, before)
	}
}

// TestClose: whoever waits for a machine that goes is told.
func TestClose(t *testing.T) {
	m, err := muxer.New(muxer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { _, err := l.Accept(); done <- err }()
	go func() { _, err := m.Dial(t.Context(), 1); done <- err }()
	for m.OnReady(nil); ; {
		if _, err := m.Open(1, 2); err != nil {
			break // no path: refused
		}
	}
	m.Close()
	for range 2 {
		if err := <-done; !errors.Is(err, muxer.ErrClosed) {
			t.Errorf("%v", err)
		}
	}
	if _, err := m.Dial(t.Context(), 1); !errors.Is(err, muxer.ErrClosed) {
		t.Error(err)
	}
	if _, err := m.Listen(2); !errors.Is(err, muxer.ErrClosed) {
		t.Error(err)
	}
	var _ vsock.Host = m
}
