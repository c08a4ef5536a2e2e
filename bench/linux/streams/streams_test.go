package streams

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// pair gives one end to a service, which must end well, and returns the other.
func pair(t *testing.T, serve func(io.ReadWriter) error) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serve(there); there.Close() }()
	t.Cleanup(func() {
		here.Close()
		if err := <-ended; err != nil {
			t.Errorf("the service: %v", err)
		}
	})
	return here
}

func TestStreams(t *testing.T) {
	source, sink := pair(t, Source), pair(t, Sink)
	for _, n := range []uint64{0, 1, chunk - 1, chunk, period, period + 1, 3*period + 7} {
		if _, err := Get(source, n); err != nil {
			t.Errorf("get %d: %v", n, err)
		}
		if _, err := Put(sink, n); err != nil {
			t.Errorf("put %d: %v", n, err)
		}
	}
	echo := pair(t, Echo)
	if took, err := Trips(echo, 300); err != nil || len(took) != 300 {
		t.Errorf("%d trips, %v", len(took), err)
	}
}

// TestPattern: from any place of a period on there is a chunk that goes on as the
// next one does.
func TestPattern(t *testing.T) {
	p := pattern()
	for i, v := range p {
		if v != p[i%period] {
			t.Fatalf("byte %d is not that of its place", i)
		}
	}
}

// TestWrongBytes: what is lost, doubled or exchanged is no good stream.
func TestWrongBytes(t *testing.T) {
	var b bytes.Buffer
	const n = 3 * chunk
	if err := send(&b, pattern(), n); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(good), "in bytes": iotest.OneByteReader(bytes.NewReader(good)), "end with data": iotest.DataErrReader(bytes.NewReader(good)),
	} {
		if err := receive(r, pattern(), n); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	cut := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, bad := range map[string][]byte{
		"one lost":    cut(good[:chunk+5], good[chunk+6:], good[:1]),
		"one doubled": cut(good[:chunk+5], good[chunk+4:]),
		"exchanged":   cut(good[:chunk], good[2*chunk:], good[chunk:2*chunk]),
		"too short":   good[:n-1],
	} {
		if err := receive(bytes.NewReader(bad), pattern(), n); err == nil {
			t.Errorf("%s: taken for good", name)
		}
	}
	if err := receive(bytes.NewReader(good[:n-1]), pattern(), n); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too short: %v", err)
	}
	wrong := pair(t, func(c io.ReadWriter) error {
		_, err := io.ReadFull(c, make([]byte, 1))
		_, werr := c.Write([]byte{77})
		return errors.Join(err, werr)
	})
	if _, err := Trips(wrong, 1); err == nil {
		t.Error("another byte than was sent is taken for it")
	}
}

// TestConnect: the convention's answers.
func TestConnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	if _, err := Connect(path, 7, 0); err == nil {
		t.Error("nobody is there, and no error")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		answer, want string // want: "" for a connection, or of the error
		refused      bool
	}{
		{"OK 1073741824\nhello", "", false},
		{"", "refused", true},
		{"OK 107", "EOF", false},
		{"no\n", `"no"`, false},
		{strings.Repeat("x", 100), "without an end", false},
	} {
		asked := make(chan string, 1)
		go func() {
			s, err := l.Accept()
			if err != nil {
				asked <- err.Error()
				return
			}
			defer s.Close()
			b := make([]byte, len("CONNECT 19\n"))
			_, err = io.ReadFull(s, b)
			fmt.Fprint(s, c.answer)
			asked <- fmt.Sprint(string(b), err)
		}()
		conn, err := Connect(path, SourcePort, time.Minute)
		if got := <-asked; got != "CONNECT 19\n<nil>" {
			t.Errorf("asked %q", got)
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.answer, err)
		case c.want == "":
			if rest, err := io.ReadAll(conn); err != nil || string(rest) != "hello" {
				t.Errorf("behind the answer: %q, %v", rest, err)
			}
			conn.Close()
		case err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrRefused) != c.refused:
			t.Errorf("%q: %v, want %q", c.answer, err, c.want)
		}
	}
}
