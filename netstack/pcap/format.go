package pcap

import (
	"encoding/binary"
	"time"
)

// The file is pcapng (draft-ietf-opsawg-pcapng): a section header, one interface
// of type Ethernet with a resolution of nanoseconds, an enhanced packet block for
// each frame with its direction, and at the end the interface's statistics.
const (
	typeSection    = 0x0a0d0d0a // §4.1
	typeInterface  = 1          // §4.2
	typeStatistics = 5          // §4.5
	typePacket     = 6          // §4.3

	byteOrder    = 0x1a2b3c4d
	linkEthernet = 1 // LINKTYPE_ETHERNET

	optEnd        = 0
	optResolution = 9 // if_tsresol: the negative power of ten
	optFlags      = 2 // epb_flags: bits 0 and 1 are the direction
	optStart      = 2 // isb_starttime
	optEndTime    = 3 // isb_endtime
	optReceived   = 4 // isb_ifrecv
	optDropped    = 5 // isb_ifdrop

	// blockHeader is what is before a frame: type, length, interface, time,
	// captured and original length, of 4 bytes each but the time's 8.
	blockHeader = 28
	// blockTail is what is behind it and its padding: the flags, the end of the
	// options, the length again.
	blockTail = 8 + 4 + 4
)

// direction is as epb_flags has it (§4.3.1), seen from the guest's interface.
type direction uint32

const (
	toGuest   direction = 1 // inbound
	fromGuest direction = 2 // outbound
)

// The writer's byte order is the file's, as its header says.
var le = binary.LittleEndian

func padded(n int) int { return (n + 3) &^ 3 }

// blockSize is the size of the block of a frame of which n bytes are kept.
func blockSize(n int) int { return blockHeader + padded(n) + blockTail }

// putBlock writes what is around a frame in its block. All bytes are written, as
// the buffer has been used before.
func putBlock(b []byte, kept, length int, at time.Time, dir direction) {
	ns := uint64(at.UnixNano())
	le.PutUint32(b[0:], typePacket)
	le.PutUint32(b[4:], uint32(len(b)))
	le.PutUint32(b[8:], 0)
	le.PutUint32(b[12:], uint32(ns>>32))
	le.PutUint32(b[16:], uint32(ns))
	le.PutUint32(b[20:], uint32(kept))
	le.PutUint32(b[24:], uint32(length))
	clear(b[blockHeader+kept : blockHeader+padded(kept)])
	tail := b[len(b)-blockTail:]
	le.PutUint16(tail[0:], optFlags)
	le.PutUint16(tail[2:], 4)
	le.PutUint32(tail[4:], uint32(dir))
	le.PutUint32(tail[8:], optEnd)
	le.PutUint32(tail[12:], uint32(len(b)))
}

// fileHeader is what a file begins with.
func fileHeader() []byte {
	var section []byte
	section = le.AppendUint32(section, byteOrder)
	section = le.AppendUint16(section, 1) // version 1.0
	section = le.AppendUint16(section, 0)
	section = le.AppendUint64(section, 1<<64-1) // the section's length is not given

	var iface []byte
	iface = le.AppendUint16(iface, linkEthernet)
	iface = le.AppendUint16(iface, 0)
	iface = le.AppendUint32(iface, maxFrame)
	iface = appendOption(iface, optResolution, []byte{9})
	iface = le.AppendUint32(iface, optEnd)
	return append(block(typeSection, section), block(typeInterface, iface)...)
}

// statistics is what a file ends with.
func statistics(s Stats, began time.Time, took time.Duration) []byte {
	when := func(t time.Time) []byte {
		ns := uint64(t.UnixNano())
		return le.AppendUint32(le.AppendUint32(nil, uint32(ns>>32)), uint32(ns))
	}
	end := began.Add(took)
	var b []byte
	b = le.AppendUint32(b, 0) // the interface
	b = append(b, when(end)...)
	b = appendOption(b, optStart, when(began))
	b = appendOption(b, optEndTime, when(end))
	b = appendOption(b, optReceived, le.AppendUint64(nil, uint64(s.Captured+s.Dropped)))
	b = appendOption(b, optDropped, le.AppendUint64(nil, uint64(s.Dropped)))
	b = le.AppendUint32(b, optEnd)
	return block(typeStatistics, b)
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, padded(len(value))-len(value))...)
}

func block(kind uint32, body []byte) []byte {
	n := uint32(12 + len(body))
	b := le.AppendUint32(nil, kind)
	b = le.AppendUint32(b, n)
	b = append(b, body...)
	return le.AppendUint32(b, n)
}
