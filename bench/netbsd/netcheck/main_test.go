package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/bench/netbsd/peer"
)

// udpEcho answers datagrams on the loopback.
func udpEcho(t *testing.T) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go peer.Echo(c)
	return c.LocalAddr().String()
}

// tcpHalf answers what it got once it has ended.
func tcpHalf(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go peer.Half(l)
	return l.Addr().String()
}

func TestRun(t *testing.T) {
	const size = 1 << 20
	srv := httptest.NewServer(peer.Handler(size, func() {}))
	defer srv.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "other") }))
	defer bad.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	open := strings.TrimPrefix(srv.URL, "http://")
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-status", "42"}, 42, "ok, 0 checks, status 42"},
		{[]string{"-get", srv.URL + "/bytes", "-put", srv.URL + "/put," + srv.URL + "/put", "-many", srv.URL + "/"}, 0, "ok, 3 checks"},
		{[]string{"-echo", udpEcho(t), "-half", tcpHalf(t), "-refused", closed, "-closed", closed}, 0, "ok, 4 checks"},
		{[]string{"-lookup", "127.0.0.1=127.0.0.1"}, 0, "127.0.0.1 is [127.0.0.1]"},
		{[]string{"-get", bad.URL}, 1, "get: FAILED"},
		{[]string{"-get", srv.URL + "/nothing"}, 1, "404"},
		{[]string{"-get", "http://" + closed}, 1, "refused"},
		{[]string{"-put", bad.URL}, 1, "put: FAILED"},
		{[]string{"-many", "http://" + closed}, 1, "many: FAILED"},
		{[]string{"-refused", open}, 1, "took the connection"},
		{[]string{"-closed", open}, 1, "took the connection"},
		{[]string{"-half", open}, 1, "half: FAILED"},
		{[]string{"-lookup", "127.0.0.1=127.0.0.2"}, 1, "not 127.0.0.2"},
		{[]string{"-resolv", "no such line"}, 1, "resolv: FAILED"},
		{[]string{"-ping", "nonsense"}, 1, "ping: FAILED"},
		{[]string{"-nonsense"}, 1, "nonsense"},
	} {
		var out bytes.Buffer
		if got := run(append([]string{"-size", fmt.Sprint(size)}, c.args...), &out); got != c.status || !strings.Contains(out.String(), c.says) {
			t.Errorf("%v: status %d, want %d and %q\n%s", c.args, got, c.status, c.says, out.String())
		}
	}
}

// lines gives each line written to it.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

func TestServe(t *testing.T) {
	out, status := make(lines, 8), make(chan int, 1)
	go func() { status <- run([]string{"-served", "4096", "-serve", "127.0.0.1:0"}, out) }()
	_, addr, ok := strings.Cut(strings.TrimSpace(<-out), "serving at ")
	if !ok {
		t.Fatal("no address")
	}
	var said bytes.Buffer
	if got := run([]string{"-size", "4096", "-get", "http://" + addr + "/bytes", "-put", "http://" + addr + "/put"}, &said); got != 0 {
		t.Errorf("status %d\n%s", got, said.String())
	}
	resp, err := http.Get("http://" + addr + "/end")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := <-status; got != 0 {
		t.Errorf("status %d", got)
	}
	if got := run([]string{"-serve", "127.0.0.1:0", "-limit", "10ms"}, make(lines, 8)); got != 1 {
		t.Errorf("nobody asked for the end: status %d", got)
	}
}

func TestChecksum(t *testing.T) {
	for in, want := range map[string]uint16{"": 0xffff, "\x00\x01\xf2\x03\xf4\xf5\xf6\xf7": 0x220d, "\x01": 0xfeff} { // RFC 1071 §3
		if got := checksum([]byte(in)); got != want {
			t.Errorf("%x: %#x, want %#x", in, got, want)
		}
	}
	if peer.Sum(0) != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" || peer.Sum(1) == peer.Sum(2) {
		t.Error("sums")
	}
}
