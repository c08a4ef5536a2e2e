package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

// finding is one thing that doctor looked at.
type finding struct {
	ok   bool
	what string
	mend string // what to do, where it is not ok
}

// doctor is `smolvmm doctor`: exit status 0 if a machine can run here.
func doctor(args []string, s streams) error {
	if len(args) > 0 {
		return usagef("doctor takes no arguments")
	}
	bad := 0
	for _, f := range examine() {
		mark := "ok  "
		if !f.ok {
			mark = "BAD "
			bad++
		}
		fmt.Fprintln(s.out, mark, f.what)
		if f.mend != "" {
			fmt.Fprintln(s.out, "      ", f.mend)
		}
	}
	if bad > 0 {
		return &statusError{status: statusMonitor, err: fmt.Errorf("doctor: %d of these must be mended before a machine can run", bad)}
	}
	return nil
}

func examine() []finding {
	out := []finding{{ok: runtime.GOARCH == "amd64", what: "processor architecture " + runtime.GOARCH, mend: ifNot(runtime.GOARCH == "amd64", "smolvmm runs on x86-64 only")}}
	out = append(out, kvmFindings()...)
	k, err := kernels.Find("", "")
	if err != nil {
		out = append(out, finding{ok: true, what: "no NetBSD kernel at hand (smolvmm demo needs none)", mend: "smolvmm kernel fetch"})
	} else {
		out = append(out, finding{ok: true, what: "NetBSD kernel " + k.Path})
	}
	return out
}

func ifNot(ok bool, s string) string {
	if ok {
		return ""
	}
	return s
}

func kvmFindings() []finding {
	const dev = "/dev/kvm"
	info, err := vmm.ProbeKVM(dev)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return []finding{{what: dev + " is not there", mend: missingKVM()}}
	case errors.Is(err, os.ErrPermission):
		return []finding{{what: dev + ": permission denied", mend: "add yourself to its group and log in again: sudo usermod -aG kvm $USER"}}
	case err != nil:
		return []finding{{what: err.Error(), mend: "is another hypervisor holding the processor's virtualisation? try: sudo dmesg | grep -i kvm"}}
	}
	out := []finding{{ok: true, what: dev + " opens, API version 12, " + kvmKind()}}
	if len(info.Missing) > 0 {
		out = append(out, finding{what: "KVM lacks " + strings.Join(info.Missing, ", "), mend: "a newer Linux kernel has them: 4.12 at least"})
	}
	out = append(out, finding{ok: true, what: fmt.Sprintf("TSC at %d kHz, invariant: %v; up to %d vCPUs", info.TSCKHz, info.InvariantTSC, info.MaxVCPUs)})
	seccomp := finding{ok: info.Seccomp, what: "seccomp filters"}
	seccomp.mend = ifNot(info.Seccomp, "this kernel has none: run with -confine off")
	landlock := finding{ok: true, what: fmt.Sprintf("Landlock ABI %d", info.Landlock)}
	if info.Landlock == 0 {
		landlock.what, landlock.mend = "no Landlock: seccomp alone confines the monitor", "boot Linux 5.13 or newer with landlock in lsm="
	}
	return append(out, seccomp, landlock)
}

// missingKVM looks for the reason why there is no /dev/kvm.
func missingKVM() string {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err == nil && !strings.Contains(string(cpu), " vmx") && !strings.Contains(string(cpu), " svm") {
		return "the processor shows neither VT-x nor AMD-V: switch it on in the firmware, or allow nested virtualisation if this is a virtual machine"
	}
	return "load the module: sudo modprobe kvm_intel (or kvm_amd); in a container, pass the device in: --device /dev/kvm"
}

// kvmKind names the KVM module at work.
func kvmKind() string {
	for _, k := range []struct{ module, kind string }{
		{"kvm_intel", "Intel VT-x"},
		{"kvm_amd", "AMD-V"},
		{"kvm_pvm", "kvm_pvm: a software KVM, good for the demo guest but not for full kernels (their ring 0 meets instructions that it cannot emulate)"},
	} {
		if unix.Access("/sys/module/"+k.module, unix.F_OK) == nil {
			return k.kind
		}
	}
	return "kind unknown"
}
