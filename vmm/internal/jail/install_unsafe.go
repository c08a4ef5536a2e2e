package jail

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// install gives the program to every thread of the process at once
// (SECCOMP_FILTER_FLAG_TSYNC); it is on all of them or on none. The caller's
// thread has no_new_privs.
func install(prog []bpf.RawInstruction) error {
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("jail: seccomp filter: %w (the kernel needs CONFIG_SECCOMP_FILTER)", errno)
	}
	if tid != 0 {
		return fmt.Errorf("jail: seccomp filter: thread %d has a filter of its own, so it cannot be covered", tid)
	}
	return nil
}

// actionAvailable asks the kernel for a filter action (SECCOMP_RET_*).
func actionAvailable(action uint32) bool {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0,
		uintptr(unsafe.Pointer(&action)))
	return errno == 0
}
