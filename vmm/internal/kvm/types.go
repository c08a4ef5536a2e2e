// Package kvm is the KVM API of Linux (Documentation/virt/kvm/api.rst), as much
// of it as smolvmm uses: ioctls and their structures, nothing else. It imports
// the standard library and x/sys only; unsafe stays in *_unsafe.go.
//
// Structures are laid out as in linux/kvm.h and asm/kvm.h of x86-64; a test
// holds each size and ioctl number against the C header's and against gokvm's.
package kvm

import "sync"

// ioctl numbers: _IO*(0xAE, nr, size), linux/kvm.h.
const (
	getAPIVersion       = 0xae00
	createVM            = 0xae01
	checkExtension      = 0xae03
	getVCPUMmapSize     = 0xae04
	getSupportedCPUID   = 0xc008ae05
	getMSRIndexList     = 0xc004ae02
	createVCPU          = 0xae41
	setUserMemoryRegion = 0x4020ae46
	setTSSAddr          = 0xae47
	setIdentityMapAddr  = 0x4008ae48
	createIRQChip       = 0xae60
	irqLine             = 0x4008ae61
	getIRQChip          = 0xc208ae62
	setIRQChip          = 0x8208ae63
	createPIT2          = 0x4040ae77
	getPIT2             = 0x8070ae9f
	setPIT2             = 0x4070aea0
	reinjectControl     = 0xae71
	ioeventfd           = 0x4040ae79
	setClock            = 0x4030ae7b
	getClock            = 0x8030ae7c
	setTSCKHz           = 0xaea2
	getTSCKHz           = 0xaea3
	enableCap           = 0x4068aea3
	run                 = 0xae80
	getRegs             = 0x8090ae81
	setRegs             = 0x4090ae82
	getSregs            = 0x8138ae83
	setSregs            = 0x4138ae84
	getMSRs             = 0xc008ae88
	setMSRs             = 0x4008ae89
	getLAPIC            = 0x8400ae8e
	setLAPIC            = 0x4400ae8f
	setCPUID2           = 0x4008ae90
	getMPState          = 0x8004ae98
	setMPState          = 0x4004ae99
	getVCPUEvents       = 0x8040ae9f
	setVCPUEvents       = 0x4040aea0
	getDebugRegs        = 0x8080aea1
	setDebugRegs        = 0x4080aea2
	getXSave            = 0x9000aea4
	setXSave            = 0x5000aea5
	getXCRs             = 0x8188aea6
	setXCRs             = 0x4188aea7
	kvmclockCtrl        = 0xaead
)

// Ioctls lists the requests that a running machine makes after its set-up, for
// a system call filter: KVM_RUN first, as it is by far the most frequent.
func Ioctls() []uint32 {
	return []uint32{
		run, irqLine,
		getRegs, getSregs, getMSRs, getLAPIC, getMPState, getVCPUEvents, getDebugRegs, getXSave, getXCRs,
		getIRQChip, getPIT2, getClock, getTSCKHz, kvmclockCtrl,
	}
}

// Cap is a KVM extension's number, for System.Check (linux/kvm.h KVM_CAP_*).
type Cap uint32

const (
	CapIRQChip         Cap = 0
	CapUserMemory      Cap = 3
	CapSetTSSAddr      Cap = 4
	CapExtCPUID        Cap = 7
	CapNrVCPUs         Cap = 9
	CapMPState         Cap = 14
	CapPIT2            Cap = 33
	CapIOEventFD       Cap = 36
	CapSetIdentityMap  Cap = 37
	CapAdjustClock     Cap = 39
	CapVCPUEvents      Cap = 41
	CapDebugRegs       Cap = 50
	CapXSave           Cap = 55
	CapXCRS            Cap = 56
	CapTSCControl      Cap = 60
	CapGetTSCKHz       Cap = 61
	CapMaxVCPUs        Cap = 66
	CapImmediateExit   Cap = 136
	CapX86DisableExits Cap = 143
	CapExitOnEmulation Cap = 204
	CapXSave2          Cap = 208
)

// ExitReason is why KVM_RUN came back (api.rst §5, KVM_EXIT_*).
type ExitReason uint32

const (
	ExitUnknown       ExitReason = 0
	ExitException     ExitReason = 1
	ExitIO            ExitReason = 2
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitIRQWindow     ExitReason = 7
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
)

var exitNames = sync.OnceValue(func() map[ExitReason]string {
	return map[ExitReason]string{
		ExitUnknown: "unknown", ExitException: "exception", ExitIO: "io", ExitHypercall: "hypercall",
		ExitDebug: "debug", ExitHLT: "hlt", ExitMMIO: "mmio", ExitIRQWindow: "irq-window",
		ExitShutdown: "shutdown", ExitFailEntry: "fail-entry", ExitIntr: "intr",
		ExitInternalError: "internal-error", ExitSystemEvent: "system-event",
	}
})

func (r ExitReason) String() string {
	if s, ok := exitNames()[r]; ok {
		return s
	}
	return "exit-" + itoa(uint32(r))
}

func itoa(v uint32) string {
	var b [10]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}

// UserspaceMemoryRegion is struct kvm_userspace_memory_region.
type UserspaceMemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64
	UserspaceAddr uint64
}

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is struct kvm_dtable.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// IRQLevel is struct kvm_irq_level.
type IRQLevel struct {
	IRQ   uint32
	Level uint32
}

// IRQChip is struct kvm_irqchip: ChipID 0 and 1 are the PICs, 2 the IOAPIC.
type IRQChip struct {
	ChipID uint32
	_      uint32
	Chip   [512]byte
}

// PITConfig is struct kvm_pit_config.
type PITConfig struct {
	Flags uint32
	_     [15]uint32
}

// PITSpeakerDummy makes KVM answer port 0x61 too (KVM_PIT_SPEAKER_DUMMY).
const PITSpeakerDummy = 1

// PITState is struct kvm_pit_state2.
type PITState struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// PITChannel is struct kvm_pit_channel_state.
type PITChannel struct {
	Count         uint32
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64
}

type reinject struct {
	Reinject uint8
	_        [31]byte
}

// IOEventFD is struct kvm_ioeventfd.
type IOEventFD struct {
	DataMatch uint64
	Addr      uint64
	Len       uint32
	FD        int32
	Flags     uint32
	_         [36]byte
}

// IOEventFDDataMatch is KVM_IOEVENTFD_FLAG_DATAMATCH.
const IOEventFDDataMatch = 1

// ClockData is struct kvm_clock_data; Clock is kvmclock's time in nanoseconds.
type ClockData struct {
	Clock    uint64
	Flags    uint32
	_        uint32
	Realtime uint64
	HostTSC  uint64
	_        [4]uint32
}

type enableCapArg struct {
	Cap   uint32
	Flags uint32
	Args  [4]uint64
	_     [64]byte
}

// MSREntry is struct kvm_msr_entry.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

const maxMSRs = 256

type msrs struct {
	N       uint32
	_       uint32
	Entries [maxMSRs]MSREntry
}

type msrList struct {
	N       uint32
	Indices [maxMSRs]uint32
}

// LAPIC is struct kvm_lapic_state: the APIC's register page, one register in 16 bytes.
type LAPIC struct{ Regs [1024]byte }

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function           uint32
	Index              uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

// CPUIDSignificantIndex is KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Index takes part in the match.
const CPUIDSignificantIndex = 1

// MaxCPUIDEntries bounds what System.SupportedCPUID and VCPU.SetCPUID carry
// (KVM_MAX_CPUID_ENTRIES of the kernel).
const MaxCPUIDEntries = 256

type cpuid2 struct {
	N       uint32
	_       uint32
	Entries [MaxCPUIDEntries]CPUIDEntry
}

// VCPUEvents is struct kvm_vcpu_events, opaque to the monitor.
type VCPUEvents struct{ Raw [64]byte }

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64
	_     [9]uint64
}

// XSave is struct kvm_xsave: the XSAVE area of a guest whose features fit in it.
type XSave struct{ Region [4096]byte }

// XCRs is struct kvm_xcrs.
type XCRs struct {
	N     uint32
	Flags uint32
	XCR   [16]XCR
	_     [16]uint64
}

// XCR is struct kvm_xcr.
type XCR struct {
	Index uint32
	_     uint32
	Value uint64
}

// MPState is KVM_MP_STATE_*.
type MPState uint32

const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1
	MPInitReceived  MPState = 2
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)
