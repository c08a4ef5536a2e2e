package clitest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machines in the background outlive who started them: that is what they are for. So a
// test binary that is killed has a guard, a process in a session of its own, that
// ends what carries the binary's mark in its environment.

const (
	guardName = "smolvmm-test-guard"
	// markName is the variable that everything started by a test binary inherits.
	markName = "SMOLVMM_TEST_RUN"
)

// endsByItself is how long a process may take that is about to end when the tests
// have: the keeper of a machine that was killed, which removes its files.
const endsByItself = 5 * time.Second

// startGuard starts the guard of this process and gives the pipe to it, which is
// closed by this process's end, whatever that is.
func startGuard(mark string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, err = os.StartProcess("/proc/self/exe", []string{guardName, scratch()}, &os.ProcAttr{
		Env: []string{markName + "=" + mark}, Files: []*os.File{r, nil, nil}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return w, err
}

// guardMain is the guard.
func guardMain() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	// What was just starting another is looked for once more.
	for range 10 {
		if len(endAll(os.Getenv(markName), 0)) == 0 {
			break
		}
	}
	os.RemoveAll(os.Args[1])
}

// endAll kills each process with the mark that does not end by itself in time, and
// waits for its end. It tells which they were.
func endAll(mark string, patience time.Duration) (killed []string) {
	until := time.Now().Add(patience)
	for _, pid := range marked(mark) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has gone
		}
		// A number that was given to another since is not that other's.
		if has(pid, mark) && !ends(fd, time.Until(until)) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			killed = append(killed, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			ends(fd, endsByItself)
		}
		unix.Close(fd)
	}
	return killed
}

// ends waits for a process's end.
func ends(pidfd int, patience time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(max(0, patience.Milliseconds())))
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// marked are the processes with the mark, but for this one and guards.
func marked(mark string) (pids []int) {
	es, _ := os.ReadDir("/proc")
	for _, e := range es {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && has(pid, mark) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func has(pid int, mark string) bool {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	want := []byte(markName + "=" + mark)
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, want) {
			return !bytes.HasPrefix(name, []byte(guardName))
		}
	}
	return false
}
