package muxer_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
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

const patience = 20 * time.Second

type rig struct {
	*vsocktest.Guest
	t    testing.TB
	m    *muxer.Muxer
	dev  *vsock.Device
	path string
}

// newRig makes a machine's sockets without the machine.
func newRig(t testing.TB, o vsocktest.Options) *rig {
	t.Helper()
	if o.Features == 0 {
		o.Features = ^uint64(0)
	}
	path := filepath.Join(t.TempDir(), "v.sock")
	m, err := muxer.New(muxer.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	dev, err := vsock.New(vsock.Config{CID: 3, Host: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return &rig{Guest: vsocktest.New(t, dev, o), t: t, m: m, dev: dev, path: path}
}

// client connects as Firecracker's clients do, and gives the connection before its answer.
func (r *rig) client(line string) net.Conn {
	r.t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience + time.Duration(*bulk)*time.Microsecond/10))
	if _, err := io.WriteString(c, line); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// call is a connection of the host's to a port that the guest takes.
func (r *rig) call(port uint32) (net.Conn, *vsocktest.Conn) {
	r.t.Helper()
	c := r.client(fmt.Sprintf("CONNECT %d\n", port))
	g := r.Accept(port)
	want := fmt.Sprintf("OK %d\n", g.Host)
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		r.t.Fatalf("%q, %v: want %q", b, err, want)
	}
	return c, g
}

// listen takes the guest's connections to a port.
func (r *rig) listen(port uint32) net.Listener {
	r.t.Helper()
	l, err := net.Listen("unix", fmt.Sprintf("%s_%d", r.path, port))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	return l
}

// dial is a connection of the guest's.
func (r *rig) dial(l net.Listener, from, port uint32) (net.Conn, *vsocktest.Conn) {
	r.t.Helper()
	g := r.Dial(from, port)
	if g.Reset {
		r.t.Fatalf("port %d refused", port)
	}
	c, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, g
}

func (r *rig) read(c io.Reader, want string) {
	r.t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		r.t.Fatalf("%q, %v: want %q", b[:n], err, want)
	}
}

func TestCall(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	c, g := r.call(52)
	if g.Host < 1<<30 {
		t.Errorf("the host's port is %d", g.Host)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if b := g.Read(5); string(b) != "hello" {
		t.Fatalf("%q", b)
	}
	g.Write([]byte("good day"))
	r.read(c, "good day")
	// A half at a time.
	c.(*net.UnixConn).CloseWrite()
	g.WaitShut(vsocktest.ShutSend)
	if g.Peer != vsocktest.ShutSend {
		t.Fatalf("shut %d", g.Peer)
	}
	g.Write([]byte("more"))
	r.read(c, "more")
	g.Shut(vsocktest.ShutBoth)
	g.WaitReset()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("%d, %v", n, err)
	}
	r.Quiet()
	if s := r.dev.Stats(); s.Connections != 0 || s.Called != 1 || s.Violations != 0 || s.FromGuest.Bytes != 12 || s.ToGuest.Bytes != 5 {
		t.Errorf("%+v", s)
	}
}

func TestDial(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	l := r.listen(7)
	c, g := r.dial(l, 1000, 7)
	g.Write([]byte("ping"))
	r.read(c, "ping")
	io.WriteString(c, "pong")
	if b := g.Read(4); string(b) != "pong" {
		t.Fatalf("%q", b)
	}
	// The guest first, a half.
	g.Shut(vsocktest.ShutSend)
	if b, err := io.ReadAll(io.LimitReader(c, 1)); len(b) != 0 || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	io.WriteString(c, "last")
	c.Close()
	if b := g.Read(4); string(b) != "last" {
		t.Fatalf("%q", b)
	}
	g.WaitShut(vsocktest.ShutBoth)
	g.Send(vsocktest.Packet{Op: vsocktest.RST})
	r.Quiet()
	if n := r.dev.Stats().Connections; n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// TestRefused: nobody listens, on either side.
func TestRefused(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	if g := r.Dial(1000, 8); !g.Reset {
		t.Fatal("a port that nobody listens on")
	}
	c := r.client("CONNECT 9\n")
	p := r.Recv()
	if p.Op != vsocktest.Request || p.DstPort != 9 {
		t.Fatal(p)
	}
	r.Send(vsocktest.Packet{Op: vsocktest.RST, SrcPort: 9, DstPort: p.SrcPort})
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("%q %v", b, err)
	}
	if s := r.dev.Stats(); s.Refused != 2 || s.Connections != 0 {
		t.Errorf("%+v", s)
	}
}

// stream is bytes that a test can make again.
type stream struct{ rnd *rand.ChaCha8 }

func newStream(seed byte) *stream { return &stream{rand.NewChaCha8([32]byte{seed})} }

var bulk = flag.Int("bulk", 4<<20, "`bytes` that TestBulk moves each way")

// TestBulk moves bytes both ways at once through every kind of buffer.
func TestBulk(t *testing.T) {
	size := *bulk
	for _, o := range []vsocktest.Options{
		{},
		{Features: 1, RXSize: 4096},
		{RXSize: 65, RX: 3},
		{RXSize: 1 << 16, TXSize: 200},
		{RXSize: 100 << 10, TXSize: 100 << 10},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			r := newRig(t, o)
			n := size
			if o.RXSize < 4096 && o.RXSize != 0 {
				n = 64 << 10
			}
			c, g := r.call(52)
			sum := make(chan uint64, 1)
			go func() {
				h := fnv.New64a()
				b := make([]byte, 1+rand.IntN(70000))
				for left := n; left > 0; {
					k, err := c.Read(b[:min(left, len(b))])
					h.Write(b[:k])
					if left -= k; err != nil {
						t.Errorf("%d bytes missing: %v", left, err)
						break
					}
				}
				sum <- h.Sum64()
			}()
			go func() {
				b := make([]byte, 1+rand.IntN(70000))
				s := newStream(1)
				for left := n; left > 0; left -= len(b) {
					b = b[:min(left, len(b))]
					s.rnd.Read(b)
					if _, err := c.Write(b); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			h, want, mine := fnv.New64a(), fnv.New64a(), newStream(2)
			io.CopyN(want, newStream(1).rnd, int64(n))
			out, sent, got := make([]byte, 65536), fnv.New64a(), 0
			for left := n; left > 0 || got < n; {
				if left > 0 {
					b := out[:min(left, 1+rand.IntN(len(out)))]
					if k := int(g.Room()); k < len(b) {
						b = b[:k]
					}
					mine.rnd.Read(b)
					sent.Write(b)
					g.Write(b)
					left -= len(b)
				}
				if got < n && (left == 0 || g.Room() == 0) {
					b := g.Next()
					got += len(b)
					h.Write(b)
				} else if left > 0 && g.Room() == 0 {
					g.Step()
				}
			}
			if h.Sum64() != want.Sum64() {
				t.Error("what the guest got is not what was sent")
			}
			if s := <-sum; s != sent.Sum64() {
				t.Error("what the host got is not what was sent")
			}
		})
	}
}

// TestInProcess: Dial and Listen, with their ends and deadlines.
func TestInProcess(t *testing.T) {
	r := newRig(t, vsocktest.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	type result struct {
		c   *muxer.Conn
		err error
	}
	dial := func(port uint32) <-chan result {
		ch := make(chan result, 1)
		go func() {
			c, err := r.m.Dial(ctx, port)
			ch <- result{c, err}
		}()
		return ch
	}
	ch := dial(5)
	g := r.Accept(5)
	got := <-ch
	if got.err != nil || got.c.HostPort() != g.Host || got.c.GuestPort() != 5 {
		t.Fatal(got)
	}
	c := got.c
	for _, size := range []int{1, 4000, 300000} {
		b := bytes.Repeat([]byte{byte(size)}, size)
		go c.Write(b)
		if !bytes.Equal(g.Read(size), b) {
			t.Fatalf("%d bytes came wrong", size)
		}
		done := make(chan []byte)
		go func() {
			p := make([]byte, size)
			_, err := io.ReadFull(c, p)
			if err != nil {
				t.Error(err)
			}
			done <- p
		}()
		g.Write(b)
		if !bytes.Equal(<-done, b) {
			t.Fatalf("%d bytes came wrong", size)
		}
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(n, err)
	}
	c.SetReadDeadline(time.Time{})
	c.CloseWrite()
	g.WaitShut(vsocktest.ShutSend)
	g.Write([]byte("end"))
	g.Shut(vsocktest.ShutBoth)
	if b, err := io.ReadAll(c); string(b) != "end" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	g.WaitReset()
	c.Close()

	ch = dial(6)
	p := r.Recv()
	r.Send(vsocktest.Packet{Op: vsocktest.RST, SrcPort: 6, DstPort: p.SrcPort})
	if got := <-ch; !errors.Is(got.err, muxer.ErrRefused) {
		t.Fatal(got)
	}
	short, stop := context.WithCancel(ctx)
	go func() {
		p := r.Recv() // no answer
		stop()
		_ = p
	}()
	if _, err := r.m.Dial(short, 6); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if p := r.Recv(); p.Op != vsocktest.RST || p.DstPort != 6 {
		t.Fatal(p)
	}

	l, err := r.m.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Listen(80); err == nil {
		t.Error("a port listened on twice")
	}
	g = r.Dial(2000, 80)
	in, err := l.Accept()
	if err != nil || g.Reset || in.GuestPort() != 2000 || in.HostPort() != 80 {
		t.Fatal(err, g.Reset)
	}
	g.Write([]byte("line\n"))
	if s, err := bufio.NewReader(in).ReadString('\n'); s != "line\n" || err != nil {
		t.Fatalf("%q %v", s, err)
	}
	g.Send(vsocktest.Packet{Op: vsocktest.RST})
	if n, err := in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, muxer.ErrReset) {
		t.Fatal(n, err)
	}
	if _, err := in.Write([]byte("x")); !errors.Is(err, muxer.ErrReset) {
		t.Fatal(err)
	}
	l.Close()
	if g := r.Dial(2001, 80); !g.Reset {
		t.Error("a closed listener takes connections")
	}
}
