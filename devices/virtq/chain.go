package virtq

import (
	"encoding/binary"
	"fmt"
)

// Chain is one request: checked runs of guest RAM, first those the device reads
// and then those it writes. The bytes are the guest's and change under the
// reader: copy a header out (CopyOut), then judge the copy.
//
// The zero Chain is ready for PopInto.
type Chain struct {
	head uint16
	r, w [][]byte
	rLen uint64
	wLen uint64
}

// Head names the chain to Push.
func (c *Chain) Head() uint16 { return c.head }

// Readable are the device-readable runs of guest RAM, none of them empty. The
// slice holds as long as the chain.
func (c *Chain) Readable() [][]byte { return c.r }

// Writable are the device-writable runs of guest RAM, none of them empty.
func (c *Chain) Writable() [][]byte { return c.w }

// ReadLen is the length of the readable part in bytes, at most 2^32.
func (c *Chain) ReadLen() uint64 { return c.rLen }

// WriteLen is the length of the writable part in bytes, at most 2^32.
func (c *Chain) WriteLen() uint64 { return c.wLen }

// CopyOut copies from the readable part at off into p and says how many bytes
// there were.
func (c *Chain) CopyOut(p []byte, off uint64) int {
	n := 0
	for _, b := range c.r {
		if off >= uint64(len(b)) {
			off -= uint64(len(b))
			continue
		}
		n += copy(p[n:], b[off:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// CopyIn copies p into the writable part at off and says how many bytes fitted.
func (c *Chain) CopyIn(p []byte, off uint64) int {
	n := 0
	for _, b := range c.w {
		if off >= uint64(len(b)) {
			off -= uint64(len(b))
			continue
		}
		n += copy(b[off:], p[n:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// ReadableAt appends to dst the runs that hold bytes off to off+n of the
// readable part, cut at both ends; what lies beyond the part is left out.
func (c *Chain) ReadableAt(dst [][]byte, off, n uint64) [][]byte { return cut(dst, c.r, off, n) }

// WritableAt is ReadableAt for the writable part.
func (c *Chain) WritableAt(dst [][]byte, off, n uint64) [][]byte { return cut(dst, c.w, off, n) }

func cut(dst, src [][]byte, off, n uint64) [][]byte {
	for _, b := range src {
		if n == 0 {
			break
		}
		l := uint64(len(b))
		if off >= l {
			off -= l
			continue
		}
		k := min(l-off, n)
		dst = append(dst, b[off:off+k:off+k])
		off, n = 0, n-k
	}
	return dst
}

// Release forgets the guest memory of the chain and keeps its room. A device
// does so with chains it keeps across Quiesce.
func (c *Chain) Release() {
	clear(c.r[:cap(c.r)])
	clear(c.w[:cap(c.w)])
	c.r, c.w = c.r[:0], c.w[:0]
	c.rLen, c.wLen, c.head = 0, 0, 0
}

// descriptor is a private copy of one entry of a table (VirtIO 1.2 §2.7.5).
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// readDesc copies all 16 bytes out before anything is made of them.
func readDesc(table []byte, i int) descriptor {
	var d [descBytes]byte
	copy(d[:], table[i*descBytes:])
	return descriptor{
		addr:  binary.LittleEndian.Uint64(d[0:]),
		len:   binary.LittleEndian.Uint32(d[8:]),
		flags: binary.LittleEndian.Uint16(d[12:]),
		next:  binary.LittleEndian.Uint16(d[14:]),
	}
}

// walk follows the chain from head into c. Each table is followed for at most
// as many steps as it has entries, so a loop ends as a fault.
func (q *Queue) walk(c *Chain, head uint16) *Fault {
	c.r, c.w = c.r[:0], c.w[:0]
	c.rLen, c.wLen, c.head = 0, 0, head
	table, entries, left := q.desc, int(q.cfg.Size), int(q.cfg.Size)
	indirect := false
	for i := int(head); ; left-- {
		bad := func(reason string, err error) *Fault {
			return &Fault{Head: int(head), Desc: i, Reason: reason, Err: err}
		}
		if i >= entries {
			return bad(fmt.Sprintf("index beyond a table of %d", entries), nil)
		}
		if left == 0 {
			return bad(fmt.Sprintf("chain longer than its table of %d: a loop", entries), nil)
		}
		d := readDesc(table, i)
		if d.flags&descIndirect != 0 {
			switch {
			case !q.cfg.Indirect:
				return bad("INDIRECT was not negotiated", nil)
			case indirect:
				return bad("INDIRECT inside an indirect table", nil)
			case d.flags&descNext != 0:
				return bad("INDIRECT and NEXT together", nil)
			case d.len == 0 || d.len%descBytes != 0:
				return bad(fmt.Sprintf("indirect table of %d bytes: must be a positive multiple of %d", d.len, descBytes), nil)
			case d.len/descBytes > q.maxIndirect:
				return bad(fmt.Sprintf("indirect table of %d descriptors: at most %d", d.len/descBytes, q.maxIndirect), nil)
			}
			t, err := q.mem.Slice(d.addr, uint64(d.len))
			if err != nil {
				return bad("indirect table", err)
			}
			// The WRITE flag of this descriptor says nothing (§2.7.5.3.2).
			table, entries, indirect = t, int(d.len/descBytes), true
			i, left = 0, entries+1
			continue
		}
		if d.len == 0 {
			// VirtIO leaves an empty buffer undefined. No known driver posts
			// one, and other monitors refuse it too; refusing keeps "no run is
			// empty" true for every device.
			return bad("zero length", nil)
		}
		b, err := q.mem.Slice(d.addr, uint64(d.len))
		if err != nil {
			return bad("buffer", err)
		}
		if c.rLen+c.wLen+uint64(d.len) > maxChainBytes {
			return bad("chain holds more than 2^32 bytes", nil)
		}
		if d.flags&descWrite != 0 {
			c.w = append(c.w, b)
			c.wLen += uint64(d.len)
		} else {
			if len(c.w) > 0 {
				// VirtIO 1.2 §2.7.4.2.
				return bad("device-readable behind device-writable", nil)
			}
			c.r = append(c.r, b)
			c.rLen += uint64(d.len)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = int(d.next)
	}
}
