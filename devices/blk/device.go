// Package blk is the VirtIO block device (VirtIO 1.2 §5.2): one request queue
// in front of a Backend. Package disk has the back ends for files.
//
// A request is done when its used element is visible: written bytes are then in
// the file, and what a completed FLUSH covered is durable. Requests are served
// one after the other by one goroutine, so a FLUSH covers every write that
// completed before it was taken. The bytes move straight between guest RAM and
// the file; the path of a request takes no lock and allocates nothing.
//
// # Errors
//
// What the guest asks for wrongly, and what the host cannot do, becomes the
// status of that request alone: IOERR for a request that is malformed or reaches
// behind the end of the disk, for a write to a read-only disk, and for a failing
// backend; UNSUPP for a type or flag that was not negotiated or does not exist.
// A request without room for a status is returned with 0 bytes written. A ring
// that breaks the rules of VirtIO is a fault: the device tells the driver
// (DEVICE_NEEDS_RESET) and stops until it is reset.
package blk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// Config is what a Device is made of.
type Config struct {
	// Backend is the storage. The device closes it.
	Backend Backend
	// Log hears of the host's failures, at most once a minute for each kind of
	// request; nil is silence.
	Log *slog.Logger
}

// Device is a virtio disk.
type Device struct {
	backend   Backend
	log       *slog.Logger
	offered   uint64
	space     [cfgLen]byte
	writeback atomic.Uint32 // the field of configuration space
	stop      atomic.Bool   // tells the worker to end after the request at hand
	stats     counters

	// logged is the worker's, kept here so that resets do not clear it.
	logged [numKinds]time.Time

	mu       sync.Mutex // guards what follows: the life cycle, never a request
	serial   [SerialLen]byte
	act      *devices.Activation // nil before DRIVER_OK and after a reset
	done     chan struct{}       // closed when the worker has ended; nil: there is none
	paused   bool
	restored bool // writeback is what Restore said
}

var _ devices.Virtio = (*Device)(nil)

// New makes a device in its first state.
func New(c Config) *Device {
	d := &Device{
		backend: c.Backend,
		log:     c.Log,
		offered: features(c.Backend.ReadOnly()) | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx,
		space:   configSpace(c.Backend),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	copy(d.serial[:], c.Backend.Serial())
	d.writeback.Store(1)
	return d
}

// ID is 2 (VirtIO 1.2 §5.2.1).
func (d *Device) ID() uint32 { return deviceID }

// Features are the bits offered (VirtIO 1.2 §5.2.3, §6).
func (d *Device) Features() uint64 { return d.offered }

// QueueSizes gives the one queue, of 1024 descriptors.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads configuration space (VirtIO 1.2 §5.2.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgLen {
		return
	}
	n := copy(p, d.space[off:])
	if off <= cfgWriteback && cfgWriteback < off+uint64(n) {
		p[cfgWriteback-off] = byte(d.writeback.Load())
	}
}

// WriteConfig writes configuration space: writeback is the one field that a
// driver may (VirtIO 1.2 §5.2.5), and counts only once it has taken CONFIG_WCE.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off > cfgWriteback || cfgWriteback-off >= uint64(len(p)) || d.offered&featureConfigWCE == 0 {
		return
	}
	d.writeback.Store(uint32(p[cfgWriteback-off] & 1))
}

// Activate starts the worker, on a restored device once it is resumed.
func (d *Device) Activate(a devices.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil {
		return errors.New("virtio-blk: activated twice without a reset")
	}
	if len(a.Queues) != 1 {
		return fmt.Errorf("virtio-blk: %d queues, has 1", len(a.Queues))
	}
	if a.Features&^(d.offered|1<<32) != 0 {
		// Bit 32 is VIRTIO_F_VERSION_1, the transport's own.
		return fmt.Errorf("virtio-blk: features %#x were not offered", a.Features&^d.offered)
	}
	if a.Features&(featureConfigWCE|featureFlush) == featureConfigWCE && !d.restored {
		// VirtIO 1.2 §5.2.5.2: without FLUSH there is no cache to speak of.
		d.writeback.Store(0)
	}
	d.restored = false
	d.act = &a
	if d.paused {
		return nil
	}
	return d.start()
}

// start runs the worker. The caller holds mu.
func (d *Device) start() error {
	q := d.act.Queues[0]
	if q == nil || d.done != nil {
		// A driver that enables no queue has a device that does nothing.
		return nil
	}
	if err := q.Attach(d.act.Mem); err != nil {
		return fmt.Errorf("virtio-blk: %w", err)
	}
	w := d.newWorker(*d.act)
	done := make(chan struct{})
	d.done = done
	d.stop.Store(false)
	go func() {
		defer close(done)
		w.run()
	}()
	return nil
}

func (d *Device) newWorker(a devices.Activation) *worker {
	return &worker{
		d: d, backend: d.backend, queue: a.Queues[0], driver: a.Driver,
		negotiated: a.Features, capacity: uint64(d.backend.Size()) / SectorSize, serial: d.serial,
	}
}

// halt returns when the worker has ended and the queue lets go of guest memory.
// The caller holds mu.
func (d *Device) halt() {
	if d.act == nil || d.act.Queues[0] == nil {
		return
	}
	q := d.act.Queues[0]
	if d.done != nil {
		d.stop.Store(true)
		q.Kick.Ring()
		<-d.done
		d.done = nil
	}
	q.Drop()
}

// Reset finishes the request at hand and drops the queue.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
	d.act = nil
	d.restored = false
	d.writeback.Store(1)
}

// Quiesce finishes the request at hand; the ones behind it stay in the ring.
func (d *Device) Quiesce() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
	d.paused = true
	return nil
}

// Resume goes on with what is in the ring, whether or not it was announced.
func (d *Device) Resume() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	if d.act == nil {
		return nil
	}
	return d.start()
}

// Close ends the worker and closes the backend.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
	d.act = nil
	return d.backend.Close()
}

// state is what a device restored elsewhere has to know, and what of its
// configuration the guest has seen and must find again.
type state struct {
	Version   int    `json:"version"`
	Size      int64  `json:"size"` // bytes
	BlockSize uint32 `json:"block_size"`
	ReadOnly  bool   `json:"read_only"`
	Serial    string `json:"serial"`
	Writeback bool   `json:"writeback"`
}

const stateVersion = 1

// State freezes the backend, so that its files can be handed on, and gives the
// device's own state. The queue's indices are the transport's to save.
func (d *Device) State() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.paused {
		return nil, errors.New("virtio-blk: state of a device that is not quiesced")
	}
	if err := d.backend.Freeze(); err != nil {
		return nil, fmt.Errorf("virtio-blk: freezing the disk: %w", err)
	}
	return json.Marshal(state{
		Version: stateVersion, Size: d.backend.Size(), BlockSize: d.backend.BlockSize(), ReadOnly: d.backend.ReadOnly(),
		Serial: string(bytes.TrimRight(d.serial[:], "\x00")), Writeback: d.writeback.Load() == 1,
	})
}

// Restore puts a state into a fresh device over the same disk.
func (d *Device) Restore(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil {
		return errors.New("virtio-blk: restore of a device in use")
	}
	var s state
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("virtio-blk state: %w", err)
	}
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("virtio-blk state: version %d, this program knows %d", s.Version, stateVersion)
	case s.Size != d.backend.Size():
		return fmt.Errorf("virtio-blk state: disk of %d bytes, this one has %d", s.Size, d.backend.Size())
	case s.ReadOnly != d.backend.ReadOnly():
		return fmt.Errorf("virtio-blk state: read-only %t, this disk %t", s.ReadOnly, d.backend.ReadOnly())
	case s.BlockSize != d.backend.BlockSize():
		return fmt.Errorf("virtio-blk state: blocks of %d bytes, this disk has %d", s.BlockSize, d.backend.BlockSize())
	case len(s.Serial) > SerialLen:
		return fmt.Errorf("virtio-blk state: serial of %d bytes, at most %d", len(s.Serial), SerialLen)
	}
	d.serial = [SerialLen]byte{}
	copy(d.serial[:], s.Serial)
	d.writeback.Store(0)
	if s.Writeback {
		d.writeback.Store(1)
	}
	d.restored, d.paused = true, true
	return nil
}
