package net

import (
	"encoding/binary"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

const (
	// logEvery is the least time between two log lines.
	logEvery = time.Minute

	// keptRuns bounds the room that a chain keeps for its next use, in runs: a
	// guest that posts the most scattered buffers it may does not grow the
	// monitor by a table for each.
	keptRuns = 64

	// longestToGuest bounds what the network may bring, in bytes.
	longestToGuest = max(MaxMTU+etherHeader, maxGSOFrame) + vlanTag

	// paddingFrame is the length of a made-up frame, the least of an Ethernet
	// frame without its check sequence (IEEE 802.3 §4.4.2).
	paddingFrame = 60
	// paddingType says that nobody has to understand it (IEEE 802 §9.2.3,
	// local experimental Ethertype 1).
	paddingType = 0x88b5
)

// rxRing is a receive queue with the chains that are taken from it and not yet
// filled: those of a frame that waits for the rest of its buffers, or that a frame
// did not fit.
type rxRing struct {
	*devices.Queue
	held   []virtq.Chain // of the queue's size; the first n are in use
	n      int
	room   uint64 // bytes that those n can take
	pushed bool   // since Publish

	frames, bytes uint64 // since flush
}

// rxWorker brings frames from the network to the receive queues.
type rxWorker struct {
	d          *Device
	r          *run
	backend    Backend
	rings      []*rxRing // nil where the driver has not enabled the queue
	negotiated uint64
	mergeable  bool
	timer      *time.Timer
	peek       [flowPeek]byte
	header     Header

	n struct{ frames, bytes, malformed, oversized, linkDown, filtered, badBuffers uint64 } // since flush
}

func (d *Device) newRX(r *run, pairs int) *rxWorker {
	w := &rxWorker{
		d: d, r: r, backend: d.backend, negotiated: r.act.Features,
		mergeable: r.act.Features&featureMrgRxBuf != 0,
	}
	for i := range pairs {
		q := r.act.Queues[2*i]
		if q == nil {
			w.rings = append(w.rings, nil)
			continue
		}
		n := 1
		if w.mergeable {
			n = int(q.Config().Size)
		}
		w.rings = append(w.rings, &rxRing{Queue: q, held: make([]virtq.Chain, n)})
	}
	if d.rxLimit != nil {
		w.timer = time.NewTimer(0)
		<-w.timer.C
	}
	return w
}

// outcome is why a batch has ended.
type outcome int

const (
	again     outcome = iota // it was long enough
	idle                     // the network has no frame
	starved                  // the ring has no buffer
	throttled                // the rate limit
	ended                    // the worker must end
)

// run moves batches until it is told to stop or the driver breaks the rules. In
// between it waits for the one thing that it lacks: frames, buffers or time.
func (w *rxWorker) run() {
	for _, q := range w.rings {
		if q != nil {
			// Buffers are news only to those who have run out of them.
			q.DisableKicks()
		}
	}
	for {
		why, q, wait := w.batch()
		switch why {
		case ended:
			return
		case idle:
			if !w.r.idle() {
				return
			}
		case starved:
			if q.EnableKicks() {
				break
			}
			w.d.stats.starved.Add(1)
			if !w.r.sleep(q.Queue) {
				return
			}
			q.DisableKicks()
		case throttled:
			w.d.stats.rx.throttled.Add(1)
			if !w.r.pause(w.timer, wait) {
				return
			}
		}
	}
}

// batch moves frames until there is a reason not to, and publishes them.
func (w *rxWorker) batch() (why outcome, q *rxRing, wait time.Duration) {
	w.d.receive.Lock()
	defer w.d.receive.Unlock()
	defer w.flush()
	for n, bytes := 0, uint64(0); n < batchFrames && bytes < batchBytes; n++ {
		if w.r.stop.Load() {
			return ended, nil, 0
		}
		if wait := w.d.rxLimit.wait(); wait > 0 {
			return throttled, nil, wait
		}
		h, frame, ok := w.backend.Next()
		if !ok {
			return idle, nil, 0
		}
		w.d.lent = true
		size := uint64(0)
		for _, b := range frame {
			size += uint64(len(b))
		}
		if !w.wanted(h, frame, size) {
			w.pop()
			continue
		}
		q := w.pick(frame)
		switch got, err := w.fill(q, frame, size); {
		case err != nil:
			w.r.fail(err)
			return ended, nil, 0
		case got == noBuffer:
			return starved, q, 0
		case got == badBuffer:
			continue
		case got == tooLong:
			w.n.oversized++
			w.complain(size, q.room)
		default:
			w.n.frames++
			w.n.bytes += size
			q.frames++
			q.bytes += size
			w.d.rxLimit.take(size)
		}
		w.pop()
		bytes += size
	}
	return again, nil, 0
}

func (w *rxWorker) pop() {
	w.backend.Pop()
	w.d.lent = false
}

// flush publishes what was filled.
func (w *rxWorker) flush() {
	for i, q := range w.rings {
		if q != nil && q.pushed {
			q.pushed = false
			own := &w.d.stats.queues[i]
			own.rxFrames.Add(q.frames)
			own.rxBytes.Add(q.bytes)
			q.frames, q.bytes = 0, 0
			if q.Publish() {
				w.r.act.Driver.Used()
			}
		}
	}
	s := &w.d.stats
	s.rx.frames.Add(w.n.frames)
	s.rx.bytes.Add(w.n.bytes)
	s.rx.malformed.Add(w.n.malformed)
	s.rx.oversized.Add(w.n.oversized)
	s.rx.linkDown.Add(w.n.linkDown)
	s.filtered.Add(w.n.filtered)
	s.badBuffers.Add(w.n.badBuffers)
	w.n = struct{ frames, bytes, malformed, oversized, linkDown, filtered, badBuffers uint64 }{}
}

// wanted says whether a frame may go to the guest, and readies its header.
func (w *rxWorker) wanted(h *Header, frame [][]byte, size uint64) bool {
	if size < etherHeader {
		w.n.malformed++
		return false
	}
	w.header = *h
	gso, ok := toGuest.judge(&w.header, w.negotiated, size)
	if !ok {
		w.n.malformed++
		return false
	}
	gather(w.peek[:etherHeader], frame)
	// VirtIO 1.2 §5.1.4.1: nothing longer than the MTU that the driver was told.
	longest := uint64(w.d.mtu) + etherHeader
	if gso {
		longest = maxGSOFrame
	}
	if tagged(w.peek[:]) {
		longest += vlanTag
	}
	if size > longest {
		w.n.oversized++
		return false
	}
	if !w.d.link.Load() {
		w.n.linkDown++
		return false
	}
	// A driver that has no commands to say what it wants gets everything.
	if w.negotiated&featureCtrlRX != 0 && !w.d.filter.wants(macOf(w.peek[:]), macAddr(w.d.mac.Load())) {
		w.n.filtered++
		return false
	}
	return true
}

// pick gives the ring for a frame.
func (w *rxWorker) pick(frame [][]byte) *rxRing {
	active := w.d.active.Load()
	if active > 1 {
		if i := w.d.steer.pair(w.peek[:gather(w.peek[:], frame)]); i < active {
			return w.rings[i]
		}
	}
	return w.rings[0]
}

// fit is what became of a frame.
type fit int

const (
	filled fit = iota
	noBuffer
	badBuffer // a chain went back unused: try again
	tooLong
)

// fill copies a frame into chains of q: into one, or with MRG_RXBUF into as many as
// it takes (VirtIO 1.2 §5.1.6.4). The error is the ring's fault.
func (w *rxWorker) fill(q *rxRing, frame [][]byte, size uint64) (fit, error) {
	need := HeaderLen + size
	for q.room < need {
		if q.n == len(q.held) {
			return tooLong, nil
		}
		c := &q.held[q.n]
		ok, err := q.PopInto(c)
		switch {
		case err != nil:
			return 0, err
		case !ok:
			return noBuffer, nil
		case c.WriteLen() < HeaderLen, c.ReadLen() != 0:
			// Such a chain could be long without being of use.
			q.Push(c.Head(), 0)
			q.pushed = true
			w.n.badBuffers++
			return badBuffer, nil
		}
		q.n++
		q.room += c.WriteLen()
	}
	k := 0
	for got := uint64(0); got < need; k++ {
		got += q.held[k].WriteLen()
	}
	binary.LittleEndian.PutUint16(w.header[hdrNumBuffers:], uint16(k))
	src := source{now: w.header[:], next: frame}
	for i := range k {
		c := &q.held[i]
		n := min(need, c.WriteLen())
		src.copyTo(c.Writable(), n)
		q.Push(c.Head(), uint32(n))
		need -= n
		q.room -= c.WriteLen()
	}
	q.pushed = true
	q.release(k)
	return filled, nil
}

// release gives the room of the first k chains to later ones.
func (q *rxRing) release(k int) {
	for i := range k {
		if c := &q.held[i]; len(c.Readable())+len(c.Writable()) > keptRuns {
			*c = virtq.Chain{}
		}
	}
	for i := k; i < q.n; i++ {
		q.held[i-k], q.held[i] = q.held[i], q.held[i-k]
	}
	q.n -= k
}

// source is bytes in several runs, read once from the first to the last.
type source struct {
	now  []byte
	next [][]byte
}

// copyTo copies n bytes into the runs of dst, which have room for them.
func (s *source) copyTo(dst [][]byte, n uint64) {
	for _, d := range dst {
		d = d[:min(uint64(len(d)), n)]
		n -= uint64(len(d))
		for len(d) > 0 {
			for len(s.now) == 0 {
				s.now, s.next = s.next[0], s.next[1:]
			}
			k := copy(d, s.now)
			d, s.now = d[k:], s.now[k:]
		}
		if n == 0 {
			return
		}
	}
}

// gather copies the start of a frame into p and says how much of it there was.
func gather(p []byte, frame [][]byte) (n int) {
	for _, b := range frame {
		if n += copy(p[n:], b); n == len(p) {
			break
		}
	}
	return n
}

// complain says once a minute that frames do not fit the guest's buffers.
func (w *rxWorker) complain(size, room uint64) {
	if now := time.Now(); w.d.logged.IsZero() || now.Sub(w.d.logged) >= logEvery {
		w.d.logged = now
		w.d.log.Warn("frames dropped: too long for the receive buffers that the guest posts; lower the network's MTU", "frame_bytes", size, "buffer_bytes", room)
	}
}

// giveBack returns the chains that wait for a frame, as a queue can be saved only
// with none in flight. A buffer cannot go back empty (drivers take a frame for
// granted), so each carries one that nobody has to understand.
func (w *rxWorker) giveBack() {
	own := macAddr(w.d.mac.Load()).bytes()
	var pad [HeaderLen + paddingFrame]byte
	binary.LittleEndian.PutUint16(pad[hdrNumBuffers:], 1)
	copy(pad[HeaderLen:], own[:])
	pad[HeaderLen+6] = 2 // from 02:00:00:00:00:00, locally administered
	binary.BigEndian.PutUint16(pad[HeaderLen+12:], paddingType)
	for _, q := range w.rings {
		if q == nil || q.n == 0 {
			continue
		}
		for i := range q.n {
			c, n := &q.held[i], 0
			if c.WriteLen() >= uint64(len(pad)) {
				n = c.CopyIn(pad[:], 0)
				w.d.stats.padding.Add(1)
			}
			q.Push(c.Head(), uint32(n))
		}
		q.n, q.room = 0, 0
		if q.Publish() {
			w.r.act.Driver.Used()
		}
	}
}
