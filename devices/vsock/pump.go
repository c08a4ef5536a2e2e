package vsock

import (
	"encoding/binary"
	"time"

	"github.com/smolvmm/smolvmm/devices/virtq"
)

// pump takes in what has happened on the host's side and sends the guest what
// there is for it, as far as its buffers go and not for too long: more says that
// there was no other reason to stop. The caller holds Device.work.
func (r *run) pump() (more bool) {
	d := r.d
	defer r.publish()
	r.rx.DisableKicks()
	d.expire()
	r.rearm()
	r.events()
	for n, bytes := 0, 0; n < batchPackets && bytes < batchBytes; n++ {
		if r.stop.Load() {
			return false
		}
		k, why := r.next()
		bytes += k
		switch why {
		case sentOne:
		case nothing:
			if r.events() {
				continue
			}
			return !r.announce()
		case starved:
			d.stats.starved.Add(1)
			if r.rx.EnableKicks() {
				r.rx.DisableKicks()
				continue
			}
			// Only the guest can help now; a kick makes news.
			r.announce()
			return false
		case broken:
			return false
		}
	}
	return true
}

// events takes in what has happened on the host's side, and says whether anything has.
func (r *run) events() (some bool) {
	for range batchPackets {
		e, ok := r.d.host.Next()
		if !ok {
			break
		}
		r.d.event(e)
		some = true
	}
	return some
}

// publish makes what was sent visible.
func (r *run) publish() {
	r.rearm()
	if r.blocked && !r.d.replies.full() {
		r.blocked = false
		signal(r.room)
	}
	if r.pushed {
		r.pushed = false
		if r.rx.Publish() {
			r.act.Driver.Used()
		}
	}
}

// progress is what became of one attempt to send.
type progress int

const (
	sentOne progress = iota
	nothing          // there is nothing to send
	starved          // there is no buffer
	broken           // the driver broke the rules
)

// next sends one thing, and gives the bytes of its payload.
func (r *run) next() (int, progress) {
	d := r.d
	if p := d.replies.first(); p != nil {
		why := r.control(header{srcCID: p.cid, srcPort: p.host, dstPort: p.guest, typ: p.typ, op: opRST})
		if why == sentOne {
			d.replies.drop()
		}
		return 0, why
	}
	for {
		c := d.table.ready.first
		if c == nil {
			return 0, nothing
		}
		bytes, why := r.serve(c)
		switch {
		case why == starved || why == broken:
			return 0, why // it keeps its place
		case d.table.find(c.key) != c:
		default:
			d.table.ready.remove(c)
			if c.pending() {
				d.table.ready.push(c) // behind the others
			}
		}
		if why == sentOne {
			return bytes, why
		}
	}
}

// pending says whether there is something to send for a connection.
func (c *conn) pending() bool {
	return c.state == dying || c.request || c.response || c.shutdown || c.update || c.due() || c.flowing() || c.thirsty()
}

// flowing: the host may have bytes, and the guest takes some.
func (c *conn) flowing() bool { return c.waits() && c.room() > 0 }

// waits: the host may have bytes that the guest wants.
func (c *conn) waits() bool {
	return c.state == open && c.readable && !c.ended && c.guestShut&shutReceive == 0
}

// thirsty: the host has bytes, and the guest, which takes none, was not asked to say
// when it does. It would say so by itself if it kept to the specification's advice.
func (c *conn) thirsty() bool { return c.waits() && c.room() == 0 && !c.demanded }

// serve sends one thing for a connection.
func (r *run) serve(c *conn) (int, progress) {
	d := r.d
	send := func(op uint16, flags uint32, flag *bool) (int, progress) {
		why := r.control(d.header(c, op, flags))
		if why == sentOne {
			c.told = c.fwd
			if flag != nil {
				*flag = false
			}
		}
		return 0, why
	}
	switch {
	case c.state == dying:
		n, why := send(opRST, 0, nil)
		if why == sentOne {
			d.remove(c)
		}
		return n, why
	case c.request:
		return send(opRequest, 0, &c.request)
	case c.response:
		return send(opResponse, 0, &c.response)
	case c.flowing():
		return r.forward(c)
	case c.shutdown:
		return send(opShutdown, c.hostShut, &c.shutdown)
	case c.update || c.due():
		return send(opCreditUpdate, 0, &c.update)
	case c.thirsty():
		n, why := send(opCreditRequest, 0, nil)
		c.demanded = c.demanded || why == sentOne
		return n, why
	}
	return 0, nothing
}

// header fills in what all packets of a connection have.
func (d *Device) header(c *conn, op uint16, flags uint32) header {
	return header{srcPort: c.host, dstPort: c.guest, typ: typeStream, op: op, flags: flags, bufAlloc: c.alloc, fwdCnt: c.fwd}
}

// control sends a packet without payload.
func (r *run) control(h header) progress {
	n, why := r.pop(1, 0)
	if n == 0 {
		return why
	}
	r.fill(0, h, 0)
	return sentOne
}

// pop takes up to max receive buffers into r.chains, until they have room for want
// bytes of payload, and gathers that room in r.runs.
func (r *run) pop(max int, want uint64) (n int, why progress) {
	r.runs = r.runs[:0]
	for room := uint64(0); n < max && (n == 0 || room < want && len(r.runs) < gatherRuns); {
		c := &r.chains[n]
		ok, err := r.rx.PopInto(c)
		switch {
		case err != nil:
			r.rx.Unpop(n)
			r.fail(err)
			return 0, broken
		case !ok:
			return n, starved
		case c.WriteLen() < headerLen, c.ReadLen() != 0:
			if n > 0 {
				r.rx.Unpop(1) // the others are filled first, as they must be given back in turn
				return n, sentOne
			}
			r.rx.Push(c.Head(), 0)
			r.pushed = true
			r.d.stats.badBuffers.Add(1)
			if r.stop.Load() {
				return 0, broken
			}
			continue
		}
		n++
		k := min(c.WriteLen()-headerLen, maxPacket, want-room)
		r.runs = c.WritableAt(r.runs, headerLen, k)
		room += k
	}
	return n, sentOne
}

// fill makes receive buffer i a packet with n bytes of payload, which are there already.
func (r *run) fill(i int, h header, n uint32) {
	c := &r.chains[i]
	if h.srcCID == 0 {
		h.srcCID = HostCID
	}
	h.dstCID, h.len = r.d.cid, n
	h.put(&r.head)
	c.CopyIn(r.head[:], 0)
	r.rx.Push(c.Head(), headerLen+n)
	r.pushed = true
	r.d.stats.toPackets.Add(1)
	if len(c.Writable()) > keptRuns {
		*c = virtq.Chain{}
	}
}

// forward reads the host's bytes into the guest's buffers.
func (r *run) forward(c *conn) (bytes int, why progress) {
	d := r.d
	want := uint64(min(c.room(), maxPacket))
	popped, why := r.pop(gather, want)
	if popped == 0 {
		return 0, why
	}
	if len(r.runs) == 0 {
		// Headers fit, and nothing else: no use for a driver that wants bytes.
		for i := range popped {
			r.rx.Push(r.chains[i].Head(), 0)
			d.stats.badBuffers.Add(1)
		}
		r.pushed = true
		return 0, sentOne
	}
	n, more, err := c.stream.Read(r.runs)
	r.forgetRuns()
	c.readable = more && n > 0 && err == nil
	used := 0
	for left := uint64(n); left > 0; used++ {
		k := uint32(min(left, r.chains[used].WriteLen()-headerLen, maxPacket))
		r.fill(used, d.header(c, opRW, 0), k)
		left -= uint64(k)
	}
	if used > 0 {
		c.told = c.fwd
		c.update = false
	}
	c.send(uint32(n))
	d.stats.toBytes.Add(uint64(n))
	r.rx.Unpop(popped - used)
	if err != nil {
		c.ended = true
		flags := uint32(shutSend)
		if c.stream.Gone() {
			flags = shutBoth
		}
		d.hostShuts(c, flags)
	}
	if n == 0 {
		return 0, nothing
	}
	return n, sentOne
}

// event takes in what happened to a stream.
func (d *Device) event(e Event) {
	c := e.Stream.Mark().c
	switch {
	case e.Call:
		d.call(e)
	case c == nil:
	case c.state == calling:
		if c.stream.Gone() {
			d.giveUp(c)
		}
	case c.state == open:
		if e.Readable {
			c.readable = true
			if c.ended && c.stream.Gone() {
				d.deaf(c)
				return
			}
			d.table.ready.push(c)
		}
		if e.Writable {
			d.flush(c)
		}
	}
}

// call begins a connection of the host's.
func (d *Device) call(e Event) {
	c := d.table.call(e.Port)
	if c == nil {
		d.stats.refused.Add(1)
		e.Stream.Close()
		return
	}
	c.stream, e.Stream.Mark().c = e.Stream, c
	c.request = true
	d.stats.called.Add(1)
	d.stats.connections.Store(uint64(len(d.table.conns)))
	d.expect(c, time.Now().Add(callPatience))
	d.table.ready.push(c)
}

// giveUp ends a connection that the guest has not answered.
func (d *Device) giveUp(c *conn) {
	if c.request {
		d.remove(c) // it has not even heard of it
		return
	}
	d.stats.resets.Add(1)
	d.kill(c)
}

// patience is how long the guest has for its answer; 0: none is due.
func (s state) patience() time.Duration {
	switch s {
	case calling:
		return callPatience
	case closing:
		return closePatience
	}
	return 0
}

// expect gives the guest until then.
func (d *Device) expect(c *conn, until time.Time) {
	c.deadline = until
	if d.earliest.IsZero() || until.Before(d.earliest) {
		d.earliest = until
	}
}

// expire ends what has waited for too long.
func (d *Device) expire() {
	if d.earliest.IsZero() {
		return
	}
	now := time.Now()
	if now.Before(d.earliest) {
		return
	}
	d.earliest = time.Time{}
	for _, c := range d.table.conns {
		switch {
		case c.deadline.IsZero():
		case now.Before(c.deadline):
			d.expect(c, c.deadline)
		default:
			d.giveUp(c)
		}
	}
}

// rearm sets the timer for the earliest deadline.
func (r *run) rearm() {
	if d := r.d; !d.earliest.IsZero() && !d.earliest.Equal(r.armed) {
		r.armed = d.earliest
		r.timer.Reset(max(time.Until(d.earliest), time.Millisecond))
	}
}

// announce tells the driver that its connections are gone, if it has to hear of
// that (VirtIO 1.2 §5.10.6.7). done is false if it should be tried again at once.
func (r *run) announce() (done bool) {
	if !r.d.resetDue || r.ev == nil {
		return true
	}
	c, err := r.ev.Pop()
	switch {
	case err != nil:
		r.fail(err)
		return true
	case c == nil:
		return !r.ev.EnableKicks()
	}
	var e [eventLen]byte
	binary.LittleEndian.PutUint32(e[:], eventTransportReset)
	n := 0
	if c.WriteLen() >= eventLen {
		n = c.CopyIn(e[:], 0)
		r.d.resetDue = false
	}
	r.ev.Push(c.Head(), uint32(n))
	if r.ev.Publish() {
		r.act.Driver.Used()
	}
	return !r.d.resetDue
}
