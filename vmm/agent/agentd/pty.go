//go:build linux || netbsd

package agentd

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// setSize tells a terminal its size; the kernel sends SIGWINCH where it changes.
func setSize(f *os.File, size agent.Size) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err == nil {
		err = ierr
	}
	return err
}
