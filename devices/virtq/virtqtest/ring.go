// Package virtqtest is the other side of devices/virtq: a driver that lays its
// rings in guest memory, for tests and fuzz targets of queues, devices and
// transports.
//
// A Ring is one queue as a driver sees it, well-behaved in Add, Kick and
// Collect, and as badly behaved as a test wants through its raw pokes. A Driver
// activates a whole device without a transport.
package virtqtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// Descriptor flags (VirtIO 1.2 §2.7.5).
const (
	Next     = 1 // VIRTQ_DESC_F_NEXT
	Write    = 2 // VIRTQ_DESC_F_WRITE
	Indirect = 4 // VIRTQ_DESC_F_INDIRECT
)

// Options are how a Ring is laid out and what it negotiated.
type Options struct {
	Size     uint16 // descriptors, a power of two
	EventIdx bool
	Indirect bool

	// OddAvail puts the available ring at an odd multiple of 2, which is all
	// the alignment VirtIO asks for. Its idx is then not a word of its own:
	// use such a ring from one goroutine with the device.
	OddAvail bool
}

// ErrFull says that a chain has no room: no descriptor or no memory is free.
var ErrFull = errors.New("virtqtest: ring full")

// Buf is a run of guest memory.
type Buf struct {
	GPA uint64
	Len uint32
}

// Used is a request that came back.
type Used struct {
	Head uint16
	Len  uint32   // bytes the device says it wrote
	Data [][]byte // copies of the writable buffers of Add, whole
}

// Joined is the start of the writable part that the device says it wrote.
func (u Used) Joined() []byte {
	var all []byte
	for _, b := range u.Data {
		all = append(all, b...)
	}
	return all[:min(uint64(u.Len), uint64(len(all)))]
}

type request struct {
	busy     bool
	descs    []uint16
	memory   []Buf // to be freed
	writable []Buf
}

// Ring is the driver's side of one split virtqueue. One goroutine at a time
// uses it; the device may run in another.
type Ring struct {
	Mem *guestmem.Memory
	Cfg virtq.Config

	arena     arena
	free      []uint16
	requests  []request
	availWord guestmem.Word32 // flags and idx; unset for OddAvail
	odd       bool
	usedWord  guestmem.Word32
	fence     atomic.Uint32

	flags     uint16 // avail.flags
	next      uint16 // entries added
	published uint16 // avail.idx
	lastUsed  uint16 // used entries collected
}

// NewRing lays a ring and an arena for buffers into the n bytes of guest memory
// from base, a multiple of 4096, and clears the rings.
func NewRing(mem *guestmem.Memory, base, n uint64, o Options) (*Ring, error) {
	r := &Ring{Mem: mem, odd: o.OddAvail}
	size := uint64(o.Size)
	desc := base
	avail := desc + 16*size
	if o.OddAvail {
		avail += 2
	}
	used := (avail + 6 + 2*size + 3) &^ 3
	data := (used + 6 + 8*size + 15) &^ 15
	if data > base+n {
		return nil, fmt.Errorf("virtqtest: a ring of %d needs %d bytes", size, data-base)
	}
	r.Cfg = virtq.Config{
		Size: o.Size, Desc: desc, Avail: avail, Used: used,
		EventIdx: o.EventIdx, Indirect: o.Indirect,
	}
	b, err := mem.Slice(base, data-base)
	if err != nil {
		return nil, err
	}
	clear(b)
	if !o.OddAvail {
		if r.availWord, err = mem.Word32(avail); err != nil {
			return nil, err
		}
	}
	if r.usedWord, err = mem.Word32(used); err != nil {
		return nil, err
	}
	r.arena = arena{free: []span{{data, base + n}}}
	r.requests = make([]request, o.Size)
	for i := int(o.Size) - 1; i >= 0; i-- {
		r.free = append(r.free, uint16(i))
	}
	return r, nil
}

// Move goes on over another mapping of the same guest memory.
func (r *Ring) Move(mem *guestmem.Memory) error {
	var err error
	if !r.odd {
		if r.availWord, err = mem.Word32(r.Cfg.Avail); err != nil {
			return err
		}
	}
	if r.usedWord, err = mem.Word32(r.Cfg.Used); err != nil {
		return err
	}
	r.Mem = mem
	return nil
}

// Alloc takes n bytes of the ring's arena; Free gives them back. Both are for
// tests that lay out their own chains.
func (r *Ring) Alloc(n uint32) (Buf, error) { return r.arena.alloc(n) }

// Free gives back what Alloc gave.
func (r *Ring) Free(b Buf) { r.arena.release(b) }

// Add puts a request into the ring: readable buffers with these contents, then
// writable ones of these lengths. The device sees it after Kick. The memory is
// the ring's own and is given back when the request comes back.
func (r *Ring) Add(readable [][]byte, writable []uint32) (head uint16, err error) {
	return r.add(readable, writable, false)
}

// AddIndirect is Add by way of an indirect table.
func (r *Ring) AddIndirect(readable [][]byte, writable []uint32) (head uint16, err error) {
	return r.add(readable, writable, true)
}

func (r *Ring) add(readable [][]byte, writable []uint32, indirect bool) (head uint16, err error) {
	var memory, rd, wr []Buf
	defer func() {
		if err != nil {
			for _, b := range memory {
				r.arena.release(b)
			}
		}
	}()
	for _, p := range readable {
		b, err := r.arena.alloc(uint32(len(p)))
		if err != nil {
			return 0, err
		}
		memory, rd = append(memory, b), append(rd, b)
		if err := r.Mem.WriteAt(p, b.GPA); err != nil {
			return 0, err
		}
	}
	for _, n := range writable {
		b, err := r.arena.alloc(n)
		if err != nil {
			return 0, err
		}
		memory, wr = append(memory, b), append(wr, b)
		s, err := r.Mem.Slice(b.GPA, uint64(b.Len))
		if err != nil {
			return 0, err
		}
		clear(s)
	}
	var table Buf
	if indirect {
		if table, err = r.arena.alloc(uint32(16 * (len(rd) + len(wr)))); err != nil {
			return 0, err
		}
		memory = append(memory, table)
		head, err = r.AddTable(rd, wr, table)
	} else {
		head, err = r.AddBufs(rd, wr)
	}
	if err != nil {
		return 0, err
	}
	r.requests[head].memory = memory
	return head, nil
}

// AddBufs puts a chain over memory of the caller's into the ring.
func (r *Ring) AddBufs(readable, writable []Buf) (head uint16, err error) {
	n := len(readable) + len(writable)
	if n == 0 || n > len(r.free) {
		return 0, ErrFull
	}
	ids := append([]uint16(nil), r.free[len(r.free)-n:]...)
	r.free = r.free[:len(r.free)-n]
	for i := range n {
		b, flags, next := link(readable, writable, i)
		if flags&Next != 0 {
			next = ids[i+1]
		}
		r.SetDesc(ids[i], b.GPA, b.Len, flags, next)
	}
	r.requests[ids[0]] = request{busy: true, descs: ids, writable: writable}
	r.PushHead(ids[0])
	return ids[0], nil
}

// AddTable is AddBufs by way of an indirect table that the caller has room for:
// 16 bytes for each buffer.
func (r *Ring) AddTable(readable, writable []Buf, table Buf) (head uint16, err error) {
	n := len(readable) + len(writable)
	if n == 0 || len(r.free) == 0 || uint64(table.Len) < uint64(16*n) {
		return 0, ErrFull
	}
	for i := range n {
		b, flags, next := link(readable, writable, i)
		if err := PutDesc(r.Mem, table.GPA+uint64(16*i), b.GPA, b.Len, flags, next); err != nil {
			return 0, err
		}
	}
	head = r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.SetDesc(head, table.GPA, uint32(16*n), Indirect, 0)
	r.requests[head] = request{busy: true, descs: []uint16{head}, writable: writable}
	r.PushHead(head)
	return head, nil
}

func link(readable, writable []Buf, i int) (b Buf, flags, next uint16) {
	if i < len(readable) {
		b = readable[i]
	} else {
		b, flags = writable[i-len(readable)], Write
	}
	if i+1 < len(readable)+len(writable) {
		flags |= Next
		next = uint16(i + 1)
	}
	return b, flags, next
}

// PutDesc writes one descriptor at gpa.
func PutDesc(mem *guestmem.Memory, gpa, addr uint64, n uint32, flags, next uint16) error {
	var d [16]byte
	binary.LittleEndian.PutUint64(d[0:], addr)
	binary.LittleEndian.PutUint32(d[8:], n)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
	return mem.WriteAt(d[:], gpa)
}

// SetDesc overwrites entry i of the descriptor table, whoever owns it.
func (r *Ring) SetDesc(i uint16, addr uint64, n uint32, flags, next uint16) {
	r.must(PutDesc(r.Mem, r.Cfg.Desc+16*uint64(i), addr, n, flags, next))
}

// PushHead puts any number into the available ring as a head. The device sees
// it after Kick.
func (r *Ring) PushHead(head uint16) {
	r.put16(r.Cfg.Avail+4+2*uint64(r.next%r.Cfg.Size), head)
	r.next++
}

// SetAvailIdx overwrites avail.idx and goes on from there.
func (r *Ring) SetAvailIdx(idx uint16) {
	r.next, r.published = idx, idx
	r.storeAvail()
}

// AvailIdx is avail.idx as published.
func (r *Ring) AvailIdx() uint16 { return r.published }

// StartAt makes every index of a ring that has not been used begin at idx, as
// does a device restored with these indices: it brings wraparound near.
func (r *Ring) StartAt(idx uint16) {
	r.SetAvailIdx(idx)
	r.lastUsed = idx
	r.usedWord.Store(uint32(idx) << 16)
	if r.Cfg.EventIdx {
		r.put16(r.usedEventGPA(), idx)
		r.put16(r.availEventGPA(), idx)
	}
}

// Kick publishes what was added and says whether the device asked to be
// notified of it (VirtIO 1.2 §2.7.13.4).
func (r *Ring) Kick() bool {
	old := r.published
	if r.next == old {
		return false
	}
	r.published = r.next
	r.storeAvail()
	if r.Cfg.EventIdx {
		event := r.get16(r.availEventGPA())
		return r.published-event-1 < r.published-old
	}
	return r.usedWord.Load()&1 == 0
}

// Collect takes what the device has given back and frees it. An element that
// names no busy request is an error.
func (r *Ring) Collect() ([]Used, error) {
	var out []Used
	for r.HasUsed() {
		e, err := r.Mem.Slice(r.Cfg.Used+4+8*uint64(r.lastUsed%r.Cfg.Size), 8)
		if err != nil {
			return out, err
		}
		id, n := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
		r.lastUsed++
		if id >= uint32(r.Cfg.Size) || !r.requests[id].busy {
			return out, fmt.Errorf("virtqtest: used element names %d, which is no request", id)
		}
		u := Used{Head: uint16(id), Len: n}
		q := &r.requests[id]
		for _, b := range q.writable {
			p := make([]byte, b.Len)
			if err := r.Mem.ReadAt(p, b.GPA); err != nil {
				return out, err
			}
			u.Data = append(u.Data, p)
		}
		r.free = append(r.free, q.descs...)
		for _, b := range q.memory {
			r.arena.release(b)
		}
		*q = request{}
		out = append(out, u)
	}
	return out, nil
}

// HasUsed says whether Collect would find something.
func (r *Ring) HasUsed() bool { return uint16(r.usedWord.Load()>>16) != r.lastUsed }

// UsedFlags is used.flags as the device has it.
func (r *Ring) UsedFlags() uint16 { return uint16(r.usedWord.Load()) }

// UsedIdx is used.idx as the device has it.
func (r *Ring) UsedIdx() uint16 { return uint16(r.usedWord.Load() >> 16) }

// Room is the number of free descriptors.
func (r *Ring) Room() int { return len(r.free) }

// DisableInterrupts asks the device not to interrupt (VirtIO 1.2 §2.7.7).
func (r *Ring) DisableInterrupts() {
	if r.Cfg.EventIdx {
		return // a used_event that has been passed is silent
	}
	r.flags |= 1
	r.storeAvail()
}

// EnableInterrupts asks for an interrupt from the next used element on. more
// says that some are there already, for which none will come.
func (r *Ring) EnableInterrupts() (more bool) {
	if r.Cfg.EventIdx {
		r.put16(r.usedEventGPA(), r.lastUsed)
		r.barrier()
	} else {
		r.flags &^= 1
		r.storeAvail()
	}
	return r.HasUsed()
}

// SetUsedEvent asks for an interrupt when used.idx passes v: some drivers wait
// for several requests at once.
func (r *Ring) SetUsedEvent(v uint16) { r.put16(r.usedEventGPA(), v) }

func (r *Ring) usedEventGPA() uint64  { return r.Cfg.Avail + 4 + 2*uint64(r.Cfg.Size) }
func (r *Ring) availEventGPA() uint64 { return r.Cfg.Used + 4 + 8*uint64(r.Cfg.Size) }

// storeAvail writes flags and idx, a full barrier with it.
func (r *Ring) storeAvail() {
	if r.odd {
		r.put16(r.Cfg.Avail, r.flags)
		r.put16(r.Cfg.Avail+2, r.published)
		return
	}
	r.availWord.Store(uint32(r.published)<<16 | uint32(r.flags))
	r.barrier()
}

// barrier is a full one, under the race detector too: see package virtq.
func (r *Ring) barrier() { r.fence.Swap(1) }

func (r *Ring) put16(gpa uint64, v uint16) {
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], v)
	r.must(r.Mem.WriteAt(b[:], gpa))
}

func (r *Ring) get16(gpa uint64) uint16 {
	v, err := r.Mem.Uint16(gpa)
	r.must(err)
	return v
}

// must is for addresses that NewRing has checked.
func (r *Ring) must(err error) {
	if err != nil {
		panic(err)
	}
}
