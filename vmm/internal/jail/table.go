package jail

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// Group names a part of the table.
type Group string

// The groups. Runtime is in every jail.
const (
	Runtime  Group = "runtime"  // the Go runtime, and any goroutine's reads and writes
	KVM      Group = "kvm"      // a running machine: vCPUs, interrupt lines, reading state
	Terminal Group = "terminal" // a terminal or pseudo-terminal on descriptors that are open
	Listener Group = "listener" // a stream socket that was opened to be listened on
	LogFile  Group = "logfile"  // a log of bounded size, written in a circle
	Disk     Group = "disk"     // images: files
	BlockDev Group = "blockdev" // images: block devices, on top of Disk
	Network  Group = "network"  // sockets of the user-mode network stack
	Vsock    Group = "vsock"    // Unix sockets behind virtio-vsock
	API      Group = "api"      // who is at the other end of a control socket, on top of Listener
	APITCP   Group = "apitcp"   // TCP ports for metrics, on top of Listener
)

// Console says where the guest's serial line ends.
type Console int

// The consoles.
const (
	ConsoleNone   Console = iota // nowhere, or a file that is open
	ConsoleStdio                 // standard input and output
	ConsolePty                   // a pseudo-terminal's master
	ConsoleSocket                // a Unix socket
)

// Machine is what decides which groups a machine needs.
type Machine struct {
	Console      Console
	Disks        bool
	BlockDevices bool // some disk is a block device
	Network      bool // the user-mode network
	API          bool // a control socket
	APITCP       bool // metrics on a TCP port
	Log          bool // a log of bounded size
	Vsock        bool // virtio-vsock over Unix sockets
}

// Strict is the shortest list of groups that a machine runs with.
func Strict(m Machine) []Group {
	g := []Group{Runtime, KVM}
	switch m.Console {
	case ConsoleStdio, ConsolePty:
		g = append(g, Terminal)
	case ConsoleSocket:
		g = append(g, Listener)
	}
	if (m.API || m.APITCP) && !slices.Contains(g, Listener) {
		g = append(g, Listener)
	}
	if m.API {
		g = append(g, API)
	}
	if m.APITCP {
		g = append(g, APITCP)
	}
	if m.Log {
		g = append(g, LogFile)
	}
	if m.Disks || m.BlockDevices {
		g = append(g, Disk)
	}
	if m.BlockDevices {
		g = append(g, BlockDev)
	}
	if m.Network {
		g = append(g, Network)
	}
	if m.Vsock {
		g = append(g, Vsock)
	}
	return g
}

// action is what is done when a call is not allowed.
type action int

const (
	ePerm action = iota // EPERM
	noSys               // ENOSYS
	kill                // SIGSYS to the process
)

// rule is one entry of the table: allowed without conditions, or when one of
// the matches holds, or when an argument is among a list, or never.
type rule struct {
	nr    uint32
	why   string
	when  []match
	among *among
	never bool
	act   action
}

// match holds when all its conditions do.
type match []cond

// cond tests an argument's low half, which is all that the kernel looks at in
// an int; opEq64 tests both halves.
type cond struct {
	arg uint32
	op  op
	val uint64
}

type op int

const (
	opEq     op = iota // equal
	opEq64             // equal, all 64 bits
	opAnyBit           // some bit of val is set
	opNoBit            // no bit of val is set
)

// among holds when an argument is one of a list, the first being the likeliest.
type among struct {
	arg  uint32
	vals []uint32
}

// goClone are the flags of the Go runtime's newosproc: cloneFlags of
// os_linux.go, and CLONE_SETTLS, which clone of sys_linux_amd64.s puts in.
const goClone = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_SYSVSEM | unix.CLONE_THREAD | unix.CLONE_SETTLS

// groupRules is the allow list. ioctl stands apart, in ioctls, since several
// groups share it.
func groupRules(g Group, pid int) ([]rule, bool) {
	switch g {
	case Runtime:
		return append(runtimeRules(pid), cgoRules()...), true
	case KVM, Terminal, BlockDev:
		return nil, true // ioctls only
	case Listener:
		return []rule{
			{nr: unix.SYS_ACCEPT4, why: "the next connection to the console's or the API's socket"},
			{nr: unix.SYS_GETSOCKNAME, why: "package net asks after each accept"},
			{nr: unix.SYS_GETPEERNAME, why: "package net's RemoteAddr"},
			{nr: unix.SYS_SHUTDOWN, why: "CloseRead and CloseWrite, and a listener's end"},
		}, true
	case LogFile:
		return []rule{{nr: unix.SYS_PWRITE64, why: "the next line of a log whose beginning is overwritten"}}, true
	case Disk:
		return []rule{
			{nr: unix.SYS_PREADV, why: "a read request into guest memory"},
			{nr: unix.SYS_PWRITEV, why: "a write request out of guest memory"},
			{nr: unix.SYS_PWRITE64, why: "a write of one segment, and the overlay's block map"},
			{nr: unix.SYS_FDATASYNC, why: "FLUSH"},
			{nr: unix.SYS_FSTAT, why: "FLUSH: whether the image has been cut short under the guest"},
			{nr: unix.SYS_FALLOCATE, why: "DISCARD and WRITE_ZEROES: punched holes and zeroed ranges"},
		}, true
	case Network:
		return networkRules(), true
	case Vsock:
		return vsockRules(), true
	case API:
		return []rule{{nr: unix.SYS_GETSOCKOPT, when: matchOptions([]option{{unix.SOL_SOCKET, unix.SO_PEERCRED}}),
			why: "which user has connected"}}, true
	case APITCP:
		return []rule{{nr: unix.SYS_SETSOCKOPT, when: matchOptions([]option{{unix.IPPROTO_TCP, unix.TCP_NODELAY}}),
			why: "package net, on each connection that it takes over TCP"}}, true
	}
	return nil, false
}

// runtimeRules are what package runtime of Go 1.26 calls once the process has
// started (sys_linux_amd64.s, os_linux.go, mem_linux.go, netpoll_epoll.go), and
// reading, writing and closing what is open.
func runtimeRules(pid int) []rule {
	self := uint64(uint32(pid))
	return []rule{
		{nr: unix.SYS_READ, why: "eventfds, console, sockets, epoll's wake-up"},
		{nr: unix.SYS_WRITE, why: "the same, and the runtime's last words"},
		{nr: unix.SYS_READV, why: "package net's buffers"},
		{nr: unix.SYS_WRITEV, why: "package net's buffers"},
		{nr: unix.SYS_PREAD64, why: "the runtime re-reads its cgroup's CPU limit from a file that is open; disks"},
		{nr: unix.SYS_CLOSE, why: "descriptors are given back"},
		{nr: unix.SYS_FCNTL, why: "package os asks for and sets O_NONBLOCK; a snapshot keeps files that are open", when: []match{
			{{arg: 1, op: opEq, val: unix.F_GETFL}}, {{arg: 1, op: opEq, val: unix.F_SETFL}}, {{arg: 1, op: opEq, val: unix.F_DUPFD_CLOEXEC}}}},
		{nr: unix.SYS_EPOLL_CTL, why: "the network poller, whose epoll instance is there already"},
		{nr: unix.SYS_EPOLL_PWAIT, why: "the network poller waits"},

		{nr: unix.SYS_FUTEX, why: "the scheduler's sleep and wake-up"},
		{nr: unix.SYS_NANOSLEEP, why: "sysmon's pauses"},
		{nr: unix.SYS_SCHED_YIELD, why: "the runtime's spinning locks"},
		{nr: unix.SYS_RESTART_SYSCALL, why: "a sleep goes on after SIGSTOP and SIGCONT"},
		{nr: unix.SYS_CLOCK_GETTIME, why: "the clock where the vDSO cannot give it"},
		{nr: unix.SYS_GETRANDOM, why: "map seeds and package rand, where the vDSO cannot"},
		{nr: unix.SYS_SCHED_GETAFFINITY, why: "the runtime looks for a changed number of CPUs"},

		{nr: unix.SYS_MMAP, act: kill, why: "anonymous memory, never executable: heap and stacks", when: []match{{
			{arg: 2, op: opNoBit, val: unix.PROT_EXEC}, {arg: 3, op: opAnyBit, val: unix.MAP_ANONYMOUS}}}},
		{nr: unix.SYS_MPROTECT, act: kill, why: "the heap's debugging modes; never executable", when: []match{{
			{arg: 2, op: opNoBit, val: unix.PROT_EXEC}}}},
		{nr: unix.SYS_MUNMAP, why: "memory given back"},
		{nr: unix.SYS_MADVISE, why: "the scavenger; guest memory on request"},
		{nr: unix.SYS_PRCTL, why: "names for the heap's mappings, PR_SET_VMA only", when: []match{{
			{arg: 0, op: opEq, val: unix.PR_SET_VMA}, {arg: 1, op: opEq64, val: unix.PR_SET_VMA_ANON_NAME}}}},

		{nr: unix.SYS_CLONE, act: kill, why: "a thread of this process, with the runtime's own flags", when: []match{{
			{arg: 0, op: opEq, val: goClone}}}},
		{nr: unix.SYS_CLONE3, act: noSys, never: true, why: "its flags lie in memory that a filter cannot read; callers fall back to clone"},
		{nr: unix.SYS_GETTID, why: "each new thread"},
		{nr: unix.SYS_GETPID, why: "before a signal to itself"},
		{nr: unix.SYS_SIGALTSTACK, why: "each new thread"},
		{nr: unix.SYS_RT_SIGPROCMASK, why: "around the making of threads"},
		{nr: unix.SYS_RT_SIGACTION, why: "package signal; a signal's default before dying of it"},
		{nr: unix.SYS_RT_SIGRETURN, why: "the end of every signal handler"},
		{nr: unix.SYS_TGKILL, why: "preemption, and the kick that gets a vCPU out of KVM_RUN: own threads only", when: []match{{
			{arg: 0, op: opEq, val: self}}}},
		{nr: unix.SYS_EXIT, why: "a locked goroutine's thread ends"},
		{nr: unix.SYS_EXIT_GROUP, why: "the process ends"},

		{nr: unix.SYS_LANDLOCK_RESTRICT_SELF, why: "the jail's own last step; it can only take rights away"},
	}
}

// ioctls are the requests of each group. Everything else is refused: TIOCSTI,
// which types into the terminal, as well as KVM's requests for new machines.
func ioctls(g Group) []uint32 {
	switch g {
	case KVM:
		return kvm.Ioctls() // KVM_RUN first
	case Terminal:
		// package term's raw mode, its undoing, and the window's size
		return []uint32{unix.TCGETS, unix.TCSETS, unix.TIOCGWINSZ}
	case BlockDev:
		return []uint32{unix.BLKDISCARD} // DISCARD; zeroes go by fallocate
	}
	return nil
}

// forbidden are calls that no code of a monitor makes after its set-up, whose
// appearance means that someone else is in control: the process dies of them.
// Other calls outside the table get EPERM, which a library's attempt at a
// faster way (io_uring, splice, copy_file_range) survives, so that the guest
// is stopped in order and the terminal restored; nothing is gained by it, as
// no refused call has an effect.
var forbidden = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_FORK, unix.SYS_VFORK, // another program
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, // another process
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET, // another user
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT, // another root
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
	unix.SYS_OPEN_BY_HANDLE_AT, // a file without its path
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_REBOOT, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, // the kernel
	unix.SYS_PERSONALITY, unix.SYS_MODIFY_LDT, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_PKEY_MPROTECT, unix.SYS_REMAP_FILE_PAGES,
}

// Forbidden lists the system calls that end the process in Enforce mode.
func Forbidden() []uint32 { return slices.Clone(forbidden) }

// compose puts a configuration's table together, sorted by number.
func compose(c Config, pid int) ([]rule, error) {
	rules := make([]rule, 0, 160)
	var requests []uint32
	for _, g := range append([]Group{Runtime}, c.Groups...) {
		more, ok := groupRules(g, pid)
		if !ok {
			return nil, fmt.Errorf("jail: no group %q", string(g))
		}
		rules = append(rules, more...)
		for _, req := range ioctls(g) {
			if !slices.Contains(requests, req) {
				requests = append(requests, req)
			}
		}
	}
	if len(requests) > 0 {
		rules = append(rules, rule{nr: unix.SYS_IOCTL, among: &among{arg: 1, vals: requests},
			why: "the requests of KVM, the terminal and block devices, by number"})
	}
	for _, nr := range forbidden {
		rules = append(rules, rule{nr: nr, never: true, act: kill, why: "see forbidden"})
	}
	for _, nr := range c.ExtraSyscalls {
		if nr >= x32Bit {
			return nil, fmt.Errorf("jail: extra system call %#x is not an x86-64 number", nr)
		}
		rules = append(rules, rule{nr: nr, why: "asked for"})
	}
	// Groups agree on the calls that they share, or each adds its cases; what is
	// asked for comes last and stands.
	slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(a.nr, b.nr) })
	last := rules[:0]
	for i, r := range rules {
		if i+1 == len(rules) || rules[i+1].nr != r.nr {
			last = append(last, r)
		} else if next := &rules[i+1]; r.when != nil && next.when != nil && r.act == next.act {
			next.when = slices.Concat(r.when, next.when)
		}
	}
	return last, nil
}
