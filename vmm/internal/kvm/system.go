package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// APIVersion is the only one there has been since Linux 2.6.22 (api.rst §4.1).
const APIVersion = 12

// System is an open /dev/kvm.
type System struct{ fd int }

// Open opens the KVM device at path, usually /dev/kvm.
func Open(path string) (*System, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return FromFD(fd)
}

// FromFD takes over an open KVM device.
func FromFD(fd int) (*System, error) {
	v, err := ioctl(fd, "KVM_GET_API_VERSION", getAPIVersion, 0)
	if err == nil && v != APIVersion {
		err = fmt.Errorf("KVM API version %d, %d wanted", v, APIVersion)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &System{fd: fd}, nil
}

// Close closes the device; machines made from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }

// Check asks for an extension: 0 is no, above it the extension's own meaning.
func (s *System) Check(c Cap) int {
	v, err := ioctl(s.fd, "KVM_CHECK_EXTENSION", checkExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return v
}

// RunSize is the size in bytes of a vCPU's kvm_run area.
func (s *System) RunSize() (int, error) {
	return ioctl(s.fd, "KVM_GET_VCPU_MMAP_SIZE", getVCPUMmapSize, 0)
}

// SupportedCPUID is what host and KVM together can offer a guest.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	var c cpuid2
	c.N = MaxCPUIDEntries
	if _, err := ioctlPtr(s.fd, "KVM_GET_SUPPORTED_CPUID", getSupportedCPUID, &c); err != nil {
		return nil, err
	}
	return append([]CPUIDEntry(nil), c.Entries[:min(c.N, MaxCPUIDEntries)]...), nil
}

// MSRIndices are the MSRs that make up a vCPU's state.
func (s *System) MSRIndices() ([]uint32, error) {
	var l msrList
	l.N = maxMSRs
	if _, err := ioctlPtr(s.fd, "KVM_GET_MSR_INDEX_LIST", getMSRIndexList, &l); err != nil {
		return nil, err
	}
	return append([]uint32(nil), l.Indices[:min(l.N, maxMSRs)]...), nil
}

// CreateVM makes an empty virtual machine.
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl(s.fd, "KVM_CREATE_VM", createVM, 0)
	if err != nil {
		return nil, err
	}
	return &VM{fd: fd}, nil
}

// VM is a virtual machine.
type VM struct{ fd int }

// Close drops the machine; it is gone when its vCPUs are closed too.
func (v *VM) Close() error { return unix.Close(v.fd) }

func set[T any](fd int, op string, req uintptr, p *T) error {
	_, err := ioctlPtr(fd, op, req, p)
	return err
}

func get[T any](fd int, op string, req uintptr) (T, error) {
	var v T
	_, err := ioctlPtr(fd, op, req, &v)
	return v, err
}

// SetTSSAddr places the three pages that VT-x needs for real mode (api.rst §4.9).
func (v *VM) SetTSSAddr(gpa uint32) error {
	_, err := ioctl(v.fd, "KVM_SET_TSS_ADDR", setTSSAddr, uintptr(gpa))
	return err
}

// SetIdentityMapAddr places VT-x's identity page table (api.rst §4.62); it comes before the first vCPU.
func (v *VM) SetIdentityMapAddr(gpa uint64) error {
	return set(v.fd, "KVM_SET_IDENTITY_MAP_ADDR", setIdentityMapAddr, &gpa)
}

// CreateIRQChip makes PICs, IOAPIC and a local APIC for each vCPU to come.
func (v *VM) CreateIRQChip() error {
	_, err := ioctl(v.fd, "KVM_CREATE_IRQCHIP", createIRQChip, 0)
	return err
}

// CreatePIT makes the i8254 at ports 0x40–0x43, and 0x61 as a dummy.
func (v *VM) CreatePIT() error {
	return set(v.fd, "KVM_CREATE_PIT2", createPIT2, &PITConfig{Flags: PITSpeakerDummy})
}

// SetPITReinject says whether ticks that the guest missed are made up for.
func (v *VM) SetPITReinject(on bool) error {
	var r reinject
	if on {
		r.Reinject = 1
	}
	return set(v.fd, "KVM_REINJECT_CONTROL", reinjectControl, &r)
}

// SetMemory adds, moves or (with size 0) removes a memory slot.
func (v *VM) SetMemory(r UserspaceMemoryRegion) error {
	return set(v.fd, "KVM_SET_USER_MEMORY_REGION", setUserMemoryRegion, &r)
}

// SetIRQLine sets the level of an interrupt controller pin.
func (v *VM) SetIRQLine(gsi uint32, high bool) error {
	l := IRQLevel{IRQ: gsi}
	if high {
		l.Level = 1
	}
	return set(v.fd, "KVM_IRQ_LINE", irqLine, &l)
}

// AddIOEventFD lets a guest's write ring fd without an exit to the monitor.
func (v *VM) AddIOEventFD(f IOEventFD) error { return set(v.fd, "KVM_IOEVENTFD", ioeventfd, &f) }

// EnableCap turns on an extension.
func (v *VM) EnableCap(c Cap, args ...uint64) error {
	a := enableCapArg{Cap: uint32(c)}
	copy(a.Args[:], args)
	return set(v.fd, "KVM_ENABLE_CAP", enableCap, &a)
}

// IRQChip reads interrupt controller id (0, 1: PIC, 2: IOAPIC).
func (v *VM) IRQChip(id uint32) (IRQChip, error) {
	c := IRQChip{ChipID: id}
	err := set(v.fd, "KVM_GET_IRQCHIP", getIRQChip, &c)
	return c, err
}

// SetIRQChip writes an interrupt controller's state.
func (v *VM) SetIRQChip(c IRQChip) error { return set(v.fd, "KVM_SET_IRQCHIP", setIRQChip, &c) }

// PIT reads the i8254's state.
func (v *VM) PIT() (PITState, error) { return get[PITState](v.fd, "KVM_GET_PIT2", getPIT2) }

// SetPIT writes the i8254's state.
func (v *VM) SetPIT(p PITState) error { return set(v.fd, "KVM_SET_PIT2", setPIT2, &p) }

// Clock reads kvmclock.
func (v *VM) Clock() (ClockData, error) { return get[ClockData](v.fd, "KVM_GET_CLOCK", getClock) }

// SetClock sets kvmclock; only Clock counts, in nanoseconds.
func (v *VM) SetClock(ns uint64) error {
	return set(v.fd, "KVM_SET_CLOCK", setClock, &ClockData{Clock: ns})
}

// CreateVCPU makes vCPU id with a kvm_run area of runSize bytes.
func (v *VM) CreateVCPU(id, runSize int) (*VCPU, error) {
	fd, err := ioctl(v.fd, "KVM_CREATE_VCPU", createVCPU, uintptr(id))
	if err != nil {
		return nil, err
	}
	mapping, area, err := mapRun(fd, runSize)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &VCPU{fd: fd, ID: id, mapping: mapping, area: area}, nil
}
