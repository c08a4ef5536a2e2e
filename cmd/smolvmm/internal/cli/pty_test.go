package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// session is the program on a terminal of its own: a leader (this test binary)
// has the pty as its controlling terminal, and the program as its child, so
// that the terminal outlives the program as it does under a shell.
type session struct {
	t      *testing.T
	master *os.File
	screen *clitest.Transcript // what the terminal shows
	events *bufio.Reader
	pid    int // of the program
	before unix.Termios
}

// leaderMain starts its arguments as a program, and reports on descriptor 3:
// its pid, when it stops, and how it ends. Then it waits for the test to end.
func leaderMain() {
	report := os.NewFile(3, "report")
	hold := os.NewFile(4, "hold")
	mode := os.Getenv("SMOLVMM_TEST_LEADS")
	os.Unsetenv(clitest.AsProgram)
	if mode != "" {
		os.Setenv(clitest.AsProgram, mode)
	}
	c := exec.Command(os.Args[1], os.Args[2:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		fmt.Fprintln(report, "failed", err)
		return
	}
	fmt.Fprintln(report, "pid", c.Process.Pid)
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(c.Process.Pid, &ws, unix.WUNTRACED|unix.WCONTINUED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			fmt.Fprintln(report, "failed", err)
		case ws.Stopped():
			fmt.Fprintln(report, "stopped", int(ws.StopSignal()))
			continue
		case ws.Continued():
			fmt.Fprintln(report, "continued")
			continue
		case ws.Signaled():
			fmt.Fprintln(report, "ended", 128+int(ws.Signal()))
		default:
			fmt.Fprintln(report, "ended", ws.ExitStatus())
		}
		break
	}
	_, _ = io.Copy(io.Discard, hold)
}

// onTerminal starts the program, with mode as for TestMain or "" for the one
// that program gives.
func onTerminal(t *testing.T, mode string, args ...string) *session {
	t.Helper()
	clitest.NeedKVM(t)
	master, slave := clitest.OpenPTY(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path, env := clitest.Program()
	if mode != "" {
		path = self
	} else if len(env) > 0 {
		mode = "run"
	}
	s := &session{t: t, master: master, screen: clitest.NewTranscript(), before: termios(t, slave)}
	eventR, eventW := clitest.Pipe(t)
	holdR, holdW := clitest.Pipe(t)
	c := exec.Command(self, append([]string{path}, args...)...)
	c.Env = append(os.Environ(), clitest.AsProgram+"=leader", "SMOLVMM_TEST_LEADS="+mode)
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.ExtraFiles = []*os.File{eventW, holdR}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	eventW.Close()
	holdR.Close()
	t.Cleanup(func() {
		if s.pid > 0 {
			_ = unix.Kill(s.pid, unix.SIGKILL)
		}
		holdW.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("leader: %v", err)
		}
		master.Close()
	})
	s.screen.From(master)
	s.events = bufio.NewReader(eventR)
	s.pid = s.event("pid")
	return s
}

// event waits for the leader to report, and gives the number behind the word.
func (s *session) event(want string) int {
	s.t.Helper()
	line, err := s.events.ReadString('\n')
	word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || word != want {
		s.t.Fatalf("the leader says %q (%v), not %q; the terminal shows:\n%s", line, err, want, s.screen)
	}
	n, _ := strconv.Atoi(number)
	if want == "ended" {
		s.pid = 0
	}
	return n
}

// ended waits for the program's end and checks its status and the terminal.
func (s *session) ended(status int) {
	s.t.Helper()
	if got := s.event("ended"); got != status {
		s.t.Errorf("status %d, want %d; the terminal shows:\n%s", got, status, s.screen)
	}
	if now := termios(s.t, s.master); now != s.before {
		s.t.Errorf("the terminal is left with\n%+v, was\n%+v", now, s.before)
	}
}

func (s *session) send(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.master, keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) kill(sig syscall.Signal) {
	s.t.Helper()
	if err := unix.Kill(s.pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

// isRaw tells whether the terminal is in raw mode now.
func (s *session) isRaw() bool {
	s.t.Helper()
	now := termios(s.t, s.master)
	return now.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 && now.Oflag&unix.OPOST == 0
}

// keeper gives a pidfd of the program's keeper.
func (s *session) keeper() int {
	s.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[1] != strconv.Itoa(s.pid) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if name, _ := os.ReadFile(filepath.Dir(path) + "/cmdline"); strings.TrimRight(string(name), "\x00") != KeeperName {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	s.t.Fatalf("process %d has no keeper", s.pid)
	return -1
}

// waitFor waits for a process's end by its pidfd.
func waitFor(t *testing.T, pidfd int) {
	t.Helper()
	const limit = 30_000 // ms
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, limit)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("the keeper does not end: %v", err)
		}
		return
	}
}

// termios are a terminal's settings; a pty's master gives its slave's.
func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got *unix.Termios
	if cerr := rc.Control(func(fd uintptr) { got, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return *got
}
