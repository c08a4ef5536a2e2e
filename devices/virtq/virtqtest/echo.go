package virtqtest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// EchoID is the device type of an Echo, one that VirtIO 1.2 §5 leaves free.
const EchoID = 0x3f

// Echo is the least VirtIO device: it copies what it may read into what it may
// write, on any number of queues, a worker each. Its configuration space is 8
// bytes for the driver to write and read. Tests of transports and of drivers
// use it, and it shows what devices.Virtio asks of a device.
type Echo struct {
	sizes []uint16

	mu     sync.Mutex
	config [8]byte
	served uint64

	// The transport serialises what touches these.
	active  *devices.Activation
	paused  bool
	stop    chan struct{}
	workers sync.WaitGroup
}

var _ devices.Virtio = (*Echo)(nil)

// NewEcho makes an echo device with queues of these sizes.
func NewEcho(sizes ...uint16) *Echo { return &Echo{sizes: sizes} }

// Served counts the requests answered since the device was made or reset.
func (e *Echo) Served() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.served
}

func (e *Echo) ID() uint32           { return EchoID }
func (e *Echo) Features() uint64     { return virtq.FeatureEventIdx | virtq.FeatureIndirectDesc }
func (e *Echo) QueueSizes() []uint16 { return e.sizes }

func (e *Echo) ReadConfig(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(p)
	if off < uint64(len(e.config)) {
		copy(p, e.config[off:])
	}
}

func (e *Echo) WriteConfig(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off < uint64(len(e.config)) {
		copy(e.config[off:], p)
	}
}

// Activate starts the workers, or lets Resume do it.
func (e *Echo) Activate(a devices.Activation) error {
	if e.active != nil {
		return errors.New("echo: active already")
	}
	e.active = &a
	e.start()
	return nil
}

func (e *Echo) start() {
	if e.active == nil || e.paused {
		return
	}
	stop := make(chan struct{})
	e.stop = stop
	for _, q := range e.active.Queues {
		if q != nil {
			e.workers.Go(func() { e.serve(q, e.active.Driver, stop) })
		}
	}
}

// halt stops the workers between two requests.
func (e *Echo) halt() {
	if e.stop == nil {
		return
	}
	close(e.stop)
	for _, q := range e.active.Queues {
		if q != nil {
			q.Kick.Ring()
		}
	}
	e.workers.Wait()
	e.stop = nil
}

func (e *Echo) serve(q *devices.Queue, driver devices.DriverEnd, stop <-chan struct{}) {
	for {
		q.DisableKicks()
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := q.Pop()
			if err != nil {
				driver.Fault(err)
				return
			}
			if c == nil {
				break
			}
			q.Push(c.Head(), echo(c))
			e.mu.Lock()
			e.served++
			e.mu.Unlock()
			if q.Publish() {
				driver.Used()
			}
		}
		if q.EnableKicks() {
			continue
		}
		if err := q.Kick.Wait(); err != nil {
			driver.Fault(err)
			return
		}
	}
}

// echo copies at most 64 KiB, so that a guest that posts all of its RAM gets an
// answer in bounded time.
func echo(c *virtq.Chain) uint32 {
	var buf [512]byte
	n := uint64(0)
	for n < 64<<10 {
		k := c.CopyOut(buf[:], n)
		k = c.CopyIn(buf[:k], n)
		n += uint64(k)
		if k < len(buf) {
			break
		}
	}
	return uint32(n)
}

func (e *Echo) Reset() {
	e.halt()
	e.active = nil
	e.mu.Lock()
	defer e.mu.Unlock()
	e.config, e.served = [8]byte{}, 0
}

func (e *Echo) Quiesce() error {
	e.halt()
	e.paused = true
	return nil
}

func (e *Echo) Resume() error {
	if e.paused {
		e.paused = false
		e.start()
	}
	return nil
}

type echoState struct {
	Config uint64 `json:"config"`
	Served uint64 `json:"served"`
}

func (e *Echo) State() ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return json.Marshal(echoState{binary.LittleEndian.Uint64(e.config[:]), e.served})
}

func (e *Echo) Restore(state []byte) error {
	var s echoState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("echo: state: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	binary.LittleEndian.PutUint64(e.config[:], s.Config)
	e.served = s.Served
	e.paused = true
	return nil
}
