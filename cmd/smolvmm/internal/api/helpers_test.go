package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// fake is a Host without a machine.
type fake struct {
	mu      sync.Mutex
	spec    Spec
	calls   []string
	fail    error
	killed  chan string
	metrics vmm.Metrics
}

func newFake() *fake {
	f := &fake{killed: make(chan string, 16)}
	f.metrics = vmm.Metrics{Memory: 64 << 20, VCPUs: []vmm.VCPUMetrics{{IOIn: 1, IOOut: 2, MMIORead: 3, MMIOWrite: 4, Interrupted: 5, Other: 6, Unclaimed: 7}}}
	d := vmm.DiskMetrics{Interrupts: 9}
	d.Read.Requests, d.Read.Bytes = 3, 4096
	d.Latencies.Read.Took[2], d.Latencies.Read.Took[vmm.DiskLatencyBuckets-1], d.Latencies.Read.Total = 2, 1, time.Millisecond
	f.metrics.Disks = []vmm.DiskMetrics{d}
	n := vmm.NetMetrics{Pairs: []vmm.NetPairStats{{TXFrames: 1, TXBytes: 60, RXFrames: 2, RXBytes: 120}, {}}}
	n.TX.Oversized = 8
	v := vmm.VsockMetrics{Interrupts: 11}
	v.Connections, v.Opened, v.Called, v.Spoofed, v.Starved = 2, 5, 6, 4, 12
	v.FromGuest, v.ToGuest = vmm.VsockTraffic{Packets: 7, Bytes: 70}, vmm.VsockTraffic{Packets: 8, Bytes: 80}
	f.metrics.Vsock = &v
	f.metrics.Nets = []vmm.NetMetrics{n}
	return f
}

func (f *fake) did(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return f.fail
}

func (f *fake) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fake) Start(s Spec) error {
	f.mu.Lock()
	f.spec = s
	f.mu.Unlock()
	return f.did("start")
}
func (f *fake) Pause() error         { return f.did("pause") }
func (f *fake) Resume() error        { return f.did("resume") }
func (f *fake) Kill(why string)      { f.killed <- why }
func (f *fake) Metrics() vmm.Metrics { return f.metrics }
func (f *fake) Ports() []client.Port {
	return []client.Port{{Network: "tcp", Host: []string{"127.0.0.1:8080"}, Guest: "80"}}
}
func (f *fake) Egress() []map[string]uint64 { return []map[string]uint64{{"denied": 3, "dhcp": 1}} }

// Flows are two, or fewer.
func (f *fake) Flows(max int) []client.Flow {
	all := []client.Flow{
		{Protocol: "tcp", Guest: "10.0.2.15:50000", Peer: "192.0.2.1:443", Sent: 10, Received: 20, Since: time.Unix(2, 0).UTC()},
		{Protocol: "icmp", Guest: "10.0.2.15:7", Peer: "192.0.2.1:0", Since: time.Unix(1, 0).UTC()},
	}
	return all[:min(len(all), max)]
}

// agentTo is an Agent whose streams a test serves.
type agentTo struct {
	guest    func(net.Conn)
	shutdown func() error
}

func (a agentTo) Dial(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	go a.guest(far)
	return near, nil
}
func (a agentTo) Shutdown(context.Context) error { return a.shutdown() }

// serve starts a server and gives its socket. It is closed with the test, and a
// descriptor or goroutine that it leaves is another test's to find.
func serve(t testing.TB, c Config) (*Server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api-*") // t.TempDir's names are too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "api.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Host == nil {
		c.Host = newFake()
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return s, path
}

// ask makes a request and gives status and body.
func ask(t testing.TB, path, method, url, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	var r io.Reader
	if body != "" {
		r = bytes.NewReader([]byte(body))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+url, r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, string(b)
}

// file makes a file and gives its path.
func file(t testing.TB) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}
