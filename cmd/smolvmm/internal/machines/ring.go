package machines

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Ring is a log of bounded size in one open file: a confined process can
// neither open a second file nor cut one short. The file has two halves, filled in
// turn: what is kept is always between a half and the whole of the size. A half is
// a sequence of records from its beginning, all of one generation:
//
//	0   2  magic
//	2   1  stream
//	3   1  0
//	4   4  length of the data, 1 to maxEntry
//	8   4  generation, 1 more with each half that is begun
//	12  4  CRC-32 (IEEE) of the other header fields and the data
//	16  8  time, nanoseconds since 1970
//	24     data
//
// all little-endian. What lies behind the last record is of an older generation
// or was never written: a reader stops where generation or checksum do not fit,
// which is also what it finds of a record that is being written.

const (
	ringMagic  = 0x4c53 // "SL"
	ringHeader = 24
	maxEntry   = 32 << 10 // bytes of data in a record
	// ConsoleSize bounds a console's log, in bytes: some hours of a chatty service.
	ConsoleSize = 4 << 20
)

// Streams of a log.
const (
	Console byte = 0 // what the guest printed
	Monitor byte = 1 // what the machine's process had to say
)

// Ring writes a log. It is safe for concurrent use.
type Ring struct {
	mu         sync.Mutex
	f          *os.File
	half       int64
	off        int64 // in the half
	generation uint32
	buf        []byte
	now        func() time.Time
}

// NewRing writes an empty file, at most size bytes of it. The file is the ring's.
func NewRing(f *os.File, size int64) *Ring {
	return &Ring{f: f, half: size / 2, generation: 1, now: time.Now}
}

// Stream gives a writer for one of the log's streams.
func (r *Ring) Stream(stream byte) *RingStream { return &RingStream{r, stream} }

// RingStream is an io.Writer into a Ring.
type RingStream struct {
	r      *Ring
	stream byte
}

// Write takes p with the present time. What cannot be written is lost, and no
// reason to end a machine.
func (s *RingStream) Write(p []byte) (int, error) {
	n := len(p)
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	at := s.r.now()
	for len(p) > 0 {
		k := min(len(p), maxEntry)
		s.r.put(s.stream, at, p[:k])
		p = p[k:]
	}
	return n, nil
}

func (r *Ring) put(stream byte, at time.Time, data []byte) {
	need := int64(ringHeader + len(data))
	if r.off+need > r.half {
		r.generation++
		r.off = 0
	}
	h := r.buf[:0]
	h = binary.LittleEndian.AppendUint16(h, ringMagic)
	h = append(h, stream, 0)
	h = binary.LittleEndian.AppendUint32(h, uint32(len(data)))
	h = binary.LittleEndian.AppendUint32(h, r.generation)
	h = append(h, 0, 0, 0, 0)
	h = binary.LittleEndian.AppendUint64(h, uint64(at.UnixNano()))
	h = append(h, data...)
	binary.LittleEndian.PutUint32(h[12:], checksum(h))
	r.buf = h
	base := int64(r.generation+1) % 2 * r.half // generation 1 is the first half
	if _, err := r.f.WriteAt(h, base+r.off); err == nil {
		r.off += need
	}
}

// checksum is of a record without its own four bytes.
func checksum(record []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(record[:12]), crc32.IEEETable, record[16:])
}

// Close closes the file.
func (r *Ring) Close() error { return r.f.Close() }

// Entry is a record of a log.
type Entry struct {
	Time   time.Time
	Stream byte
	Data   []byte
}

// Tail gives the last n bytes at most of what the guest printed. A confined
// process may ask.
func (r *Ring) Tail(n int64) (io.Reader, error) {
	if n <= 0 || n > 2*r.half {
		n = 2 * r.half
	}
	in := &Reader{f: r.f, half: r.half}
	in.generation = in.oldest()
	var parts [][]byte
	var have int64
	for in.Bytes < 2*r.half {
		e, ok := in.Next()
		if !ok {
			break
		}
		if e.Stream != Console {
			continue
		}
		parts = append(parts, e.Data)
		have += int64(len(e.Data))
		for len(parts) > 0 && have-int64(len(parts[0])) >= n {
			have -= int64(len(parts[0]))
			parts = parts[1:]
		}
	}
	if have > n {
		parts[0] = parts[0][have-n:]
	}
	return bytes.NewReader(bytes.Join(parts, nil)), nil
}

// Reader reads a log, also one that is being written and one that was written by
// a process that had been taken over: it trusts nothing in it.
type Reader struct {
	f          io.ReaderAt
	close      func() error
	half       int64
	generation uint32
	off        int64
	header     [ringHeader]byte
	// Bytes are those of the records that were read. A writer may be faster than any
	// reader: one that wants what there was when it began stops at the log's size, as
	// the rest of that has been overwritten by then.
	Bytes int64
	// Lost is how often the writer was so much faster that entries were missed.
	Lost int
}

// OpenReader opens a log of at most size bytes, at its oldest entry.
func OpenReader(path string, size int64) (*Reader, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	r := &Reader{f: f, close: f.Close, half: size / 2}
	r.generation = r.oldest()
	return r, nil
}

// oldest gives the generation of the older half that has something.
func (r *Reader) oldest() uint32 {
	a, aok := r.first(0)
	b, bok := r.first(1)
	switch {
	case aok && bok && a.generation == b.generation+1:
		return b.generation
	case aok && bok && b.generation == a.generation+1, aok && !bok:
		return a.generation
	case bok && !aok:
		return b.generation
	case aok: // the halves do not belong together: the newer is the log
		return max(a.generation, b.generation)
	}
	return 1
}

type record struct {
	Entry
	generation uint32
}

func (r *Reader) first(half int64) (record, bool) { return r.at(half*r.half, r.half) }

// at reads the record there, if a whole one is; room is what is left of the half.
func (r *Reader) at(off, room int64) (record, bool) {
	if n, _ := r.f.ReadAt(r.header[:], off); n < ringHeader {
		return record{}, false
	}
	h := r.header
	length := int64(binary.LittleEndian.Uint32(h[4:]))
	if binary.LittleEndian.Uint16(h[:]) != ringMagic || length < 1 || length > maxEntry || ringHeader+length > room {
		return record{}, false
	}
	whole := make([]byte, ringHeader+length)
	copy(whole, h[:])
	if n, _ := r.f.ReadAt(whole[ringHeader:], off+ringHeader); int64(n) < length || checksum(whole) != binary.LittleEndian.Uint32(h[12:]) {
		return record{}, false
	}
	return record{
		Entry:      Entry{time.Unix(0, int64(binary.LittleEndian.Uint64(h[16:]))), h[2], whole[ringHeader:]},
		generation: binary.LittleEndian.Uint32(h[8:]),
	}, true
}

// Next gives the next entry, if there is one yet.
func (r *Reader) Next() (Entry, bool) {
	if e, ok := r.step(); ok {
		return e, true
	}
	// The next half begins only when this one is complete, but may have begun
	// since we looked: so this one is looked at again.
	next, ok := r.first(int64(r.generation) % 2)
	if !ok || next.generation == r.generation-1 {
		return Entry{}, false
	}
	if e, ok := r.step(); ok {
		return e, true
	}
	if next.generation != r.generation+1 {
		// The writer has been round since.
		o := r.oldest()
		if o <= r.generation {
			return Entry{}, false // nonsense, or a wrap after 4 billion halves
		}
		r.Lost++
		r.generation, r.off = o, 0
		return r.step()
	}
	r.generation, r.off = next.generation, 0
	return r.step()
}

func (r *Reader) step() (Entry, bool) {
	if r.off+ringHeader > r.half {
		return Entry{}, false
	}
	rec, ok := r.at(int64(r.generation+1)%2*r.half+r.off, r.half-r.off)
	if !ok || rec.generation != r.generation {
		return Entry{}, false
	}
	r.off += ringHeader + int64(len(rec.Data))
	r.Bytes += ringHeader + int64(len(rec.Data))
	return rec.Entry, true
}

// Close closes the file.
func (r *Reader) Close() error { return r.close() }
