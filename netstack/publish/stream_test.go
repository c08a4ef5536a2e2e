package publish

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHalfClose: each side goes on receiving after it has sent its end.
func TestHalfClose(t *testing.T) {
	const late = "the answer after the end of the question"
	asked := make(chan string, 1)
	addr := service(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		asked <- string(b)
		_, _ = io.WriteString(c, late)
	})
	first := publish(t, towards(addr), Config{}, "80")
	if got, err := ask(t, first.Addrs()[0].Addrs[0], "question"); err != nil || got != late || <-asked != "question" {
		t.Errorf("the client's end first: %q, %v", got, err)
	}

	// The guest's end first.
	heard := make(chan string, 1)
	second := publish(t, towards(service(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "greeting")
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		heard <- string(b)
	})), Config{}, "80")
	c := dial(t, second.Addrs()[0].Addrs[0])
	if b, err := io.ReadAll(c); err != nil || string(b) != "greeting" {
		t.Fatalf("%q, %v", b, err)
	}
	for range 3 {
		if _, err := io.WriteString(c, "more "); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if got := <-heard; got != "more more more " {
		t.Errorf("after its end the guest heard %q", got)
	}
}

// TestResetsArePassedOn, both ways, and also where the client's end came before.
func TestResetsArePassedOn(t *testing.T) {
	t.Run("the guest's", func(t *testing.T) {
		s := publish(t, towards(service(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})), Config{}, "80")
		c := dial(t, s.Addrs()[0].Addrs[0])
		_, _ = c.Write([]byte{1})
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
	})
	for _, half := range []bool{false, true} {
		t.Run(fmt.Sprintf("the client's, half closed %v", half), func(t *testing.T) {
			up, ended := make(chan struct{}), make(chan error, 1)
			s := publish(t, towards(service(t, func(c *net.TCPConn) {
				b := make([]byte, 1)
				_, _ = io.ReadFull(c, b)
				if half {
					_, _ = c.Read(b) // the client's end
				}
				close(up)
				// Readable without an end before it, only the reset is left to wake this.
				raw, _ := c.SyscallConn()
				err := raw.Read(func(fd uintptr) bool {
					fds := []unix.PollFd{{Fd: int32(fd)}}
					n, _ := unix.Poll(fds, 0)
					return n > 0 && fds[0].Revents&unix.POLLERR != 0
				})
				ended <- err
			})), Config{}, "80")
			c := dial(t, s.Addrs()[0].Addrs[0]).(*net.TCPConn)
			_, _ = c.Write([]byte{1})
			if half {
				_ = c.CloseWrite()
			}
			<-up
			_ = c.SetLinger(0)
			c.Close()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the guest never heard of the client's reset")
			}
		})
	}
}

// TestLastWords: what a guest answered before it refused the rest arrives.
func TestLastWords(t *testing.T) {
	const answer = "413 too much"
	s := publish(t, towards(service(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.WriteString(c, answer)
		_ = c.CloseWrite()
		_ = c.CloseRead()
		_, _ = io.Copy(io.Discard, c)
	})), Config{}, "80")
	c := dial(t, s.Addrs()[0].Addrs[0])
	go func() {
		for { // until it breaks
			if _, err := c.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}()
	b := make([]byte, len(answer))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != answer {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
}
