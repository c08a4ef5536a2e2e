//go:build netbsd && amd64

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that neither syscall nor x/sys/unix wraps for NetBSD.

// iopl sets the I/O privilege level of the calling thread (sysarch(2),
// X86_IOPL): 3 opens all ports to it. The kernel needs option INSECURE or a
// securelevel below 1.
func iopl(level int32) error {
	const x86IOPL = 2 // x86/sysarch.h
	if _, _, errno := syscall.Syscall(unix.SYS_SYSARCH, x86IOPL, uintptr(unsafe.Pointer(&level)), 0); errno != 0 {
		return fmt.Errorf("raising the I/O privilege level: %w", errno)
	}
	return nil
}

// Mount arguments (ufs/ufs/ufsmount.h, fs/tmpfs/tmpfs_args.h,
// fs/ptyfs/ptyfs.h, miscfs/procfs/procfs.h).
type ufsArgs struct{ fspec *byte }

type tmpfsArgs struct {
	version  int32
	nodesMax uint64
	sizeMax  int64
	uid, gid uint32
	mode     uint32
}

type ptyfsArgs struct {
	version int32
	gid     uint32
	mode    uint32
	flags   int32
}

type procfsArgs struct{ version, flags int32 }

const gidTTY = 4 // etc/group

// mount mounts m with extra flags.
func mount(m Mount, extra int) error {
	flags, err := m.flags()
	if err != nil {
		return err
	}
	flags |= extra
	var source *byte
	if m.Source != "" {
		if source, err = syscall.BytePtrFromString(m.Source); err != nil {
			return err
		}
	}
	switch m.Type {
	case "ffs", "ext2fs":
		return mountCall(m, flags, &ufsArgs{source})
	case "tmpfs":
		mode := uint32(m.Mode)
		if mode == 0 {
			mode = 0o755
		}
		return mountCall(m, flags, &tmpfsArgs{version: 1, sizeMax: int64(m.Size), mode: mode})
	case "ptyfs":
		return mountCall(m, flags, &ptyfsArgs{version: 2, gid: gidTTY, mode: 0o620})
	case "procfs":
		return mountCall(m, flags, &procfsArgs{version: 1})
	default: // kernfs
		return mountCall[struct{}](m, flags, nil)
	}
}

func mountCall[T any](m Mount, flags int, args *T) error {
	kind, err := syscall.BytePtrFromString(m.Type)
	if err != nil {
		return err
	}
	target, err := syscall.BytePtrFromString(m.Target)
	if err != nil {
		return err
	}
	var size uintptr
	if args != nil {
		size = unsafe.Sizeof(*args)
	}
	if _, _, errno := syscall.Syscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(kind)), uintptr(unsafe.Pointer(target)),
		uintptr(flags), uintptr(unsafe.Pointer(args)), size, 0); errno != 0 {
		return &os.PathError{Op: "mount " + m.Type, Path: m.Target, Err: errno}
	}
	return nil
}

// statvfs is struct statvfs of NetBSD 10 and later (sys/statvfs.h).
type statvfs struct {
	flag        uint64 // MNT_*
	_           [23]uint64
	fstypename  [32]byte
	mntonname   [1024]byte
	mntfromname [1024]byte
	_           [1024]byte
}

// fileSystem tells the type of the file system that path is on, and its flags.
// x/sys/unix has the call of NetBSD 9, which kernels without COMPAT_90 answer
// with SIGSYS.
func fileSystem(path string) (kind string, flags uint64, err error) {
	const sysStatvfs190 = 484 // kern/syscalls.master
	const stNoWait = 2        // ST_NOWAIT: what the kernel knows, without asking the file system
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return "", 0, err
	}
	var st statvfs
	if _, _, errno := syscall.Syscall(sysStatvfs190, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&st)), stNoWait); errno != 0 {
		return "", 0, &os.PathError{Op: "statvfs", Path: path, Err: errno}
	}
	return unix.ByteSliceToString(st.fstypename[:]), st.flag, nil
}

// setHostname sets kern.hostname (sysctl(7): CTL_KERN 1, KERN_HOSTNAME 10).
func setHostname(name string) error {
	mib := [2]int32{1, 10}
	b := []byte(name)
	if _, _, errno := syscall.Syscall6(unix.SYS___SYSCTL, uintptr(unsafe.Pointer(&mib)), 2, 0, 0,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))); errno != 0 {
		return fmt.Errorf("setting the host name: %w", errno)
	}
	return nil
}

// Ways to reboot (sys/reboot.h).
const (
	rbAutoboot = 0
	rbHalt     = 0x8
)

// reboot does not return but with an error.
func reboot(how int) error {
	_, _, errno := syscall.Syscall(unix.SYS_REBOOT, uintptr(how), 0, 0)
	return errno
}

// busyTransfers counts the transfers that the disks have not finished (sysctl
// hw.iostats: CTL_HW 6, HW_IOSTATS 9, then the bytes wanted of each struct
// io_sysctl, sys/iostat.h).
func busyTransfers() (int, error) {
	const record = 24 // name of 16, busy, type
	mib := [3]int32{6, 9, record}
	var buf [64 * record]byte
	n := uintptr(len(buf))
	if _, _, errno := syscall.Syscall6(unix.SYS___SYSCTL, uintptr(unsafe.Pointer(&mib)), 3,
		uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&n)), 0, 0); errno != 0 {
		return 0, fmt.Errorf("sysctl hw.iostats: %w", errno)
	}
	busy := 0
	for b := buf[:n]; len(b) >= record; b = b[record:] {
		busy += int(int32(binary.NativeEndian.Uint32(b[16:])))
	}
	return busy, nil
}

// drain waits until the terminal has put out what was written (tty(4)).
func drain(fd int) error {
	return unix.IoctlSetInt(fd, unix.TIOCDRAIN, 0)
}

// ioctl does a request whose argument is a structure in b.
func ioctl(fd int, request uint, b []byte) error {
	if _, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(unsafe.SliceData(b)))); errno != 0 {
		return errno
	}
	return nil
}

// addresses is SIOCGIFCONF (netintro(4)): an ifreq for each address of each
// interface.
func addresses(fd int) ([]byte, error) {
	buf := make([]byte, maxIfconf)
	conf := struct { // struct ifconf, net/if.h
		len int32
		buf *byte
	}{int32(len(buf)), unsafe.SliceData(buf)}
	if _, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFCONF, uintptr(unsafe.Pointer(&conf))); errno != 0 {
		return nil, errno
	}
	return buf[:min(max(int(conf.len), 0), len(buf))], nil
}

// setFilter gives a packet filter its program (bpf(4), BIOCSETF).
func setFilter(fd int, program []insn) error {
	p := struct { // struct bpf_program
		len uint32
		ins *insn
	}{uint32(len(program)), unsafe.SliceData(program)}
	if _, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BIOCSETF, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return errno
	}
	return nil
}

// sysctlMIB finds the numbers of a name of sysctl(7): many differ between
// kernels, so each level is asked for (sysctl(3), CTL_QUERY).
func sysctlMIB(name string) ([]int32, error) {
	const ctlQuery, version1 = -2, 0x01000000 // sys/sysctl.h: CTL_QUERY, SYSCTL_VERS_1
	var mib []int32
	nodes := make([]unix.Sysctlnode, 256)
	size := unsafe.Sizeof(nodes[0])
	for part := range strings.SplitSeq(name, ".") {
		query := append(slices.Clone(mib), ctlQuery)
		ask := unix.Sysctlnode{Flags: version1}
		n := uintptr(len(nodes)) * size
		if _, _, errno := syscall.Syscall6(unix.SYS___SYSCTL, uintptr(unsafe.Pointer(unsafe.SliceData(query))), uintptr(len(query)),
			uintptr(unsafe.Pointer(unsafe.SliceData(nodes))), uintptr(unsafe.Pointer(&n)), uintptr(unsafe.Pointer(&ask)), size); errno != 0 {
			return nil, errno
		}
		i := slices.IndexFunc(nodes[:min(n/size, uintptr(len(nodes)))], func(node unix.Sysctlnode) bool {
			return unix.ByteSliceToString(unsafe.Slice((*byte)(unsafe.Pointer(&node.Name)), len(node.Name))) == part
		})
		if i < 0 {
			return nil, unix.ENOENT
		}
		mib = append(mib, nodes[i].Num)
	}
	return mib, nil
}

// swapInt32 sets an integer of sysctl(7) and gives its old value.
func swapInt32(name string, value int32) (old int32, err error) {
	mib, err := sysctlMIB(name)
	if err != nil {
		return 0, err
	}
	n := unsafe.Sizeof(old)
	if _, _, errno := syscall.Syscall6(unix.SYS___SYSCTL, uintptr(unsafe.Pointer(unsafe.SliceData(mib))), uintptr(len(mib)),
		uintptr(unsafe.Pointer(&old)), uintptr(unsafe.Pointer(&n)), uintptr(unsafe.Pointer(&value)), n); errno != 0 {
		return 0, errno
	}
	return old, nil
}
