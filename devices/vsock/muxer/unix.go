package muxer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const socketKind = unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC

// connect reaches the socket at path, or says at once that it cannot: a Unix
// socket's backlog either has room or not.
func connect(path string) (int, error) {
	if len(path) > maxPath {
		return -1, unix.ENAMETOOLONG
	}
	fd, err := unix.Socket(unix.AF_UNIX, socketKind, 0)
	if err != nil {
		return -1, err
	}
	for {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// listen makes the socket at path, for this user alone, and gives its file's inode.
func listen(path string) (fd int, inode uint64, err error) {
	if len(path) > maxPath {
		return -1, 0, fmt.Errorf("%d bytes: a socket's path has at most %d; use a shorter one", len(path), maxPath)
	}
	if err := removeStale(path); err != nil {
		return -1, 0, err
	}
	if fd, err = unix.Socket(unix.AF_UNIX, socketKind, 0); err != nil {
		return -1, 0, err
	}
	var st unix.Stat_t
	// bind takes the file's mode from the socket's, so that it is nobody else's
	// from its first moment on, and the process's umask is left alone.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			if err = unix.Listen(fd, waiting); err == nil {
				err = unix.Lstat(path, &st)
			}
			if err != nil {
				os.Remove(path)
			}
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	return fd, st.Ino, nil
}

// removeStale removes a socket that nobody listens on: a killed process left it.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSocket == 0:
		return errors.New("something that is no socket has this name; use another")
	}
	fd, err := connect(path)
	switch {
	case err == nil:
		unix.Close(fd)
		return errors.New("another program listens there; use another name")
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	}
	return errors.New("a socket is there that cannot be tried; remove it or use another name")
}

// takeOver gives a descriptor of its own for a listening socket, and closes f.
func takeOver(f *os.File) (fd int, err error) {
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	cerr := rc.Control(func(old uintptr) {
		var on int
		if on, err = unix.GetsockoptInt(int(old), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on == 0 {
			err = errors.New("not a socket that listens")
		}
		if err == nil {
			fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err = errors.Join(cerr, err); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}
