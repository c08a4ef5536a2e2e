package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pair is a stream and its other end.
func pair(t testing.TB) (host, guest net.Conn) {
	host, guest = net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

func TestGreeting(t *testing.T) {
	key := NewKey()
	again, err := ParseKey(key.String())
	if err != nil || again != key {
		t.Fatalf("%v, %v", again, err)
	}
	for _, bad := range []string{"", key.String()[1:], strings.Repeat("g", 64), key.String() + "00"} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
	for name, other := range map[string]Key{"same key": key, "other key": NewKey()} {
		host, guest := pair(t)
		answered := make(chan error, 1)
		go func() {
			err := Answer(guest, other)
			guest.Close()
			answered <- err
		}()
		err := Greet(host, key)
		host.Close()
		got := <-answered
		if other == key && (err != nil || got != nil) || other != key && (!errors.Is(err, ErrKey) || got == nil) {
			t.Errorf("%s: %v, %v", name, err, got)
		}
	}
}

// TestGreetingRefuses: who has no key learns nothing that helps, and what is not
// an agent is not taken for one.
func TestGreetingRefuses(t *testing.T) {
	key := NewKey()
	for name, says := range map[string]func(hello []byte) []byte{
		"an echo": func(h []byte) []byte { return append(h, make([]byte, 32)...) },
		"the host's own proof": func(h []byte) []byte {
			n := h[len(magic):]
			return append(h, proof(key, "host", n, n)...)
		},
		"something else": func([]byte) []byte { return bytes.Repeat([]byte("SSH-2.0 "), 20) },
	} {
		host, guest := pair(t)
		go func() {
			h := make([]byte, len(magic)+nonceSize)
			_, _ = io.ReadFull(guest, h)
			_, _ = guest.Write(says(h))
		}()
		if err := Greet(host, key); err == nil {
			t.Errorf("%s: greeted", name)
		}
	}
	host, guest := pair(t)
	answered := make(chan error, 1)
	go func() { answered <- Answer(guest, key) }()
	_, _ = host.Write(append([]byte(magic), make([]byte, nonceSize)...))
	_, _ = io.ReadFull(host, make([]byte, len(magic)+nonceSize+proofSize))
	_, _ = host.Write(make([]byte, proofSize))
	if err := <-answered; !errors.Is(err, ErrKey) {
		t.Errorf("a host without the key: %v", err)
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	c := NewConn(&b)
	big := bytes.Repeat([]byte{7}, MaxPayload)
	if err := c.Send(TypeStdout, []byte("ab"), nil, []byte("c")); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(TypeData, big); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(TypeData, big, []byte{1}); err == nil {
		t.Error("a payload over the limit was sent")
	}
	if err := c.SendError(errors.New("one\ntwo\x1b[2J")); err != nil {
		t.Fatal(err)
	}
	if ty, p, err := c.Receive(); ty != TypeStdout || string(p) != "abc" || err != nil {
		t.Errorf("%v %q %v", ty, p, err)
	}
	if ty, p, err := c.Receive(); ty != TypeData || !bytes.Equal(p, big) || err != nil {
		t.Errorf("%v %d bytes %v", ty, len(p), err)
	}
	var remote *RemoteError
	if _, _, err := c.Receive(); !errors.As(err, &remote) || remote.Text != "one two [2J" {
		t.Errorf("%v", err)
	}
	if _, _, err := c.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, cut := range []string{"\x01", "\x01\x05\x00\x00abc"} {
		if _, _, err := NewConn(bytes.NewBufferString(cut)).Receive(); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %v", cut, err)
		}
	}
	if _, _, err := NewConn(bytes.NewBufferString("\x01\xff\xff\xff")).Receive(); !errors.Is(err, ErrProtocol) {
		t.Errorf("16 MiB: %v", err)
	}
}

// guestDoes runs the guest's side of one request.
func guestDoes(t *testing.T, guest net.Conn, want string, f func(c *Conn)) {
	t.Helper()
	go func() {
		defer guest.Close()
		c := NewConn(guest)
		ty, b, err := c.Receive()
		var r Request
		if err != nil || ty != TypeRequest || decode(b, &r) != nil || r.Op != want {
			t.Errorf("the request: %v %s %v", ty, b, err)
			return
		}
		f(c)
	}()
}

func TestExec(t *testing.T) {
	host, guest := pair(t)
	guestDoes(t, guest, OpExec, func(c *Conn) {
		_ = c.SendJSON(TypeStarted, Started{PID: 12})
		// Standard input comes back in capitals; a signal is the status.
		for {
			ty, b, err := c.Receive()
			switch {
			case err != nil:
				t.Error(err)
				return
			case ty == TypeStdin && len(b) > 0:
				_ = c.Send(TypeStdout, bytes.ToUpper(b))
				_ = c.Send(TypeCredit, binary.LittleEndian.AppendUint32(nil, uint32(len(b))))
			case ty == TypeStdin:
				_ = c.Send(TypeStderr, []byte("end"))
			case ty == TypeSignal:
				_ = c.SendJSON(TypeExit, Status{Code: 143, Signal: string(b)})
				return
			}
		}
	})
	in := bytes.Repeat([]byte("some input "), 100_000) // several windows
	var out, errs lockedBuffer
	p, err := Start(t.Context(), host, Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errs})
	if err != nil || p.PID() != 12 {
		t.Fatalf("%v, %v", p, err)
	}
	errs.wait("end")
	for _, bad := range []string{"", "SIG", "TERM", "SIGterm", "SIG TERM", "SIGTERMTERMTERMTERM"} {
		if err := p.Signal(bad); err == nil {
			t.Errorf("signal %q was sent", bad)
		}
	}
	if err := p.Signal("SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Code != 143 || st.Signal != "SIGTERM" {
		t.Errorf("%+v, %v", st, err)
	}
	if out.String() != strings.ToUpper(string(in)) {
		t.Errorf("%d bytes came back of %d", len(out.String()), len(in))
	}
}

// TestExecStuck: a command that reads nothing holds up neither a signal nor the
// end of the context.
func TestExecStuck(t *testing.T) {
	host, guest := pair(t)
	got := make(chan int, 1)
	guestDoes(t, guest, OpExec, func(c *Conn) {
		_ = c.SendJSON(TypeStarted, Started{PID: 1})
		stdin := 0
		for {
			ty, b, err := c.Receive()
			switch {
			case err != nil:
				return
			case ty == TypeStdin:
				stdin += len(b)
			case ty == TypeSignal:
				got <- stdin
			}
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	p, err := Start(ctx, host, Command{Argv: []string{"sleep"}, Stdin: r})
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 2*Window)
	go w.Write(block)
	for len(p.credit) > 0 { // until the window is used up
		time.Sleep(time.Millisecond)
	}
	if err := p.Signal("SIGINT"); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n > Window {
		t.Errorf("%d bytes of input were on their way, the window is %d", n, Window)
	}
	why := errors.New("enough")
	cancel(why)
	if _, err := p.Wait(); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestExecRefused(t *testing.T) {
	for name, c := range map[string]struct {
		guest func(c *Conn)
		want  string
	}{
		"no such command": {func(c *Conn) { _ = c.SendError(errors.New("nosuch: no such command")) }, "nosuch: no such command"},
		"hangs up":        {func(c *Conn) {}, "hung up"},
		"out of order":    {func(c *Conn) { _ = c.Send(TypeStdout, []byte("x")) }, "before the start"},
		"odd status": {func(c *Conn) {
			_ = c.SendJSON(TypeStarted, Started{})
			_ = c.SendJSON(TypeExit, Status{Code: 1000})
		}, "exit status 1000"},
		"too much credit": {func(c *Conn) {
			_ = c.SendJSON(TypeStarted, Started{})
			_ = c.Send(TypeCredit, []byte{255, 255, 255, 255})
		}, "credit"},
		"ends without a status": {func(c *Conn) { _ = c.SendJSON(TypeStarted, Started{}) }, "hung up"},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			guestDoes(t, guest, OpExec, func(conn *Conn) {
				go io.Copy(io.Discard, guest) // what the host says besides
				c.guest(conn)
			})
			p, err := Start(t.Context(), host, Command{Argv: []string{"x"}})
			if err == nil {
				_, err = p.Wait()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestAsk(t *testing.T) {
	host, guest := pair(t)
	guestDoes(t, guest, OpInfo, func(c *Conn) {
		_ = c.SendJSON(TypeStarted, Started{PID: 1, System: "NetBSD 10.99"})
		_ = c.SendJSON(TypeExit, Status{})
	})
	if s, err := Ask(t.Context(), host, OpInfo); err != nil || s.System != "NetBSD 10.99" {
		t.Errorf("%+v, %v", s, err)
	}
}
