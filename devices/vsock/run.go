package vsock

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

const (
	// batchPackets and batchBytes bound what is moved before the rings are
	// published, and for how long one direction waits for the other.
	batchPackets = 64
	batchBytes   = 256 << 10

	// gather is how many receive buffers one read of the host's stream can
	// fill, and gatherRuns how many pieces they may be in: Linux posts 4 KiB
	// at a time.
	gather     = 8
	gatherRuns = 16

	// maxPacket is the payload of one packet in bytes; Linux takes no longer ones.
	maxPacket = 64 << 10
)

// run is the work from Activate or Resume to the next pause or reset. All that it
// keeps of guest memory goes with it.
type run struct {
	d       *Device
	act     *devices.Activation
	rx, tx  *devices.Queue // nil where the driver has not enabled one
	ev      *devices.Queue
	workers sync.WaitGroup
	stop    atomic.Bool
	stopped chan struct{} // closed with stop
	once    sync.Once
	news    chan struct{} // the host has something, or a queue, or a timer
	room    chan struct{} // replies have room again
	timer   *time.Timer   // rings news

	// What follows is guarded by Device.work. Room for one batch, so that a
	// packet costs no allocation.
	pushed  bool      // receive buffers since Publish
	armed   time.Time // what timer is set for
	blocked bool      // the transmit worker waits for room
	chains  [gather]virtq.Chain
	head    [headerLen]byte
	runs    [][]byte
}

func newRun(d *Device, a *devices.Activation) *run {
	r := &run{
		d: d, act: a, rx: a.Queues[queueRX], tx: a.Queues[queueTX], ev: a.Queues[queueEvent],
		stopped: make(chan struct{}), news: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	r.timer = time.AfterFunc(time.Hour, r.ready)
	r.timer.Stop()
	return r
}

// end tells all workers to stop.
func (r *run) end() {
	r.stop.Store(true)
	r.once.Do(func() { close(r.stopped) })
	for _, q := range r.act.Queues {
		if q != nil {
			q.Kick.Ring()
		}
	}
}

// ready makes the receive worker look at what there is to send.
func (r *run) ready() { signal(r.news) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fail tells the driver that it broke the rules, with all work ended.
func (r *run) fail(err error) {
	r.end()
	r.act.Driver.Fault(err)
}

// sleep waits until queue's driver announces buffers. It says false when the
// worker must end.
func (r *run) sleep(q *devices.Queue) bool {
	if r.stop.Load() {
		return false
	}
	if err := q.Kick.Wait(); err != nil {
		r.fail(err)
		return false
	}
	return !r.stop.Load()
}

// bell passes on that a driver has posted buffers, of which it is only told when
// it was asked to.
func (r *run) bell(q *devices.Queue) {
	for r.sleep(q) {
		r.ready()
	}
}

// receive sends to the guest what there is, whenever there is something.
func (r *run) receive() {
	for {
		r.d.work.Lock()
		more := r.pump()
		r.d.work.Unlock()
		if r.stop.Load() {
			return
		}
		if more {
			continue
		}
		select {
		case <-r.news:
		case <-r.stopped:
			return
		}
	}
}

// transmit takes what the guest sends: it drains the ring, sleeps until the driver
// announces more, and so on.
func (r *run) transmit() {
	for r.drain() && r.sleep(r.tx) {
	}
}

// drain takes packets until there are none and the driver has been asked to announce
// the next. It says false when the worker must end.
func (r *run) drain() bool {
	r.tx.DisableKicks()
	for {
		switch r.batch() {
		case ended:
			return false
		case full:
			// The guest takes no answers: until it does, no questions.
			select {
			case <-r.room:
			case <-r.stopped:
				return false
			}
		case empty:
			if !r.tx.EnableKicks() {
				return true
			}
			r.tx.DisableKicks()
		}
	}
}

// outcome is why a batch has ended.
type outcome int

const (
	again outcome = iota // it was long enough
	empty                // the ring has no packet
	full                 // there is no room for another answer
	ended                // the worker must end
)

// batch takes packets from the guest, publishes them, and sends what follows from
// them at once: an answer need not wait for another goroutine.
func (r *run) batch() outcome {
	r.d.work.Lock()
	defer r.d.work.Unlock()
	why := r.take()
	if r.tx.Publish() {
		r.act.Driver.Used()
	}
	if why != ended && r.rx != nil && r.pump() {
		r.ready()
	}
	if why == full {
		if !r.d.replies.full() {
			return again
		}
		r.blocked = true
	}
	return why
}

// take takes packets until there is a reason not to.
func (r *run) take() outcome {
	for n, bytes := 0, uint64(0); n < batchPackets && bytes < batchBytes; n++ {
		if r.stop.Load() {
			return ended
		}
		if r.d.replies.full() && r.rx != nil {
			return full
		}
		c, err := r.tx.Pop()
		if err != nil {
			r.fail(err)
			return ended
		}
		if c == nil {
			return empty
		}
		bytes += r.packet(c)
		r.tx.Push(c.Head(), 0)
	}
	return again
}
