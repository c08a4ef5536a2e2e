// Package virtq is the device's side of the split virtqueue (VirtIO 1.2 §2.7):
// rings validated once, chains checked before anyone sees them.
//
// A Queue belongs to one goroutine at a time, takes no lock and allocates
// nothing per request. The loop of a device that serves it is
//
//	for {
//		q.DisableKicks()
//		for {
//			c, err := q.Pop()
//			if err != nil { driver.Fault(err); return }
//			if c == nil { break }
//			n := serve(c)
//			q.Push(c.Head(), n)
//			if q.Publish() { driver.Used() }
//		}
//		if !q.EnableKicks() {
//			kick.Wait()
//		}
//	}
//
// # Trust
//
// Everything in the rings is the guest's, and may change at any time. Indices
// and descriptors are copied out before they are judged, and each is read once.
// What breaks the driver's rules is a *Fault, and a queue with a fault gives
// nothing more: the device tells the driver (DEVICE_NEEDS_RESET) and stops.
//
// # Memory order
//
// An index shares an aligned 32-bit word with a neighbour that the same side
// owns or that is only read here, so indices are accessed as 32-bit atomics
// whatever the ring's alignment (avail may lie at an odd multiple of 2: then its
// idx shares a word with ring[0]): that is the acquire and release that ring
// contents need. Between "publish my index" and "read the other side's wish" there
// is a full barrier, on which lossless notification suppression rests (VirtIO 1.2
// §2.7.7, §2.7.10).
package virtq

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Feature bits of the ring (VirtIO 1.2 §6), for a device's Features.
const (
	FeatureIndirectDesc uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC, §2.7.5.3
	FeatureEventIdx     uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX, §2.7.7, §2.7.8
)

const (
	// MaxSize is the largest number of descriptors in a queue (VirtIO 1.2 §2.7).
	MaxSize = 32768

	// DefaultMaxIndirect bounds an indirect table of a queue smaller than it,
	// in descriptors. VirtIO 1.2 §2.7.5.3.1 would hold a driver to the queue
	// size, but drivers in the field take a device's seg_max instead.
	DefaultMaxIndirect = 1024

	// maxChainBytes bounds the bytes of one chain (VirtIO 1.2 §2.7.5).
	maxChainBytes = 1 << 32
)

// Sizes and offsets of the three areas in bytes (VirtIO 1.2 §2.7.5, §2.7.6,
// §2.7.8): both rings are a 16-bit flags, a 16-bit idx, the elements, and the
// 16-bit event index of the other direction.
const (
	descBytes   = 16
	availElem   = 2
	usedElem    = 8
	ringHeader  = 4
	ringTrailer = 2
)

// Flags of a descriptor (VirtIO 1.2 §2.7.5) and of the rings (§2.7.6, §2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Config is what a driver and a device have agreed on for one queue. It is
// plain data, fit for JSON.
type Config struct {
	Size  uint16 `json:"size"`  // descriptors, a power of two up to MaxSize
	Desc  uint64 `json:"desc"`  // guest address of the descriptor table, 16-aligned
	Avail uint64 `json:"avail"` // guest address of the available ring, 2-aligned
	Used  uint64 `json:"used"`  // guest address of the used ring, 4-aligned

	EventIdx bool `json:"event_idx"` // VIRTIO_F_EVENT_IDX was negotiated
	Indirect bool `json:"indirect"`  // VIRTIO_F_INDIRECT_DESC was negotiated

	// MaxIndirect bounds an indirect table, in descriptors, up to MaxSize; 0
	// stands for the larger of Size and DefaultMaxIndirect.
	MaxIndirect uint32 `json:"max_indirect,omitempty"`
}

// State is a queue at rest: enough to make it again over the same guest memory.
type State struct {
	Config
	NextAvail uint16 `json:"next_avail"` // entries of the available ring taken
	NextUsed  uint16 `json:"next_used"`  // entries of the used ring published
}

// Queue is a validated virtqueue. Make one with New or Restore.
type Queue struct {
	cfg         Config
	maxIndirect uint32
	mask        uint16

	mem *guestmem.Memory // nil after Drop

	// Where the rings are, kept from New until Drop.
	desc       []byte // the whole table
	availRing  []byte // ring[] only
	usedRing   []byte // ring[] only
	availEvent []byte // 2 bytes behind the used ring
	availIdx   half
	availFlags half
	usedEvent  half
	usedWord   guestmem.Word32 // flags and idx, both the device's to write

	nextAvail uint16 // the next entry to take
	seenAvail uint16 // avail.idx when last looked at
	nextUsed  uint16 // the next entry to fill: ahead of published until Publish
	published uint16 // used.idx
	usedFlags uint16
	fence     atomic.Uint32 // only ever swapped, for the barrier
	fault     *Fault
	own       Chain // what Pop hands out
}

// half is one 16-bit field read through the aligned 32-bit word it lies in.
// Guest RAM starts and ends at page boundaries, so that word is RAM as well.
type half struct {
	w     guestmem.Word32
	shift uint8
}

func newHalf(mem *guestmem.Memory, gpa uint64) (half, error) {
	w, err := mem.Word32(gpa &^ 3)
	return half{w, uint8(gpa & 2 * 8)}, err
}

func (h half) load() uint16 { return uint16(h.w.Load() >> h.shift) }

// New validates the queue once and for all: size, alignment, and that each of
// the three areas lies in one run of RAM. The error names the first rule
// broken. Both indices start at zero.
func New(mem *guestmem.Memory, c Config) (*Queue, error) {
	return Restore(mem, State{Config: c})
}

// Restore makes a queue that goes on where State was taken, over the same guest
// memory. It checks as New does, and refuses a state with requests in flight:
// their chains would never come back.
func Restore(mem *guestmem.Memory, s State) (*Queue, error) {
	if s.NextAvail != s.NextUsed {
		return nil, fmt.Errorf("virtqueue state: %d requests in flight; quiesce the device before taking its state", s.NextAvail-s.NextUsed)
	}
	q := &Queue{
		cfg: s.Config, mask: s.Size - 1,
		nextAvail: s.NextAvail, seenAvail: s.NextAvail,
		nextUsed: s.NextUsed, published: s.NextUsed,
	}
	if err := q.Attach(mem); err != nil {
		return nil, err
	}
	return q, nil
}

// Attach finds the rings in guest memory again after Drop; on a queue that was
// not dropped it only checks them. Indices and faults are kept.
func (q *Queue) Attach(mem *guestmem.Memory) error {
	c := q.cfg
	if c.Size == 0 || c.Size > MaxSize || c.Size&(c.Size-1) != 0 {
		return fmt.Errorf("virtqueue size %d: must be a power of two up to %d", c.Size, MaxSize)
	}
	if c.MaxIndirect > MaxSize {
		return fmt.Errorf("virtqueue indirect tables of %d descriptors: at most %d", c.MaxIndirect, MaxSize)
	}
	n := uint64(c.Size)
	var areas [3][]byte
	for i, a := range []struct {
		name       string
		gpa, align uint64
		bytes      uint64
	}{
		{"descriptor table", c.Desc, 16, n * descBytes},
		{"available ring", c.Avail, 2, ringHeader + n*availElem + ringTrailer},
		{"used ring", c.Used, 4, ringHeader + n*usedElem + ringTrailer},
	} {
		if a.gpa%a.align != 0 {
			return fmt.Errorf("virtqueue %s at %#x: must be a multiple of %d", a.name, a.gpa, a.align)
		}
		b, err := mem.Slice(a.gpa, a.bytes)
		if err != nil {
			return fmt.Errorf("virtqueue %s: %w", a.name, err)
		}
		areas[i] = b
	}
	var errs [4]error
	q.availFlags, errs[0] = newHalf(mem, c.Avail)
	q.availIdx, errs[1] = newHalf(mem, c.Avail+2)
	q.usedEvent, errs[2] = newHalf(mem, c.Avail+ringHeader+n*availElem)
	q.usedWord, errs[3] = mem.Word32(c.Used)
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("virtqueue: %w", err)
	}
	q.desc = areas[0]
	q.availRing = areas[1][ringHeader : ringHeader+n*availElem]
	q.usedRing = areas[2][ringHeader : ringHeader+n*usedElem]
	q.availEvent = areas[2][ringHeader+n*usedElem:]
	q.maxIndirect = c.MaxIndirect
	if q.maxIndirect == 0 {
		q.maxIndirect = max(uint32(c.Size), DefaultMaxIndirect)
	}
	q.mem = mem
	return nil
}

// Drop forgets guest memory, chains handed out by Pop included, until Attach.
// Meanwhile Pop fails with ErrDropped and the other methods do nothing.
func (q *Queue) Drop() {
	q.mem = nil
	q.desc, q.availRing, q.usedRing, q.availEvent = nil, nil, nil, nil
	q.availIdx, q.availFlags, q.usedEvent = half{}, half{}, half{}
	q.usedWord = guestmem.Word32{}
	q.own.Release()
}

// Config is what New was given.
func (q *Queue) Config() Config { return q.cfg }

// State gives the two indices and the configuration. It is fit for Restore
// once every chain taken has been pushed and published.
func (q *Queue) State() State {
	return State{Config: q.cfg, NextAvail: q.nextAvail, NextUsed: q.published}
}

// InFlight counts the chains taken and not yet pushed, at most the queue size.
func (q *Queue) InFlight() int { return int(q.nextAvail - q.nextUsed) }

// ErrDropped is what Pop says of a queue between Drop and Attach.
var ErrDropped = errors.New("virtqueue: dropped")

// Fault says which rule the driver broke. The device reports it
// (DriverEnd.Fault) and stops; only a reset of the device mends it.
type Fault struct {
	Head   int    // head of the chain, -1 where the ring itself is at fault
	Desc   int    // index of the descriptor in its table, -1 if none
	Reason string // the rule
	Err    error  // the failed access, if that was it
}

func (f *Fault) Error() string {
	s := "virtqueue: "
	if f.Head >= 0 {
		s += fmt.Sprintf("chain %d: ", f.Head)
	}
	if f.Desc >= 0 {
		s += fmt.Sprintf("descriptor %d: ", f.Desc)
	}
	s += f.Reason
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

// Unwrap gives the failed access, if that was it.
func (f *Fault) Unwrap() error { return f.Err }
