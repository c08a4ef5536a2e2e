package vmm

import (
	"fmt"

	"github.com/smolvmm/smolvmm/vmm/internal/cpu"
)

// EndKind is how a guest's life ended.
type EndKind int

const (
	// EndExit: the guest wrote the exit port; Exit.Status is the byte.
	EndExit EndKind = iota
	// EndReboot: the guest reset its machine (keyboard controller, port 0xCF9 or 0x92).
	EndReboot
	// EndTripleFault: an exception in the handling of a double fault.
	EndTripleFault
	// EndInternalError: KVM could not go on, most often with an instruction
	// that it cannot emulate.
	EndInternalError
	// EndEntryFailed: the processor refused to enter the guest, or left it
	// for a reason this monitor does not know.
	EndEntryFailed
	// EndStopped: Stop was called or Run's context ended; Exit.Cause says why.
	EndStopped
)

var endNames = map[EndKind]string{
	EndExit: "exit", EndReboot: "reboot", EndTripleFault: "triple fault",
	EndInternalError: "KVM internal error", EndEntryFailed: "VM entry failed", EndStopped: "stopped",
}

func (k EndKind) String() string { return endNames[k] }

// Exit tells how a machine ended.
type Exit struct {
	End    EndKind
	Status int    // the guest's exit status, 0 to 255, with EndExit
	VCPU   int    // the vCPU that met the end, where one did
	Detail string // one line, for people
	// Registers are the vCPU's, several lines, where the end was not the guest's own.
	Registers string
	// Cause is the context's cause with EndStopped.
	Cause error
}

func (e Exit) String() string {
	switch {
	case e.End == EndExit:
		return fmt.Sprintf("the guest exited with status %d", e.Status)
	case e.Detail != "":
		return fmt.Sprintf("%v: %s", e.End, e.Detail)
	default:
		return e.End.String()
	}
}

// exitOf turns a vCPU's stop into the machine's end.
func exitOf(s cpu.Stop) Exit {
	kinds := map[cpu.StopKind]EndKind{
		cpu.StopTripleFault: EndTripleFault, cpu.StopInternalError: EndInternalError, cpu.StopEntryFailed: EndEntryFailed,
	}
	detail := s.Detail
	if s.Kind == cpu.StopTripleFault {
		detail = ""
	}
	at := fmt.Sprintf("vCPU %d at rip %#x", s.VCPU, s.Regs.RIP)
	if detail != "" {
		at = detail + ", " + at
	}
	return Exit{End: kinds[s.Kind], VCPU: s.VCPU, Detail: at, Registers: s.Registers()}
}
