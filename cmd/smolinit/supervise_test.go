package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// simulated is a supervisor with processes of the test's own: kills are
// recorded and answered by react.
type simulated struct {
	*supervisor
	mu    sync.Mutex
	kills []string
	said  []string
	ended chan child
	stop  chan os.Signal
	other []child // that the supervisor told of
}

func simulate(react func(s *simulated, pid int, sig syscall.Signal) error) *simulated {
	s := &simulated{ended: make(chan child, 8), stop: make(chan os.Signal, 8)}
	s.supervisor = &supervisor{ended: s.ended, others: func(c child) { s.other = append(s.other, c) }, stop: s.stop, grace: time.Minute, settle: time.Minute,
		warnf: func(format string, args ...any) { s.said = append(s.said, fmt.Sprintf(format, args...)) },
		kill: func(pid int, sig syscall.Signal) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.kills = append(s.kills, fmt.Sprintf("%d %v", pid, sig))
			return react(s, pid, sig)
		}}
	return s
}

func exited(code int) syscall.WaitStatus             { return syscall.WaitStatus(code << 8) }
func killedBy(sig syscall.Signal) syscall.WaitStatus { return syscall.WaitStatus(sig) }

func TestWatch(t *testing.T) {
	s := simulate(nil)
	s.ended <- child{50, exited(9)} // an orphan
	s.ended <- child{7, exited(42)}
	if got := s.watch(7); got != 42 {
		t.Errorf("status %d", got)
	}
	if !slices.Equal(s.other, []child{{50, exited(9)}}) {
		t.Errorf("others: %v", s.other)
	}
	s.ended <- child{7, killedBy(syscall.SIGSEGV)}
	if got := s.watch(7); got != 128+11 {
		t.Errorf("status %d", got)
	}
	close(s.ended)
	if got := s.watch(7); got != statusInit {
		t.Errorf("status %d of a lost command", got)
	}
}

func TestWatchStops(t *testing.T) {
	s := simulate(func(s *simulated, pid int, sig syscall.Signal) error {
		if sig == syscall.SIGTERM {
			s.ended <- child{7, killedBy(sig)}
		}
		return nil
	})
	s.stop <- syscall.SIGTERM
	if got := s.watch(7); got != 128+15 || !slices.Equal(s.kills, []string{"-7 terminated"}) {
		t.Errorf("status %d after %q", got, s.kills)
	}
}

func TestWatchKills(t *testing.T) {
	s := simulate(func(s *simulated, pid int, sig syscall.Signal) error {
		if sig == syscall.SIGKILL {
			s.ended <- child{7, killedBy(sig)}
		}
		return nil
	})
	s.grace = time.Millisecond
	s.stop <- syscall.SIGTERM
	s.stop <- syscall.SIGTERM // once is enough
	if got := s.watch(7); got != 128+9 || !slices.Equal(s.kills, []string{"-7 terminated", "-7 killed"}) {
		t.Errorf("status %d after %q", got, s.kills)
	}
}

func TestSweep(t *testing.T) {
	none := simulate(func(*simulated, int, syscall.Signal) error { return syscall.ESRCH })
	none.sweep()
	if len(none.kills) != 1 || len(none.said) != 0 {
		t.Errorf("nobody left: %q %q", none.kills, none.said)
	}

	meek := simulate(func(s *simulated, pid int, sig syscall.Signal) error {
		s.ended <- child{9, killedBy(sig)}
		close(s.ended)
		return nil
	})
	meek.sweep()
	if !slices.Equal(meek.kills, []string{"-1 terminated"}) {
		t.Errorf("one that ends: %q", meek.kills)
	}

	stubborn := simulate(func(s *simulated, pid int, sig syscall.Signal) error {
		if sig == syscall.SIGKILL {
			close(s.ended)
		}
		return nil
	})
	stubborn.settle = time.Millisecond
	stubborn.sweep()
	if !slices.Equal(stubborn.kills, []string{"-1 terminated", "-1 killed"}) || len(stubborn.said) != 0 {
		t.Errorf("one that is killed: %q %q", stubborn.kills, stubborn.said)
	}

	undead := simulate(func(*simulated, int, syscall.Signal) error { return nil })
	undead.settle = time.Millisecond
	undead.sweep()
	if len(undead.said) != 1 {
		t.Errorf("one that stays: %q", undead.said)
	}
}

// TestReap runs real processes in a child of this test's own, whose only
// children they are.
func TestReap(t *testing.T) {
	if os.Getenv("SMOLINIT_REAP") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		pid, _, err := syscall.StartProcess(exe, []string{exe, "-test.run=^TestReap$", "-test.v"},
			&syscall.ProcAttr{Env: append(os.Environ(), "SMOLINIT_REAP=1"), Files: []uintptr{0, 1, 2}})
		if err != nil {
			t.Fatal(err)
		}
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || exitStatus(ws) != 0 {
			t.Errorf("status %v, %v", ws, err)
		}
		return
	}
	want := map[int]int{}
	for _, script := range []struct {
		text   string
		status int
	}{{"exit 0", 0}, {"exit 42", 42}, {"kill -9 $$", 128 + 9}, {"kill -15 $$", 128 + 15}} {
		pid, _, err := syscall.StartProcess("/bin/sh", []string{"sh", "-c", script.text}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			t.Fatal(err)
		}
		want[pid] = script.status
	}
	for c := range reap() {
		if status, ok := want[c.pid]; !ok || exitStatus(c.status) != status {
			t.Errorf("process %d ended with %d, want %d (%v)", c.pid, exitStatus(c.status), status, ok)
		}
		delete(want, c.pid)
	}
	if len(want) != 0 {
		t.Errorf("never reaped: %v", want)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"yes": 0o755, "no": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"A=b", "PATH=/nonexistent:" + dir}
	if got, err := lookPath("yes", env); err != nil || got != filepath.Join(dir, "yes") {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := lookPath("/any/where", env); err != nil || got != "/any/where" {
		t.Errorf("%q, %v", got, err)
	}
	for name, status := range map[string]int{"no": statusNotExec, "dir": statusNotFound, "none": statusNotFound} {
		_, err := lookPath(name, env)
		if err == nil || startStatus(err) != status || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, status %d", name, err, startStatus(err))
		}
	}
	if startStatus(syscall.ENOEXEC) != statusNotExec || startStatus(syscall.E2BIG) != statusInit {
		t.Error("start statuses")
	}
}
