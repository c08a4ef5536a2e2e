package network

import (
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"
)

// play does what a guest does under a load, against the server.
func play(t *testing.T, k Kind, port int, n int64) {
	t.Helper()
	dial := func() *net.TCPConn {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Error(err)
			return nil
		}
		return c.(*net.TCPConn)
	}
	if k == Connections {
		for range n {
			if c := dial(); c != nil {
				c.Close()
			}
		}
		return
	}
	c := dial()
	if c == nil {
		return
	}
	defer c.Close()
	var err error
	switch k {
	case Up:
		_, err = io.CopyN(c, zeros{}, n)
	case Down:
		_, err = io.Copy(io.Discard, c)
	case RoundTrips:
		for b := []byte{1}; n > 0 && err == nil; n-- {
			if _, err = c.Write(b); err == nil {
				_, err = io.ReadFull(c, b)
			}
		}
	}
	if err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestServer(t *testing.T) {
	for _, c := range []struct {
		k            Kind
		n            int64
		bytes, times int64
	}{{Up, 3 << 20, 3 << 20, 0}, {Down, 3 << 20, 3 << 20, 0}, {RoundTrips, 100, 0, 100}, {Connections, 20, 0, 20}} {
		s, err := serve(c.k, c.n)
		if err != nil {
			t.Fatal(err)
		}
		play(t, c.k, s.port(), c.n)
		r := <-s.done
		s.close()
		if r.err != nil || r.bytes != c.bytes || r.times != c.times || r.took <= 0 {
			t.Errorf("%s: %+v", c.k, r)
		}
	}
}

// TestShortStream: what did not come through whole is no figure.
func TestShortStream(t *testing.T) {
	s, err := serve(Up, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	play(t, Up, s.port(), 999)
	if r := <-s.done; r.err == nil || !strings.Contains(r.err.Error(), "999 bytes came through of 1000") {
		t.Errorf("%+v", r)
	}
}

func TestFigures(t *testing.T) {
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 1e-9*want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	s, err := sampleOf(Up, result{took: 2 * time.Second, bytes: 1e9}, 3*time.Second, "x")
	if err != nil {
		t.Fatal(err)
	}
	near("Mbit/s", s.MBits, 4000)
	near("CPU s per GB", s.CPU, 3)
	s, err = sampleOf(RoundTrips, result{took: time.Second, times: 1000}, 0, "demo: ok nettcp dir=rr p50_us=1.5 p99_us=20.0 irqs=1")
	if err != nil {
		t.Fatal(err)
	}
	near("round trip", s.Trip, 1000)
	near("p50", s.P50, 1.5)
	near("p99", s.P99, 20)
	if _, err := sampleOf(RoundTrips, result{took: 1, times: 1}, 0, "demo: ok nettcp dir=rr"); err == nil {
		t.Error("a report without quantiles was taken")
	}
	s, err = sampleOf(Connections, result{took: time.Second, times: 200}, 0, "")
	near("connections", s.Conns, 200)
	if err != nil {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	Markdown(&b, []Series{
		{Subject: Ours, Kind: Up, MTU: 1500, Samples: []*Sample{{MBits: 100, CPU: 1}, nil, {MBits: 120, CPU: 1}}},
		{Subject: QEMUUser, Kind: Up, MTU: 1500, Samples: []*Sample{{MBits: 50, CPU: 2}, {MBits: 1, CPU: 2}, {MBits: 60, CPU: 2}}},
		{Subject: namePasst, Kind: Up, MTU: 1500, Samples: []*Sample{nil}, Failed: 1},
	})
	for _, want := range []string{
		"| up | 1500 | Mbit/s | smolvmm | 110 | 102–118 | 2.00 [2.00, 2.00] |",
		"| up | 1500 | CPU s per GB | smolvmm | 1.00 | 1.00–1.00 | 0.500 [0.500, 0.500] |",
		"| up | 1500 | Mbit/s | QEMU passt | failed |  |  |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestList(t *testing.T) {
	if got := List([]string{"up", "rr", "conn"}, 2, 100); len(got) != 4 || got[0].N != 2e6 || got[1].MTU != Jumbo || got[2].N != 100 || got[3].N != 10 {
		t.Errorf("%+v", got)
	}
}
