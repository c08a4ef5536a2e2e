package machines

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a machine's process takes from the host.
type Usage struct {
	CPU      time.Duration // processor time since its start, the guest's included
	Resident uint64        // bytes in RAM, the guest's touched pages included
}

// clockTick is the kernel's USER_HZ, by which /proc counts: 100 on every
// architecture that KVM runs on (proc_pid_stat(5)).
const clockTick = time.Second / 100

// Usage asks the kernel; the machine must be alive.
func (m *Machine) Usage() (u Usage, err error) {
	dir := "/proc/" + strconv.Itoa(m.PID)
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, err
	}
	// The second field is in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b), ") ")
	if i := strings.LastIndex(string(b), ") "); ok && i >= 0 {
		rest = string(b)[i+2:]
	}
	f := strings.Fields(rest)
	const utime, stime, rss, first = 14, 15, 24, 3
	if len(f) <= rss-first {
		return u, errors.New(dir + "/stat is too short")
	}
	user, err1 := strconv.ParseUint(f[utime-first], 10, 63)
	sys, err2 := strconv.ParseUint(f[stime-first], 10, 63)
	pages, err3 := strconv.ParseUint(f[rss-first], 10, 63)
	u.CPU = time.Duration(user+sys) * clockTick
	u.Resident = pages * uint64(os.Getpagesize())
	return u, errors.Join(err1, err2, err3)
}

// Signal sends a signal to a machine's process, and to no other: the process is
// held by a descriptor first, and then asked for its lock.
func (s *Store) Signal(m *Machine, sig unix.Signal) error {
	if m.PID <= 0 {
		return fmt.Errorf("machine %s: its process is not known yet", m.Spec.Name)
	}
	fd, err := unix.PidfdOpen(m.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	}
	if err != nil {
		return fmt.Errorf("machine %s: process %d: %w", m.Spec.Name, m.PID, err)
	}
	defer unix.Close(fd)
	// The spec's process took the lock and nobody else does: while the lock is
	// held the number is that process's, and the descriptor was opened before.
	if !s.alive(m.Spec.Name) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("machine %s: process %d: %w", m.Spec.Name, m.PID, err)
	}
	return nil
}
