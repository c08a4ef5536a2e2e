package guestmem

import (
	"sync/atomic"
	"unsafe"
)

// Word32 is an aligned 32-bit word of guest RAM that both sides use at once.
// x86 is little-endian, as VirtIO 1.2 §1.4 wants its fields to be.
type Word32 struct{ p *uint32 }

// Word32 gives the word at gpa, which must be a multiple of 4.
func (m *Memory) Word32(gpa uint64) (Word32, error) {
	b, err := m.Slice(gpa, 4)
	if err != nil {
		return Word32{}, err
	}
	if gpa%4 != 0 {
		return Word32{}, &AccessError{GPA: gpa, Len: 4}
	}
	return Word32{(*uint32)(unsafe.Pointer(&b[0]))}, nil
}

// Load reads the word; nothing later is read before it.
func (w Word32) Load() uint32 { return atomic.LoadUint32(w.p) }

// Store writes the word; nothing earlier is written after it. Later loads may
// pass it: who needs a full barrier makes one.
func (w Word32) Store(v uint32) { atomic.StoreUint32(w.p, v) }

// Base is the host address at which range i of Ranges is mapped, for
// KVM_SET_USER_MEMORY_REGION. It is valid until Close.
func (m *Memory) Base(i int) uintptr { return addressOf(m.maps[i]) }

// addressOf is where b lies in this process.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
