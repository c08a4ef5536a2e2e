package disk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockedError says who holds a lock that stands in the way.
type LockedError struct {
	Exclusive bool     // the lock that was wanted
	Holders   []Holder // as far as /proc/locks tells
}

// Holder is a process that holds a lock.
type Holder struct {
	PID     int
	Command string // may be empty
	Writes  bool   // its lock is exclusive
}

func (h Holder) String() string {
	if h.Command == "" {
		return fmt.Sprintf("pid %d", h.PID)
	}
	return fmt.Sprintf("pid %d (%s)", h.PID, h.Command)
}

func (e *LockedError) Error() string {
	who, writes := "another process", !e.Exclusive
	for i, h := range e.Holders {
		if h.PID == os.Getpid() {
			return "in use already by this very process: attach it once, or each time with ro or overlay"
		}
		if i == 0 {
			who = h.String()
		} else if i < 3 {
			who += ", " + h.String()
		}
		writes = writes || h.Writes
	}
	if n := len(e.Holders) - 3; n > 0 {
		who += fmt.Sprintf(" and %d more", n)
	}
	if writes {
		return "locked by " + who + ", which writes it: stop that first, or use a copy"
	}
	return "locked by " + who + " for reading: stop that first, or attach it here with ro or overlay too"
}

// lock takes the lock of f without waiting.
func lock(f *os.File, exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return &LockedError{Exclusive: exclusive, Holders: holders(f)}
		}
		return fmt.Errorf("flock: %w", err)
	}
}

// holders looks in /proc/locks for who has locked f.
func holders(f *os.File) []Holder {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer locks.Close()
	hs := parseLocks(locks, unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for i := range hs {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", hs[i].PID))
		if err == nil {
			hs[i].Command = printable(bytes.TrimSpace(comm))
		}
	}
	return hs
}

// printable keeps a process that named itself with control characters from
// writing to the user's terminal.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
}

// parseLocks finds the flock locks of one inode in /proc/locks (man 5
// proc_locks), whose lines look like
//
//	1: FLOCK  ADVISORY  WRITE 1234 08:01:262144 0 EOF
//
// Holders in another PID namespace have no pid here and are left out. Some file
// systems (btrfs, overlayfs) show another device number there than stat does:
// if no line has both, those with the inode count.
func parseLocks(r io.Reader, major, minor uint32, ino uint64) []Holder {
	var exact, loose []Holder
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		// A process that waits for the lock has "->" behind the number.
		if len(f) < 6 || f[1] != "FLOCK" {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err != nil || pid <= 0 {
			continue
		}
		id := strings.Split(f[5], ":")
		if len(id) != 3 {
			continue
		}
		if n, err := strconv.ParseUint(id[2], 10, 64); err != nil || n != ino {
			continue
		}
		h := Holder{PID: pid, Writes: f[3] == "WRITE"}
		maj, err1 := strconv.ParseUint(id[0], 16, 32)
		min, err2 := strconv.ParseUint(id[1], 16, 32)
		if err1 == nil && err2 == nil && uint32(maj) == major && uint32(min) == minor {
			exact = append(exact, h)
		} else {
			loose = append(loose, h)
		}
	}
	if exact != nil {
		return exact
	}
	return loose
}
