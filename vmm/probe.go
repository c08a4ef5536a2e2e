package vmm

import (
	"errors"
	"os"

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
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return info, err
	}
	defer dev.Close()
	support := jail.Probe()
	info.Seccomp, info.Landlock = support.Seccomp, support.Landlock
	h, err := openHypervisor(Config{KVM: dev})
	if h.sys != nil {
		info.MaxVCPUs = min(h.sys.Check(kvm.CapMaxVCPUs), MaxCPUs)
		info.Missing = missing(h.sys)
	}
	if len(info.Missing) > 0 {
		return info, h.close()
	}
	if err == nil {
		err = h.populate(1)
	}
	info.TSCKHz, info.InvariantTSC = h.host.TSCKHz, h.host.InvariantTSC
	return info, errors.Join(err, h.close())
}
