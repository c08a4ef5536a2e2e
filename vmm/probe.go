package vmm

import (
	"errors"

	"github.com/smolvmm/smolvmm/vmm/internal/jail"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// HostInfo is what a host offers machines.
type HostInfo struct {
	Missing      []string // KVM extensions that machines need and the host lacks
	TSCKHz       uint32   // guest TSC frequency, kHz; 0 if unknown
	InvariantTSC bool
	MaxVCPUs     int
	Seccomp      bool
	Landlock     int // ABI version; 0: none
}

// ProbeKVM looks at the KVM device at path without leaving anything behind. An
// error says that no machine can be made here.
func ProbeKVM(path string) (HostInfo, error) {
	var info HostInfo
	sys, err := kvm.Open(path)
	if err != nil {
		return info, err
	}
	defer sys.Close()
	for _, r := range required {
		if sys.Check(r.cap) == 0 {
			info.Missing = append(info.Missing, r.name)
		}
	}
	info.MaxVCPUs = min(sys.Check(kvm.CapMaxVCPUs), MaxCPUs)
	support := jail.Probe()
	info.Seccomp, info.Landlock = support.Seccomp, support.Landlock
	h, err := openHypervisor(Config{})
	if err == nil {
		err = h.populate(1)
	}
	info.TSCKHz, info.InvariantTSC = h.host.TSCKHz, h.host.InvariantTSC
	return info, errors.Join(err, h.close())
}
