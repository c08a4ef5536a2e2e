package vmm

import "errors"

// PulsePins rewires the virtio pins of a machine that has not run as a plain
// irqfd would have them: a raise is a pulse. It is wrong for level-triggered pins,
// which a test that looks for lost interrupts must see.
func (m *Machine) PulsePins() {
	for _, p := range m.pins {
		set := p.set
		p.set = func(high bool) error {
			if !high {
				return nil
			}
			return errors.Join(set(true), set(false))
		}
	}
}
