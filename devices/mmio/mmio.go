// Package mmio is the virtio-mmio transport, version 2 (VirtIO 1.2 §4.2): the
// registers through which a driver finds a device, agrees on features and
// queues with it, and starts it. It knows no disk and no packet: the device
// behind it is a devices.Virtio.
//
// # Accesses
//
// Registers take aligned 32-bit accesses only (§4.2.2.2): a read of any other
// kind gives zero, such a write is ignored. The configuration space from
// ConfigOffset takes 1, 2, 4 and 8 bytes at any offset and leaves the rest to
// the device. A register that is write-only or not there reads as zero.
//
// # Locks
//
// Register writes, Quiesce, Resume, State, Restore and Close hold one mutex, and
// call the device under it; a vCPU that resets a device thus waits until the
// device has stopped. What a device calls (DriverEnd) and what an interrupt
// handler touches (InterruptStatus, InterruptACK, reading Status) does without it,
// so that a device can interrupt while it is being stopped: atomics, and a mutex of
// the pin's that is held for one Set.
//
// # Interrupts
//
// The pin is level-triggered and high exactly while InterruptStatus has a bit
// (§4.2.2): who changes the one brings the other after it, under a lock, so that
// whoever is last has seen all changes. A guest that ends its handler with a bit
// left, or set behind its back, is interrupted again by the controller.
package mmio

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

const (
	// RegionSize is the size of a transport's range of guest addresses in
	// bytes: registers and configuration space, in a page of their own.
	RegionSize = 0x1000

	// NotifyOffset is the QueueNotify register (§4.2.2), where KVM rings a
	// queue's doorbell by itself: an ioeventfd of 4 bytes whose datamatch is
	// the queue's index.
	NotifyOffset = regQueueNotify

	// ConfigOffset is where the device's configuration space starts (§4.2.2).
	ConfigOffset = 0x100

	// FeatureVersion1 is VIRTIO_F_VERSION_1 (§6.1), which the transport offers
	// for every device and insists on.
	FeatureVersion1 uint64 = 1 << 32
)

// Bits of InterruptStatus and InterruptACK (§4.2.2).
const (
	intUsed   = 1
	intConfig = 2
	intAll    = intUsed | intConfig
)

// Transport shows one device to the guest. It is a devices.Region of RegionSize
// bytes and a devices.Stateful. All methods are safe for concurrent use.
type Transport struct {
	dev     devices.Virtio
	mem     *guestmem.Memory
	id      uint32
	offered uint64

	status atomic.Uint32 // bits of VirtIO 1.2 §2.1
	isr    atomic.Uint32 // InterruptStatus
	gen    atomic.Uint32 // ConfigGeneration
	fault  atomic.Pointer[error]

	pinMu sync.Mutex // held while the pin is brought after isr
	pin   devices.Line

	mu             sync.Mutex // what follows, and the device's life
	deviceSel      uint32
	driverSel      uint32
	queueSel       uint32
	driverFeatures uint64
	beyond         uint32 // driver feature bits from 64 up: none is offered
	queues         []queue
	end            *driverEnd // of the activation in force, nil without
	paused         bool
	pending        bool // DRIVER_OK is set, and Activate is Resume's to call
	closed         bool
}

var (
	_ devices.Region   = (*Transport)(nil)
	_ devices.Stateful = (*Transport)(nil)
)

// queue is one queue's registers, and the ring once QueueReady has been set.
type queue struct {
	max               uint16
	num               uint32
	desc, avail, used uint64
	ring              *virtq.Queue // not nil: QueueReady reads 1
	early             bool         // QueueReady was set before FEATURES_OK, which makes the ring
	bell              *devices.Doorbell
}

// New puts a transport in front of dev, whose rings will lie in mem. pin is the
// device's interrupt pin, low so far, level-triggered and its own.
func New(dev devices.Virtio, mem *guestmem.Memory, pin devices.Line) (*Transport, error) {
	t := &Transport{
		dev: dev, mem: mem, pin: pin,
		id: dev.ID(), offered: dev.Features() | FeatureVersion1,
	}
	for i, size := range dev.QueueSizes() {
		if size == 0 || size > virtq.MaxSize || size&(size-1) != 0 {
			return nil, errors.Join(fmt.Errorf("virtio-mmio: device %d offers queue %d with size %d: must be a power of two up to %d", t.id, i, size, virtq.MaxSize), t.closeBells())
		}
		bell, err := devices.NewDoorbell()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("virtio-mmio: device %d, queue %d: %w", t.id, i, err), t.closeBells())
		}
		t.queues = append(t.queues, queue{max: size, bell: bell})
	}
	return t, nil
}

// Queues is the number of queues the device has.
func (t *Transport) Queues() int { return len(t.queues) }

// Doorbell is what announces buffers in queue i, from New until Close, for
// KVM's ioeventfd (see NotifyOffset). It stays owned by the transport.
func (t *Transport) Doorbell(i int) *devices.Doorbell { return t.queues[i].bell }

// Fault is why the device last asked for a reset, nil if it did not. A reset by
// the driver does not forget it.
func (t *Transport) Fault() error {
	if p := t.fault.Load(); p != nil {
		return *p
	}
	return nil
}

// drive brings the pin after InterruptStatus, which has changed.
func (t *Transport) drive() {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	t.pin.Set(t.isr.Load() != 0)
}

// interrupt sets a bit of InterruptStatus. Where one was set already the pin is
// high, or its setter is about to see to it.
func (t *Transport) interrupt(bit uint32) {
	if t.isr.Or(bit) == 0 {
		t.drive()
	}
}

// acknowledge clears bits of InterruptStatus.
func (t *Transport) acknowledge(bits uint32) {
	if was := t.isr.And(^bits); was != 0 && was&^bits == 0 {
		t.drive()
	}
}

// needsReset tells the driver that nothing works any more until it resets the
// device (§2.1.2): the bit first, then the interrupt that lets it look.
func (t *Transport) needsReset(err error) {
	t.fault.Store(&err)
	t.status.Or(statusNeedsReset)
	t.interrupt(intConfig)
}

// driverEnd is a device's way back, good for one activation: what a device
// says behind a reset concerns nobody.
type driverEnd struct {
	t    *Transport
	dead atomic.Bool
}

func (e *driverEnd) Used() {
	if !e.dead.Load() {
		e.t.interrupt(intUsed)
	}
}

func (e *driverEnd) ConfigChanged() {
	if !e.dead.Load() {
		e.t.gen.Add(1)
		e.t.interrupt(intConfig)
	}
}

func (e *driverEnd) Fault(err error) {
	if !e.dead.Load() {
		e.t.needsReset(err)
	}
}

// activate hands the rings to the device. Any error is the driver's to learn.
// The caller holds mu.
func (t *Transport) activate() error {
	a := devices.Activation{Mem: t.mem, Features: t.driverFeatures}
	for i := range t.queues {
		q := &t.queues[i]
		if q.ring == nil {
			a.Queues = append(a.Queues, nil)
			continue
		}
		a.Queues = append(a.Queues, &devices.Queue{Queue: q.ring, Kick: q.bell})
	}
	t.end = &driverEnd{t: t}
	a.Driver = t.end
	if err := t.dev.Activate(a); err != nil {
		return fmt.Errorf("virtio-mmio: device %d: %w", t.id, err)
	}
	return nil
}

// reset brings device and registers back to their first state (§2.4.1): the
// status reads zero only when the device has stopped. The caller holds mu.
func (t *Transport) reset() {
	if t.end != nil {
		t.end.dead.Store(true)
		t.end = nil
	}
	t.dev.Reset()
	t.pending = false
	t.deviceSel, t.driverSel, t.queueSel = 0, 0, 0
	t.driverFeatures, t.beyond = 0, 0
	for i := range t.queues {
		q := &t.queues[i]
		if q.ring != nil {
			q.ring.Drop()
		}
		*q = queue{max: q.max, bell: q.bell}
	}
	t.isr.Store(0)
	t.drive()
	t.status.Store(0)
}

// Close stops the device and gives the doorbells back; KVM must have let go of
// them. The guest's register writes are ignored afterwards. A second Close does
// nothing.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.reset()
	t.closed = true
	return t.closeBells()
}

func (t *Transport) closeBells() error {
	var errs []error
	for i := range t.queues {
		errs = append(errs, t.queues[i].bell.Close())
	}
	return errors.Join(errs...)
}
