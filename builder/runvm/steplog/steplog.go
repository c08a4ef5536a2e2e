// Package steplog is what a build step's guest and its host have between them: a
// log of frames on a raw disk. The guest appends the command's output while it
// runs, then what the command changed, then a report; the host reads behind it.
//
// The console is left to the kernel: nothing that a kernel prints between two
// bytes can damage a frame, and a byte of output costs no exit of its own. After
// each append the guest writes Mark to its mark port, by which the host knows that
// it is worth looking.
//
// A frame begins at a multiple of Sector with a header of HeaderSize bytes,
// little-endian:
//
//	0   8  Magic
//	8   8  number of the frame, from 0
//	16  4  type
//	20  4  length of the payload, at most MaxPayload
//	24  4  CRC-32C of the header with this field 0, and the payload
//	28  4  0
//
// and goes on with the payload. The next frame is at the next multiple of Sector.
// A frame whose checksum does not fit has not been written to its end yet.
package steplog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	// Magic begins every frame.
	Magic = "SMOLSTEP"
	// Sector is the unit of a disk in bytes; frames begin and end with it.
	Sector = 512
	// HeaderSize is a frame's bytes before its payload.
	HeaderSize = 32
	// MaxPayload bounds a frame: large enough that a frame's cost does not
	// matter, small enough to be one request of NetBSD's (MAXPHYS, 64 KiB).
	MaxPayload = 64<<10 - HeaderSize
	// Mark is the milestone of an append (docs/guest-contract.md, port 0x502).
	Mark = 17
)

// Type is what a frame's payload is.
type Type uint32

// The types, in the order in which they come. Output may come many times; Gone
// and Changes only if the command succeeded; Report once, at the end.
const (
	Output  Type = 1 + iota // what the command wrote to its standard output and error
	Gone                    // a piece of the list of paths that are gone, each with a NUL behind it
	Changes                 // a piece of a tar archive of what is new or changed
	Report                  // a JSON document, Result
)

func (t Type) valid() bool { return t >= Output && t <= Report }

// Step is the part of smolinit's document that asks for a build step. The
// command is the document's own argv, env, cwd, uid, gid and groups.
type Step struct {
	// Log is the minor number of the raw disk for frames (19 is ld1d), Size its
	// bytes.
	Log  uint32 `json:"log"`
	Size int64  `json:"size"`
	// Output bounds the bytes of output that are kept; what is beyond is counted.
	Output int64 `json:"output"`
	// Init says where the image's own /sbin/init waits while smolinit is in its
	// place: it is put back before the step begins. Empty: the image has none.
	Init string `json:"init"`
	// Remove are files and empty directories which the host put in for the boot
	// and which are no part of the image, in the order of their removal.
	Remove []string `json:"remove"`
	// Links are symlinks to make for the step's duration, name to target: they
	// are no part of what it changes. Secrets are reached by them.
	Links map[string]string `json:"links"`
}

// Result is the report: how the step ended.
type Result struct {
	// Status is the command's exit status, as a shell counts: 126 and 127 for
	// what did not start, 128 and more for signals.
	Status int `json:"status"`
	// Error is what smolinit itself failed at, if it did: the status means
	// nothing then, and there are no changes.
	Error string `json:"error,omitempty"`
	// Start is why the command did not start, if so.
	Start string `json:"start,omitempty"`
	// Lost counts the bytes of output beyond the bound.
	Lost int64 `json:"lost,omitempty"`
	// Skipped are paths that changed and that no archive holds: sockets.
	Skipped []string `json:"skipped,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFull says that there is no room for a frame.
var ErrFull = errors.New("the disk for the step's output and changes is full")

// Writer appends frames. It is for one goroutine at a time.
type Writer struct {
	w    io.WriterAt
	size int64
	mark func()
	buf  []byte
	off  int64
	seq  uint64
}

// NewWriter gives a Writer on a disk of size bytes, all of it zero. It writes whole
// sectors, from buf, whose length must be MaxPayload+HeaderSize: a raw disk may
// want its memory to be of a kind. mark is called behind every frame.
func NewWriter(w io.WriterAt, size int64, buf []byte, mark func()) *Writer {
	return &Writer{w: w, size: size, mark: mark, buf: buf}
}

// Append writes p as one frame or more of the type; nothing if it is empty.
func (w *Writer) Append(t Type, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		if err := w.frame(t, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (w *Writer) frame(t Type, p []byte) error {
	n := padded(len(p))
	limit := w.size
	if t != Report { // which must have room whatever happened
		limit -= MaxPayload + HeaderSize
	}
	if w.off+int64(n) > limit {
		return ErrFull
	}
	b := w.buf[:n]
	copy(b[HeaderSize:], p)
	clear(b[HeaderSize+len(p):])
	copy(b, Magic)
	binary.LittleEndian.PutUint64(b[8:], w.seq)
	binary.LittleEndian.PutUint32(b[16:], uint32(t))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(p)))
	clear(b[24:HeaderSize])
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:HeaderSize+len(p)], castagnoli))
	if _, err := w.w.WriteAt(b, w.off); err != nil {
		return err
	}
	w.off += int64(n)
	w.seq++
	w.mark()
	return nil
}

// padded is a frame's size on the disk.
func padded(payload int) int {
	return (HeaderSize + payload + Sector - 1) / Sector * Sector
}

// Stream is an io.Writer of frames of one type.
func (w *Writer) Stream(t Type) io.Writer { return stream{w, t} }

type stream struct {
	w *Writer
	t Type
}

func (s stream) Write(p []byte) (int, error) {
	if err := s.w.Append(s.t, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Reader reads frames behind a Writer, which is not trusted.
type Reader struct {
	r   io.ReaderAt
	buf []byte
	off int64
	seq uint64
}

// NewReader gives a Reader of a disk.
func NewReader(r io.ReaderAt) *Reader {
	return &Reader{r: r, buf: make([]byte, MaxPayload+HeaderSize)}
}

// ErrNotYet is behind the error of Next where no complete frame is; the error's
// text says what is there instead.
var ErrNotYet = errors.New("no complete frame")

// Offset is where the next frame begins.
func (r *Reader) Offset() int64 { return r.off }

// Next gives the next frame; the payload is valid until the next call. An error
// that is ErrNotYet may be another one later; every other one is of the disk.
func (r *Reader) Next() (Type, []byte, error) {
	head := r.buf[:HeaderSize]
	if err := readAt(r.r, head, r.off); err != nil {
		return 0, nil, err
	}
	if magic := string(head[:8]); magic != Magic {
		if magic == "\x00\x00\x00\x00\x00\x00\x00\x00" {
			return 0, nil, fmt.Errorf("%w: nothing behind frame %d", ErrNotYet, int64(r.seq)-1)
		}
		return 0, nil, fmt.Errorf("%w: frame %d begins with %q", ErrNotYet, r.seq, magic)
	}
	if seq := binary.LittleEndian.Uint64(head[8:]); seq != r.seq {
		return 0, nil, fmt.Errorf("%w: number %d in place of %d", ErrNotYet, seq, r.seq)
	}
	t := Type(binary.LittleEndian.Uint32(head[16:]))
	n := binary.LittleEndian.Uint32(head[20:])
	if !t.valid() || n == 0 || n > MaxPayload {
		return 0, nil, fmt.Errorf("%w: frame %d of type %d has %d bytes", ErrNotYet, r.seq, uint32(t), n)
	}
	b := r.buf[:HeaderSize+int(n)]
	if err := readAt(r.r, b[HeaderSize:], r.off+HeaderSize); err != nil {
		return 0, nil, err
	}
	sum := binary.LittleEndian.Uint32(b[24:])
	clear(b[24:28])
	if sum != crc32.Checksum(b, castagnoli) {
		return 0, nil, fmt.Errorf("%w: the checksum of frame %d does not fit", ErrNotYet, r.seq)
	}
	r.off += int64(padded(int(n)))
	r.seq++
	return t, b[HeaderSize:], nil
}

// readAt fills p; what is behind the end of the disk is not there yet.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	switch n, err := r.ReadAt(p, off); {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the disk ends at byte %d", ErrNotYet, off+int64(n))
	default:
		return err
	}
}

// Fork gives a Reader that goes on where r is, on its own.
func (r *Reader) Fork() *Reader {
	f := NewReader(r.r)
	f.off, f.seq = r.off, r.seq
	return f
}
