package jail

import (
	"errors"
	"fmt"
	"slices"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// The Landlock domain is one in which every access is handled and no rule
// allows any: nothing can be opened, made, removed, executed or connected to
// by name, whatever system call asks. What is open already stays usable.
//
// go-landlock's system calls are used rather than its Config: that one stops
// the world twice below ABI 8, once for no_new_privs and once for the domain
// (0.27 to 0.39 ms with a dozen threads here), and the seccomp filter's TSYNC
// has already brought no_new_privs to every thread, which halves it.

// landlockFS are the file-system rights that each ABI version knows
// (landlock.rst, "Previous limitations"), by version from 1.
var landlockFS = []uint64{
	0,
	1<<13 - 1, // execute to make_sym
	1<<14 - 1, // refer
	1<<15 - 1, // truncate
	1<<15 - 1, // (network)
	1<<16 - 1, // ioctl_dev
}

// landlock is a ruleset on its way to being enforced; the zero value is that
// of a kernel without Landlock.
type landlock struct {
	fd  int
	abi int
}

// newLandlock makes the ruleset. A kernel without Landlock is no error: the
// filter alone refuses every call that takes a path.
func newLandlock(groups []Group) (landlock, error) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 || (withCgo && abi < 8) {
		// With cgo, which only tests use, the threads below ABI 8 could
		// be reached only by a library that opens /proc meanwhile.
		return landlock{}, nil
	}
	attr := landlockAttr(abi, slices.Contains(groups, Network))
	fd, err := ll.LandlockCreateRuleset(&attr, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return landlock{}, nil
	}
	if err != nil {
		return landlock{}, fmt.Errorf("jail: Landlock ruleset (ABI %d): %w", abi, err)
	}
	return landlock{fd: fd, abi: abi}, nil
}

// landlockAttr is all that the kernel's ABI version can refuse.
func landlockAttr(abi int, network bool) ll.RulesetAttr {
	attr := ll.RulesetAttr{HandledAccessFS: landlockFS[min(abi, len(landlockFS)-1)]}
	if abi >= 4 {
		// Published ports were bound before. Connecting cannot be held to
		// anything: where the guest may go is the egress policy's to say.
		attr.HandledAccessNet = ll.AccessNetBindTCP
		if !network {
			attr.HandledAccessNet |= ll.AccessNetConnectTCP
		}
	}
	if abi >= 6 {
		// Signals are not scoped: before ABI 8 each thread has a domain of
		// its own, and kernels that lack a later fix would then refuse the
		// runtime's and the vCPUs' own tgkill. The filter holds tgkill to
		// this process already.
		attr.Scoped = ll.ScopeAbstractUnixSocket
	}
	return attr
}

// beforeFilter tells whether the domain goes on before the filter. Below
// ABI 8 the system call is made on each thread in turn and needs the
// no_new_privs that the filter's TSYNC brings.
func (l landlock) beforeFilter() bool { return l.abi >= 8 }

// restrict enters the domain with every thread.
func (l landlock) restrict() error {
	var err error
	switch {
	case l.abi == 0:
	case l.abi >= 8:
		err = ll.LandlockRestrictSelf(l.fd, ll.FlagRestrictSelfTSync)
	default:
		err = ll.AllThreadsLandlockRestrictSelf(l.fd, 0)
	}
	if err != nil {
		return fmt.Errorf("jail: Landlock domain (ABI %d): %w", l.abi, err)
	}
	return nil
}

func (l landlock) close() {
	if l.abi != 0 {
		unix.Close(l.fd)
	}
}

// Support is what the kernel has of what a jail is made of.
type Support struct {
	Seccomp  bool // filters, with the actions that Enforce uses
	Log      bool // SECCOMP_RET_LOG
	Landlock int  // ABI version; 0 where there is none
}

// Probe asks the kernel, and changes nothing.
func Probe() Support {
	s := Support{
		Seccomp: actionAvailable(unix.SECCOMP_RET_ERRNO) && actionAvailable(unix.SECCOMP_RET_KILL_PROCESS),
		Log:     actionAvailable(unix.SECCOMP_RET_LOG),
	}
	if abi, err := ll.LandlockGetABIVersion(); err == nil && abi > 0 {
		s.Landlock = abi
	}
	return s
}
