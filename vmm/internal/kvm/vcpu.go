package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual CPU. All but SetImmediateExit belongs to the one thread
// that runs it.
type VCPU struct {
	ID      int
	fd      int
	mapping []byte
	area    *runArea
}

// Close unmaps and closes the vCPU; it must not be running.
func (c *VCPU) Close() error { return errors.Join(unix.Munmap(c.mapping), unix.Close(c.fd)) }

// Run enters the guest until an exit. EINTR means that a signal or
// immediate_exit ended it; EAGAIN that the vCPU waits for its INIT-SIPI.
//
// freed gives the Go scheduler's processor (P) of this thread to who needs it at once.
// Without, it is kept until the scheduler's monitor finds that the call takes long, 20 µs
// to 10 ms later, which is the cheaper way for a guest that is back before that.
func (c *VCPU) Run(freed bool) unix.Errno {
	if freed {
		return runFreed(c.fd)
	}
	return runIoctl(c.fd)
}

// Reason is the last exit's.
func (c *VCPU) Reason() ExitReason { return ExitReason(c.area.exitReason) }

// IO is the last ExitIO: Count accesses of Size bytes each, one after another
// in Data, which lies in the kvm_run area and is where IN's answer goes.
type IO struct {
	Port  uint16
	Size  int
	Count int
	Out   bool
	Data  []byte
}

// IO decodes an ExitIO. KVM is trusted only as far as its own area reaches.
func (c *VCPU) IO() (IO, error) {
	e := c.area.io()
	n := uint64(e.size) * uint64(e.count)
	if e.dataOffset > uint64(len(c.mapping)) || n > uint64(len(c.mapping))-e.dataOffset {
		return IO{}, fmt.Errorf("KVM_EXIT_IO: %d bytes at offset %d lie outside kvm_run", n, e.dataOffset)
	}
	return IO{
		Port: e.port, Size: int(e.size), Count: int(e.count), Out: e.direction == 1,
		Data: c.mapping[e.dataOffset : e.dataOffset+n],
	}, nil
}

// MMIO is the last ExitMMIO: address, the bytes (in the kvm_run area, where a
// read's answer goes) and the direction.
func (c *VCPU) MMIO() (addr uint64, data []byte, write bool) {
	e := c.area.mmio()
	return e.addr, e.data[:min(e.len, 8)], e.isWrite != 0
}

// Internal is the last ExitInternalError: KVM_INTERNAL_ERROR_* and, for an
// emulation failure whose bytes KVM gives, the instruction.
func (c *VCPU) Internal() (suberror uint32, insn []byte) {
	e := c.area.internal()
	// struct emulation_failure: ndata, flags, then size and 15 bytes where
	// flags bit 0 (INSTRUCTION_BYTES) is set.
	if e.suberror == 1 && e.ndata >= 3 && e.data[0]&1 != 0 {
		w1, w2 := e.data[1], e.data[2]
		n := min(int(w1&0xff), 15)
		for i := range n {
			if i < 7 {
				insn = append(insn, byte(w1>>(8*(i+1))))
			} else {
				insn = append(insn, byte(w2>>(8*(i-7))))
			}
		}
	}
	return e.suberror, insn
}

// Word is the i-th 64-bit word of the exit's union, for exits without a
// decoder of their own (hardware reasons of unknown and fail-entry).
func (c *VCPU) Word(i int) uint64 { return c.area.word(i) }

// SetImmediateExit makes the next Run, or one that is just about to enter,
// return EINTR at once; with a signal to the thread it ends a running one.
// The kernel reads the byte; among our own threads the caller orders writes.
func (c *VCPU) SetImmediateExit(on bool) {
	var v uint8
	if on {
		v = 1
	}
	c.area.immediateExit = v
}

// Registers and state, each as one ioctl.

func (c *VCPU) Regs() (Regs, error)    { return get[Regs](c.fd, "KVM_GET_REGS", getRegs) }
func (c *VCPU) SetRegs(r Regs) error   { return set(c.fd, "KVM_SET_REGS", setRegs, &r) }
func (c *VCPU) Sregs() (Sregs, error)  { return get[Sregs](c.fd, "KVM_GET_SREGS", getSregs) }
func (c *VCPU) SetSregs(r Sregs) error { return set(c.fd, "KVM_SET_SREGS", setSregs, &r) }
func (c *VCPU) LAPIC() (LAPIC, error)  { return get[LAPIC](c.fd, "KVM_GET_LAPIC", getLAPIC) }
func (c *VCPU) SetLAPIC(l LAPIC) error { return set(c.fd, "KVM_SET_LAPIC", setLAPIC, &l) }
func (c *VCPU) MPState() (MPState, error) {
	return get[MPState](c.fd, "KVM_GET_MP_STATE", getMPState)
}
func (c *VCPU) SetMPState(s MPState) error { return set(c.fd, "KVM_SET_MP_STATE", setMPState, &s) }
func (c *VCPU) Events() (VCPUEvents, error) {
	return get[VCPUEvents](c.fd, "KVM_GET_VCPU_EVENTS", getVCPUEvents)
}
func (c *VCPU) SetEvents(e VCPUEvents) error {
	return set(c.fd, "KVM_SET_VCPU_EVENTS", setVCPUEvents, &e)
}
func (c *VCPU) DebugRegs() (DebugRegs, error) {
	return get[DebugRegs](c.fd, "KVM_GET_DEBUGREGS", getDebugRegs)
}
func (c *VCPU) SetDebugRegs(d DebugRegs) error {
	return set(c.fd, "KVM_SET_DEBUGREGS", setDebugRegs, &d)
}
func (c *VCPU) XSave() (XSave, error)  { return get[XSave](c.fd, "KVM_GET_XSAVE", getXSave) }
func (c *VCPU) SetXSave(x XSave) error { return set(c.fd, "KVM_SET_XSAVE", setXSave, &x) }
func (c *VCPU) XCRs() (XCRs, error)    { return get[XCRs](c.fd, "KVM_GET_XCRS", getXCRs) }
func (c *VCPU) SetXCRs(x XCRs) error   { return set(c.fd, "KVM_SET_XCRS", setXCRs, &x) }

// SetCPUID gives the vCPU its CPUID leaves, once, before the first Run.
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	var a cpuid2
	if len(entries) > MaxCPUIDEntries {
		return fmt.Errorf("KVM_SET_CPUID2: %d leaves, at most %d", len(entries), MaxCPUIDEntries)
	}
	a.N = uint32(copy(a.Entries[:], entries))
	return set(c.fd, "KVM_SET_CPUID2", setCPUID2, &a)
}

// MSRs reads as many of the indices as KVM lets it: it stops at one that this
// vCPU does not have, which the caller skips by asking again behind it.
func (c *VCPU) MSRs(indices []uint32) ([]MSREntry, error) {
	var out []MSREntry
	for len(indices) > 0 {
		var a msrs
		n := min(len(indices), maxMSRs)
		for i, x := range indices[:n] {
			a.Entries[i].Index = x
		}
		a.N = uint32(n)
		got, err := ioctlPtr(c.fd, "KVM_GET_MSRS", getMSRs, &a)
		if err != nil {
			return nil, err
		}
		out = append(out, a.Entries[:got]...)
		if got < n {
			got++
		}
		indices = indices[got:]
	}
	return out, nil
}

// SetMSRs writes the entries and names the first that KVM refuses.
func (c *VCPU) SetMSRs(entries []MSREntry) error {
	for len(entries) > 0 {
		var a msrs
		n := copy(a.Entries[:], entries)
		a.N = uint32(n)
		got, err := ioctlPtr(c.fd, "KVM_SET_MSRS", setMSRs, &a)
		if err != nil {
			return err
		}
		if got < n {
			return fmt.Errorf("KVM_SET_MSRS: MSR %#x refuses %#x", entries[got].Index, entries[got].Data)
		}
		entries = entries[n:]
	}
	return nil
}

// SetTSCKHz sets the guest's TSC frequency in kHz.
func (c *VCPU) SetTSCKHz(khz uint32) error {
	_, err := ioctl(c.fd, "KVM_SET_TSC_KHZ", setTSCKHz, uintptr(khz))
	return err
}

// TSCKHz is the guest's TSC frequency in kHz.
func (c *VCPU) TSCKHz() (uint32, error) {
	v, err := ioctl(c.fd, "KVM_GET_TSC_KHZ", getTSCKHz, 0)
	return uint32(v), err
}

// ClockPaused tells kvmclock that the vCPU was stopped by its host, so that a
// guest's watchdog does not take the gap for a lock-up. A guest without
// kvmclock makes it fail with EINVAL, which is no news.
func (c *VCPU) ClockPaused() error {
	if _, err := ioctl(c.fd, "KVM_KVMCLOCK_CTRL", kvmclockCtrl, 0); err != nil && !isErrno(err, unix.EINVAL) {
		return err
	}
	return nil
}
