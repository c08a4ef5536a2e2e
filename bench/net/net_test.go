package main

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
func play(t *testing.T, k kind, port int, n int64) {
	t.Helper()
	dial := func() *net.TCPConn {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Error(err)
			return nil
		}
		return c.(*net.TCPConn)
	}
	if k == kindConn {
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
	case kindUp:
		_, err = io.CopyN(c, zeros{}, n)
	case kindDown:
		_, err = io.Copy(io.Discard, c)
	case kindRR:
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
		k            kind
		n            int64
		bytes, times int64
	}{{kindUp, 3 << 20, 3 << 20, 0}, {kindDown, 3 << 20, 3 << 20, 0}, {kindRR, 100, 0, 100}, {kindConn, 20, 0, 20}} {
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
	s, err := serve(kindUp, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	play(t, kindUp, s.port(), 999)
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
	s, err := figures(kindUp, result{took: 2 * time.Second, bytes: 1e9}, 3*time.Second, "x")
	if err != nil {
		t.Fatal(err)
	}
	near("Mbit/s", s.MBits, 4000)
	near("CPU s per GB", s.CPU, 3)
	s, err = figures(kindRR, result{took: time.Second, times: 1000}, 0, "demo: ok nettcp dir=rr p50_us=1.5 p99_us=20.0 irqs=1")
	if err != nil {
		t.Fatal(err)
	}
	near("round trip", s.Trip, 1000)
	near("p50", s.P50, 1.5)
	near("p99", s.P99, 20)
	if _, err := figures(kindRR, result{took: 1, times: 1}, 0, "demo: ok nettcp dir=rr"); err == nil {
		t.Error("a report without quantiles was taken")
	}
	s, err = figures(kindConn, result{took: time.Second, times: 200}, 0, "")
	near("connections", s.Conns, 200)
	if err != nil {
		t.Error(err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-n 0", "-n 0"}, {"-mb 0", "-mb 0"}, {"-count 1", "-count 1"}, {"-loads up,sideways", "sideways"}, {"x", `"x" is not a flag`},
	} {
		var o options
		if err := o.parse(strings.Fields(c.args), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	var o options
	if err := o.parse([]string{"-loads", "up,rr"}, io.Discard); err != nil || len(o.list()) != 3 {
		t.Errorf("%v, %v", o.list(), err)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	markdown(&b, []series{
		{Subject: nameOurs, Kind: kindUp, MTU: 1500, Samples: []*sample{{MBits: 100, CPU: 1}, nil, {MBits: 120, CPU: 1}}},
		{Subject: nameSlirp, Kind: kindUp, MTU: 1500, Samples: []*sample{{MBits: 50, CPU: 2}, {MBits: 1, CPU: 2}, {MBits: 60, CPU: 2}}},
		{Subject: namePasst, Kind: kindUp, MTU: 1500, Samples: []*sample{nil}, Failed: 1},
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
