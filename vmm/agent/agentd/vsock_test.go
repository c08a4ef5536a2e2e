//go:build linux

package agentd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// listenVsock listens on a port of this system's.
func listenVsock(t *testing.T) net.Listener {
	t.Helper()
	l, err := ListenVsock(unix.VMADDR_PORT_ANY)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip("NOT RUN: this kernel has no AF_VSOCK")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialVsock connects to a port of this system's, by the loopback transport.
func dialVsock(port uint32) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: port}
	if err := unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "vsock")
	return &vsockConn{f, f, VsockAddr{}, vsockAddr(to)}, nil
}

// TestVsock: the agent over virtio-vsock does what it does over TCP, by the loopback
// that the kernel's module vsock_loopback is.
func TestVsock(t *testing.T) {
	l := listenVsock(t)
	port := l.Addr().(VsockAddr).Port
	call := func() (net.Conn, error) { return dialVsock(port) }
	if c, err := call(); err != nil {
		t.Skipf("NOT RUN: no vsock loopback (the module vsock_loopback, CID 1): %v", err)
	} else {
		c.Close()
	}
	r := serveOn(t, l, call)
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	got := r.exec(agent.Command{Argv: sh("cat; echo err >&2; exit 7"), Stdin: bytes.NewReader(data)})
	if got.fail != nil || got.out != string(data) || got.err != "err\n" || got.status.Code != 7 {
		t.Errorf("%v, %d bytes of %d, %q, %+v", got.fail, len(got.out), len(data), got.err, got.status)
	}
	got = r.exec(agent.Command{Argv: sh("stty size"), TTY: &agent.Size{Rows: 33, Cols: 99}})
	if got.fail != nil || got.out != "33 99\r\n" {
		t.Errorf("a terminal: %+v", got)
	}
	// One that sends on behind the end, and one that goes away.
	if got = r.exec(agent.Command{Argv: []string{"true"}, Stdin: bytes.NewReader(data)}); got.fail != nil || got.status.Code != 0 {
		t.Errorf("input that nobody wants: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, err := agent.Start(ctx, r.dial(), agent.Command{Argv: sh("exec sleep 1000")})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got := r.exec(agent.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(data[:100_000])}); got.fail != nil || got.out != string(data[:100_000]) {
				t.Errorf("one of many: %v, %d bytes", got.fail, len(got.out))
			}
		})
	}
	all.Wait()
	// Halves: what is sent behind the other side's end still arrives.
	c, err := call()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.(*vsockConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a write behind CloseWrite: %v", err)
	}
	if _, err := io.ReadAll(c); err != nil { // the server hangs up on who says nothing
		t.Errorf("the end: %v", err)
	}
}

// TestVsockListener: what waits in Accept ends with the listener, as net's do.
func TestVsockListener(t *testing.T) {
	l := listenVsock(t)
	if a := l.Addr(); a.Network() != "vsock" || a.(VsockAddr).Port == unix.VMADDR_PORT_ANY {
		t.Errorf("address %v", a)
	}
	if other, err := ListenVsock(l.Addr().(VsockAddr).Port); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v, %v", other, err)
	}
	served := make(chan error, 1)
	go func() { served <- (&Server{System: host{}}).Serve(l) }()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if c, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, %v", c, err)
	}
}
