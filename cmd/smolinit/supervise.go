package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The exit statuses of smolinit's own (docs/smolinit.md).
const (
	statusInit     = 125 // smolinit could not do what it was asked to
	statusNotExec  = 126 // the command is there and cannot be run
	statusNotFound = 127 // there is no such command
	statusSignal   = 128 // plus the signal that ended the command
)

// exitStatus is the byte that stands for a process's end.
func exitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return statusSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// startStatus is the byte that stands for a command which did not start.
func startStatus(err error) int {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return statusNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		return statusNotExec
	default:
		return statusInit
	}
}

// lookPath finds a command as execvp(3) does: a name without a slash in each
// directory of PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		st, err := os.Stat(file)
		switch {
		case err != nil || st.IsDir():
		case st.Mode()&0o111 == 0:
			denied = &fs.PathError{Op: "run", Path: file, Err: syscall.EACCES}
		case !filepath.IsAbs(file):
			denied = &fs.PathError{Op: "run", Path: file, Err: errors.New("PATH has a relative directory")}
		default:
			return file, nil
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &fs.PathError{Op: "find in PATH", Path: name, Err: fs.ErrNotExist}
}

// child is a process that has ended.
type child struct {
	pid    int
	status syscall.WaitStatus
}

// reap waits for every process that is or becomes a child, and tells of each
// on the channel, which is closed when no child is left. It starts after the
// first child.
func reap() <-chan child {
	ch := make(chan child)
	go func() {
		defer close(ch)
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, 0, nil)
			switch {
			case errors.Is(err, syscall.EINTR):
			case err != nil: // ECHILD
				return
			case ws.Exited() || ws.Signaled():
				ch <- child{pid, ws}
			}
		}
	}()
	return ch
}

// supervisor watches the command and the orphans that come to PID 1.
type supervisor struct {
	kill   func(pid int, sig syscall.Signal) error
	ended  <-chan child
	others func(child)      // is told of every other process that has ended
	stop   <-chan os.Signal // someone asks for the end
	grace  time.Duration    // between SIGTERM and SIGKILL
	warnf  func(format string, args ...any)
	settle time.Duration // how long others get to end after SIGTERM, and again after SIGKILL
}

// watch returns the status of process pid, a group leader, when it has ended.
func (s *supervisor) watch(pid int) int {
	var deadline <-chan time.Time
	for {
		select {
		case c, ok := <-s.ended:
			if !ok {
				s.warnf("the command is gone and was not waited for")
				return statusInit
			}
			if c.pid == pid {
				return exitStatus(c.status)
			}
			s.others(c)
		case sig := <-s.stop:
			if deadline != nil {
				continue
			}
			s.warnf("%v: stopping the command", sig)
			_ = s.kill(-pid, syscall.SIGTERM)
			timer := time.NewTimer(s.grace)
			defer timer.Stop()
			deadline = timer.C
		case <-deadline:
			s.warnf("the command did not end within %v: killing it", s.grace)
			_ = s.kill(-pid, syscall.SIGKILL)
		}
	}
}

// sweep ends every other process, so that file systems can be closed: all that
// is left gets SIGTERM, and after a while SIGKILL.
func (s *supervisor) sweep() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if errors.Is(s.kill(-1, sig), syscall.ESRCH) {
			return
		}
		timer := time.NewTimer(s.settle)
		for wait := true; wait; {
			select {
			case c, ok := <-s.ended:
				if !ok {
					timer.Stop()
					return
				}
				s.others(c)
			case <-timer.C:
				wait = false
			}
		}
	}
	s.warnf("some process does not end, even by SIGKILL")
}
