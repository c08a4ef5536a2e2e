package policy

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// oneWay is a connection whose peer is a fixed run of bytes; what is written is kept.
type oneWay struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *oneWay) Read(b []byte) (int, error)      { return c.in.Read(b) }
func (c *oneWay) Write(b []byte) (int, error)     { return c.out.Write(b) }
func (c *oneWay) Close() error                    { return nil }
func (c *oneWay) SetDeadline(time.Time) error     { return nil }
func (c *oneWay) SetReadDeadline(time.Time) error { return nil }

// hello is the ClientHello that Go's client sends.
func hello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	conn := &oneWay{in: strings.NewReader("")}
	_ = tls.Client(conn, c).Handshake() // ends when there is no answer
	if conn.out.Len() == 0 {
		t.Fatal("the client says no hello")
	}
	return conn.out.Bytes()
}

// understood is the server name that Go's server reads out of the stream.
func understood(stream []byte) (name string, ok bool) {
	stop := errors.New("stop")
	c := &tls.Config{MinVersion: tls.VersionTLS10, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, stop
	}}
	_ = tls.Server(&oneWay{in: bytes.NewReader(stream)}, c).HandshakeContext(context.Background())
	return name, ok
}

// fragment puts the same handshake bytes into records of n.
func fragment(stream []byte, n int) []byte {
	var body, out []byte
	for rest := stream; len(rest) > 0; {
		size := int(binary.BigEndian.Uint16(rest[3:]))
		body, rest = append(body, rest[5:5+size]...), rest[5+size:]
	}
	for len(body) > 0 {
		k := min(n, len(body))
		out = append(out, 22, 3, 1, byte(k>>8), byte(k))
		out, body = append(out, body[:k]...), body[k:]
	}
	return out
}

// withExtensions puts extensions in front of a hello's own.
func withExtensions(stream []byte, more ...byte) []byte {
	b := bytes.Clone(stream)
	at := 5 + 4 + 34
	at += 1 + int(b[at])                           // session ID
	at += 2 + int(binary.BigEndian.Uint16(b[at:])) // cipher suites
	at += 1 + int(b[at])                           // compression
	size := binary.BigEndian.Uint16(b[at:]) + uint16(len(more))
	binary.BigEndian.PutUint16(b[at:], size)
	b = append(b[:at+2], append(bytes.Clone(more), b[at+2:]...)...)
	binary.BigEndian.PutUint16(b[3:], uint16(len(b)-5))
	b[6] = 0
	binary.BigEndian.PutUint16(b[7:], uint16(len(b)-9))
	return b
}

// feed gives the stream as a connection does that delivers exactly what is asked
// for, and fails if more is asked for than the client sends.
func feed(t testing.TB, stream []byte) (string, bool) {
	t.Helper()
	n := 0
	for {
		name, need, ok := ServerName(stream[:n:n])
		if need == 0 {
			return name, ok
		}
		if need <= n || need > MaxHello {
			t.Fatalf("with %d bytes it needs %d", n, need)
		}
		if need > len(stream) {
			t.Fatalf("waits for %d bytes where the client sends %d", need, len(stream))
		}
		n = need
	}
}

func TestServerNameOfRealHellos(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain := hello(t, &tls.Config{ServerName: "api.example.com"})
	upper := bytes.Replace(plain, []byte("api.example.com"), []byte("API.Example.Com"), 1)
	grease := []byte{0x0a, 0x0a, 0, 0, 0xda, 0xda, 0, 1, 0} // RFC 8701
	for _, c := range []struct {
		what   string
		stream []byte
		want   string
	}{
		{"TLS 1.3 with a post-quantum share", plain, "api.example.com"},
		{"TLS 1.2", hello(t, &tls.Config{ServerName: "api.example.com", MaxVersion: tls.VersionTLS12}), "api.example.com"},
		{"upper case", upper, "api.example.com"},
		{"ALPN", hello(t, &tls.Config{ServerName: "a.test", NextProtos: []string{"h2", "http/1.1"}}), "a.test"},
		{"no name", hello(t, &tls.Config{InsecureSkipVerify: true}), ""},
		{"an address", hello(t, &tls.Config{ServerName: "192.0.2.1"}), ""}, // no client names one
		{"GREASE", withExtensions(plain, grease...), "api.example.com"},
		{"ECH: the outer name counts", hello(t, &tls.Config{ServerName: "hidden.test", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfig(key.PublicKey().Bytes(), "public.test")}), "public.test"},
	} {
		for _, stream := range [][]byte{c.stream, fragment(c.stream, 1), fragment(c.stream, 7), fragment(c.stream, 100), append(bytes.Clone(c.stream), "more"...)} {
			if len(stream) > MaxHello {
				continue // a record for each byte of a large hello
			}
			if name, ok := feed(t, stream); name != c.want || !ok {
				t.Errorf("%s: %q, %v", c.what, name, ok)
			}
			if name, ok := understood(stream); !ok || normal(name) != c.want {
				t.Errorf("%s: Go's server reads %q, %v", c.what, name, ok)
			}
		}
	}
	if s := fragment(plain, 1); len(s) > MaxHello {
		t.Errorf("a byte a record makes %d bytes: the test needs less", len(s))
	}
}

// echConfig is an ECHConfigList with one key (RFC 9849 §4).
func echConfig(public []byte, name string) []byte {
	c := []byte{1, 0, 0x20}                               // config_id, DHKEM(X25519)
	c = append(c, 0, byte(len(public)))                   //
	c = append(c, public...)                              //
	c = append(c, 0, 4, 0, 1, 0, 1)                       // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(name)))                    // maximum_name_length
	c = append(append(c, name...), 0, 0)                  // no extensions
	c = append([]byte{0xfe, 0x0d, 0, byte(len(c))}, c...) // version, length
	return append([]byte{0, byte(len(c))}, c...)
}

// TestServerNameOfOthers: what is no TLS, what is TLS that cannot be read, and
// when either is known.
func TestServerNameOfOthers(t *testing.T) {
	plain := hello(t, &tls.Config{ServerName: "a.test"})
	sni := []byte{0, 0, 0, 11, 0, 9, 0, 0, 6, 'b', '.', 't', 'e', 's', 't'}
	big := fragment(append([]byte{22, 3, 1, 0, 4, 1, 0, 0x80, 0}, nil...), 4)
	for what, c := range map[string]struct {
		stream []byte
		tls    bool
	}{
		"HTTP":                      {[]byte("GET / HTTP/1.1\r\n"), false},
		"SSH":                       {[]byte("SSH-2.0-x"), false},
		"one byte":                  {[]byte{'S'}, false},
		"a version unheard of":      {[]byte{22, 'x', 'y', 0, 4, 2, 0, 0, 0}, true},
		"an upper byte":             {[]byte{0xff, 0xfb, 0x18}, false},
		"an alert first":            {append([]byte{21, 3, 1, 0, 2, 1, 0}, plain...), true},
		"change_cipher_spec first":  {append([]byte{20, 3, 1, 0, 1, 1}, plain...), true},
		"an empty record first":     {append([]byte{22, 3, 1, 0, 0}, plain...), true},
		"too long a record":         {[]byte{22, 3, 1, 0x40, 1, 1}, true},
		"no hello":                  {[]byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, true},
		"a hello over every bound":  {big, true},
		"the name twice":            {withExtensions(plain, sni...), true},
		"an empty name":             {withExtensions(hello(t, &tls.Config{InsecureSkipVerify: true}), 0, 0, 0, 5, 0, 3, 0, 0, 0), true},
		"two names in the list":     {withExtensions(hello(t, &tls.Config{InsecureSkipVerify: true}), 0, 0, 0, 10, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'), true},
		"a control character":       {bytes.Replace(plain, []byte("a.test"), []byte("a\x00test"), 1), true},
		"SSL 2's hello":             {[]byte{0x80, 0x2e, 1, 3, 1, 0, 0x15}, true},
		"a name longer than a name": {withExtensions(hello(t, &tls.Config{InsecureSkipVerify: true}), append([]byte{0, 0, 1, 5, 1, 3, 0, 1, 0}, bytes.Repeat([]byte("a"), 256)...)...), true},
		"a hello cut inside":        {append([]byte{22, 3, 1, 0, 50, 1, 0, 0, 46}, plain[9:9+46]...), true},
	} {
		if name, ok := feed(t, c.stream); name != "" || ok != c.tls {
			t.Errorf("%s: %q, TLS %v", what, name, ok)
		}
	}
	// A hello ends where it ends, also in a record that goes on: nothing more may come.
	open := bytes.Clone(plain)
	binary.BigEndian.PutUint16(open[3:], uint16(len(open)-5+100))
	if name, ok := feed(t, open); name != "a.test" || !ok {
		t.Errorf("a record longer than its hello: %q, %v", name, ok)
	}
	// More bytes of the same stream never change the answer, even beyond MaxHello.
	pieces := fragment(hello(t, &tls.Config{ServerName: "a.test", NextProtos: []string{strings.Repeat("x", 250), strings.Repeat("y", 250), strings.Repeat("z", 250)}}), 1)
	for len(pieces) <= MaxHello {
		pieces = fragment(withExtensions(fragment(pieces, 1<<14), append([]byte{0x1a, 0x1a, 2, 0}, make([]byte, 512)...)...), 1)
	}
	if name, need, ok := ServerName(pieces); name != "" || need != 0 || !ok {
		t.Errorf("beyond MaxHello: %q, %d, %v", name, need, ok)
	}
}

// FuzzServerName: it asks for more only while more can be had, gives the same
// answer for a stream however it is cut, and never a name that a server would
// not read: what Go's server makes of the same bytes is the measure.
func FuzzServerName(f *testing.F) {
	plain := hello(f, &tls.Config{ServerName: "api.example.com"})
	old := hello(f, &tls.Config{ServerName: "a.test", MaxVersion: tls.VersionTLS12})
	for _, s := range [][]byte{plain, old, fragment(old, 5), withExtensions(old, 0x0a, 0x0a, 0, 0), []byte("GET / HTTP/1.1"), {0x80, 0x2e, 1, 3, 1}, {22, 3, 1, 0, 4, 1, 0, 0, 0}} {
		f.Add(s, uint16(10))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		name, need, ok := ServerName(b)
		if need != 0 && (need <= len(b) || need > MaxHello || ok || name != "") {
			t.Fatalf("of %d bytes: %q, need %d, %v", len(b), name, need, ok)
		}
		if name != "" && !ok {
			t.Fatalf("a name without TLS: %q", name)
		}
		head := b[:min(int(cut), len(b))]
		if n, more, is := ServerName(head); more == 0 && (n != name || is != ok || need != 0) {
			t.Fatalf("%d bytes: %q, %v; %d bytes: %q, %v, need %d", len(head), n, is, len(b), name, ok, need)
		} else if more > 0 && need == 0 && len(b) < more {
			t.Fatalf("asked for %d bytes where %d were enough", more, len(b))
		}
		if theirs, read := understood(b); read && need == 0 {
			if !ok {
				t.Fatalf("Go's server reads %q where this is no TLS", theirs)
			}
			if name != "" && name != normal(theirs) {
				t.Fatalf("%q, and Go's server reads %q", name, theirs)
			}
		}
	})
}
