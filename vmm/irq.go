package vmm

import (
	"sync"
	"sync/atomic"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// pin is an interrupt controller pin whose level a device sets, through
// KVM_IRQ_LINE (api.rst §4.25), which delivers before it returns. The level is
// kept so that setting it again costs nothing.
type pin struct {
	set    func(high bool) error
	raised atomic.Uint64 // how often it went high

	mu   sync.Mutex
	high bool
}

func newPin(vm *kvm.VM, gsi uint32) *pin {
	return &pin{set: func(high bool) error { return vm.SetIRQLine(gsi, high) }}
}

// Set implements devices.Line. KVM refuses only pins that do not exist.
func (p *pin) Set(high bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.high == high {
		return
	}
	p.high = high
	if high {
		p.raised.Add(1)
	}
	_ = p.set(high)
}
