package mmio

import (
	"encoding/binary"
)

// Registers, by offset (VirtIO 1.2 §4.2.2, table 4.1).
const (
	regMagicValue        = 0x000
	regVersion           = 0x004
	regDeviceID          = 0x008
	regVendorID          = 0x00c
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	regQueueNotify       = 0x050
	regInterruptStatus   = 0x060
	regInterruptACK      = 0x064
	regStatus            = 0x070
	regQueueDescLow      = 0x080
	regQueueDescHigh     = 0x084
	regQueueDriverLow    = 0x090
	regQueueDriverHigh   = 0x094
	regQueueDeviceLow    = 0x0a0
	regQueueDeviceHigh   = 0x0a4
	regSHMLenLow         = 0x0b0
	regSHMLenHigh        = 0x0b4
	regSHMBaseLow        = 0x0b8
	regSHMBaseHigh       = 0x0bc
	regConfigGeneration  = 0x0fc
)

const (
	magic    = 0x74726976 // "virt" (§4.2.2.1)
	version  = 2          // not legacy (§4.2.2.1)
	vendorID = 0x4c4f4d53 // "SMOL"; the field is for show
)

// aligned says whether an access is one that registers answer.
func aligned(off uint64, p []byte) bool { return off%4 == 0 && len(p) == 4 }

// Read answers the guest's load of len(p) bytes at off.
func (t *Transport) Read(off uint64, p []byte) {
	clear(p)
	if off >= ConfigOffset {
		t.dev.ReadConfig(off-ConfigOffset, p)
		return
	}
	if aligned(off, p) {
		binary.LittleEndian.PutUint32(p, t.readRegister(off))
	}
}

func (t *Transport) readRegister(off uint64) uint32 {
	switch off {
	case regMagicValue:
		return magic
	case regVersion:
		return version
	case regDeviceID:
		return t.id
	case regVendorID:
		return vendorID
	case regInterruptStatus:
		return t.isr.Load()
	case regStatus:
		return t.status.Load()
	case regConfigGeneration:
		return t.gen.Load()
	case regSHMLenLow, regSHMLenHigh, regSHMBaseLow, regSHMBaseHigh:
		// No shared memory region exists, whichever SHMSel names: the length
		// and the base of one that does not are all ones (§4.2.2).
		return 0xffff_ffff
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case regDeviceFeatures:
		if t.deviceSel < 2 {
			return uint32(t.offered >> (32 * t.deviceSel))
		}
	case regQueueNumMax:
		if q := t.selected(); q != nil {
			return uint32(q.max) // zero: there is no such queue
		}
	case regQueueReady:
		if q := t.selected(); q != nil && (q.ring != nil || q.early) {
			return 1
		}
	}
	return 0
}

// selected is the queue that QueueSel names, nil if there is none.
func (t *Transport) selected() *queue {
	if uint64(t.queueSel) >= uint64(len(t.queues)) {
		return nil
	}
	return &t.queues[t.queueSel]
}

// Write answers the guest's store of p at off.
func (t *Transport) Write(off uint64, p []byte) {
	if off >= ConfigOffset {
		// A driver may write configuration once it has shown itself (§3.1.1).
		if t.status.Load()&statusDriver != 0 {
			t.dev.WriteConfig(off-ConfigOffset, p)
		}
		return
	}
	if !aligned(off, p) {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	if off == regInterruptACK {
		t.acknowledge(v & intAll)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.writeRegister(off, v)
	}
}

// writeRegister is a write to any register but InterruptACK. The caller holds mu.
func (t *Transport) writeRegister(off uint64, v uint32) {
	switch off {
	case regDeviceFeaturesSel:
		t.deviceSel = v
	case regDriverFeaturesSel:
		t.driverSel = v
	case regDriverFeatures:
		if t.status.Load() == stateDriver {
			t.setFeatures(v)
		}
	case regQueueSel:
		t.queueSel = v
	case regQueueNotify:
		// Here the access comes only where no ioeventfd has taken it.
		if uint64(v) < uint64(len(t.queues)) && t.status.Load()&statusDriverOK != 0 {
			t.queues[v].bell.Ring()
		}
	case regStatus:
		t.writeStatus(v)
	default:
		if q := t.selected(); q != nil && t.configurable() {
			t.writeQueue(q, off, v)
		}
	}
}

// setFeatures takes one window of the driver's choice (§4.2.2).
func (t *Transport) setFeatures(v uint32) {
	switch t.driverSel {
	case 0:
		t.driverFeatures = t.driverFeatures&^0xffff_ffff | uint64(v)
	case 1:
		t.driverFeatures = t.driverFeatures&0xffff_ffff | uint64(v)<<32
	default:
		t.beyond |= v
	}
}

// writeQueue is a write to the selected queue's configuration, which stands
// still while the queue is ready (§4.2.2.2).
func (t *Transport) writeQueue(q *queue, off uint64, v uint32) {
	if off == regQueueReady {
		t.writeReady(q, v)
		return
	}
	if q.ring != nil || q.early {
		return
	}
	switch off {
	case regQueueNum:
		q.num = v
	case regQueueDescLow:
		setLow(&q.desc, v)
	case regQueueDescHigh:
		setHigh(&q.desc, v)
	case regQueueDriverLow:
		setLow(&q.avail, v)
	case regQueueDriverHigh:
		setHigh(&q.avail, v)
	case regQueueDeviceLow:
		setLow(&q.used, v)
	case regQueueDeviceHigh:
		setHigh(&q.used, v)
	}
}

func setLow(p *uint64, v uint32)  { *p = *p&^0xffff_ffff | uint64(v) }
func setHigh(p *uint64, v uint32) { *p = *p&0xffff_ffff | uint64(v)<<32 }
