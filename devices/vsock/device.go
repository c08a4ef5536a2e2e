package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// Config is what a Device is made of.
type Config struct {
	// CID is the guest's address, from MinCID to MaxCID. Only the guest sees it.
	CID uint64
	// Host is the host's side. The device does not close it.
	Host Host
}

// Check says what is wrong with a configuration, in words for its user.
func (c *Config) Check() error {
	switch {
	case c.CID < MinCID || c.CID > MaxCID:
		return fmt.Errorf("CID %d: a guest's is from %d to %d", c.CID, MinCID, uint32(MaxCID))
	case c.Host == nil:
		return errors.New("socket device without a host's side")
	}
	return nil
}

// Device is a VirtIO socket device.
type Device struct {
	cid   uint64
	host  Host
	stats counters

	// work is held by a worker for a batch.
	work     sync.Mutex
	table    *table
	replies  replies
	resetDue bool      // the driver has to hear that its connections are gone
	earliest time.Time // the earliest deadline of a connection; zero: none

	mu     sync.Mutex // the life cycle; taken before work
	act    *devices.Activation
	run    *run // what is at work; nil: nothing
	paused bool
	closed bool
}

var _ devices.Virtio = (*Device)(nil)

// New makes a device in its first state. The error is Check's.
func New(c Config) (*Device, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &Device{cid: c.CID, host: c.Host, table: newTable()}, nil
}

// ID is 19 (VirtIO 1.2 §5.10.1).
func (d *Device) ID() uint32 { return deviceID }

// Features are the bits offered (VirtIO 1.2 §5.10.3, §6).
func (d *Device) Features() uint64 {
	return featureStream | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx
}

// QueueSizes are those of the receive, the transmit and the event queue.
func (d *Device) QueueSizes() []uint16 { return []uint16{ringSize, ringSize, eventSize} }

// ReadConfig reads configuration space (VirtIO 1.2 §5.10.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off < cfgLen {
		var c [cfgLen]byte
		binary.LittleEndian.PutUint64(c[:], d.cid)
		copy(p, c[off:])
	}
}

// WriteConfig does nothing: the address is the device's to give.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate starts the workers, on a paused device once it is resumed.
func (d *Device) Activate(a devices.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return errors.New("virtio-vsock: closed")
	case d.act != nil:
		return errors.New("virtio-vsock: activated twice without a reset")
	case len(a.Queues) != 3:
		return fmt.Errorf("virtio-vsock: %d queues, has 3", len(a.Queues))
	case a.Features&^(d.Features()|featureVersion1) != 0:
		return fmt.Errorf("virtio-vsock: features %#x were not offered", a.Features&^d.Features())
	}
	d.act = &a
	if d.paused {
		return nil
	}
	return d.start()
}

// start runs the workers. The caller holds mu.
func (d *Device) start() error {
	if d.run != nil {
		return nil
	}
	for i, q := range d.act.Queues {
		if q == nil {
			continue
		}
		if err := q.Attach(d.act.Mem); err != nil {
			d.drop()
			return fmt.Errorf("virtio-vsock: queue %d: %w", i, err)
		}
	}
	r := newRun(d, d.act)
	d.run = r
	if r.tx != nil {
		r.workers.Go(r.transmit)
	}
	if r.rx == nil {
		return nil // nothing can be said: packets are taken and lead nowhere
	}
	for _, q := range []*devices.Queue{r.rx, r.ev} {
		if q != nil {
			r.workers.Go(func() { r.bell(q) })
		}
	}
	r.workers.Go(r.receive)
	d.host.OnReady(r.ready)
	return nil
}

// halt returns when no worker is left, the host calls nobody, and the queues have
// let go of guest memory. The caller holds mu.
func (d *Device) halt() {
	if d.act == nil {
		return
	}
	if r := d.run; r != nil {
		r.end()
		r.workers.Wait()
		d.host.OnReady(nil)
		r.timer.Stop()
		d.run = nil
	}
	d.drop()
}

func (d *Device) drop() {
	for _, q := range d.act.Queues {
		if q != nil {
			q.Drop()
		}
	}
}

// Reset drops the queues, and every connection.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
}

// forget ends work and connections. The caller holds mu.
func (d *Device) forget() {
	d.halt()
	d.act = nil
	d.work.Lock()
	defer d.work.Unlock()
	for _, c := range d.table.conns {
		d.remove(c)
	}
	d.replies, d.resetDue, d.earliest = replies{}, false, time.Time{}
}

// Quiesce finishes the packets at hand. Connections stay: what the host sends
// waits in its streams.
func (d *Device) Quiesce() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
	d.paused = true
	return nil
}

// Resume goes on with what is in the rings and streams.
func (d *Device) Resume() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	if d.act == nil {
		return nil
	}
	if d.run == nil {
		d.renew()
	}
	return d.start()
}

// renew gives everyone who has to answer its time again: a paused guest could not.
func (d *Device) renew() {
	d.work.Lock()
	defer d.work.Unlock()
	d.earliest = time.Time{}
	now := time.Now()
	for _, c := range d.table.conns {
		if p := c.state.patience(); p > 0 {
			d.expect(c, now.Add(p))
		}
	}
}

// Close ends the workers and all connections. The host's side is its owner's to close.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	d.closed = true
	return nil
}
