package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

const doctorHelp = `smolvmm doctor looks at this host and says what is missing for a machine to run,
and how to mend it. Exit status 0: a machine can run here; 125: it cannot.
`

// finding is one thing that doctor looked at.
type finding struct {
	ok   bool
	what string
	mend string // what to do about it, if anything
}

// host is what doctor looks at, injected for tests.
type host struct {
	arch     string
	probe    func(path string) (vmm.HostInfo, error)
	readFile func(path string) ([]byte, error)
	exists   func(path string) bool
	// groups are those of this process.
	groups func() ([]int, error)
	// group names the group that owns /dev/kvm, "" if it gives no access.
	group  func(path string) string
	kernel func() (path string, err error)
	// full finds the full program.
	full func() (path string, err error)
}

func thisHost() host {
	return host{
		arch: runtime.GOARCH, probe: vmm.ProbeKVM, readFile: os.ReadFile, group: groupOf, groups: ownGroups,
		exists: func(path string) bool { return unix.Access(path, unix.F_OK) == nil },
		kernel: func() (string, error) {
			k, err := kernels.Find("", "")
			return k.Path, err
		},
		full: ownFull,
	}
}

// doctor is `smolvmm doctor`: exit status 0 if a machine can run here.
func doctor(args []string, s Streams) error {
	if len(args) > 0 {
		return Usagef("doctor takes no arguments")
	}
	return thisHost().report(s)
}

func (h host) report(s Streams) error {
	bad := 0
	for _, f := range h.examine() {
		mark := "ok "
		switch {
		case !f.ok:
			mark = "BAD"
			bad++
		case f.mend != "":
			mark = "-- "
		}
		fmt.Fprintln(s.Out, mark, f.what)
		if f.mend != "" {
			fmt.Fprintln(s.Out, "    "+f.mend)
		}
	}
	if bad > 0 {
		return &StatusError{Status: StatusMonitor, Err: fmt.Errorf("doctor: no machine can run here before what is BAD is mended")}
	}
	return nil
}

func (h host) examine() []finding {
	if h.arch != "amd64" {
		return []finding{{what: "processor architecture " + h.arch, mend: "smolvmm runs on x86-64 only"}}
	}
	out := append([]finding{{ok: true, what: "processor architecture " + h.arch}}, h.kvm()...)
	out = append(out, h.ping(), h.hugePages())
	path, err := h.kernel()
	switch {
	case err == nil:
		out = append(out, finding{ok: true, what: "NetBSD kernel " + path})
	case errors.Is(err, kernels.ErrNotCached):
		out = append(out, finding{ok: true, what: "no NetBSD kernel fetched yet (smolvmm demo needs none)", mend: "smolvmm kernel fetch"})
	default:
		out = append(out, finding{ok: true, what: "no NetBSD kernel can be looked for", mend: OneLine(err.Error())})
	}
	if path, err := h.full(); err != nil {
		out = append(out, finding{ok: true, what: "only boots, demo and doctor: " + fullName + " is neither beside smolvmm nor in PATH", mend: installBoth})
	} else {
		out = append(out, finding{ok: true, what: "all commands: " + path})
	}
	return out
}

const kvmDevice = "/dev/kvm"

func (h host) kvm() []finding {
	info, err := h.probe(kvmDevice)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return []finding{h.missingKVM()}
	case errors.Is(err, os.ErrPermission):
		mend := "its owner must grant access: sudo setfacl -m u:$USER:rw " + kvmDevice
		if g := h.group(kvmDevice); g != "" {
			mend = "join its group and log in again: sudo usermod -aG " + g + " $USER"
		}
		return []finding{{what: kvmDevice + ": permission denied", mend: mend}}
	case errors.Is(err, unix.EBUSY):
		return []finding{{what: OneLine(err.Error()), mend: "another hypervisor (VirtualBox, VMware) holds the processor's virtualisation: end its machines"}}
	case err != nil:
		return []finding{{what: OneLine(err.Error()), mend: "see what the kernel says of it: sudo dmesg | grep -i kvm"}}
	}
	kind, advice := h.kvmKind()
	out := []finding{{ok: true, what: kvmDevice + ": " + kind, mend: advice}}
	if len(info.Missing) > 0 {
		out = append(out, finding{what: "KVM lacks " + strings.Join(info.Missing, ", "), mend: "boot a newer Linux kernel: 4.12 at least"})
	}
	clock := finding{ok: true, what: fmt.Sprintf("TSC at %.3f GHz, invariant; up to %d CPUs a machine", float64(info.TSCKHz)/1e6, info.MaxVCPUs)}
	if !info.InvariantTSC {
		clock = finding{ok: true, what: fmt.Sprintf("the host does not keep its time by the TSC; up to %d CPUs a machine", info.MaxVCPUs),
			mend: "guests take longer to find their clock, and may drift"}
	}
	seccomp := finding{ok: info.Seccomp, what: "seccomp filters"}
	if !info.Seccomp {
		seccomp = finding{what: "this Linux kernel has no seccomp filters", mend: "run machines with -confine off, or a kernel with CONFIG_SECCOMP_FILTER"}
	}
	landlock := finding{ok: true, what: fmt.Sprintf("Landlock, version %d", info.Landlock)}
	if info.Landlock == 0 {
		landlock = finding{ok: true, what: "no Landlock: seccomp alone confines the monitor", mend: "boot Linux 5.13 or newer with landlock in lsm="}
	}
	return append(out, clock, seccomp, landlock)
}

// missingKVM looks for the reason why there is no /dev/kvm.
func (h host) missingKVM() finding {
	f := finding{what: kvmDevice + " is not there"}
	cpu, err := h.readFile("/proc/cpuinfo")
	has := func(flag string) bool { return strings.Contains(string(cpu), " "+flag+" ") }
	module := "kvm_intel"
	if strings.Contains(string(cpu), "AuthenticAMD") || strings.Contains(string(cpu), "HygonGenuine") {
		module = "kvm_amd"
	}
	switch {
	case err == nil && !has("vmx") && !has("svm"):
		f.mend = "the processor shows neither VT-x nor AMD-V: switch it on in the firmware, or allow nested virtualisation if this is a virtual machine"
	case h.exists("/sys/module/" + module):
		f.mend = "KVM is loaded: in a container, pass the device in (--device " + kvmDevice + "); else sudo modprobe -r " + module + " && sudo modprobe " + module
	default:
		f.mend = "load the module: sudo modprobe " + module + "; in a container, pass the device in: --device " + kvmDevice
	}
	return f
}

// kvmKind names the KVM module at work, and what there is to say about it.
func (h host) kvmKind() (kind, advice string) {
	for _, k := range []struct{ module, kind, advice string }{
		{"kvm_intel", "Intel VT-x", ""},
		{"kvm_amd", "AMD-V", ""},
		{"kvm_pvm", "a software KVM (kvm_pvm)", "good for smolvmm demo; full kernels meet instructions there that it cannot emulate"},
	} {
		if h.exists("/sys/module/" + k.module) {
			return k.kind, k.advice
		}
	}
	return "of a kind not known", ""
}

// ownGroups are those that the kernel looks at before it gives an echo socket:
// the effective one and the supplementary ones (ping_init_sock, net/ipv4/ping.c).
func ownGroups() ([]int, error) {
	groups, err := os.Getgroups()
	return append(groups, os.Getegid()), err
}

// ping says whether a guest's pings can leave this host.
func (h host) ping() finding {
	const file, setting = "/proc/sys/net/ipv4/ping_group_range", "net.ipv4.ping_group_range"
	no := finding{ok: true, what: "guests cannot ping beyond their gateway: no group of yours is in " + setting,
		mend: "sudo sysctl -w " + setting + `="0 2147483647"`}
	b, err := h.readFile(file)
	if err != nil {
		return finding{ok: true, what: "it is not known whether guests can ping beyond their gateway", mend: "see whether you may read " + file}
	}
	var low, high int
	if _, err := fmt.Sscan(string(b), &low, &high); err != nil {
		return finding{ok: true, what: "it is not known whether guests can ping beyond their gateway: " + OneLine(file+": "+err.Error())}
	}
	groups, err := h.groups()
	if err != nil {
		return finding{ok: true, what: "it is not known whether guests can ping beyond their gateway: " + OneLine(err.Error())}
	}
	for _, g := range groups {
		if low <= g && g <= high {
			return finding{ok: true, what: "guests can ping beyond their gateway"}
		}
	}
	return no
}

// hugePages says what -hugepages could use now.
func (h host) hugePages() finding {
	f := finding{ok: true, what: "no 2 MiB pages are reserved: -hugepages cannot be used (nothing else needs them)"}
	const pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	if b, err := h.readFile(pool + "free_hugepages"); err == nil {
		if n := strings.TrimSpace(string(b)); n != "0" {
			f.what = n + " free 2 MiB pages for -hugepages"
		}
	}
	return f
}

// groupOf names the group that may read and write a file, "" if none may.
func groupOf(path string) string {
	var st unix.Stat_t
	const groupRW = unix.S_IRGRP | unix.S_IWGRP
	if unix.Stat(path, &st) != nil || st.Mode&groupRW != groupRW || st.Gid == 0 {
		return ""
	}
	g, err := user.LookupGroupId(strconv.Itoa(int(st.Gid)))
	if err != nil {
		return ""
	}
	return g.Name
}
