package agentd

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// The requests of ptm(4) with the size of their argument (sys/ttycom.h of NetBSD:
// _IOR('t', 70, struct ptmget), _IOR('t', 72, struct ptmget), two ints and two
// names of 1,024 bytes). x/sys has the numbers from when the names had 16.
const (
	ioctlPTMGet  = 0x40000000 | 2056<<16 | 't'<<8 | 70
	ioctlPTSName = 0x40000000 | 2056<<16 | 't'<<8 | 72
)

// openTerminal makes a pseudo-terminal (ptm(4)): one call gives both ends, with
// owner and mode of the slave set, whatever is mounted at /dev/pts.
func openTerminal(size agent.Size) (master, slave *os.File, err error) {
	ptm, err := unix.Open("/dev/ptm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		ptm, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
		}
		// ptmx(4) is the master itself; its slave has a name.
		defer func() {
			if err != nil {
				unix.Close(ptm)
			}
		}()
		pt, err := unix.IoctlGetPtmget(ptm, ioctlPTSName)
		if err != nil {
			return nil, nil, os.NewSyscallError("TIOCPTSNAME", err)
		}
		if _, err := unix.IoctlGetInt(ptm, unix.TIOCGRANTPT); err != nil {
			return nil, nil, os.NewSyscallError("TIOCGRANTPT", err)
		}
		name := unix.ByteSliceToString(pt.Sn[:])
		sfd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return terminalFiles(ptm, sfd, name, size)
	}
	defer unix.Close(ptm)
	pt, err := unix.IoctlGetPtmget(ptm, ioctlPTMGet)
	if err != nil {
		return nil, nil, os.NewSyscallError("TIOCPTMGET", err)
	}
	unix.CloseOnExec(int(pt.Cfd))
	unix.CloseOnExec(int(pt.Sfd))
	return terminalFiles(int(pt.Cfd), int(pt.Sfd), unix.ByteSliceToString(pt.Sn[:]), size)
}

func terminalFiles(master, slave int, name string, size agent.Size) (*os.File, *os.File, error) {
	// Without it a read of the master would hold a thread, and could not end.
	if err := unix.SetNonblock(master, true); err != nil {
		return nil, nil, err
	}
	m, s := os.NewFile(uintptr(master), "/dev/ptmx"), os.NewFile(uintptr(slave), name)
	if err := setSize(m, size); err != nil {
		m.Close()
		s.Close()
		return nil, nil, err
	}
	return m, s, nil
}
