package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/vmm"
)

// TestDoctor is each thing that can be wrong with a host, and its mend.
func TestDoctor(t *testing.T) {
	good := vmm.HostInfo{TSCKHz: 2_500_000, InvariantTSC: true, MaxVCPUs: 32, Seccomp: true, Landlock: 7}
	openError := func(err error) func(*host) {
		return func(h *host) {
			h.probe = func(path string) (vmm.HostInfo, error) {
				return vmm.HostInfo{}, &fs.PathError{Op: "open", Path: path, Err: err}
			}
		}
	}
	info := func(edit func(*vmm.HostInfo)) func(*host) {
		return func(h *host) {
			i := good
			edit(&i)
			h.probe = func(string) (vmm.HostInfo, error) { return i, nil }
		}
	}
	both := func(a, b func(*host)) func(*host) { return func(h *host) { a(h); b(h) } }
	cpu := func(text string) func(*host) {
		return func(h *host) {
			h.readFile = func(path string) ([]byte, error) {
				if path != "/proc/cpuinfo" {
					return nil, fs.ErrNotExist
				}
				return []byte(text), nil
			}
		}
	}
	modules := func(names ...string) func(*host) {
		return func(h *host) {
			h.exists = func(path string) bool {
				for _, n := range names {
					if path == "/sys/module/"+n {
						return true
					}
				}
				return false
			}
		}
	}
	const intel, amd = "vendor_id : GenuineIntel\nflags : fpu vmx smx\n", "vendor_id : AuthenticAMD\nflags : fpu svm smx\n"
	for _, c := range []struct {
		name string
		edit func(*host)
		bad  bool
		want []string
	}{
		{"good", func(*host) {}, false, []string{"ok  /dev/kvm: Intel VT-x\n", "ok  TSC at 2.500 GHz, invariant; up to 32 CPUs", "ok  seccomp", "ok  Landlock, version 7", "ok  NetBSD kernel /k"}},
		{"AMD", modules("kvm_amd"), false, []string{"ok  /dev/kvm: AMD-V"}},
		{"software", modules("kvm_pvm"), false, []string{"--  /dev/kvm: a software KVM (kvm_pvm)\n    good for smolvmm demo"}},
		{"another module", modules(), false, []string{"/dev/kvm: of a kind not known"}},
		{"other processor", func(h *host) { h.arch = "arm64" }, true, []string{"BAD processor architecture arm64\n    smolvmm runs on x86-64 only"}},
		{"no module", both(openError(unix.ENOENT), both(cpu(intel), modules())), true, []string{"BAD /dev/kvm is not there\n    load the module: sudo modprobe kvm_intel; in a container"}},
		{"no AMD module", both(openError(unix.ENOENT), both(cpu(amd), modules())), true, []string{"sudo modprobe kvm_amd;"}},
		{"a node without a driver", both(openError(unix.ENXIO), both(cpu(amd), modules())), true, []string{"sudo modprobe kvm_amd;"}},
		{"switched off", both(openError(unix.ENOENT), both(cpu("flags : fpu\n"), modules())), true, []string{"neither VT-x nor AMD-V: switch it on in the firmware"}},
		{"container", both(openError(unix.ENOENT), both(cpu(intel), modules("kvm_intel"))), true, []string{"pass the device in (--device /dev/kvm)"}},
		{"no right", openError(unix.EACCES), true, []string{"BAD /dev/kvm: permission denied\n    join its group and log in again: sudo usermod -aG kvm $USER"}},
		{"root's alone", both(openError(unix.EPERM), func(h *host) { h.group = func(string) string { return "" } }), true, []string{"sudo setfacl -m u:$USER:rw /dev/kvm"}},
		{"busy", func(h *host) {
			h.probe = func(string) (vmm.HostInfo, error) {
				return vmm.HostInfo{}, fmt.Errorf("KVM_CREATE_VM: %w", unix.EBUSY)
			}
		}, true, []string{"BAD KVM_CREATE_VM: device or resource busy\n    another hypervisor"}},
		{"odd", func(h *host) {
			h.probe = func(string) (vmm.HostInfo, error) { return vmm.HostInfo{}, errors.New("a\nb") }
		}, true, []string{"BAD a; b\n    see what the kernel says"}},
		{"old kernel", info(func(i *vmm.HostInfo) { i.Missing = []string{"KVM_CAP_X", "KVM_CAP_Y"} }), true, []string{"BAD KVM lacks KVM_CAP_X, KVM_CAP_Y\n    boot a newer Linux kernel"}},
		{"drifting TSC", info(func(i *vmm.HostInfo) { i.InvariantTSC = false }), false, []string{"--  the host does not keep its time by the TSC"}},
		{"no seccomp", info(func(i *vmm.HostInfo) { i.Seccomp = false }), true, []string{"BAD this Linux kernel has no seccomp filters\n    run machines with -confine off"}},
		{"no Landlock", info(func(i *vmm.HostInfo) { i.Landlock = 0 }), false, []string{"--  no Landlock: seccomp alone confines the monitor\n    boot Linux 5.13"}},
		{"huge pages", func(h *host) { h.readFile = func(string) ([]byte, error) { return []byte("512\n"), nil } }, false, []string{"ok  512 free 2 MiB pages for -hugepages"}},
		{"ping", func(h *host) {
			h.readFile = func(string) ([]byte, error) { return []byte("0\t2147483647\n"), nil }
		}, false, []string{"ok  guests can ping beyond their gateway\n"}},
		{"ping by a supplementary group", func(h *host) {
			h.readFile = func(string) ([]byte, error) { return []byte("100\t100\n"), nil }
		}, false, []string{"ok  guests can ping beyond their gateway\n"}},
		{"no ping", func(h *host) {
			h.readFile = func(string) ([]byte, error) { return []byte("1\t0\n"), nil }
		}, false, []string{"--  guests cannot ping beyond", "    sudo sysctl -w net.ipv4.ping_group_range="}},
		{"unknown ping", func(h *host) {}, false, []string{"--  it is not known whether guests can ping"}},
		{"odd ping", func(h *host) {
			h.readFile = func(string) ([]byte, error) { return []byte("all"), nil }
		}, false, []string{"ok  it is not known whether guests can ping"}},
		{"no kernel", func(h *host) {
			h.kernel = func() (string, error) { return "", &kernels.Error{Text: "none", Kind: kernels.ErrNotCached} }
		}, false, []string{"--  no NetBSD kernel fetched yet", "    smolvmm kernel fetch"}},
		{"no cache", func(h *host) {
			h.kernel = func() (string, error) { return "", &kernels.Error{Text: "set HOME", Kind: kernels.ErrCache} }
		}, false, []string{"--  no NetBSD kernel can be looked for\n    set HOME"}},
		{"both programs", func(h *host) {}, false, []string{"ok  all commands: /bin/full\n"}},
		{"one program", func(h *host) {
			h.full = func() (string, error) { return "", errors.New("nowhere") }
		}, false, []string{"--  only boots, demo and doctor: smolvmm-full is neither beside smolvmm nor in PATH\n    " + installBoth}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := host{
				arch: "amd64", group: func(string) string { return "kvm" }, groups: func() ([]int, error) { return []int{100, 1000}, nil }, kernel: func() (string, error) { return "/k", nil },
				probe:    func(string) (vmm.HostInfo, error) { return good, nil },
				full:     func() (string, error) { return "/bin/full", nil },
				readFile: func(string) ([]byte, error) { return nil, fs.ErrNotExist },
			}
			modules("kvm_intel")(&h)
			c.edit(&h)
			var out bytes.Buffer
			err := h.report(Streams{Out: &out})
			var st *StatusError
			if c.bad != (errors.As(err, &st) && st.Status == StatusMonitor) || c.bad != strings.Contains(out.String(), "BAD") {
				t.Errorf("%v", err)
			}
			clitest.MustContain(t, "the report", out.String(), c.want...)
		})
	}
}

// TestDoctorHere: on this host doctor says whether a machine can run.
func TestDoctorHere(t *testing.T) {
	r := invoke(t, nil, "doctor")
	if ok := clitest.KvmError() == nil; (r.Status == 0) != ok {
		t.Errorf("%+v, although ProbeKVM says %v", r, clitest.KvmError())
	}
}

func TestGroupOf(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if g := groupOf(f); g != "" {
		t.Errorf("a file for its owner alone: group %q", g)
	}
	if g := groupOf(f + "no"); g != "" {
		t.Errorf("no file: group %q", g)
	}
}
