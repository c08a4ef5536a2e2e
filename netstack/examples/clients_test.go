package examples

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/publish"
)

// run gives what a host's client prints.
func run(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT RUN: no %s: %v", name, err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	return string(out)
}

// published opens more of the machine's ports.
func (m *machine) published(specs ...string) []publish.Published {
	m.t.Helper()
	var parsed []publish.Spec
	for _, s := range specs {
		spec, err := publish.Parse(s)
		if err != nil {
			m.t.Fatal(err)
		}
		parsed = append(parsed, spec)
	}
	set, err := publish.Open(parsed, publish.Config{})
	if err != nil {
		m.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- set.Serve(m.t.Context(), m.network) }()
	m.t.Cleanup(func() {
		if err := set.Close(); err != nil {
			m.t.Error(err)
		}
		if err := <-served; err != nil {
			m.t.Error(err)
		}
	})
	return set.Addrs()
}

// TestCurl: HTTP to a server in the guest, over both families and a Unix socket,
// with an upload and a download of 4 MB.
func TestCurl(t *testing.T) {
	const size = 4 << 20
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	m := open(t, filepath.Join(t.TempDir(), "capture.pcapng"), netstack.Config{}, setups[0].guest)
	m.boot()
	l, err := m.guest.Listen(netip.AddrPortFrom(guestAddr, 8080))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, err == nil && bytes.Equal(b, data))
			return
		}
		_, _ = w.Write(data)
	})}
	go server.Serve(l)
	defer server.Close()
	sock := filepath.Join(t.TempDir(), "http.sock")
	ps := m.published("0:8080", "unix:"+sock+":8080")
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"http://" + ps[0].Addrs[0].String() + "/"}, {"http://" + ps[0].Addrs[1].String() + "/"}, {"--unix-socket", sock, "http://guest/"},
	} {
		args = append([]string{"--noproxy", "*", "-sS", "-f"}, args...)
		if got := run(t, "", "curl", args...); got != string(data) {
			t.Errorf("curl %v: %d bytes, not those that were sent", args, len(got))
		}
		if got := run(t, "", "curl", append(args, "-T", file)...); got != "true" {
			t.Errorf("curl %v, upload: %q", args, got)
		}
	}
	if n := m.network.Stats().GuestBad; n != 0 {
		t.Errorf("the network found %d of the guest's frames bad", n)
	}
}

// TestSocat: a client that ends its question by its end of the connection, over
// TCP and a Unix socket.
func TestSocat(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "capture.pcapng"), netstack.Config{}, setups[0].guest)
	m.boot()
	m.listen(func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		_, _ = c.Write(bytes.ToUpper(b))
	})
	sock := filepath.Join(t.TempDir(), "s")
	ps := m.published("0:80", "unix:"+sock+":80")
	for _, to := range []string{"TCP:" + ps[0].Addrs[0].String(), "TCP6:" + ps[0].Addrs[1].String(), "UNIX-CONNECT:" + sock} {
		if got := run(t, "question\n", "socat", "-t10", "-", to); got != "QUESTION\n" {
			t.Errorf("%s: %q", to, got)
		}
	}
}

// TestDig: DNS to a server in the guest, over UDP and TCP, in both families.
func TestDig(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "capture.pcapng"), netstack.Config{}, setups[0].guest)
	m.boot()
	at := netip.AddrPortFrom(guestAddr, 5353)
	u, err := m.guest.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(answer(b[:n]), from)
		}
	}()
	l, err := m.guest.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var n [2]byte
			if _, err := io.ReadFull(c, n[:]); err == nil {
				q := make([]byte, binary.BigEndian.Uint16(n[:]))
				_, _ = io.ReadFull(c, q)
				a := answer(q)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
			c.Close()
		}
	}()
	for _, p := range m.published("0:5353/udp", "0:5353") {
		for _, a := range p.Addrs {
			host, port, err := net.SplitHostPort(a.String())
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"@" + host, "-p", port, "+noedns", "+short", "+tries=1", "guest.example", "A"}
			if p.Spec.Network == "tcp" {
				args = append(args, "+tcp")
			}
			if got := run(t, "", "dig", args...); got != "192.0.2.7\n" {
				t.Errorf("dig %v: %q", args, got)
			}
		}
	}
}

// answer says 192.0.2.7 to a query without additional records (RFC 1035 §4.1).
func answer(q []byte) []byte {
	a := bytes.Clone(q)
	a[2] |= 0x80 // QR
	a[7] = 1     // ANCOUNT
	// The name is that at offset 12; type A, class IN, a TTL of 60 s, 4 bytes.
	return append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7)
}
