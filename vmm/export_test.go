package vmm

import (
	"errors"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// irqfdDeassign is KVM_IRQFD_FLAG_DEASSIGN (linux/kvm.h).
const irqfdDeassign = 1

// PulsePins rewires the virtio pins of a machine that has not run as a plain
// irqfd would have them: a raise is a pulse, and no EOI is told of. It is wrong
// for level-triggered pins, which a test that looks for lost interrupts must see.
func (m *Machine) PulsePins() error {
	var errs []error
	for i, p := range m.pins {
		f := kvm.IRQFD{FD: uint32(p.raiseFD), GSI: virtioPins[i], Flags: irqfdDeassign}
		errs = append(errs, m.vm.AddIRQFD(f))
		f.Flags = 0
		errs = append(errs, m.vm.AddIRQFD(f))
	}
	return errors.Join(errs...)
}
