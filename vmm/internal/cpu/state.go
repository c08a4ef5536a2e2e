package cpu

import (
	"fmt"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// State is everything of a vCPU that outlives its machine.
type State struct {
	ID      int
	Regs    kvm.Regs
	Sregs   kvm.Sregs
	XSave   kvm.XSave
	XCRs    kvm.XCRs
	Debug   kvm.DebugRegs
	LAPIC   kvm.LAPIC
	MSRs    []kvm.MSREntry
	Events  kvm.VCPUEvents
	MPState kvm.MPState
	TSCKHz  uint32
}

const (
	// msrTSC is the time-stamp counter (Intel SDM vol. 4, table 2-2).
	msrTSC = 0x10
	// msrTSCDeadline arms the local APIC timer, so it can only be written once
	// the APIC is in TSC-deadline mode (Intel SDM vol. 3A §11.5.4.1).
	msrTSCDeadline = 0x6e0
)

// Save reads the state. The vCPU is stopped, and has re-entered KVM since its
// last exit, so no I/O of it is half done. The multiprocessor state comes
// first: reading it makes KVM take in pending INITs and SIPIs.
func Save(c *kvm.VCPU, msrs []uint32) (s State, err error) {
	s.ID = c.ID
	steps := []struct {
		name string
		do   func() error
	}{
		{"multiprocessor state", func() (e error) { s.MPState, e = c.MPState(); return }},
		{"registers", func() (e error) { s.Regs, e = c.Regs(); return }},
		{"system registers", func() (e error) { s.Sregs, e = c.Sregs(); return }},
		{"XSAVE area", func() (e error) { s.XSave, e = c.XSave(); return }},
		{"extended control registers", func() (e error) { s.XCRs, e = c.XCRs(); return }},
		{"debug registers", func() (e error) { s.Debug, e = c.DebugRegs(); return }},
		{"local APIC", func() (e error) { s.LAPIC, e = c.LAPIC(); return }},
		{"MSRs", func() (e error) { s.MSRs, e = c.MSRs(msrs); return }},
		{"events", func() (e error) { s.Events, e = c.Events(); return }},
		{"TSC frequency", func() (e error) { s.TSCKHz, e = c.TSCKHz(); return }},
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return s, fmt.Errorf("vCPU %d: read %s: %w", c.ID, st.name, err)
		}
	}
	return s, nil
}

// Restore writes a state into a fresh vCPU that has its CPUID; the boot
// processor's comes first. The system registers hold the APIC base, so they come
// before the local APIC; the TSC deadline comes after it; events come last, as
// registers would drop them.
func Restore(c *kvm.VCPU, s State) error {
	var plain, deadline []kvm.MSREntry
	for _, m := range s.MSRs {
		if m.Index == msrTSCDeadline {
			deadline = append(deadline, m)
		} else {
			plain = append(plain, m)
		}
	}
	far := farTSC(c.ID, s)
	steps := []struct {
		name string
		do   func() error
	}{
		{"multiprocessor state", func() error { return c.SetMPState(s.MPState) }},
		{"registers", func() error { return c.SetRegs(s.Regs) }},
		{"system registers", func() error { return c.SetSregs(s.Sregs) }},
		{"extended control registers", func() error { return c.SetXCRs(s.XCRs) }},
		{"XSAVE area", func() error { return c.SetXSave(s.XSave) }},
		{"debug registers", func() error { return c.SetDebugRegs(s.Debug) }},
		{"TSC, far off", func() error { return setMSRs(c, far) }},
		{"MSRs", func() error { return setMSRs(c, plain) }},
		{"local APIC", func() error { return c.SetLAPIC(s.LAPIC) }},
		{"TSC deadline", func() error { return setMSRs(c, deadline) }},
		{"events", func() error { return c.SetEvents(s.Events) }},
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return fmt.Errorf("vCPU %d: write %s: %w", c.ID, st.name, err)
		}
	}
	return nil
}

// farTSC is what to write to the boot processor's TSC before its value. KVM takes
// a write within a second of what the machine's TSC would show for an attempt to
// synchronise with it and changes nothing, where before Linux 6.7 a fresh
// machine's counts from its creation: the TSC of a guest stopped in its first
// second would go back (kvm_synchronize_tsc in arch/x86/kvm/x86.c). A write far
// off makes the true one count; that of the other processors, which follows
// within the second, is to be taken for what it is.
func farTSC(id int, s State) []kvm.MSREntry {
	if id != 0 {
		return nil
	}
	for _, m := range s.MSRs {
		if m.Index == msrTSC {
			const seconds = 16
			return []kvm.MSREntry{{Index: msrTSC, Data: m.Data + seconds*1000*uint64(s.TSCKHz)}}
		}
	}
	return nil
}

// setMSRs writes one by one, so that a register which KVM lists and reads but
// will not take back is passed over when it held nothing.
func setMSRs(c *kvm.VCPU, es []kvm.MSREntry) error {
	if c.SetMSRs(es) == nil {
		return nil
	}
	for _, e := range es {
		if err := c.SetMSRs([]kvm.MSREntry{e}); err != nil && e.Data != 0 {
			return err
		}
	}
	return nil
}
