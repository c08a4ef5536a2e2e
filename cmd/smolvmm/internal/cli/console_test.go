package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestConsoleFile: everything that was printed is in the file, however soon
// after it the guest ends.
func TestConsoleFile(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	path := filepath.Join(t.TempDir(), "log")
	const n = 50_000
	if err := os.WriteFile(path, bytes.Repeat([]byte("old"), n), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-console", "file:"+path, fmt.Sprintf("print=%d", n))); r.Status != 0 || r.Out+r.Err != "" {
		t.Fatalf("%+v", r)
	}
	first, err := os.ReadFile(path)
	if err != nil || len(first) != n || bytes.Contains(first, []byte("old")) {
		t.Fatalf("%d bytes (%v), want %d of the guest's own", len(first), err, n)
	}
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-console", "file:"+path+",append", "hello")); r.Status != 0 {
		t.Fatalf("%+v", r)
	}
	both, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(both, first) || !strings.Contains(string(both[n:]), "demo: ok hello") {
		t.Fatalf("appended: %d bytes, %v", len(both), err)
	}
}

// TestConsoleLost: a console that takes nothing is told of, and harms nobody.
func TestConsoleLost(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("NOT RUN: no /dev/full")
	}
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-console", "file:/dev/full", "print=5000"))
	if r.Status != 0 {
		t.Errorf("status %d", r.Status)
	}
	clitest.MustContain(t, "standard error", r.Err, "smolvmm: console output was lost: ", "no space left on device")
}

func TestConsoleNone(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-console", "none", "hello")); r.Status != 0 || r.Out+r.Err != "" {
		t.Errorf("%+v", r)
	}
}

// TestConsolePTY: one client after the other is the guest's terminal.
func TestConsolePTY(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, "demo", "-console", "pty", "echo")
	name := p.Errs.Wait(t, `console on (/dev/pts/\d+)`)
	for i, word := range []string{"first", "second"} {
		tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		seen := clitest.NewTranscript()
		seen.From(tty)
		if i == 0 {
			seen.Wait(t, "echo")
		}
		if _, err := io.WriteString(tty, word+"\r"); err != nil {
			t.Fatal(err)
		}
		seen.Wait(t, word)
		if i == 1 {
			if _, err := io.WriteString(tty, "quit\r"); err != nil {
				t.Fatal(err)
			}
		}
		tty.Close()
	}
	p.Ended(0)
}

// TestConsolePTYUnread: a terminal that nobody reads does not hold the guest up.
func TestConsolePTYUnread(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, "demo", "-console", "pty", "print=40000")
	p.Errs.Wait(t, "console on ")
	p.Ended(0)
}

// TestConsolePTYSlow: what a reader takes, it gets whole, although it pauses.
func TestConsolePTYSlow(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, "demo", "-console", "pty", "print=40000")
	name := p.Errs.Wait(t, `console on (/dev/pts/\d+)`)
	tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var total int
	buf := make([]byte, 16<<10)
	for total < 40_000 {
		n, err := tty.Read(buf)
		total += n
		if err != nil {
			break
		}
	}
	if total != 40_000 {
		t.Errorf("%d bytes came of 40000", total)
	}
	p.Ended(0)
}

// dial connects to a console's socket.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestConsoleUnix: a socket for its owner alone, for one client after the other,
// put where a dead one lay, and gone at the end.
func TestConsoleUnix(t *testing.T) {
	for _, confine := range []string{"enforce", "off"} {
		t.Run(confine, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "sock")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()

			p := clitest.Start(t, "demo", "-confine", confine, "-console", "unix:"+path, "echo")
			p.Errs.Wait(t, "console on ")
			if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
				t.Errorf("the socket has mode %v, %v", st.Mode(), err)
			}
			// The second is in the queue before the first has hung up.
			first, second := dial(t, path), dial(t, path)
			for _, c := range []struct {
				conn *net.UnixConn
				word string
			}{{first, "one"}, {second, "two"}} {
				seen := clitest.NewTranscript()
				seen.From(c.conn)
				// What comes before the guest's driver is up may be lost.
				fmt.Fprintf(c.conn, "    %s\r", c.word)
				seen.Wait(t, c.word)
				if c.word == "one" && strings.Contains(seen.String(), "two") {
					t.Error("the first client sees the second's words")
				}
				if c.conn == second {
					fmt.Fprint(c.conn, "quit\r")
					seen.Wait(t, "echo bytes=")
				}
				c.conn.Close()
			}
			p.Ended(0)
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is left behind: %v", err)
			}
		})
	}
}

// TestConsoleUnixHalfClosed: a client that has said all it had to still gets
// what the guest answers.
func TestConsoleUnixHalfClosed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sock")
	p := clitest.Start(t, "demo", "-console", "unix:"+path, "echo")
	p.Errs.Wait(t, "console on ")
	c := dial(t, path)
	fmt.Fprint(c, "    word\rquit\r") // the first byte may come before the driver
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	clitest.MustContain(t, "the answer", string(all), "word", "echo bytes=")
	p.Ended(0)
}

// TestConsoleUnixStuck: a client that reads nothing is hung up on, so that it
// holds up neither the guest's output nor the next client nor the end.
func TestConsoleUnixStuck(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sock")
	con, err := unixConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	stuck, next := dial(t, path), dial(t, path)
	seen := clitest.NewTranscript()
	seen.From(next)
	chunk := append(bytes.Repeat([]byte("."), 32<<10), "mark\n"...)
	waitAttached(t, con, stuck)
	// Between the one's end and the other's beginning nobody takes anything, and
	// writes are as fast as can be.
	for late := time.Now().Add(30 * time.Second); !strings.Contains(seen.String(), "mark"); {
		began := time.Now()
		if n, err := con.Out.Write(chunk); n != len(chunk) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if took := time.Since(began); took > hangUpAfter+5*time.Second {
			t.Fatalf("one write took %v", took)
		}
		if time.Now().After(late) {
			t.Fatal("the stuck client is still served")
		}
	}
	con.close()
	con.close()
}

// waitAttached waits until the console has taken its first client, by typing.
func waitAttached(t *testing.T, con *Console, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if n, err := con.in.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestConsoleUnixKilled: the keeper removes the socket of a killed monitor.
func TestConsoleUnixKilled(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sock")
	p := clitest.Start(t, "demo", "-console", "unix:"+path, "spin")
	p.Errs.Wait(t, "console on ")
	s := &session{t: t, pid: p.Pid}
	k := s.keeper()
	if err := p.Kill(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.Ended(128 + 9)
	waitFor(t, k)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// TestConsoleRefused is what cannot be a console: told, and nothing harmed.
func TestConsoleRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(dir, "taken")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for where, want := range map[string]string{
		"unix:" + file:  "something that is no socket has this name",
		"unix:" + taken: "another program listens there",
		"unix:" + filepath.Join(dir, "no", "sock"):       "no such file or directory",
		"unix:" + filepath.Join(dir, longName(100), "s"): "a socket's path has at most 107",
		"file:" + dir: "is a directory",
		"file:":       consoleForms,
		"tty":         consoleForms,
		"stdio:":      consoleForms,
		"none:x":      consoleForms,
	} {
		r := invoke(t, nil, "demo", "-console", where, "hello")
		if r.Status != 2 || strings.Count(r.Err, "\n") != 1 {
			t.Errorf("%s: %+v", where, r)
		}
		clitest.MustContain(t, where, r.Err, "smolvmm: -console ", want)
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if c, err := net.Dial("unix", taken); err != nil {
		t.Errorf("the other program's socket is gone: %v", err)
	} else {
		c.Close()
	}
}

func longName(n int) string { return strings.Repeat("n", n) }

// TestSocketBounded: what a client types waits at the client, not here.
func TestSocketBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	con, err := unixConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, path)
	_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	sent := 0
	chunk := make([]byte, 4096)
	for {
		n, err := c.Write(chunk)
		sent += n
		if err != nil {
			break
		}
		if sent > 64<<20 {
			t.Fatal("64 MiB were taken in while nobody read the console")
		}
	}
	con.close()
	if n, err := con.in.Read(chunk); n != 0 || err != io.EOF {
		// One chunk may have been on its way.
		if n, err = con.in.Read(chunk); n != 0 || err != io.EOF {
			t.Errorf("after close: %d, %v", n, err)
		}
	}
}
