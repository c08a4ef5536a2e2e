package cli

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestTerminalRestored is every way out of the program with its terminal in raw
// mode: the terminal is afterwards as it was before.
func TestTerminalRestored(t *testing.T) {
	ready := "spin for ever"
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		do     func(*session) // once the guest runs; nil: the program ends by itself
		status int
		shows  string
	}{
		{"the guest exits", []string{"demo", "exit=7"}, nil, 7, ""},
		{"the guest resets", []string{"demo", "reboot=cf9"}, nil, 120, "reset control register"},
		{"triple fault", []string{"demo", "triple"}, nil, 121, "triple fault"},
		{"no kernel", []string{"-kernel", bad}, nil, 2, "smolvmm: .*bad"},
		{"no such disk", []string{"demo", "-disk", bad + "ly"}, nil, 2, "smolvmm: disk .*badly"},
		{"timeout", []string{"demo", "-timeout", "200ms", "spin"}, nil, 124, "time is up"},
		{"Ctrl-a x", []string{"demo", "spin"}, func(s *session) { s.send("\x01x") }, 123, "quit from the console"},
		{"SIGTERM", []string{"demo", "spin"}, func(s *session) { s.kill(syscall.SIGTERM) }, 128 + 15, "stopped: SIGTERM"},
		{"SIGHUP", []string{"demo", "spin"}, func(s *session) { s.kill(syscall.SIGHUP) }, 128 + 1, "stopped: SIGHUP"},
		{"SIGINT", []string{"demo", "spin"}, func(s *session) { s.kill(syscall.SIGINT) }, 128 + 2, "stopped: SIGINT"},
		{"SIGQUIT", []string{"demo", "spin"}, func(s *session) { s.kill(syscall.SIGQUIT) }, 128 + 3, "stopped: SIGQUIT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := onTerminal(t, "", c.args...)
			if c.do != nil {
				s.screen.Wait(t, ready)
				if !s.isRaw() {
					t.Error("the terminal is not in raw mode while the guest runs")
				}
				c.do(s)
			}
			s.ended(c.status)
			if c.shows != "" {
				s.screen.Wait(t, c.shows)
			}
		})
	}
}

// TestTerminalRestoredByKeeper is for ends at which the program itself can do
// nothing.
func TestTerminalRestoredByKeeper(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		sig        syscall.Signal
		status     int
		shows      string
	}{
		{"killed", "", syscall.SIGKILL, 128 + 9, ""},
		{"aborted", "", syscall.SIGABRT, 2, "SIGABRT: abort"},
		{"panic of a goroutine", "panic", syscall.SIGUSR1, 2, "panic: injected by a test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := onTerminal(t, c.mode, "demo", "spin")
			s.screen.Wait(t, "spin for ever")
			k := s.keeper()
			s.kill(c.sig)
			if got := s.event("ended"); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			s.screen.Wait(t, c.shows)
			waitFor(t, k)
			if now := termios(t, s.master); now != s.before {
				t.Errorf("the terminal is left with\n%+v, was\n%+v", now, s.before)
			}
		})
	}
}

// TestStopAndGoOn: a stopped program leaves the terminal to the shell, and takes
// it again when it goes on.
func TestStopAndGoOn(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, "", "demo", "spin")
	s.screen.Wait(t, "spin for ever")
	for range 2 {
		s.kill(syscall.SIGTSTP)
		s.event("stopped")
		if now := termios(t, s.master); now != s.before {
			t.Errorf("stopped with %+v, was %+v", now, s.before)
		}
		s.kill(syscall.SIGCONT)
		s.event("continued")
	}
	// Without raw mode this would wait for the end of the line.
	s.send("\x01h")
	s.screen.Wait(t, "Ctrl-a x +quit")
	s.send("\x01x")
	s.ended(123)
}

// TestEscapeKeys drives the console of a guest that echoes.
func TestEscapeKeys(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, "", "demo", "-v", "echo")
	s.screen.Wait(t, `echo ready`)
	s.send("\x01h")
	s.screen.Wait(t, "Ctrl-a b +send a break")
	s.send("one\x01atwo\x01\x01three\x01?\r")
	s.screen.Wait(t, "one\x01two\x01three")
	s.send("\x03\x1a\r") // Ctrl-c and Ctrl-z are the guest's
	s.screen.Wait(t, "\x03\x1a")
	s.send("quit\r")
	s.ended(0)
	// A line of the monitor's ends at the margin although the terminal is raw.
	s.screen.Wait(t, `(?s)level=DEBUG msg="kernel loaded"[^\n]*\r\n`)
}

// TestEscapeFilter is the table of what typing gives the guest.
func TestEscapeFilter(t *testing.T) {
	for _, c := range []struct{ typed, guest, keys string }{
		{"plain", "plain", ""},
		{"\x01x", "", "x"},
		{"a\x01bc", "ac", "b"},
		{"\x01\x01", "\x01", ""},
		{"\x01a", "\x01", ""},
		{"\x01\x01\x01a\x01h", "\x01\x01", "h"},
		{"end\x01", "end", ""},
	} {
		// Whole, and cut at each place: the state is kept between reads.
		for cut := range len(c.typed) + 1 {
			var keys []byte
			e := &escapeReader{keys: func(k byte) { keys = append(keys, k) }}
			var guest []byte
			for _, part := range []string{c.typed[:cut], c.typed[cut:]} {
				p := []byte(part)
				guest = append(guest, p[:e.filter(p)]...)
			}
			if string(guest) != c.guest || string(keys) != c.keys {
				t.Errorf("%q cut at %d: guest %q keys %q, want %q and %q", c.typed, cut, guest, keys, c.guest, c.keys)
			}
		}
	}
}

// TestNonBlockIsOurs: the program must not leave O_NONBLOCK on a terminal or
// pipe that it shares with the shell.
func TestNonBlockIsOurs(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	_, slave := clitest.OpenPTY(t)
	r, _ := clitest.Pipe(t)
	for _, in := range []*os.File{slave, r} {
		c := clitest.Smolvmm(t, "demo", "hello")
		c.Stdin = in
		if got := clitest.Finish(t, c); got.Status != 0 {
			t.Errorf("%+v", got)
		}
		flags, err := unix.FcntlInt(in.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("%s is left with flags %#x, %v", in.Name(), flags, err)
		}
	}
}
