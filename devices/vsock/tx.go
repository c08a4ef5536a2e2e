package vsock

import (
	"time"

	"github.com/smolvmm/smolvmm/devices/virtq"
)

// packet does what one packet of the guest's says, and gives the bytes of its payload.
func (r *run) packet(ch *virtq.Chain) uint64 {
	d := r.d
	// The header is judged as copied here.
	var h header
	if ch.CopyOut(r.head[:], 0) < headerLen || ch.WriteLen() != 0 {
		d.stats.malformed.Add(1)
		return 0
	}
	h.parse(&r.head)
	d.stats.fromPackets.Add(1)
	switch {
	case h.srcCID != d.cid:
		// Whom would an answer reach?
		d.stats.spoofed.Add(1)
		return 0
	case h.typ != typeStream, h.dstCID != HostCID:
		// VirtIO 1.2 §5.10.6.4.1 for a type; and nobody else is there to connect to.
		d.refuse(&h)
		return 0
	}
	k := key{guest: h.srcPort, host: h.dstPort}
	c := d.table.find(k)
	st := none
	if c != nil {
		st = c.state
		c.hear(h.bufAlloc, h.fwdCnt)
	}
	switch st.judge(h.op) {
	case refuse:
		d.refuse(&h)
	case accept:
		d.accept(&h, k)
	case answer:
		c.state, c.deadline = open, time.Time{}
		c.stream.Opened(c.host)
		d.table.ready.push(c)
	case data:
		return r.data(c, ch, h.len)
	case discard:
		n := min(uint64(h.len), ch.ReadLen()-headerLen)
		if !c.take(uint32(n)) {
			d.violate(c)
			return 0
		}
		c.forward(uint32(n))
		return n
	case shut:
		d.shut(c, h.flags)
	case credit:
		c.demanded = false
		d.table.ready.push(c)
	case tell:
		c.update = true
		d.table.ready.push(c)
	case gone:
		if c.state == calling {
			d.stats.refused.Add(1)
		}
		d.remove(c)
	case reset:
		d.violate(c)
	}
	return 0
}

// refuse answers a packet that belongs to no connection with RST, unless it is one.
func (d *Device) refuse(h *header) {
	if h.op == opRST {
		return
	}
	if h.op == opRequest {
		d.stats.refused.Add(1)
	}
	d.replies.put(reply{cid: h.dstCID, guest: h.srcPort, host: h.dstPort, typ: h.typ})
}

// accept opens a connection of the guest's.
func (d *Device) accept(h *header, k key) {
	c := d.table.add(k, open)
	if c == nil {
		d.refuse(h)
		return
	}
	s, err := d.host.Open(k.guest, k.host)
	if err != nil {
		d.table.remove(c)
		d.refuse(h)
		return
	}
	c.stream, s.Mark().c = s, c
	c.hear(h.bufAlloc, h.fwdCnt)
	c.response = true
	d.stats.opened.Add(1)
	d.stats.connections.Store(uint64(len(d.table.conns)))
	d.table.ready.push(c)
}

// data passes bytes on to the host: what it takes at once straight from guest
// memory, the rest through the connection's buffer.
func (r *run) data(c *conn, ch *virtq.Chain, n uint32) uint64 {
	d := r.d
	switch {
	case uint64(n) > ch.ReadLen()-headerLen:
		d.stats.malformed.Add(1)
		d.violate(c)
		return 0
	case c.guestShut&shutSend != 0, !c.take(n):
		d.violate(c)
		return 0
	}
	d.stats.fromBytes.Add(uint64(n))
	sent := uint32(0)
	if c.hostShut&shutReceive != 0 {
		sent = n
	} else if c.out.n == 0 && n > 0 {
		r.runs = ch.ReadableAt(r.runs[:0], headerLen, uint64(n))
		k, err := c.stream.Write(r.runs)
		if sent = uint32(k); err != nil {
			sent = n
			d.deaf(c)
		}
	}
	c.forward(sent)
	if sent < n {
		r.runs = ch.ReadableAt(r.runs[:0], headerLen+uint64(sent), uint64(n-sent))
		c.out.put(r.runs)
		d.stats.buffered.Add(uint64(n - sent))
	}
	r.forgetRuns()
	// Whatever is sent next tells of the credit; it is only sent for its own
	// sake when much of it is new.
	if c.due() || c.readable {
		d.table.ready.push(c)
	}
	return uint64(n)
}

// keptRuns bounds the room kept for a packet's pieces: a guest that scatters one
// as far as it may does not grow the monitor for good.
const keptRuns = 64

func (r *run) forgetRuns() {
	if cap(r.runs) > keptRuns {
		r.runs = nil
		return
	}
	clear(r.runs[:cap(r.runs)])
	r.runs = r.runs[:0]
}

// shut takes in that the guest closes a half, or both. Once said it stays
// (VirtIO 1.2 §5.10.6.5).
func (d *Device) shut(c *conn, flags uint32) {
	news := flags & shutBoth &^ c.guestShut
	c.guestShut |= news
	if c.state == closing {
		if c.guestShut == shutBoth {
			// Both have said so: RST confirms it.
			d.kill(c)
		}
		return
	}
	if news&shutReceive != 0 && c.guestShut != shutBoth {
		c.stream.CloseRead()
	}
	d.flushed(c)
}

// flush gives the host what waits for it.
func (d *Device) flush(c *conn) {
	if c.stream == nil || c.out.n == 0 {
		return
	}
	var room [2][]byte
	for c.out.n > 0 {
		runs := c.out.runs(room[:0])
		want := c.out.n
		n, err := c.stream.Write(runs)
		if err != nil {
			d.deaf(c)
			break
		}
		c.out.drop(n)
		d.stats.buffered.Add(^uint64(n - 1))
		c.forward(uint32(n))
		if n < want {
			break
		}
	}
	if c.due() {
		d.table.ready.push(c)
	}
	d.flushed(c)
}

// flushed passes the end of what the guest sends on, once all of it is out.
func (d *Device) flushed(c *conn) {
	if c.out.n > 0 || c.state != open || c.guestShut&shutSend == 0 {
		return
	}
	c.stream.CloseWrite()
	if c.guestShut == shutBoth {
		d.kill(c) // RST is the answer (VirtIO 1.2 §5.10.6.5)
	}
}

// deaf takes in that the host takes no more: what waits for it is dropped.
func (d *Device) deaf(c *conn) {
	c.forward(uint32(c.out.n))
	d.stats.buffered.Add(-uint64(c.out.n))
	c.out = ring{}
	d.hostShuts(c, shutReceive)
	if c.guestShut == shutBoth && c.state == open {
		d.kill(c)
	}
}

// hostShuts takes in that the host closes a half, or both.
func (d *Device) hostShuts(c *conn, flags uint32) {
	if c.hostShut|flags == c.hostShut || c.state != open {
		return
	}
	c.hostShut |= flags
	c.shutdown = true
	if c.hostShut == shutBoth {
		d.unlink(c)
		if c.guestShut == shutBoth {
			d.kill(c)
			return
		}
		c.state = closing
		d.expect(c, time.Now().Add(closePatience))
	}
	d.table.ready.push(c)
}

// violate ends a connection whose rules the guest broke.
func (d *Device) violate(c *conn) {
	d.stats.violations.Add(1)
	d.stats.resets.Add(1)
	d.kill(c)
}

// kill ends a connection with RST.
func (d *Device) kill(c *conn) {
	d.unlink(c)
	c.state = dying
	c.deadline = time.Time{}
	c.request, c.response, c.shutdown, c.update = false, false, false, false
	d.table.ready.push(c)
}

// remove ends a connection without a word.
func (d *Device) remove(c *conn) {
	d.unlink(c)
	d.table.remove(c)
	d.stats.connections.Store(uint64(len(d.table.conns)))
}

// unlink lets go of the stream.
func (d *Device) unlink(c *conn) {
	if c.stream != nil {
		c.stream.Mark().c = nil
		c.stream.Close()
		c.stream = nil
	}
	d.stats.buffered.Add(-uint64(c.out.n))
	c.forward(uint32(c.out.n))
	c.out = ring{}
	c.readable = false
}
