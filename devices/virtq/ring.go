package virtq

import (
	"encoding/binary"
	"fmt"
)

// Pop takes the next chain from the available ring: nil, nil when there is
// none, a *Fault when the driver broke the rules (and the same one from then
// on). The chain is the queue's own and holds until the next Pop.
func (q *Queue) Pop() (*Chain, error) {
	ok, err := q.PopInto(&q.own)
	if !ok {
		return nil, err
	}
	return &q.own, nil
}

// PopInto is Pop into a chain of the caller's, for a device with several
// requests in flight. c may be used again when its head has been pushed; it
// keeps its room, so that chains from a free list cost no allocation.
func (q *Queue) PopInto(c *Chain) (bool, error) {
	if q.fault != nil {
		return false, q.fault
	}
	if q.mem == nil {
		return false, ErrDropped
	}
	if q.nextAvail == q.seenAvail {
		// The atomic load orders the ring's contents behind the index.
		idx := q.availIdx.load()
		// A driver owns Size descriptors, so no more chains than that can be
		// waiting and in flight together (VirtIO 1.2 §2.7.13.3): this bounds
		// what a device must keep, and catches an index that runs back.
		waiting := int(idx - q.nextAvail)
		if waiting+q.InFlight() > int(q.cfg.Size) {
			return false, q.fail(&Fault{Head: -1, Desc: -1, Reason: fmt.Sprintf(
				"avail.idx %d is %d ahead of the device with %d requests in flight: the queue has %d descriptors", idx, waiting, q.InFlight(), q.cfg.Size)})
		}
		if waiting == 0 {
			return false, nil
		}
		q.seenAvail = idx
	}
	head := binary.LittleEndian.Uint16(q.availRing[uint64(q.nextAvail&q.mask)*availElem:])
	if f := q.walk(c, head); f != nil {
		c.Release()
		return false, q.fail(f)
	}
	q.nextAvail++
	return true, nil
}

// Unpop puts the n chains that were popped last, and not pushed, back at the head
// of the available ring, for a device that took more than it could fill. They are
// judged anew by the next Pop. More than there are in flight is a bug and panics.
func (q *Queue) Unpop(n int) {
	if q.mem == nil {
		return
	}
	if n < 0 || n > q.InFlight() {
		panic("virtq: Unpop of chains that are not in flight")
	}
	q.nextAvail -= uint16(n)
}

func (q *Queue) fail(f *Fault) error {
	q.fault = f
	return f
}

// Push gives a chain back: written counts the bytes stored into its writable
// part, from its start (VirtIO 1.2 §2.7.8.2). The driver sees it after Publish.
// Pushing more chains than were popped is a bug in the device and panics.
func (q *Queue) Push(head uint16, written uint32) {
	if q.mem == nil {
		return
	}
	if q.nextAvail == q.nextUsed {
		panic("virtq: Push without a chain in flight")
	}
	e := q.usedRing[uint64(q.nextUsed&q.mask)*usedElem:]
	binary.LittleEndian.PutUint32(e[0:4], uint32(head))
	binary.LittleEndian.PutUint32(e[4:8], written)
	q.nextUsed++
}

// Publish makes the pushed chains visible to the driver and says whether it
// wants an interrupt for them (VirtIO 1.2 §2.7.7). With nothing pushed since
// the last time it does nothing.
func (q *Queue) Publish() (notify bool) {
	if q.mem == nil || q.nextUsed == q.published {
		return false
	}
	old := q.published
	q.published = q.nextUsed
	// A full barrier: the elements are visible before the index, and the
	// driver's wish is read after it. A driver that changes its wish later
	// sees the index in its own re-check.
	q.storeUsed()
	if q.cfg.EventIdx {
		return needEvent(q.usedEvent.load(), q.published, old)
	}
	return q.availFlags.load()&availNoInterrupt == 0
}

// DisableKicks tells the driver that no notification is needed, for as long as
// the device looks at the ring by itself. A driver may still send some.
func (q *Queue) DisableKicks() {
	// With EVENT_IDX the flag must stay zero (VirtIO 1.2 §2.7.10.1); an
	// avail_event that the driver has passed silences it just as well.
	if q.mem == nil || q.cfg.EventIdx || q.usedFlags == usedNoNotify {
		return
	}
	q.usedFlags = usedNoNotify
	q.storeUsed()
}

// EnableKicks asks the driver to notify from the next chain on. If chains came
// in before the driver could see that, no notification will come for them: then
// more is true, and the device must look at the ring again.
func (q *Queue) EnableKicks() (more bool) {
	if q.mem == nil {
		return false
	}
	if q.cfg.EventIdx {
		// Plain and 16 bits wide: the rest of that word may be the guest's.
		// A torn value is harmless, for whoever reads it has published its
		// index before the barrier, and the load below finds it.
		binary.LittleEndian.PutUint16(q.availEvent, q.nextAvail)
		q.barrier()
	} else {
		q.usedFlags = 0
		q.storeUsed()
	}
	return q.availIdx.load() != q.nextAvail
}

// storeUsed writes used.flags and used.idx behind everything before, and ahead
// of every load after.
func (q *Queue) storeUsed() {
	q.usedWord.Store(uint32(q.published)<<16 | uint32(q.usedFlags))
	q.barrier()
}

// barrier is a full one: Go's swap is XCHG on x86, and the compiler moves no
// access across it. Go's atomic store would be one as well, but not under the
// race detector, which makes it a mere release: wake-ups get lost there.
func (q *Queue) barrier() { q.fence.Swap(1) }

// needEvent says whether an index that moves from old to now passes event
// (VirtIO 1.2 §2.7.7.1, §2.7.10.1).
func needEvent(event, now, old uint16) bool {
	return now-event-1 < now-old
}
