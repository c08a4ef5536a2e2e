package cli

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseInherited closes the descriptors that whoever started us left open, just
// before the guest runs: what a guest that had taken the monitor over could
// still read and write by number. Those we opened ourselves, by name or for a
// /dev/fd path, are close-on-exec, and so are Go's.
//
// The folder is read by system calls: os.ReadDir would sort, allocate and ask
// the poller, for half of the time that this takes.
func CloseInherited() {
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	var buf [4096]byte
	var open []int // closed when all are read, as the folder changes with each
	for {
		n, err := unix.Getdents(dir, buf[:])
		if err != nil || n == 0 {
			break
		}
		var names [256]string // more than one buffer holds
		_, _, found := unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range found {
			if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
				open = append(open, fd)
			}
		}
	}
	for _, fd := range open {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}
