// Package pcap captures what passes between a network device and its network,
// into a file that Wireshark, tshark and tcpdump open: a Tap is a Backend around
// a Backend. A frame is copied once on its way, into a bounded buffer; all else
// is done behind its back.
//
// Frames are captured as the two sides hand them over: a segment that is to be
// cut by the other side (TSO) is one frame of up to 64 KiB. What a header leaves
// to the other side, the checksum, is completed in the copy.
package pcap

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// headerLen is the size of virtio_net_hdr of a device that has VERSION_1, in
// bytes (VirtIO 1.2 §5.1.6).
const headerLen = 12

// Backend is a network as devices/net declares it.
type Backend interface {
	MTU() int
	Offloads() uint64
	Negotiated(offloads uint64)
	Send(h *[headerLen]byte, frame [][]byte)
	Next() (h *[headerLen]byte, frame [][]byte, ok bool)
	Pop()
	OnReady(wake func())
}

const (
	// maxFrame is how much of a frame is captured, in bytes: the largest that a
	// device and a network exchange is an IPv6 header and 65,535 bytes, behind 14
	// of Ethernet and 4 of a VLAN tag.
	maxFrame = 14 + 4 + 40 + 65535
	// bufferSize is how much waits for the writer, in bytes; there are two. It
	// bridges what a file or a busy host stalls at, 60 ms at 1 Gbit/s. The memory
	// is touched only as far as it is used.
	bufferSize = 8 << 20
)

// Tap captures the frames of the Backend that it is around. All of the Backend's
// methods may be called as devices/net says.
type Tap struct {
	Backend
	w    io.Writer
	wake chan struct{} // holds one when there is something to write
	done chan struct{} // closed when the writer has ended

	mu     sync.Mutex // guards the three below; held to reserve room, not to copy
	cur    *buffer
	closed bool
	broken bool // the writer has failed

	spare *buffer // the writer's
	err   error   // the writer's, until done
	began time.Time

	captured, dropped atomic.Int64

	// The device calls Next and Pop from one goroutine at a time.
	nextHeader *[headerLen]byte
	nextFrame  [][]byte
}

// buffer has blocks of the file, but for what the writer completes in them.
type buffer struct {
	b       []byte
	frames  []captured
	pending sync.WaitGroup // copies under way
}

// captured is a frame within a buffer.
type captured struct {
	off, len int
	header   [headerLen]byte
}

// Stats are counters since New.
type Stats struct {
	Captured int64 // frames in the file, or on their way to it
	Dropped  int64 // frames that found no room: they passed, and are not in the file
}

// DropError says that the capture is not complete.
type DropError struct{ Stats }

func (e *DropError) Error() string {
	return fmt.Sprintf("the capture lacks %d frames of %d: they came faster than its file took them", e.Dropped, e.Dropped+e.Captured)
}

// New captures b's frames to w as pcapng. The file's header is written at once,
// and its error is New's; w is the Tap's until Close, which the caller calls when
// nobody uses the Backend any more, and is not closed by it.
func New(b Backend, w io.Writer) (*Tap, error) {
	return newTap(b, w, bufferSize)
}

func newTap(b Backend, w io.Writer, size int) (*Tap, error) {
	if _, err := w.Write(fileHeader()); err != nil {
		return nil, fmt.Errorf("the capture's first bytes: %w", err)
	}
	t := &Tap{
		Backend: b, w: w, wake: make(chan struct{}, 1), done: make(chan struct{}), began: time.Now(),
		cur: &buffer{b: make([]byte, 0, size)}, spare: &buffer{b: make([]byte, 0, size)},
	}
	go t.write()
	return t, nil
}

// Send captures the guest's frame and passes it on. As the guest may change the
// bytes meanwhile, the network may read others than the capture has.
func (t *Tap) Send(h *[headerLen]byte, frame [][]byte) {
	t.capture(h, frame, fromGuest)
	t.Backend.Send(h, frame)
}

// Next passes on the frame for the guest.
func (t *Tap) Next() (h *[headerLen]byte, frame [][]byte, ok bool) {
	h, frame, ok = t.Backend.Next()
	t.nextHeader, t.nextFrame = nil, nil
	if ok {
		t.nextHeader, t.nextFrame = h, frame
	}
	return h, frame, ok
}

// Pop captures the frame, as it is here that the guest has it.
func (t *Tap) Pop() {
	if t.nextHeader != nil {
		t.capture(t.nextHeader, t.nextFrame, toGuest)
		t.nextHeader, t.nextFrame = nil, nil
	}
	t.Backend.Pop()
}

// capture copies a frame, if there is room for it.
func (t *Tap) capture(h *[headerLen]byte, frame [][]byte, dir direction) {
	length := 0
	for _, run := range frame {
		length += len(run)
	}
	keep := min(length, maxFrame)
	size := blockSize(keep)

	t.mu.Lock()
	b := t.cur
	off := len(b.b)
	if t.closed {
		t.mu.Unlock()
		return
	}
	if off+size > cap(b.b) || t.broken {
		t.mu.Unlock()
		t.dropped.Add(1)
		return
	}
	b.b = b.b[:off+size]
	block := b.b[off : off+size]
	b.frames = append(b.frames, captured{off: off + blockHeader, len: keep, header: *h})
	b.pending.Add(1)
	// Taken under the lock, so that the file's times do not go back.
	at := t.began.Add(time.Since(t.began))
	t.mu.Unlock()

	putBlock(block, keep, length, at, dir)
	into := block[blockHeader : blockHeader+keep]
	for _, run := range frame {
		into = into[copy(into, run):]
	}
	b.pending.Done()
	t.captured.Add(1)
	if off == 0 { // else somebody before has woken the writer, or the writer is at it
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// write is the writer: it takes the buffer that has been filled and gives an
// empty one, until the tap is closed and nothing is left.
func (t *Tap) write() {
	defer close(t.done)
	for range t.wake {
		for {
			t.mu.Lock()
			full, closed := t.cur, t.closed
			t.cur, t.spare = t.spare, nil
			t.mu.Unlock()
			full.pending.Wait()
			t.flush(full)
			full.b, full.frames = full.b[:0], full.frames[:0]
			t.spare = full
			t.mu.Lock()
			empty := len(t.cur.b) == 0
			t.mu.Unlock()
			if empty && closed {
				return
			}
			if empty {
				break
			}
		}
	}
}

// flush completes and writes a buffer's blocks. After the first error nothing is
// written: what is in the file until then can be read.
func (t *Tap) flush(b *buffer) {
	if len(b.b) == 0 {
		return
	}
	if t.err == nil {
		for _, f := range b.frames {
			complete(&f.header, b.b[f.off:f.off+f.len])
		}
		_, t.err = t.w.Write(b.b)
	}
	if t.err != nil {
		t.mu.Lock()
		t.broken = true
		t.mu.Unlock()
		t.captured.Add(-int64(len(b.frames)))
		t.dropped.Add(int64(len(b.frames)))
	}
}

// Stats gives the counters.
func (t *Tap) Stats() Stats {
	return Stats{Captured: t.captured.Load(), Dropped: t.dropped.Load()}
}

// Close writes what waits, and the counters. From then on frames pass without
// being captured. The error is that of the first write that failed, or a
// *DropError where frames are missing; what the file has can be read all the same.
func (t *Tap) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return errors.New("the capture is closed already")
	}
	t.closed = true
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	<-t.done
	s := t.Stats()
	if t.err == nil {
		_, t.err = t.w.Write(statistics(s, t.began, time.Since(t.began)))
	}
	switch {
	case t.err != nil:
		return fmt.Errorf("the capture is cut short: %w", t.err)
	case s.Dropped > 0:
		return &DropError{s}
	}
	return nil
}
