package net

import (
	"encoding/binary"
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
	// Backend is the network. The device does not close it.
	Backend Backend
	// MAC is the guest's address: unicast and not zero.
	MAC [6]byte
	// QueuePairs is how many pairs of queues are offered, at most
	// MaxQueuePairs; 0 stands for 1. With more than 1 a driver can spread its
	// flows over CPUs (VIRTIO_NET_F_MQ); it begins with 1.
	QueuePairs int
	// Limits hold the interface to rates; the zero value is none.
	Limits Limits
	// Log hears of frames that the guest has no room for, at most once a
	// minute; nil is silence.
	Log *slog.Logger
}

// Check says what is wrong with a configuration, in words for its user.
func (c *Config) Check() error {
	switch {
	case c.Backend == nil:
		return errors.New("network interface without a network behind it")
	case !macOf(c.MAC[:]).unicast():
		return fmt.Errorf("MAC address %s: an interface needs a unicast one (its first byte even), and not zero", macText(c.MAC))
	case c.QueuePairs < 0 || c.QueuePairs > MaxQueuePairs:
		return fmt.Errorf("%d queue pairs: between 1 and %d", c.QueuePairs, MaxQueuePairs)
	case c.Backend.MTU() < MinMTU || c.Backend.MTU() > MaxMTU:
		return fmt.Errorf("MTU %d: between %d and %d bytes", c.Backend.MTU(), MinMTU, MaxMTU)
	case c.Limits.TX.Burst < 0 || c.Limits.RX.Burst < 0:
		return errors.New("rate limit with a negative burst")
	}
	return nil
}

// Device is a virtio network interface.
type Device struct {
	backend Backend
	log     *slog.Logger
	offered uint64
	pairs   int // offered
	mtu     int
	stats   counters
	steer   steering
	txLimit *limiter // kept over a reset, which is no way to a new burst
	rxLimit *limiter
	logged  time.Time // the receive worker's: when it last logged
	lent    bool      // the receive worker's: Next gave a frame, and Pop is due

	mac    atomic.Uint64 // macAddr that the guest has
	link   atomic.Bool
	active atomic.Uint32 // pairs that the driver uses

	// receive is held by the receive worker for a batch, so that the answer to
	// a command means that no frame follows by the old rules.
	receive sync.Mutex
	filter  filter

	mu        sync.Mutex // guards what follows: the life cycle, never a frame
	permanent macAddr    // what mac is after a reset
	act       *devices.Activation
	run       *run // what is at work; nil: nothing
	paused    bool
	linkNews  bool // the link changed in a pause, of which the driver has to hear
	closed    bool
}

var _ devices.Virtio = (*Device)(nil)

// New makes a device in its first state, with its link up. The error is Check's.
func New(c Config) (*Device, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	d := &Device{
		backend: c.Backend, log: c.Log, pairs: max(1, c.QueuePairs), mtu: c.Backend.MTU(),
		permanent: macOf(c.MAC[:]), txLimit: newLimiter(c.Limits.TX), rxLimit: newLimiter(c.Limits.RX),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.offered = c.Backend.Offloads()&offloadBits | featureMTU | featureMAC | featureMrgRxBuf | featureStatus |
		featureCtrlVQ | featureCtrlRX | featureCtrlMACAddr | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx
	if d.pairs > 1 {
		d.offered |= featureMQ
	}
	d.offered &^= lacking(d.offered)
	d.filter.uni.addrs, d.filter.multi.addrs = make([]macAddr, 0, maxAddrs), make([]macAddr, 0, maxAddrs)
	d.link.Store(true)
	d.first()
	return d, nil
}

// first puts what a guest can change back. The caller holds mu, if anyone could.
func (d *Device) first() {
	d.mac.Store(uint64(d.permanent))
	d.active.Store(1)
	d.steer.forget()
	d.receive.Lock()
	defer d.receive.Unlock()
	d.filter.reset()
}

// ID is 1 (VirtIO 1.2 §5.1.1).
func (d *Device) ID() uint32 { return deviceID }

// Features are the bits offered (VirtIO 1.2 §5.1.3, §6).
func (d *Device) Features() uint64 { return d.offered }

// QueueSizes gives receive and transmit queue of each pair in turn, and the control
// queue (VirtIO 1.2 §5.1.2).
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, 2*d.pairs+1)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig reads configuration space (VirtIO 1.2 §5.1.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgLen {
		return
	}
	var c [cfgLen]byte
	mac := macAddr(d.mac.Load()).bytes()
	copy(c[cfgMAC:], mac[:])
	if d.link.Load() {
		c[cfgStatus] = statusLinkUp
	}
	binary.LittleEndian.PutUint16(c[cfgMaxPairs:], uint16(d.pairs))
	binary.LittleEndian.PutUint16(c[cfgMTU:], uint16(d.mtu))
	copy(p, c[off:])
}

// WriteConfig does nothing: no field is a driver's to write (VirtIO 1.2 §5.1.4),
// which sets its address by the control queue.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate starts the workers, on a paused device once it is resumed.
func (d *Device) Activate(a devices.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return errors.New("virtio-net: closed")
	case d.act != nil:
		return errors.New("virtio-net: activated twice without a reset")
	case len(a.Queues) != 2*d.pairs+1:
		return fmt.Errorf("virtio-net: %d queues, has %d", len(a.Queues), 2*d.pairs+1)
	case a.Features&^(d.offered|featureVersion1) != 0:
		return fmt.Errorf("virtio-net: features %#x were not offered", a.Features&^d.offered)
	case lacking(a.Features) != 0:
		return fmt.Errorf("virtio-net: features %#x without those they need (VirtIO 1.2 §5.1.3.1)", lacking(a.Features))
	}
	if n := d.active.Load(); n > 1 && (a.Features&featureMQ == 0 || !enabled(a.Queues, int(n))) {
		// Only after Restore are more in use by now.
		return fmt.Errorf("virtio-net: %d queue pairs in use, which the driver has not enabled", n)
	}
	d.act = &a
	d.backend.Negotiated(a.Features & offloadBits)
	if d.paused {
		return nil
	}
	return d.start()
}

// enabled says whether the driver has enabled the first n pairs.
func enabled(queues []*devices.Queue, n int) bool {
	for _, q := range queues[:2*n] {
		if q == nil {
			return false
		}
	}
	return true
}

// Reset drops what was under way and the queues. Frames that the guest has sent and
// that were not taken are lost, as with any interface that is reset.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end()
	d.linkNews = false
	d.first()
}

// end stops all work and forgets the driver. The caller holds mu.
func (d *Device) end() {
	d.halt(false)
	if d.lent {
		// It was made for the driver that is gone.
		d.lent = false
		d.backend.Pop()
		d.stats.rx.linkDown.Add(1)
	}
	if d.act != nil {
		d.act = nil
		d.backend.Negotiated(0)
	}
}

// Quiesce finishes the frames at hand; the ones behind them stay in the rings and
// in the network.
func (d *Device) Quiesce() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt(true)
	d.paused = true
	return nil
}

// Resume goes on with what is in the rings, whether or not it was announced.
func (d *Device) Resume() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	if d.act == nil {
		return nil
	}
	if d.linkNews {
		d.linkNews = false
		d.act.Driver.ConfigChanged()
	}
	return d.start()
}

// Close ends the workers. The network behind is its owner's to close.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end()
	d.closed = true
	return nil
}

// SetLink plugs the cable in or out (VirtIO 1.2 §5.1.4.2): while it is out, frames
// are dropped either way. A driver that took VIRTIO_NET_F_STATUS hears of it. A
// reset leaves the link as it is.
func (d *Device) SetLink(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link.Swap(up) == up || d.act == nil {
		return
	}
	if d.run != nil {
		// A frame that waits for buffers waits no longer.
		d.run.wake()
	}
	switch {
	case d.act.Features&featureStatus == 0:
	case d.paused:
		d.linkNews = true // the interrupt may be in nobody's state any more
	default:
		d.act.Driver.ConfigChanged()
	}
}
