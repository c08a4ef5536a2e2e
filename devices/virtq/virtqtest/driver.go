package virtqtest

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Patience is how long a Driver waits for a device before the test fails. It
// only ends tests that have failed already.
const Patience = 20 * time.Second

// Driver is a guest's driver and its transport in one: it activates a device
// over rings of its own, and records what the device says back.
type Driver struct {
	Dev      devices.Virtio
	Mem      *guestmem.Memory
	Features uint64 // negotiated; without VIRTIO_F_VERSION_1
	Rings    []*Ring
	Queues   []*devices.Queue

	// Kicks counts the notifications the device asked for, Interrupts its
	// calls of Used.
	Kicks, Interrupts atomic.Int64

	tb     testing.TB
	used   chan struct{}
	config chan struct{}
	faults chan error
}

// DriverOptions are what NewDriver takes besides the device.
type DriverOptions struct {
	Mem      *guestmem.Memory // nil: 64 MiB of its own, closed with the test
	Base     uint64           // where the rings start; 0 stands for 1 MiB
	PerQueue uint64           // bytes for each ring and its buffers; 0 stands for 4 MiB
	Features uint64           // of those offered, which to negotiate
	Sizes    []uint16         // per queue; nil: the device's own sizes up to 256; 0: leave the queue out
}

// NewDriver lays out the rings and activates dev, which the test's end resets.
func NewDriver(tb testing.TB, dev devices.Virtio, o DriverOptions) *Driver {
	tb.Helper()
	d := &Driver{
		Dev: dev, Mem: o.Mem, Features: o.Features & dev.Features(), tb: tb,
		used: make(chan struct{}, 1), config: make(chan struct{}, 1), faults: make(chan error, 1),
	}
	if d.Mem == nil {
		d.Mem = NewMemory(tb, 64<<20)
	}
	if o.Base == 0 {
		o.Base = 1 << 20
	}
	if o.PerQueue == 0 {
		o.PerQueue = 4 << 20
	}
	sizes := o.Sizes
	if sizes == nil {
		for _, n := range dev.QueueSizes() {
			sizes = append(sizes, min(n, 256))
		}
	}
	for i, n := range sizes {
		if n == 0 {
			d.Rings, d.Queues = append(d.Rings, nil), append(d.Queues, nil)
			continue
		}
		r, err := NewRing(d.Mem, o.Base+uint64(i)*o.PerQueue, o.PerQueue, Options{
			Size:     n,
			EventIdx: d.Features&virtq.FeatureEventIdx != 0,
			Indirect: d.Features&virtq.FeatureIndirectDesc != 0,
		})
		if err != nil {
			tb.Fatal(err)
		}
		q, err := virtq.New(d.Mem, r.Cfg)
		if err != nil {
			tb.Fatal(err)
		}
		d.Rings, d.Queues = append(d.Rings, r), append(d.Queues, &devices.Queue{Queue: q, Kick: d.bell()})
	}
	d.activate()
	return d
}

// NewMemory makes guest memory that is closed at the test's end.
func NewMemory(tb testing.TB, size uint64) *guestmem.Memory {
	tb.Helper()
	m, err := guestmem.New(size, guestmem.Shared)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func (d *Driver) bell() *devices.Doorbell {
	b, err := devices.NewDoorbell()
	if err != nil {
		d.tb.Fatal(err)
	}
	d.tb.Cleanup(func() { b.Close() })
	return b
}

func (d *Driver) activate() {
	d.tb.Helper()
	dev := d.Dev
	d.tb.Cleanup(dev.Reset)
	if err := dev.Activate(devices.Activation{
		Mem: d.Mem, Features: d.Features | 1<<32, Queues: d.Queues, Driver: (*end)(d),
	}); err != nil {
		d.tb.Fatal(err)
	}
}

// end is the Driver as its device sees it.
type end Driver

func (e *end) Used() {
	e.Interrupts.Add(1)
	signal(e.used)
}

func (e *end) ConfigChanged() { signal(e.config) }

func (e *end) Fault(err error) {
	select {
	case e.faults <- err:
	default:
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Kick publishes what was added to ring i and rings the doorbell if the device
// asked for that.
func (d *Driver) Kick(i int) {
	if d.Rings[i].Kick() {
		d.Notify(i)
	}
}

// Notify rings the doorbell of queue i, asked or not.
func (d *Driver) Notify(i int) {
	d.Kicks.Add(1)
	d.Queues[i].Kick.Ring()
}

// Wait collects from ring i until n requests have come back, sleeping on the
// device's interrupts alone: a lost one fails the test, and so does a fault.
func (d *Driver) Wait(i, n int) []Used {
	d.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var got []Used
	for {
		u, err := d.Rings[i].Collect()
		if err != nil {
			d.tb.Fatal(err)
		}
		if got = append(got, u...); len(got) >= n {
			return got
		}
		if d.Rings[i].EnableInterrupts() {
			continue
		}
		select {
		case <-d.used:
		case err := <-d.faults:
			d.tb.Fatalf("device fault: %v", err)
		case <-ctx.Done():
			d.tb.Fatalf("queue %d: %d of %d requests came back within %v; used.idx %d", i, len(got), n, Patience, d.Rings[i].UsedIdx())
		}
	}
}

// Interrupted gives a value after interrupts, for drivers that collect by themselves.
func (d *Driver) Interrupted() <-chan struct{} { return d.used }

// Do sends one request through queue i and waits for it; what it returns is the
// writable part as far as the device says it wrote.
func (d *Driver) Do(i int, readable [][]byte, writable ...uint32) []byte {
	d.tb.Helper()
	head, err := d.Rings[i].Add(readable, writable)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.Kick(i)
	u := d.Wait(i, 1)
	if len(u) != 1 || u[0].Head != head {
		d.tb.Fatalf("queue %d: head %d sent, %v came back", i, head, u)
	}
	return u[0].Joined()
}

// WaitFault waits for the device to report a fault.
func (d *Driver) WaitFault() error {
	d.tb.Helper()
	select {
	case err := <-d.faults:
		return err
	case <-time.After(Patience):
		d.tb.Fatalf("the device reported no fault within %v", Patience)
		return nil
	}
}

// WaitConfig waits for the device to report a configuration change.
func (d *Driver) WaitConfig() {
	d.tb.Helper()
	select {
	case <-d.config:
	case <-time.After(Patience):
		d.tb.Fatalf("the device reported no configuration change within %v", Patience)
	}
}

// Pause quiesces the device and drops the rings, as a transport does.
func (d *Driver) Pause() {
	d.tb.Helper()
	if err := d.Dev.Quiesce(); err != nil {
		d.tb.Fatal(err)
	}
	for i, q := range d.Queues {
		if q == nil {
			continue
		}
		if n := q.InFlight(); n != 0 {
			d.tb.Fatalf("queue %d: %d requests in flight in a quiesced device", i, n)
		}
		q.Drop()
	}
}

// Resume attaches the rings and lets the device go on, as a transport does.
func (d *Driver) Resume() {
	d.tb.Helper()
	for _, q := range d.Queues {
		if q == nil {
			continue
		}
		if err := q.Attach(d.Mem); err != nil {
			d.tb.Fatal(err)
		}
	}
	if err := d.Dev.Resume(); err != nil {
		d.tb.Fatal(err)
	}
	d.ringAll()
}

// MoveTo pauses the device and brings its state to a fresh one, over mem: nil
// for the same memory, else another mapping of it. What a transport does, in
// its order: Quiesce, State; Restore, Activate, Resume. The old device is reset.
func (d *Driver) MoveTo(dev devices.Virtio, mem *guestmem.Memory) error {
	d.tb.Helper()
	d.Pause()
	state, err := d.Dev.State()
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	d.Dev.Reset()
	if mem != nil {
		d.Mem = mem
	}
	if err := dev.Restore(state); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for i, q := range d.Queues {
		if q == nil {
			continue
		}
		ring, err := virtq.Restore(d.Mem, q.State())
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		if err := d.Rings[i].Move(d.Mem); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		d.Queues[i] = &devices.Queue{Queue: ring, Kick: d.bell()}
	}
	d.Dev = dev
	d.activate()
	if err := dev.Resume(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	d.ringAll()
	return nil
}

func (d *Driver) ringAll() {
	for _, q := range d.Queues {
		if q != nil {
			q.Kick.Ring()
		}
	}
}
