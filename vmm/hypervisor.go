package vmm

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/internal/cpu"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// hypervisor is what KVM gives a machine: everything that needs neither its
// memory nor its devices.
type hypervisor struct {
	sys   *kvm.System
	vm    *kvm.VM
	vcpus []*kvm.VCPU
	msrs  []uint32 // what a vCPU's state is made of; a confined process cannot ask any more
	host  cpu.Host
}

// required are the extensions without which nothing works.
var required = []struct {
	cap  kvm.Cap
	name string
}{
	{kvm.CapIRQChip, "KVM_CAP_IRQCHIP"}, {kvm.CapUserMemory, "KVM_CAP_USER_MEMORY"},
	{kvm.CapPIT2, "KVM_CAP_PIT2"}, {kvm.CapIOEventFD, "KVM_CAP_IOEVENTFD"},
	{kvm.CapImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"}, {kvm.CapExtCPUID, "KVM_CAP_EXT_CPUID"},
	{kvm.CapGetTSCKHz, "KVM_CAP_GET_TSC_KHZ"},
}

// missing names the required extensions that a KVM does not have.
func missing(sys *kvm.System) (names []string) {
	for _, r := range required {
		if sys.Check(r.cap) == 0 {
			names = append(names, r.name)
		}
	}
	return names
}

// openHypervisor makes an empty VM.
func openHypervisor(cfg Config) (h *hypervisor, err error) {
	h = &hypervisor{}
	if h.sys, err = openSystem(cfg); err != nil {
		return h, err
	}
	if lack := missing(h.sys); len(lack) > 0 {
		return h, fmt.Errorf("/dev/kvm lacks %s: Linux 4.12 or newer is needed", strings.Join(lack, ", "))
	}
	h.vm, err = h.sys.CreateVM()
	return h, err
}

// populate adds interrupt controllers and vCPUs, in KVM's order: the VT-x pages
// and the controllers come before the first vCPU.
func (h *hypervisor) populate(cpus int) (err error) {
	if err := errors.Join(
		h.vm.SetTSSAddr(tssAddr), h.vm.SetIdentityMapAddr(identityAddr),
		h.vm.CreateIRQChip(), h.vm.CreatePIT(),
	); err != nil {
		return err
	}
	runSize, err := h.sys.RunSize()
	if err != nil {
		return err
	}
	for i := range cpus {
		c, err := h.vm.CreateVCPU(i, runSize)
		if err != nil {
			return err
		}
		h.vcpus = append(h.vcpus, c)
	}
	if h.host.Supported, err = h.sys.SupportedCPUID(); err != nil {
		return err
	}
	if h.msrs, err = h.sys.MSRIndices(); err != nil {
		return err
	}
	if h.host.TSCKHz, err = h.vcpus[bootVCPU].TSCKHz(); err != nil {
		return err
	}
	h.host.InvariantTSC = hostTrustsTSC()
	h.host.Brand = hostBrand()
	return nil
}

// hostTrustsTSC says whether the host keeps its own time by the TSC: then it
// is the same on every processor and never changes its rate, whether or not the
// host's CPUID (a hypervisor's, perhaps) says so too.
func hostTrustsTSC() bool {
	b, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	return err == nil && strings.TrimSpace(string(b)) == "tsc"
}

// hostBrand is the processor's name. One page of /proc/cpuinfo has it, however
// many processors the host has.
func hostBrand() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	var page [4096]byte
	n, _ := f.Read(page[:])
	_, rest, _ := strings.Cut(string(page[:n]), "model name")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimLeft(line, "\t :")
}

func openSystem(cfg Config) (*kvm.System, error) {
	if cfg.KVM == nil {
		return kvm.Open("/dev/kvm")
	}
	// The caller keeps its file.
	fd, err := unix.FcntlInt(cfg.KVM.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.KVM.Name(), err)
	}
	return kvm.FromFD(fd)
}

func (h *hypervisor) close() error {
	var errs []error
	for _, c := range h.vcpus {
		errs = append(errs, c.Close())
	}
	if h.vm != nil {
		errs = append(errs, h.vm.Close())
	}
	if h.sys != nil {
		errs = append(errs, h.sys.Close())
	}
	return errors.Join(errs...)
}
