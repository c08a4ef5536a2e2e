package vmm

import (
	"errors"
	"fmt"
	"time"

	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/ports"
	"github.com/smolvmm/smolvmm/pvh"
	"github.com/smolvmm/smolvmm/pvh/acpi"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// makeRAM makes the guest's memory, or takes it over from a state.
func (m *Machine) makeRAM(from *State) (err error) {
	if from == nil {
		if m.mem, err = guestmem.New(m.cfg.Memory, m.cfg.Pages); err != nil {
			return &ConfigError{err}
		}
		m.timeline.add("memory ready", time.Now())
		return nil
	}
	if from.Memory != m.cfg.Memory {
		return &ConfigError{fmt.Errorf("restore: the state has %d bytes of memory, the configuration %d", from.Memory, m.cfg.Memory)}
	}
	m.mem, from.mem = from.mem, nil // the machine's now
	return nil
}

// loadKernel puts the kernel and what it is told into memory.
func (m *Machine) loadKernel() (regs pvh.Regs, err error) {
	transports := m.cfg.transports()
	p := pvh.Params{CPUs: m.cfg.CPUs, LevelPins: levelPins(transports), FreshMemory: true}
	args := virtioArgs(transports)
	if m.cfg.ACPI {
		a := acpiMachine(m.cfg.CPUs, args)
		if p.ACPI, err = acpi.Tables(pvh.ACPIAddr, a); err != nil {
			return regs, err
		}
		p.ResetCode = acpi.ResetCode(a)
		args = nil // a kernel that reads both would find every device twice
	}
	if p.Cmdline, err = pvh.Cmdline(m.cfg.Cmdline, args); err != nil {
		return regs, &ConfigError{err}
	}
	var closers []func() error
	defer func() {
		for _, c := range closers {
			err = errors.Join(err, c())
		}
	}()
	open := func(f File) (pvh.File, error) {
		r, size, closeFn, err := f.open()
		if err != nil {
			return pvh.File{}, &ConfigError{err}
		}
		closers = append(closers, closeFn)
		return pvh.File{R: r, Size: size, Name: f.name()}, nil
	}
	kernel, err := open(m.cfg.Kernel)
	if err != nil {
		return regs, err
	}
	for _, f := range m.cfg.Initrds {
		i, err := open(f)
		if err != nil {
			return regs, err
		}
		p.Modules = append(p.Modules, i)
	}
	e, err := pvh.Load(m.mem, kernel, p)
	if err != nil {
		return regs, &ConfigError{err}
	}
	if e.OS == "NetBSD" && len(p.Modules) > 0 {
		m.log.Warn("NetBSD before December 2025 ignores -initrd", "kernel", kernel.Name)
	}
	m.log.Debug("kernel loaded", "name", kernel.Name, "os", e.OS, "entry", fmt.Sprintf("%#x", e.EIP), "cmdline", p.Cmdline)
	m.timeline.add("kernel loaded", time.Now())
	return e.Regs(), nil
}

// virtioArgs are the first n transports as the kernel is told of them.
func virtioArgs(n int) []pvh.VirtioMMIO {
	var out []pvh.VirtioMMIO
	for i := range n {
		out = append(out, pvh.VirtioMMIO{Size: mmio.RegionSize, Base: mmioBase + uint64(i)*mmioStride, IRQ: virtioPins[i]})
	}
	return out
}

// acpiMachine is what ACPI's tables tell of the machine.
func acpiMachine(cpus int, transports []pvh.VirtioMMIO) acpi.Machine {
	a := acpi.Machine{
		CPUs: cpus, COM1: portCOM1, COM1IRQ: irqCOM1, RTC: portRTC, FwCfg: portFwCfg,
		// Bit 2 resets as it rises, with bit 1 for a hard reset (ICH9 §13.7.5).
		ResetPort: ports.ResetControl, ResetValue: 0x06,
	}
	for _, t := range transports {
		a.Virtio = append(a.Virtio, acpi.Virtio{Base: uint32(t.Base), Size: uint32(t.Size), Pin: t.IRQ})
	}
	return a
}

// levelPins has the bits of the first n transports' pins.
func levelPins(n int) (bits uint32) {
	for _, p := range virtioPins[:n] {
		bits |= 1 << p
	}
	return bits
}
