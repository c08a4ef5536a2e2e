// Package devices says what a device is to the machine: the interfaces between
// a device, its transport, the bus and the interrupt controller. A device never
// sees KVM or a vCPU; a transport never sees a disk or a packet.
//
// The life of every device: it is made with its attachments (files, writers,
// connections) injected; it serves accesses from vCPUs at any time from any
// goroutine; Quiesce stops all work of its own, so that its State can be taken
// and guest memory left alone; Resume goes on. A device restored into a new
// machine gets Restore before its first access and Resume after.
package devices

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Region answers the guest's accesses to a range of ports or of guest physical
// addresses. off counts from the range's start; len(p) is 1, 2, 4 or 8, and
// the access lies within the range. Accesses come from every vCPU at once. A
// Read that has nothing to say leaves p as it is (the bus has set it to ones).
type Region interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// Line is a pin of the interrupt controller whose level the device sets. An
// edge-triggered pin interrupts when the level rises. Safe for concurrent use;
// setting the level that is already there is cheap.
type Line interface {
	Set(high bool)
}

// Stateful is what can be paused, and its state moved to a new machine.
type Stateful interface {
	// Quiesce returns when the device has stopped: no request is in flight,
	// no guest memory is touched and no slice of it is kept.
	Quiesce() error
	// Resume goes on after Quiesce or Restore.
	Resume() error
	// State gives the device's own state, not its wiring, as JSON. The
	// device is quiesced.
	State() ([]byte, error)
	// Restore puts a state into a fresh device made with the same
	// configuration. It is wary of its input: a bad state is an error.
	Restore(state []byte) error
}

// Virtio is a VirtIO device as a transport drives it (VirtIO 1.2 §2). The
// transport serialises Activate, Reset, Quiesce and Resume.
type Virtio interface {
	// ID is the device type (VirtIO 1.2 §5): 1 net, 2 block, 19 socket.
	ID() uint32
	// Features are all feature bits offered, the device's own and those of
	// the ring that it bears (VIRTIO_F_VERSION_1 is the transport's to add).
	Features() uint64
	// QueueSizes gives the largest size of each queue, a power of two.
	QueueSizes() []uint16
	// ReadConfig and WriteConfig access device configuration space
	// (VirtIO 1.2 §2.5); off and len(p) are unchecked guest values. Bytes
	// outside the space read as zero, writes to them are ignored.
	ReadConfig(off uint64, p []byte)
	WriteConfig(off uint64, p []byte)
	// Activate is called when the driver has set DRIVER_OK with every queue
	// it enabled validated. The device starts work.
	Activate(a Activation) error
	// Reset returns the device to its first state: it has stopped work, and
	// dropped its queues, before Reset returns. In-flight requests are
	// finished or abandoned, never left behind.
	Reset()
	Stateful
}

// Activation is what a driver and a transport have agreed on at DRIVER_OK.
type Activation struct {
	Mem      *guestmem.Memory
	Features uint64    // the negotiated bits
	Queues   []*Queue  // by index; nil where the driver did not enable one
	Driver   DriverEnd // how to speak back
}

// Queue is a validated ring with the doorbell that announces its buffers.
type Queue struct {
	*virtq.Queue
	Kick *Doorbell
}

// DriverEnd is the way from a device to its driver. Its methods are safe for
// concurrent use and never block.
type DriverEnd interface {
	// Used interrupts for used buffers (InterruptStatus bit 0). Call it when
	// virtq says that the driver wants to know.
	Used()
	// ConfigChanged interrupts for a configuration change (bit 1).
	ConfigChanged()
	// Fault tells the driver that the device met something it cannot go on
	// from: DEVICE_NEEDS_RESET (VirtIO 1.2 §2.1.2). The device has stopped.
	Fault(err error)
}

// Doorbell is an eventfd: KVM rings it when the guest writes QueueNotify
// (KVM_IOEVENTFD), and so may any goroutine.
type Doorbell struct {
	fd int
	f  *os.File // for Wait: a read that blocks in the kernel would hold a scheduler's processor for a while
}

// NewDoorbell makes a silent doorbell.
func NewDoorbell() (*Doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Doorbell{fd: fd, f: os.NewFile(uintptr(fd), "doorbell")}, nil
}

// FD is the eventfd; it stays owned by the doorbell.
func (d *Doorbell) FD() int { return d.fd }

// ring is what is added to an eventfd's counter.
var ring = [8]byte{1}

// Ring wakes the waiter, or the next one to wait. It never blocks: the counter
// would have to overflow 2^64.
func (d *Doorbell) Ring() { _, _ = d.f.Write(ring[:]) }

// Wait blocks until the doorbell has been rung since the last Wait, however
// often.
func (d *Doorbell) Wait() error {
	var buf [8]byte
	_, err := d.f.Read(buf[:])
	return err
}

// Close gives the eventfd back. No one may wait on it any more.
func (d *Doorbell) Close() error { return d.f.Close() }
