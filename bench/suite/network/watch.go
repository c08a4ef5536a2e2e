package network

import (
	"os"

	"golang.org/x/sys/unix"
)

// watchDir gives a file that becomes readable when something is made in dir.
func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
