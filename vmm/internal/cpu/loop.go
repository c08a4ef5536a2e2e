package cpu

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/internal/bus"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// StopKind is why a vCPU cannot go on by itself.
type StopKind int

const (
	// StopAsked: Stop was called.
	StopAsked StopKind = iota
	// StopTripleFault: KVM_EXIT_SHUTDOWN.
	StopTripleFault
	// StopInternalError: KVM_EXIT_INTERNAL_ERROR, an instruction that KVM could not emulate among others.
	StopInternalError
	// StopEntryFailed: KVM_EXIT_FAIL_ENTRY or an exit that this monitor does not ask for.
	StopEntryFailed
	// StopHostError: KVM_RUN itself failed.
	StopHostError
)

// Stop tells of a vCPU's end, with its registers where KVM still gives them.
type Stop struct {
	VCPU   int
	Kind   StopKind
	Detail string
	Regs   kvm.Regs
	Sregs  kvm.Sregs
}

// Counters count a vCPU's exits by kind. They are written by the vCPU's thread
// alone, on cache lines that it shares with no other, and may be read at any time.
type Counters struct {
	_                                                     [64]byte
	IOIn, IOOut, MMIORead, MMIOWrite, Interrupted, Others atomic.Uint64
	// Unclaimed counts accesses that no device answered.
	Unclaimed atomic.Uint64
	_         [64]byte
}

// VCPU runs a vCPU on a thread of its own.
type VCPU struct {
	K        *kvm.VCPU
	Ports    *bus.Bus
	MMIO     *bus.Bus
	Counters Counters
	// Trace, if not nil, is told of every exit before it is served.
	Trace func(vcpu int, reason kvm.ExitReason, addr uint64, data []byte, write bool)

	mu      sync.Mutex // orders the requests below against one another
	wake    sync.Cond
	want    request
	parked  bool
	running bool // Run has set tid and has not returned
	tid     int
}

type request int

const (
	goOn request = iota
	park
	quit
)

// New wraps a vCPU of KVM.
func New(k *kvm.VCPU, ports, mmio *bus.Bus) *VCPU {
	v := &VCPU{K: k, Ports: ports, MMIO: mmio}
	v.wake.L = &v.mu
	return v
}

// Run enters the guest until the vCPU stops. A vCPU that is asked to park waits
// inside Run. The goroutine keeps its thread for good: KVM's vCPU belongs to it.
func (v *VCPU) Run() Stop {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.mu.Lock()
	v.tid, v.running = unix.Gettid(), true
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.running = false
		v.wake.Broadcast()
		v.mu.Unlock()
	}()
	for freed := false; ; {
		switch errno := v.K.Run(freed); errno {
		case 0:
			// Behind a device's register (an interrupt's acknowledgement) the guest
			// asks for more without an exit, and the device's goroutine has to find a
			// processor; between accesses to ports (the console) it is back at once.
			freed = v.K.Reason() == kvm.ExitMMIO
			if s, done := v.serve(); done {
				return s
			}
		case unix.EINTR:
			v.Counters.Interrupted.Add(1)
			// KVM has completed the last exit before it looked at
			// immediate_exit, so this is where the state is whole.
			if v.obey() == quit {
				return Stop{VCPU: v.K.ID, Kind: StopAsked}
			}
		case unix.EAGAIN:
			// A processor that waited for its INIT-SIPI and now has it.
		default:
			return v.stop(StopHostError, "KVM_RUN: "+errno.Error())
		}
	}
}

// obey waits while parked and says what is wanted next.
func (v *VCPU) obey() request {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.want == park {
		v.parked = true
		v.wake.Broadcast()
		v.wake.Wait()
	}
	v.parked = false
	if v.want == goOn {
		v.K.SetImmediateExit(false)
	}
	return v.want
}

// ask sets a request and gets the thread out of the guest: immediate_exit
// catches one that is about to enter, the signal one that is inside. Go's
// runtime uses SIGURG for its own preemption and tolerates strays.
func (v *VCPU) ask(r request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.want == quit {
		return
	}
	v.want = r
	v.K.SetImmediateExit(true)
	v.wake.Broadcast()
	if v.running {
		_ = unix.Tgkill(os.Getpid(), v.tid, unix.SIGURG)
	}
}

// Park asks the vCPU to wait; WaitParked returns when it does, or has ended.
func (v *VCPU) Park() { v.ask(park) }

// WaitParked waits for what Park asked.
func (v *VCPU) WaitParked() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.running && !v.parked {
		v.wake.Wait()
	}
}

// Unpark lets a parked vCPU go on.
func (v *VCPU) Unpark() { v.ask(goOn) }

// Stop ends Run, now or as soon as it begins.
func (v *VCPU) Stop() { v.ask(quit) }

// serve answers an exit; done says that the vCPU cannot go on.
func (v *VCPU) serve() (s Stop, done bool) {
	switch reason := v.K.Reason(); reason {
	case kvm.ExitIO:
		io, err := v.K.IO()
		if err != nil {
			return v.stop(StopHostError, err.Error()), true
		}
		if io.Out {
			v.Counters.IOOut.Add(1)
		} else {
			v.Counters.IOIn.Add(1)
		}
		if v.Trace != nil {
			v.Trace(v.K.ID, reason, uint64(io.Port), io.Data, io.Out)
		}
		if !v.port(io) {
			v.Counters.Unclaimed.Add(1)
		}
	case kvm.ExitMMIO:
		addr, data, write := v.K.MMIO()
		if v.Trace != nil {
			v.Trace(v.K.ID, reason, addr, data, write)
		}
		claimed := false
		if write {
			v.Counters.MMIOWrite.Add(1)
			claimed = v.MMIO.Write(addr, data)
		} else {
			v.Counters.MMIORead.Add(1)
			claimed = v.MMIO.Read(addr, data)
		}
		if !claimed {
			v.Counters.Unclaimed.Add(1)
		}
	case kvm.ExitIntr, kvm.ExitIRQWindow, kvm.ExitHLT:
		v.Counters.Others.Add(1)
	case kvm.ExitShutdown:
		return v.stop(StopTripleFault, "triple fault"), true
	case kvm.ExitInternalError:
		return v.internalError(), true
	default:
		v.Counters.Others.Add(1)
		return v.stop(StopEntryFailed, fmt.Sprintf("exit %v, hardware reason %#x", reason, v.K.Word(0))), true
	}
	return Stop{}, false
}

func (v *VCPU) port(io kvm.IO) (claimed bool) {
	switch {
	case io.Count == 1 && io.Out:
		return v.Ports.Write(uint64(io.Port), io.Data)
	case io.Count == 1:
		return v.Ports.Read(uint64(io.Port), io.Data)
	case io.Out:
		return v.Ports.WriteString(uint64(io.Port), io.Size, io.Data)
	default:
		return v.Ports.ReadString(uint64(io.Port), io.Size, io.Data)
	}
}

// internalErrors names KVM_INTERNAL_ERROR_* (linux/kvm.h).
var internalErrors = sync.OnceValue(func() map[uint32]string {
	return map[uint32]string{
		1: "an instruction that KVM cannot emulate",
		2: "simultaneous exceptions",
		3: "an exit during event delivery",
		4: "an unexpected exit reason",
	}
})

func (v *VCPU) internalError() Stop {
	sub, insn := v.K.Internal()
	name := internalErrors()[sub]
	if name == "" {
		name = fmt.Sprintf("suberror %d", sub)
	}
	if len(insn) > 0 {
		name += fmt.Sprintf(": bytes % x", insn)
	}
	return v.stop(StopInternalError, name)
}

// stop takes the registers down; that they cannot be read changes nothing.
func (v *VCPU) stop(k StopKind, detail string) Stop {
	s := Stop{VCPU: v.K.ID, Kind: k, Detail: detail}
	s.Regs, _ = v.K.Regs()
	s.Sregs, _ = v.K.Sregs()
	return s
}

// Registers renders what a person debugging a guest looks for first.
func (s Stop) Registers() string {
	r, g := &s.Regs, &s.Sregs
	return fmt.Sprintf("rip=%#x cs=%#x rflags=%#x cr0=%#x cr2=%#x cr3=%#x cr4=%#x efer=%#x\n"+
		"rax=%#x rbx=%#x rcx=%#x rdx=%#x rsi=%#x rdi=%#x rsp=%#x rbp=%#x\n"+
		"r8=%#x r9=%#x r10=%#x r11=%#x r12=%#x r13=%#x r14=%#x r15=%#x",
		r.RIP, g.CS.Selector, r.RFLAGS, g.CR0, g.CR2, g.CR3, g.CR4, g.EFER,
		r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RSP, r.RBP,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15)
}
