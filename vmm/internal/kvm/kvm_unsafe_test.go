package kvm

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// TestLayout holds the structures against the sizes of linux/kvm.h for x86-64
// and against gokvm's, an independent transcription, where that has them.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name           string
		ours, c, gokvm uintptr // gokvm 0: it has none, or is known to differ
	}{
		{"kvm_regs", unsafe.Sizeof(Regs{}), 144, unsafe.Sizeof(gokvm.Regs{})},
		{"kvm_sregs", unsafe.Sizeof(Sregs{}), 312, unsafe.Sizeof(gokvm.Sregs{})},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24, unsafe.Sizeof(gokvm.Segment{})},
		{"kvm_dtable", unsafe.Sizeof(DTable{}), 16, unsafe.Sizeof(gokvm.Descriptor{})},
		{"kvm_userspace_memory_region", unsafe.Sizeof(UserspaceMemoryRegion{}), 32, unsafe.Sizeof(gokvm.UserspaceMemoryRegion{})},
		{"kvm_irq_level", unsafe.Sizeof(IRQLevel{}), 8, 0},
		{"kvm_irqchip", unsafe.Sizeof(IRQChip{}), 520, unsafe.Sizeof(gokvm.IRQChip{})},
		{"kvm_pit_config", unsafe.Sizeof(PITConfig{}), 64, 0},
		{"kvm_pit_state2", unsafe.Sizeof(PITState{}), 112, unsafe.Sizeof(gokvm.PITState2{})},
		{"kvm_reinject_control", unsafe.Sizeof(reinject{}), 32, 0},
		{"kvm_ioeventfd", unsafe.Sizeof(IOEventFD{}), 64, 0},
		{"kvm_clock_data", unsafe.Sizeof(ClockData{}), 48, unsafe.Sizeof(gokvm.ClockData{})},
		{"kvm_enable_cap", unsafe.Sizeof(enableCapArg{}), 104, 0},
		{"kvm_msr_entry", unsafe.Sizeof(MSREntry{}), 16, unsafe.Sizeof(gokvm.MSREntry{})},
		{"kvm_lapic_state", unsafe.Sizeof(LAPIC{}), 1024, unsafe.Sizeof(gokvm.LAPICState{})},
		{"kvm_cpuid_entry2", unsafe.Sizeof(CPUIDEntry{}), 40, unsafe.Sizeof(gokvm.CPUIDEntry2{})},
		{"kvm_mp_state", unsafe.Sizeof(MPState(0)), 4, unsafe.Sizeof(gokvm.MPState{})},
		{"kvm_vcpu_events", unsafe.Sizeof(VCPUEvents{}), 64, 0},
		{"kvm_debugregs", unsafe.Sizeof(DebugRegs{}), 128, unsafe.Sizeof(gokvm.DebugRegs{})},
		{"kvm_xsave", unsafe.Sizeof(XSave{}), 4096, 0},
		{"kvm_xcrs", unsafe.Sizeof(XCRs{}), 392, unsafe.Sizeof(gokvm.XCRS{})},
		{"kvm_run head", unsafe.Offsetof(runArea{}.data), 32, 0},
		{"kvm_run.immediate_exit", unsafe.Offsetof(runArea{}.immediateExit), 1, 0},
		{"kvm_run.exit_reason", unsafe.Offsetof(runArea{}.exitReason), 8, 0},
	} {
		if c.ours != c.c {
			t.Errorf("%s: %d, linux/kvm.h has %d", c.name, c.ours, c.c)
		}
		if c.gokvm != 0 && c.ours != c.gokvm {
			t.Errorf("%s: %d, gokvm has %d", c.name, c.ours, c.gokvm)
		}
	}
}

// TestRequestNumbers rebuilds each number from its parts with gokvm's builders.
func TestRequestNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		ours, nrs uintptr
	}{
		{"KVM_CREATE_VM", createVM, gokvm.IIO(0x01)},
		{"KVM_CREATE_VCPU", createVCPU, gokvm.IIO(0x41)},
		{"KVM_RUN", run, gokvm.IIO(0x80)},
		{"KVM_GET_REGS", getRegs, gokvm.IIOR(0x81, unsafe.Sizeof(Regs{}))},
		{"KVM_SET_REGS", setRegs, gokvm.IIOW(0x82, unsafe.Sizeof(Regs{}))},
		{"KVM_GET_SREGS", getSregs, gokvm.IIOR(0x83, unsafe.Sizeof(Sregs{}))},
		{"KVM_SET_SREGS", setSregs, gokvm.IIOW(0x84, unsafe.Sizeof(Sregs{}))},
		{"KVM_SET_USER_MEMORY_REGION", setUserMemoryRegion, gokvm.IIOW(0x46, unsafe.Sizeof(UserspaceMemoryRegion{}))},
		{"KVM_IRQ_LINE", irqLine, gokvm.IIOW(0x61, unsafe.Sizeof(IRQLevel{}))},
		{"KVM_GET_IRQCHIP", getIRQChip, gokvm.IIOWR(0x62, unsafe.Sizeof(IRQChip{}))},
		{"KVM_IOEVENTFD", ioeventfd, gokvm.IIOW(0x79, unsafe.Sizeof(IOEventFD{}))},
		{"KVM_CREATE_PIT2", createPIT2, gokvm.IIOW(0x77, unsafe.Sizeof(PITConfig{}))},
		{"KVM_GET_PIT2", getPIT2, gokvm.IIOR(0x9f, unsafe.Sizeof(PITState{}))},
		{"KVM_SET_PIT2", setPIT2, gokvm.IIOW(0xa0, unsafe.Sizeof(PITState{}))},
		{"KVM_GET_CLOCK", getClock, gokvm.IIOR(0x7c, unsafe.Sizeof(ClockData{}))},
		{"KVM_GET_LAPIC", getLAPIC, gokvm.IIOR(0x8e, unsafe.Sizeof(LAPIC{}))},
		{"KVM_GET_VCPU_EVENTS", getVCPUEvents, gokvm.IIOR(0x9f, unsafe.Sizeof(VCPUEvents{}))},
		{"KVM_GET_DEBUGREGS", getDebugRegs, gokvm.IIOR(0xa1, unsafe.Sizeof(DebugRegs{}))},
		{"KVM_GET_XSAVE", getXSave, gokvm.IIOR(0xa4, unsafe.Sizeof(XSave{}))},
		{"KVM_SET_XCRS", setXCRs, gokvm.IIOW(0xa7, unsafe.Sizeof(XCRs{}))},
		{"KVM_SET_CPUID2", setCPUID2, gokvm.IIOW(0x90, unsafe.Offsetof(cpuid2{}.Entries))},
		{"KVM_GET_MSRS", getMSRs, gokvm.IIOWR(0x88, unsafe.Offsetof(msrs{}.Entries))},
		{"KVM_ENABLE_CAP", enableCap, gokvm.IIOW(0xa3, unsafe.Sizeof(enableCapArg{}))},
	} {
		if c.ours != c.nrs {
			t.Errorf("%s: %#x, want %#x", c.name, c.ours, c.nrs)
		}
	}
}

func TestExitNames(t *testing.T) {
	if ExitMMIO.String() != "mmio" || ExitReason(4294967295).String() != "exit-4294967295" || ExitReason(40).String() != "exit-40" {
		t.Error(ExitMMIO, ExitReason(4294967295), ExitReason(40))
	}
}

func openKVM(t *testing.T) *System {
	t.Helper()
	s, err := Open("/dev/kvm")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skipf("NOT RUN: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestPortOut runs three instructions of real mode: mov $0x42, %al;
// out %al, $0x10; hlt.
func TestPortOut(t *testing.T) {
	s := openKVM(t)
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	ram, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(ram)
	copy(ram, []byte{0xb0, 0x42, 0xe6, 0x10, 0xf4})
	if err := vm.SetMemory(UserspaceMemoryRegion{GuestPhysAddr: 0x1000, MemorySize: 4096, UserspaceAddr: hostAddr(ram)}); err != nil {
		t.Fatal(err)
	}
	n, err := s.RunSize()
	if err != nil {
		t.Fatal(err)
	}
	c, err := vm.CreateVCPU(0, n)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sr, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	sr.CS.Base, sr.CS.Selector = 0, 0
	if err := errors.Join(c.SetSregs(sr), c.SetRegs(Regs{RIP: 0x1000, RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	c.SetImmediateExit(true)
	for _, freed := range []bool{false, true} {
		if e := c.Run(freed); e != unix.EINTR {
			t.Fatalf("KVM_RUN with immediate_exit: %v, want EINTR", e)
		}
	}
	c.SetImmediateExit(false)
	if e := c.Run(true); e != 0 || c.Reason() != ExitIO {
		t.Fatalf("KVM_RUN: %v, exit %v; want an I/O exit", e, c.Reason())
	}
	io, err := c.IO()
	if err != nil || !io.Out || io.Port != 0x10 || io.Size != 1 || io.Count != 1 || io.Data[0] != 0x42 {
		t.Fatalf("exit %+v, %v", io, err)
	}
	if e := c.Run(false); e != 0 || c.Reason() != ExitHLT {
		t.Fatalf("KVM_RUN: %v, exit %v; want HLT", e, c.Reason())
	}
}

// TestCreateErrors: a call that fails says which and why.
func TestCreateErrors(t *testing.T) {
	if _, err := Open("/dev/null"); err == nil {
		t.Error("/dev/null passes for KVM")
	}
	s := openKVM(t)
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	var e *Error
	if _, err := vm.CreateVCPU(-1, 4096); !errors.As(err, &e) || e.Op != "KVM_CREATE_VCPU" {
		t.Errorf("vCPU -1: %v", err)
	}
	if err := vm.SetIRQLine(5, true); !errors.As(err, &e) || !errors.Is(err, unix.ENXIO) {
		t.Errorf("a pin without an irqchip: %v, want ENXIO", err)
	}
}

func hostAddr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
