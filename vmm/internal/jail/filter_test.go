package jail

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// run interprets a filter. The interpreter reads big-endian packets, so the
// seccomp_data is laid out word by word.
func run(t *testing.T, vm *bpf.VM, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func program(t *testing.T, c Config, pid int) (*bpf.VM, []rule) {
	t.Helper()
	rules, err := compose(c, pid)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := assemble(rules, c.Mode)
	if err != nil {
		t.Fatal(err)
	}
	prog, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the program does not disassemble")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(raw))
	return vm, rules
}

const (
	allow  = unix.SECCOMP_RET_ALLOW
	killed = unix.SECCOMP_RET_KILL_PROCESS
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// Every number from 0 to 1023 has the verdict of its rule, or EPERM.
func TestFilterFollowsTable(t *testing.T) {
	vm, rules := program(t, everything(), 4711)
	byNr := map[uint32]rule{}
	for _, r := range rules {
		byNr[r.nr] = r
		if r.why == "" {
			t.Errorf("system call %d has no reason", r.nr)
		}
	}
	for nr := range uint32(1024) {
		r, ok := byNr[nr]
		want := eperm
		switch {
		case ok && r.never && r.act == kill:
			want = killed
		case ok && r.never:
			want = enosys
		case ok && r.when == nil && r.among == nil:
			want = allow
		case ok:
			continue // by its arguments: below
		}
		// Arguments do not matter to these.
		for _, a := range []uint64{0, ^uint64(0)} {
			if got := run(t, vm, unix.AUDIT_ARCH_X86_64, nr, a, a, a, a, a, a); got != want {
				t.Errorf("system call %d: %#x, want %#x", nr, got, want)
			}
		}
	}
}

func TestFilterArguments(t *testing.T) {
	const pid = 4711
	vm, _ := program(t, everything(), pid)
	const high = 1 << 32
	for _, c := range []struct {
		name string
		nr   uint32
		args []uint64
		want uint32
	}{
		{"mmap heap", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_ANON | unix.MAP_PRIVATE}, allow},
		{"mmap reserve", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_NONE, unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_FIXED}, allow},
		{"mmap exec", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_EXEC, unix.MAP_ANON | unix.MAP_PRIVATE}, killed},
		{"mmap rwx", unix.SYS_MMAP, []uint64{0, 4096, 7, unix.MAP_ANON | unix.MAP_PRIVATE}, killed},
		{"mmap file", unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ, unix.MAP_SHARED}, killed},
		{"mprotect none", unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_NONE}, allow},
		{"mprotect exec", unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, killed},
		{"clone", unix.SYS_CLONE, []uint64{0xd0f00}, allow},
		{"clone with a signal", unix.SYS_CLONE, []uint64{0xd0f00 | uint64(unix.SIGCHLD)}, killed},
		{"clone newns", unix.SYS_CLONE, []uint64{0xd0f00 | unix.CLONE_NEWNS}, killed},
		{"fork by clone", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, killed},
		{"tgkill self", unix.SYS_TGKILL, []uint64{pid, 1, 2}, allow},
		{"tgkill other", unix.SYS_TGKILL, []uint64{pid + 1, 1, 2}, eperm},
		{"tgkill -1", unix.SYS_TGKILL, []uint64{^uint64(0), 1, 2}, eperm},
		{"prctl vma", unix.SYS_PRCTL, []uint64{unix.PR_SET_VMA, 0}, allow},
		{"prctl vma high", unix.SYS_PRCTL, []uint64{unix.PR_SET_VMA, high}, eperm},
		{"prctl nnp", unix.SYS_PRCTL, []uint64{unix.PR_SET_NO_NEW_PRIVS, 1}, eperm},
		{"fcntl getfl", unix.SYS_FCNTL, []uint64{0, unix.F_GETFL}, allow},
		{"fcntl setfl", unix.SYS_FCNTL, []uint64{0, unix.F_SETFL}, allow},
		{"fcntl setown", unix.SYS_FCNTL, []uint64{0, unix.F_SETOWN}, eperm},
		{"ioctl none", unix.SYS_IOCTL, []uint64{0, 0}, eperm},
		{"ioctl TIOCSTI", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, eperm},
		{"ioctl TIOCSTI, high bits", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | high}, eperm},
		{"ioctl TIOCLINUX", unix.SYS_IOCTL, []uint64{0, 0x541c}, eperm},
		{"ioctl KVM_CREATE_VM", unix.SYS_IOCTL, []uint64{0, 0xae01}, eperm},
		{"ioctl KVM_CREATE_VCPU", unix.SYS_IOCTL, []uint64{0, 0xae41}, eperm},
		{"ioctl memory region", unix.SYS_IOCTL, []uint64{0, 0x4020ae46}, eperm},
		{"ioctl TCSETS", unix.SYS_IOCTL, []uint64{0, unix.TCSETS}, allow},
	} {
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, c.nr, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	for _, req := range kvm.Ioctls() {
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_IOCTL, 3, uint64(req)); got != allow {
			t.Errorf("KVM request %#x: %#x", req, got)
		}
	}
}

// A group that was not asked for lets nothing through.
func TestFilterOnlyWhatIsAsked(t *testing.T) {
	vm, _ := program(t, Config{Mode: Enforce}, 1)
	for _, nr := range []uint32{unix.SYS_IOCTL, unix.SYS_PWRITEV, unix.SYS_PREADV, unix.SYS_FALLOCATE, unix.SYS_SOCKET, unix.SYS_ACCEPT4} {
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, nr, 0, 0xae80); got != eperm {
			t.Errorf("system call %d: %#x", nr, got)
		}
	}
}

func TestFilterOtherABIs(t *testing.T) {
	for _, mode := range []Mode{Enforce, Log, Trap} {
		c := everything()
		c.Mode = mode
		c.ExtraSyscalls = []uint32{unix.SYS_OPENAT}
		vm, _ := program(t, c, 1)
		want := verdictsOf(mode).kill
		for nr := range uint32(600) {
			for _, got := range []uint32{
				run(t, vm, unix.AUDIT_ARCH_X86_64, x32Bit|nr),
				run(t, vm, unix.AUDIT_ARCH_I386, nr),
				run(t, vm, unix.AUDIT_ARCH_AARCH64, nr),
			} {
				if got != want {
					t.Fatalf("%v: call %d of another ABI: %#x, want %#x", mode, nr, got, want)
				}
			}
		}
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, 0xffffffff); got != want {
			t.Errorf("%v: number -1: %#x", mode, got)
		}
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_OPENAT); got != allow {
			t.Errorf("%v: the extra call: %#x", mode, got)
		}
	}
}

func TestModesChangeOnlyTheRefusal(t *testing.T) {
	for mode, want := range map[Mode]uint32{Log: unix.SECCOMP_RET_LOG, Trap: unix.SECCOMP_RET_TRAP} {
		c := everything()
		c.Mode = mode
		vm, _ := program(t, c, 1)
		for _, nr := range append(Forbidden(), unix.SYS_OPENAT, 900) {
			if got := run(t, vm, unix.AUDIT_ARCH_X86_64, nr); got != want {
				t.Errorf("%v: call %d: %#x", mode, nr, got)
			}
		}
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_FUTEX); got != allow {
			t.Errorf("%v: futex: %#x", mode, got)
		}
	}
}

// KVM_RUN is decided within the first few instructions.
func TestHotPathIsShort(t *testing.T) {
	rules, err := compose(everything(), 1)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := assemble(rules, Enforce)
	if err != nil {
		t.Fatal(err)
	}
	prog, _ := bpf.Disassemble(raw)
	// ld arch, jeq, ld nr, jge x32, jeq ioctl, ld request, jeq KVM_RUN, ret,
	// with an unconditional jump where one does not reach.
	at, steps := 0, 0
	var a uint32
	values := map[uint32]uint32{offArch: unix.AUDIT_ARCH_X86_64, offNr: unix.SYS_IOCTL, offArgs + 8: 0xae80}
	for {
		steps++
		in := prog[at]
		at++
		switch in := in.(type) {
		case bpf.LoadAbsolute:
			a = values[in.Off]
		case bpf.Jump:
			at += int(in.Skip)
		case bpf.JumpIf:
			var yes bool
			switch in.Cond {
			case bpf.JumpEqual:
				yes = a == in.Val
			case bpf.JumpNotEqual:
				yes = a != in.Val
			case bpf.JumpGreaterOrEqual:
				yes = a >= in.Val
			case bpf.JumpLessThan:
				yes = a < in.Val
			default:
				t.Fatalf("unexpected %v", in)
			}
			if yes {
				at += int(in.SkipTrue)
			} else {
				at += int(in.SkipFalse)
			}
		case bpf.RetConstant:
			if in.Val != allow || steps > 11 {
				t.Errorf("KVM_RUN: %#x after %d instructions", in.Val, steps)
			}
			return
		}
	}
}

func TestForbiddenAreNotInTheTable(t *testing.T) {
	rules := runtimeRules(1)
	for _, g := range []Group{Listener, Disk, Network, Vsock} {
		r, _ := groupRules(g, 1)
		rules = append(rules, r...)
	}
	for _, r := range rules {
		if slices.Contains(forbidden, r.nr) {
			t.Errorf("system call %d is both allowed and forbidden", r.nr)
		}
	}
}
