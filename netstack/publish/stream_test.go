package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
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

// refuser is a guest's connection that takes nothing, and whose last words wait
// in its queue until that was found out.
type refuser struct {
	net.Conn
	refused, closed chan struct{}
	once            sync.Once
	words           string
}

func (c *refuser) Write([]byte) (int, error) {
	close(c.refused)
	return 0, unix.EPIPE
}

func (c *refuser) Read(b []byte) (int, error) {
	<-c.refused
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	case <-time.After(50 * time.Millisecond): // as if the relay was busy elsewhere
	}
	if c.words == "" {
		return 0, unix.ECONNRESET
	}
	n := copy(b, c.words)
	c.words = c.words[n:]
	return n, nil
}

func (c *refuser) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *refuser) SetReadDeadline(time.Time) error { return nil }

// TestLastWords: what a guest answered before it refused the rest arrives.
func TestLastWords(t *testing.T) {
	const answer = "413 too much"
	s := publish(t, &guest{dial: func(context.Context, string, string) (net.Conn, error) {
		return &refuser{refused: make(chan struct{}), closed: make(chan struct{}), words: answer}, nil
	}}, Config{}, "80")
	c := dial(t, s.Addrs()[0].Addrs[0])
	if _, err := c.Write(make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(answer))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != answer {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := c.Read(b); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("behind them: %v, want a reset", err)
	}
}

// TestWhoStopsListening: a client that reads no more, and neither goes away nor
// ends, is a reset to the guest that sends to it, also where the guest takes
// nothing itself.
func TestWhoStopsListening(t *testing.T) {
	for _, flood := range []bool{false, true} {
		sock := filepath.Join(t.TempDir(), "s")
		broke := make(chan error, 1)
		s := publish(t, towards(service(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			for {
				if _, err := c.Write(make([]byte, 1<<10)); err != nil {
					broke <- err
					return
				}
				time.Sleep(time.Millisecond)
			}
		})), Config{}, "unix:"+sock+":80")
		c := dial(t, s.Addrs()[0].Addrs[0]).(*net.UnixConn)
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		var writing sync.WaitGroup
		if flood {
			writing.Go(func() {
				for {
					if _, err := c.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			})
		}
		_ = c.CloseRead()
		select {
		case <-broke:
		case <-time.After(15 * time.Second):
			t.Errorf("flood %v: the guest sends to nobody", flood)
		}
		c.Close()
		writing.Wait()
	}
}
