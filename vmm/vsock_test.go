package vmm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// vsockClient connects as a client of Firecracker does.
func vsockClient(t *testing.T, path string, port uint32) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		t.Fatal(err)
	}
	var line []byte
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b...) {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	if n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(string(line), "OK "), "\n"), 10, 32); err != nil || n < 1024 {
		t.Fatalf("%q", line)
	}
	return c.(*net.UnixConn)
}

// halfCloser is a connection to the guest, by a socket or in the process.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// sink sends size bytes to the guest's sink and compares what it makes of them.
func sink(t *testing.T, c halfCloser, size int) {
	t.Helper()
	var sum demo.StreamSum
	if _, err := io.WriteString(c, "sink\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100_003)
	for off := 0; off < size; off += len(b) {
		b = b[:min(len(b), size-off)]
		demo.FillStream(b, uint64(off))
		sum.Write(b)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	c.CloseWrite()
	answer, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d %016x\n", size, sum.Sum64()); err != nil || string(answer) != want {
		t.Fatalf("the guest got %q, %v: want %q", answer, err, want)
	}
	c.Close()
}

// source takes size bytes of the guest's.
func source(t *testing.T, c halfCloser, size int) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "source %d\n", size); err != nil {
		t.Fatal(err)
	}
	checkStream(t, c, size)
	c.Close()
}

// checkStream reads the guest's stream to its end.
func checkStream(t *testing.T, r io.Reader, size int) (sum demo.StreamSum) {
	t.Helper()
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := 0; ; {
		n, err := r.Read(got)
		demo.FillStream(want[:n], uint64(off))
		if !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("the bytes from %d on are wrong", off)
		}
		sum.Write(got[:n])
		off += n
		if err == io.EOF && off == size {
			return sum
		}
		if err != nil {
			t.Fatalf("%d of %d bytes, %v", off, size, err)
		}
	}
}

// TestVsock: the host's connections to the guest and the guest's own, over sockets and
// in the process, before and after a restore.
func TestVsock(t *testing.T) {
	const size = 256 << 10
	path := filepath.Join(t.TempDir(), "v.sock")
	cfg, out := demoConfig(t, "vsock=serve")
	cfg.Vsock = &vmm.Vsock{CID: 42, Path: path}
	before := openFiles(t)
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	g := launch(t, m, out)
	out.wait(t, "demo: ok vsock dir=serve cid=42 [^\n]*\n", 0)
	sink(t, vsockClient(t, path, 52), size)
	source(t, vsockClient(t, path, 52), size)

	echo := func(c halfCloser, text string) {
		t.Helper()
		b := make([]byte, len(text))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dial := func() *vmm.VsockConn {
		t.Helper()
		c, err := m.DialVsock(ctx, 52)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	sink(t, dial(), size)
	source(t, dial(), size)
	if _, err := m.DialVsock(ctx, 53); !errors.Is(err, vmm.ErrVsockRefused) {
		t.Errorf("a port that nobody listens on: %v", err)
	}

	old := vsockClient(t, path, 52)
	io.WriteString(old, "echo\n")
	echo(old, "still here")
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	echo(old, "after a pause too")
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	<-g.exit
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if n, err := old.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("a connection outlives its machine")
	}
	old.Close()
	cfg.Vsock = &vmm.Vsock{CID: 43, Path: path}
	if m, err = vmm.Restore(cfg, s); err != nil {
		t.Fatal(err)
	}
	g = launch(t, m, out)
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	// The guest hears that its connections are gone, and its new address.
	out.wait(t, "demo: ok vsock reset cid=43\n", 0)
	sink(t, vsockClient(t, path, 52), size)
	c := dial()
	io.WriteString(c, "echo\n")
	echo(c, "a new connection")
	if st := m.VsockStats(); st.Connections != 1 || st.Called != 2 || st.Violations+st.Malformed+st.Spoofed != 0 {
		t.Errorf("%+v", st)
	}
	c.Close()
	io.WriteString(dial(), "quit\n")
	if e := <-g.exit; e.End != vmm.EndExit || e.Status != 0 {
		t.Errorf("%v\n%s", e, out)
	}
	if err := errors.Join(m.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, %d before", n, before)
	}
}

// TestVsockFromGuest: the guest's own connections reach a socket, or this process.
func TestVsockFromGuest(t *testing.T) {
	const size = 256 << 10
	start := func(mode string) (string, *vmm.Machine, *console) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "v.sock")
		cfg, out := demoConfig(t, mode)
		cfg.Vsock = &vmm.Vsock{CID: 3, Path: path}
		m, err := vmm.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return path, m, out
	}
	run := func(m *vmm.Machine, out *console) {
		t.Helper()
		g := launch(t, m, out)
		if e := <-g.exit; e.End != vmm.EndExit || e.Status != 0 {
			t.Fatalf("%v\n%s", e, out)
		}
	}
	path, m, out := start(fmt.Sprintf("vsock=up,port=5000,bytes=%d", size))
	l, err := net.Listen("unix", path+"_5000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan demo.StreamSum, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		done <- checkStream(t, c, size)
	}()
	run(m, out)
	sum := <-done
	if want := fmt.Sprintf("sum=%016x", sum.Sum64()); !strings.Contains(out.String(), want) {
		t.Errorf("no %s in\n%s", want, out)
	}

	_, m, out = start("vsock=down,port=5001")
	in, err := m.ListenVsock(5001)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		b := make([]byte, size)
		demo.FillStream(b, 0)
		c.Write(b)
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}()
	run(m, out)
	if want := fmt.Sprintf("bytes=%d ", size); !strings.Contains(out.String(), want) || !strings.Contains(out.String(), fmt.Sprintf("sum=%016x", sum.Sum64())) {
		t.Errorf("no %s in\n%s", want, out)
	}

	path, m, out = start("vsock=rr,port=5002,count=200")
	if l, err = net.Listen("unix", path+"_5002"); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(c, bufio.NewReader(c))
		c.Close()
	}()
	run(m, out)
	t.Log(out.String())

	// Nobody listens.
	_, m, out = start("vsock=up,port=5003")
	g := launch(t, m, out)
	if e := <-g.exit; e.Status != 1 || !strings.Contains(out.String(), "FAIL vsock port 5003 of the host: refused") {
		t.Errorf("%v\n%s", e, out)
	}
}

// TestVsockErrors: what cannot be is an error before anything runs.
func TestVsockErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("unix", filepath.Join(dir, "taken"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		vsock vmm.Vsock
		want  string
	}{
		{vmm.Vsock{CID: 2}, "CID 2: a guest's is from 3 to 4294967294"},
		{vmm.Vsock{CID: 1<<32 - 1}, "CID 4294967295"},
		{vmm.Vsock{CID: 3, Path: file}, "no socket has this name"},
		{vmm.Vsock{CID: 3, Path: taken.Addr().String()}, "another program listens there"},
		{vmm.Vsock{CID: 3, Path: dir + "/no/such"}, "no such file"},
		{vmm.Vsock{CID: 3, Path: dir + strings.Repeat("/x", 60)}, "at most 107"},
	} {
		cfg, _ := demoConfig(t, "hello")
		cfg.Vsock = &c.vsock
		m, err := vmm.New(cfg)
		if err == nil {
			m.Close()
		}
		var ce *vmm.ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want a ConfigError with %q", c.vsock, err, c.want)
		}
	}
	cfg, _ := demoConfig(t, "hello")
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.DialVsock(context.Background(), 1); !errors.Is(err, vmm.ErrNoVsock) {
		t.Error(err)
	}
	if _, err := m.ListenVsock(1); !errors.Is(err, vmm.ErrNoVsock) {
		t.Error(err)
	}
}
