// Package wire is what the lab's runner and the lab's init say to each other: one run's specification, which travels in
// the initramfs, and the frames that travel both ways over a virtio-serial port while the program runs.
package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// SpecPath is where in the initramfs the init finds its Spec, as JSON.
const SpecPath = "/lab/spec.json"

// GuestRoot is the folder of the initramfs that becomes the program's root.
const GuestRoot = "/guest"

// Spec says what the init is to do.
type Spec struct {
	Path    string   // the program, a path under the program's root
	Args    []string // argv, the name included
	Env     []string // the whole environment, K=V
	Dir     string   // working directory
	Merge   bool     // both output streams are one file at the caller's: keep their order by one pipe
	Modules []string // kernel modules, paths in the initramfs, in the order they load
	Out     []string // files and folders handed back after the program's end, where they exist
}

// Exit says how the program ended. Signal is 0 unless a signal ended it.
type Exit struct {
	Code   int
	Signal int
}

// Kind is a frame's first byte.
type Kind byte

// Frames from the init.
const (
	Started Kind = 1 // no payload: the program is about to start
	Stdout  Kind = 2 // bytes
	Stderr  Kind = 3 // bytes
	Out     Kind = 4 // bytes of a tar archive of Spec.Out
	Ended   Kind = 5 // an Exit, as JSON; nothing follows
	Fail    Kind = 6 // text: the init could not do its part; nothing follows
)

// Frames from the runner.
const (
	Signal Kind = 16 // one byte: the signal to send to the program's process group
	Bye    Kind = 17 // power off
	Beat   Kind = 18 // no payload, and nothing to do: its interrupt is what counts
)

// MaxPayload bounds a frame's payload, in bytes.
const MaxPayload = 64 << 10

const headerSize = 5

// Writer writes whole frames; it may be shared by goroutines.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Frame writes one frame. A payload over MaxPayload is an error.
func (w *Writer) Frame(k Kind, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("a frame of %d bytes exceeds %d", len(payload), MaxPayload)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf[:0], byte(k))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(payload)))
	w.buf = append(w.buf, payload...)
	_, err := w.w.Write(w.buf)
	return err
}

// Stream returns an io.Writer whose bytes become frames of kind k.
func (w *Writer) Stream(k Kind) io.Writer { return stream{w, k} }

type stream struct {
	w *Writer
	k Kind
}

func (s stream) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		c := min(len(p), MaxPayload)
		if err := s.w.Frame(s.k, p[:c]); err != nil {
			return n, err
		}
		n, p = n+c, p[c:]
	}
	return n, nil
}

// Reader reads frames.
type Reader struct {
	r   io.Reader
	buf []byte
}

// NewReader returns a Reader on r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Frame reads the next frame; its payload is valid until the next call. The error is io.EOF between frames and
// io.ErrUnexpectedEOF within one.
func (r *Reader) Frame() (Kind, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(h[1:])
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("a frame of kind %d says %d bytes, over %d", h[0], n, MaxPayload)
	}
	if r.buf == nil {
		r.buf = make([]byte, MaxPayload)
	}
	p := r.buf[:n]
	if _, err := io.ReadFull(r.r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(h[0]), p, nil
}
