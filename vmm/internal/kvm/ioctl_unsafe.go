package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is a failed KVM ioctl.
type Error struct {
	Op  string
	Err error
}

func (e *Error) Error() string { return e.Op + ": " + e.Err.Error() }

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Err }

// ioctl makes a request whose argument is a number. A signal that comes in the
// middle is no failure: the request is made again, as nothing was done.
func ioctl(fd int, op string, req, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, &Error{op, errno}
		}
		return int(r), nil
	}
}

// ioctlPtr makes a request whose argument is *p. The pointer is converted in
// the call itself, which is what keeps p alive and in place (package unsafe,
// rule 4).
func ioctlPtr[T any](fd int, op string, req uintptr, p *T) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(p)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, &Error{op, errno}
		}
		return int(r), nil
	}
}

// runIoctl is KVM_RUN: EINTR is an answer here, not a failure.
func runIoctl(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), run, 0)
	return errno
}

// runFreed is runIoctl of which the Go scheduler is told that it blocks.
//
//go:nosplit
//go:norace
func runFreed(fd int) unix.Errno {
	entersyscallblock()
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), run, 0)
	exitsyscall()
	return errno
}

// The Go runtime keeps these two as they are for such callers (go.dev/issue/67401).
//
//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// runArea is the head of struct kvm_run (linux/kvm.h), as far as it is read.
type runArea struct {
	requestInterruptWindow uint8
	immediateExit          uint8
	_                      [6]uint8
	exitReason             uint32
	readyForInterrupt      uint8
	ifFlag                 uint8
	flags                  uint16
	cr8                    uint64
	apicBase               uint64
	data                   [256]byte
}

// ioExit is kvm_run.io.
type ioExit struct {
	direction  uint8
	size       uint8
	port       uint16
	count      uint32
	dataOffset uint64
}

// mmioExit is kvm_run.mmio.
type mmioExit struct {
	addr    uint64
	data    [8]byte
	len     uint32
	isWrite uint8
}

// internalExit is kvm_run.internal, and with suberror 1 kvm_run.emulation_failure.
type internalExit struct {
	suberror uint32
	ndata    uint32
	data     [16]uint64
}

// mapRun maps a vCPU's kvm_run area of n bytes.
func mapRun(fd, n int) ([]byte, *runArea, error) {
	if n < int(unsafe.Sizeof(runArea{})) {
		return nil, nil, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %d bytes are too few", n)
	}
	b, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap of kvm_run: %w", err)
	}
	return b, (*runArea)(unsafe.Pointer(&b[0])), nil
}

func (a *runArea) io() *ioExit             { return (*ioExit)(unsafe.Pointer(&a.data)) }
func (a *runArea) mmio() *mmioExit         { return (*mmioExit)(unsafe.Pointer(&a.data)) }
func (a *runArea) internal() *internalExit { return (*internalExit)(unsafe.Pointer(&a.data)) }
func (a *runArea) word(i int) uint64       { return *(*uint64)(unsafe.Pointer(&a.data[8*i])) }

// cpuid2 and msrs end in arrays that the kernel sizes by their count; these
// checks keep the headers where the kernel looks for them.
var (
	_ [8]struct{} = [unsafe.Offsetof(cpuid2{}.Entries)]struct{}{}
	_ [8]struct{} = [unsafe.Offsetof(msrs{}.Entries)]struct{}{}
	_ [4]struct{} = [unsafe.Offsetof(msrList{}.Indices)]struct{}{}
)

// isErrno says whether err is the given errno.
func isErrno(err error, e unix.Errno) bool { return errors.Is(err, e) }
