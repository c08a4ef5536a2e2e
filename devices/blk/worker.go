package blk

import (
	"encoding/binary"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// logEvery is the least time between two log lines about one kind of request.
const logEvery = time.Minute

// worker serves the queue from Activate or Resume to the next pause or reset.
// All that it keeps of guest memory goes with it.
type worker struct {
	d          *Device
	backend    Backend
	queue      *devices.Queue
	driver     devices.DriverEnd
	negotiated uint64
	capacity   uint64 // sectors
	serial     [SerialLen]byte

	began time.Time // the request at hand

	// Room for one request, so that it costs no allocation.
	header   [headerLen]byte
	segments [max(maxDiscardSegs, maxZeroesSegs) * segmentLen]byte
	status   [1]byte
	bufs     [][]byte
}

// run drains the ring, sleeps until the driver announces more, and so on until
// it is told to stop or the driver breaks the rules.
func (w *worker) run() {
	for w.drain() {
		if err := w.queue.Kick.Wait(); err != nil {
			w.driver.Fault(err)
			return
		}
	}
}

// drain serves what is in the ring until it is empty and the driver has been
// asked to announce what comes next. It says false when the worker must end.
func (w *worker) drain() bool {
	q := w.queue
	for {
		q.DisableKicks()
		for {
			if w.d.stop.Load() {
				return false
			}
			c, err := q.Pop()
			if err != nil {
				w.driver.Fault(err)
				return false
			}
			if c == nil {
				break
			}
			n := w.serve(c)
			// Each is published at once: the next one may take the disk long.
			q.Push(c.Head(), n)
			if q.Publish() {
				w.driver.Used()
			}
		}
		if !q.EnableKicks() {
			return true
		}
	}
}

// serve does one request and gives the number of bytes written into its chain,
// counted from the start of the writable part without a gap (VirtIO 1.2
// §2.7.8.2). The status is the last writable byte, so where data in front of it
// was not written that number is 0.
func (w *worker) serve(c *virtq.Chain) uint32 {
	if c.WriteLen() == 0 {
		w.d.stats.malformed.Add(1)
		return 0
	}
	room := c.WriteLen() - 1
	status, filled := w.request(c, room)
	w.status[0] = status
	c.CopyIn(w.status[:], room)
	if filled != room {
		return 0
	}
	return uint32(room + 1)
}

// request does what the header asks for. room is what the chain has for data in
// front of the status; filled is how much of it was written, from its start.
func (w *worker) request(c *virtq.Chain, room uint64) (status byte, filled uint64) {
	w.began = time.Now()
	if c.CopyOut(w.header[:], 0) < headerLen {
		return w.bad(), 0
	}
	payload := c.ReadLen() - headerLen
	sector := binary.LittleEndian.Uint64(w.header[8:])
	switch binary.LittleEndian.Uint32(w.header[0:]) {
	case typeIn:
		return w.read(c, sector, payload, room)
	case typeOut:
		if room != 0 || !w.onDisk(sector, payload) || w.backend.ReadOnly() {
			return w.bad(), 0
		}
		w.bufs = c.ReadableAt(w.bufs[:0], headerLen, payload)
		err := w.backend.WriteV(w.bufs, int64(sector)*SectorSize)
		return w.finish(kindWrite, payload, w.through(err)), 0
	case typeFlush:
		if room != 0 || payload != 0 {
			return w.bad(), 0
		}
		return w.finish(kindFlush, 0, w.backend.Flush()), 0
	case typeGetID:
		if payload != 0 || room < SerialLen {
			return w.bad(), 0
		}
		c.CopyIn(w.serial[:], 0)
		return w.finish(kindGetID, SerialLen, nil), SerialLen
	case typeDiscard:
		return w.ranges(c, kindDiscard, payload, room), 0
	case typeWriteZeroes:
		return w.ranges(c, kindZeroes, payload, room), 0
	}
	return w.unsupported(), 0
}

func (w *worker) read(c *virtq.Chain, sector, payload, room uint64) (status byte, filled uint64) {
	if payload != 0 || !w.onDisk(sector, room) {
		return w.bad(), 0
	}
	w.bufs = c.WritableAt(w.bufs[:0], 0, room)
	err := w.backend.ReadV(w.bufs, int64(sector)*SectorSize)
	if err == nil {
		filled = room
	}
	return w.finish(kindRead, room, err), filled
}

// ranges does a discard or write zeroes. All ranges are judged before the first
// is touched.
func (w *worker) ranges(c *virtq.Chain, k kind, payload, room uint64) byte {
	feature, segs, most, flags := featureDiscard, maxDiscardSegs, uint32(maxDiscardSectors), uint32(0)
	if k == kindZeroes {
		feature, segs, most, flags = featureWriteZeroes, maxZeroesSegs, maxZeroesSectors, segmentUnmap
	}
	if w.negotiated&feature == 0 {
		return w.unsupported()
	}
	if room != 0 || payload == 0 || payload%segmentLen != 0 || payload > uint64(segs*segmentLen) {
		return w.bad()
	}
	b := w.segments[:payload]
	c.CopyOut(b, headerLen)
	for p := b; len(p) > 0; p = p[segmentLen:] {
		s := parseSegment(p)
		if s.flags&^flags != 0 {
			// VirtIO 1.2 §5.2.6.2: reserved flags, and unmap in a discard.
			return w.unsupported()
		}
		if s.sectors > most || !w.contains(s.sector, uint64(s.sectors)) {
			return w.bad()
		}
	}
	n, err := uint64(0), error(nil)
	for p := b; len(p) > 0 && err == nil; p = p[segmentLen:] {
		s := parseSegment(p)
		off, length := int64(s.sector)*SectorSize, int64(s.sectors)*SectorSize
		n += uint64(length)
		if k == kindDiscard {
			err = w.backend.Discard(off, length)
		} else {
			err = w.backend.WriteZeroes(off, length, s.flags&segmentUnmap != 0)
		}
	}
	if k == kindZeroes {
		err = w.through(err)
	}
	return w.finish(k, n, err)
}

// onDisk checks the place and length of a transfer.
func (w *worker) onDisk(sector, n uint64) bool {
	return n%SectorSize == 0 && n <= maxTransfer && w.contains(sector, n/SectorSize)
}

func (w *worker) contains(sector, sectors uint64) bool {
	return sector <= w.capacity && sectors <= w.capacity-sector
}

// through makes a write durable where the driver counts on a write-through
// cache: it took CONFIG_WCE and cleared writeback, or it took neither that nor
// FLUSH (VirtIO 1.2 §5.2.5, §5.2.6.2).
func (w *worker) through(err error) error {
	if err != nil {
		return err
	}
	writeback := w.negotiated&featureFlush != 0
	if w.negotiated&featureConfigWCE != 0 {
		writeback = w.d.writeback.Load() != 0
	}
	if writeback {
		return nil
	}
	return w.backend.Flush()
}

// bad is the answer to a malformed request.
func (w *worker) bad() byte {
	w.d.stats.malformed.Add(1)
	return statusIOErr
}

func (w *worker) unsupported() byte {
	w.d.stats.unsupported.Add(1)
	return statusUnsupp
}

// finish counts a request of n bytes and gives its status.
func (w *worker) finish(k kind, n uint64, err error) byte {
	s := &w.d.stats.kinds[k]
	took := time.Since(w.began)
	s.requests.Add(1)
	s.nanoseconds.Add(uint64(max(took, 0)))
	s.took[bucketOf(took)].Add(1)
	if err == nil {
		s.bytes.Add(n)
		return statusOK
	}
	errs := s.errors.Add(1)
	if last, now := &w.d.logged[k], time.Now(); last.IsZero() || now.Sub(*last) >= logEvery {
		*last = now
		w.d.log.Error("disk "+k.String()+" failed: the guest gets an I/O error", "disk", w.backend.Serial(), "error", err, "failures", errs)
	}
	return statusIOErr
}
