package net

import (
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// txWorker takes the frames of one transmit queue to the network.
type txWorker struct {
	d          *Device
	r          *run
	backend    Backend
	queue      *devices.Queue
	pair       uint32
	negotiated uint64
	longest    uint64 // bytes of a frame without a tag that is not to be segmented
	timer      *time.Timer

	// Room for one frame, so that it costs no allocation.
	head   [HeaderLen + etherHeader]byte
	header Header
	peek   [flowPeek]byte
	frame  [][]byte

	n struct{ frames, bytes, malformed, oversized, linkDown uint64 } // since flush
}

func (d *Device) newTX(r *run, q *devices.Queue, pair uint32) *txWorker {
	w := &txWorker{
		d: d, r: r, backend: d.backend, queue: q, pair: pair,
		negotiated: r.act.Features, longest: uint64(d.mtu) + etherHeader,
	}
	if d.txLimit != nil {
		w.timer = time.NewTimer(0)
		<-w.timer.C
	}
	return w
}

// run drains the ring, sleeps until the driver announces more, and so on until it
// is told to stop or the driver breaks the rules.
func (w *txWorker) run() {
	for w.drain() && w.r.sleep(w.queue) {
	}
}

// drain takes what is in the ring until it is empty and the driver has been asked
// to announce what comes next. It says false when the worker must end.
func (w *txWorker) drain() bool {
	q := w.queue
	for {
		q.DisableKicks()
		for n, bytes := 0, uint64(0); ; n++ {
			if w.r.stop.Load() {
				w.flush()
				return false
			}
			if wait := w.d.txLimit.wait(); wait > 0 {
				// The frames wait in the ring, and the driver need not
				// say that there are more.
				w.flush()
				w.d.stats.tx.throttled.Add(1)
				if !w.r.pause(w.timer, wait) {
					return false
				}
				continue
			}
			c, err := q.Pop()
			if err != nil {
				w.flush()
				w.r.fail(err)
				return false
			}
			if c == nil {
				break
			}
			bytes += w.send(c)
			q.Push(c.Head(), 0)
			if n >= batchFrames || bytes >= batchBytes {
				w.flush()
				n, bytes = 0, 0
			}
		}
		w.flush()
		if !q.EnableKicks() {
			return true
		}
	}
}

// flush publishes what was taken.
func (w *txWorker) flush() {
	if w.queue.Publish() {
		w.r.act.Driver.Used()
	}
	s := &w.d.stats.tx
	s.frames.Add(w.n.frames)
	s.bytes.Add(w.n.bytes)
	own := &w.d.stats.queues[w.pair]
	own.txFrames.Add(w.n.frames)
	own.txBytes.Add(w.n.bytes)
	s.malformed.Add(w.n.malformed)
	s.oversized.Add(w.n.oversized)
	s.linkDown.Add(w.n.linkDown)
	w.n = struct{ frames, bytes, malformed, oversized, linkDown uint64 }{}
}

// send hands one frame on, or drops it, and gives its length.
func (w *txWorker) send(c *virtq.Chain) uint64 {
	// Header and Ethernet header are judged as copied here; what the driver
	// makes of its memory afterwards is for the network to bear.
	if c.CopyOut(w.head[:], 0) < len(w.head) || c.WriteLen() != 0 {
		w.n.malformed++
		return 0
	}
	n := c.ReadLen() - HeaderLen
	copy(w.header[:], w.head[:])
	gso, ok := fromGuest.judge(&w.header, w.negotiated, n)
	if !ok {
		w.n.malformed++
		return 0
	}
	longest := w.longest
	if tagged(w.head[HeaderLen:]) {
		longest += vlanTag
	}
	if gso {
		longest = maxGSOFrame
	}
	switch {
	case n > longest:
		w.n.oversized++
		return 0
	case !w.d.link.Load():
		w.n.linkDown++
		return 0
	}
	if w.d.active.Load() > 1 {
		w.d.steer.learn(w.peek[:c.CopyOut(w.peek[:], HeaderLen)], w.pair)
	}
	w.frame = c.ReadableAt(w.frame[:0], HeaderLen, n)
	w.backend.Send(&w.header, w.frame)
	w.n.frames++
	w.n.bytes += n
	w.d.txLimit.take(n)
	return n
}
