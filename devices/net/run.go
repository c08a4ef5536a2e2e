package net

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smolvmm/smolvmm/devices"
)

const (
	// batchFrames and batchBytes bound what is moved before the rings are
	// published, and for how long a command or a pause waits for a batch.
	batchFrames = 64
	batchBytes  = 256 << 10
)

// run is the work from Activate or Resume to the next pause or reset. All that it
// keeps of guest memory goes with it.
type run struct {
	d       *Device
	act     *devices.Activation
	workers sync.WaitGroup
	stop    atomic.Bool
	stopped chan struct{} // closed with stop
	once    sync.Once
	news    chan struct{} // the network has frames again, or wake
	rx      *rxWorker     // nil: the driver has no receive queue
}

func newRun(d *Device, a *devices.Activation) *run {
	return &run{d: d, act: a, stopped: make(chan struct{}), news: make(chan struct{}, 1)}
}

// ctrlIndex is the control queue's place: behind the pairs of a driver that knows
// of them, else behind the only one (VirtIO 1.2 §5.1.2).
func (d *Device) ctrlIndex(features uint64) int {
	if features&featureMQ != 0 {
		return 2 * d.pairs
	}
	return 2
}

// start runs the workers of the queues that the driver enabled. The caller holds mu.
func (d *Device) start() error {
	if d.run != nil {
		return nil
	}
	a := d.act
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		if err := q.Attach(a.Mem); err != nil {
			d.drop()
			return fmt.Errorf("virtio-net: queue %d: %w", i, err)
		}
	}
	r := newRun(d, a)
	d.run = r
	ctrl, pairs := d.ctrlIndex(a.Features), 1
	if a.Features&featureMQ != 0 {
		pairs = d.pairs
	}
	for i := range pairs {
		if q := a.Queues[2*i+1]; q != nil {
			w := d.newTX(r, q, uint32(i))
			r.workers.Go(w.run)
		}
	}
	if q := a.Queues[ctrl]; q != nil && a.Features&featureCtrlVQ != 0 {
		w := &ctrlWorker{d: d, r: r, queue: q}
		r.workers.Go(w.run)
	}
	if a.Queues[0] != nil {
		r.rx = d.newRX(r, pairs)
		d.backend.OnReady(r.ready)
		r.workers.Go(r.rx.run)
	}
	return nil
}

// halt returns when no worker is left, the network calls nobody, and the queues
// have let go of guest memory. With keep, no buffer stays with the device: the
// queues are to go on later. The caller holds mu.
func (d *Device) halt(keep bool) {
	if d.act == nil {
		return
	}
	if r := d.run; r != nil {
		r.end()
		r.workers.Wait()
		if r.rx != nil {
			d.backend.OnReady(nil)
			if keep {
				r.rx.giveBack()
			}
		}
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

// end tells all workers to stop.
func (r *run) end() {
	r.stop.Store(true)
	r.once.Do(func() { close(r.stopped) })
	r.wake()
}

// ready is what the network calls. A channel costs no system call, and a goroutine
// that waits at one holds no processor of the scheduler's.
func (r *run) ready() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// wake makes every worker look again at what it waits for.
func (r *run) wake() {
	r.ready()
	for _, q := range r.act.Queues {
		if q != nil {
			q.Kick.Ring()
		}
	}
}

// fail tells the driver that it broke the rules, with all work ended.
func (r *run) fail(err error) {
	r.end()
	r.act.Driver.Fault(err)
}

// sleep waits until queue's driver announces buffers, or wake. It says false when
// the worker must end.
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

// idle waits until the network has frames, or wake. It says false when the worker
// must end.
func (r *run) idle() bool {
	select {
	case <-r.news:
		return !r.stop.Load()
	case <-r.stopped:
		return false
	}
}

// pause waits for a rate limit. It says false when the worker must end.
func (r *run) pause(t *time.Timer, for_ time.Duration) bool {
	t.Reset(for_)
	select {
	case <-t.C:
		return true
	case <-r.stopped:
		t.Stop()
		return false
	}
}
