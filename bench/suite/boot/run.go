package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
)

// Launch is a program to time and what to look for on its standard output.
type Launch struct {
	argv []string
	// until is a line's beginning that ends the watch; empty: the mark itself does.
	until string
	// plain says that no guest is started: the program's own first byte is the mark.
	plain bool
	// exit says to wait for the program to end by itself; otherwise it is killed when it has printed what was waited for.
	exit   bool
	status int // which it must then end with
	// ram tells the mappings of the guest's memory, which are not the monitor's own.
	ram func(smaps.Mapping) bool
	// limit is the longest that one start may take.
	limit time.Duration
}

// Sample is what one start of a program showed. Times are from just before the fork to when this program had the byte.
type Sample struct {
	Mark    time.Duration `json:"mark_ns"`              // the guest's first instructions
	Console time.Duration `json:"console_ns,omitempty"` // the first byte that a kernel printed after it
	Until   time.Duration `json:"until_ns,omitempty"`   // the line waited for
	End     time.Duration `json:"end_ns,omitempty"`     // the program's end, where it was waited for
	Memory  *smaps.Memory `json:"memory,omitempty"`     // at the mark, or at the line waited for
	Faults  int64         `json:"page_faults"`          // of the process, without reading from a disk
	CPU     time.Duration `json:"cpu_ns"`               // processor time of the process and its guest
	// Milestones are the kernel's own, where a line was waited for.
	Milestones []Milestone `json:"milestones,omitempty"`
}

// errLimit is a start that took too long.
var errLimit = errors.New("took too long")

// outputTail bounds what is kept of a program's output for an error message, in bytes.
const outputTail = 512

// Start runs a program once. It reads the pipe with plain system calls on a thread of its own: Go's poller would add
// its own wake-up to every time.
func Start(ctx context.Context, l Launch) (s Sample, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return s, err
	}
	r := p[0]
	defer unix.Close(r)
	stdout := os.NewFile(uintptr(p[1]), "stdout")
	defer stdout.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return s, err
	}
	defer null.Close()
	// Standard error goes to a file, which nobody has to read while the clock runs.
	stderr, err := os.CreateTemp("", "boot-stderr-*")
	if err != nil {
		return s, err
	}
	defer stderr.Close()
	if err := os.Remove(stderr.Name()); err != nil {
		return s, err
	}
	path, err := exec.LookPath(l.argv[0])
	if err != nil {
		return s, err
	}
	attr := &os.ProcAttr{Env: os.Environ(), Files: []*os.File{null, stdout, stderr}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}

	t0 := time.Now()
	proc, err := os.StartProcess(path, l.argv, attr)
	if err != nil {
		return s, err
	}
	stdout.Close()
	defer context.AfterFunc(ctx, func() { _ = proc.Kill() })()
	out, err := watch(r, l, t0, &s)
	if err == nil && l.ram != nil {
		s.Memory, err = smaps.Read(proc.Pid, l.ram)
	}
	if err == nil && l.exit {
		err = ended(proc.Pid, l.limit-time.Since(t0))
	}
	if err != nil || !l.exit {
		_ = proc.Kill()
	}
	state, werr := proc.Wait()
	s.End = time.Since(t0)
	if state != nil {
		s.CPU = state.UserTime() + state.SystemTime()
		if u, ok := state.SysUsage().(*syscall.Rusage); ok {
			s.Faults = u.Minflt
		}
	}
	if !l.exit {
		s.End = 0
	} else if err == nil && werr == nil && state.ExitCode() != l.status {
		werr = errors.New("ended with the wrong status")
	}
	if err = errors.Join(err, werr); err != nil {
		text := make([]byte, outputTail)
		n, _ := stderr.ReadAt(text, 0)
		return s, fmt.Errorf("%s: %w (%v; printed %q, %q)", strings.Join(l.argv, " "), err, state, tail(out), text[:n])
	}
	return s, nil
}

// ended waits until the process has ended, without reaping it.
func ended(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		if left <= 0 {
			return errLimit
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// watch reads the program's output until what l waits for has come, and sets the times.
func watch(r int, l Launch, t0 time.Time, s *Sample) (out []byte, err error) {
	var buf [4096]byte
	from := -1 // of what the guest printed behind the mark
	var chunks []chunk
	defer func() {
		if err == nil && l.until != "" {
			s.Milestones = milestones(out, from, chunks)
		}
	}()
	for {
		left := l.limit - time.Since(t0)
		if left <= 0 {
			return out, errLimit
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(r), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) || n == 0 && err == nil {
			continue
		}
		if err != nil {
			return out, err
		}
		n, err = unix.Read(r, buf[:])
		now := time.Since(t0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return out, err
		}
		seen := len(out)
		out = append(out, buf[:n]...)
		chunks = append(chunks, chunk{len(out), now})
		if from < 0 && l.plain && n > 0 {
			from, s.Mark = len(out), now
		}
		if from < 0 {
			if i := bytes.IndexByte(out[seen:], mark); i >= 0 {
				from = seen + i + 1
				s.Mark = now
			}
		}
		if from >= 0 && s.Console == 0 && len(out) > from {
			s.Console = now
		}
		if from >= 0 && l.until != "" && lineBegins(out[from:], l.until) {
			s.Until = now
		}
		done := s.Until != 0 || l.until == "" && s.Mark != 0
		switch {
		case n == 0 && !done:
			return out, errors.New("ended before it printed what was waited for")
		case n == 0, done && !l.exit:
			return out, nil
		}
		// A kernel's log is kept whole up to the line waited for; what a broken guest prints on and on is not.
		if len(out) > 1<<20 {
			return out, errors.New("printed a mebibyte without what was waited for")
		}
	}
}

// lineBegins reports whether a line of out begins with prefix.
func lineBegins(out []byte, prefix string) bool {
	return bytes.HasPrefix(out, []byte(prefix)) || bytes.Contains(out, []byte("\n"+prefix))
}

func tail(out []byte) []byte {
	return out[max(0, len(out)-outputTail):]
}
