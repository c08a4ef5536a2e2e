package vmm

import "github.com/smolvmm/smolvmm/vmm/guestmem"

// Where things are in the guest's physical address space and among its ports.
// docs/guest-contract.md has the same table for people.
const (
	// virtio-mmio transports, one page each, inside the hole and below the IOAPIC.
	mmioBase   = 0xFEB0_0000
	mmioStride = 0x1000

	// VT-x wants three pages for a TSS and one for an identity map (api.rst
	// §4.9 and §4.62); nothing else lies there.
	tssAddr      = 0xFFFB_D000
	identityAddr = 0xFFFB_C000

	portCOM1     = 0x3F8
	portRTC      = 0x70
	portFwCfg    = 0x510
	irqCOM1      = 4
	bootVCPU     = 0
	irqChipCount = 3
)

// The hole must hold all of it.
var _ [mmioBase - guestmem.HoleStart]struct{}

// virtioPins are the IOAPIC pins of the virtio-mmio transports by slot: the ISA
// interrupts that no device here has, then the pins above them.
var virtioPins = [...]uint32{5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

const maxVirtio = len(virtioPins)
