package pvh

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

const (
	// maxUnpacked bounds what a compressed kernel may unpack to, in bytes.
	maxUnpacked = 1 << 30
	// unloadedRoom is how far, in bytes, an unpacked kernel may exceed the
	// guest's RAM: symbols and debug information are in the file only.
	unloadedRoom = 64 << 20
	// maxRestarts bounds how often a compressed file is unpacked anew because
	// something is wanted that lies behind.
	maxRestarts = 2
)

var (
	errShort   = errors.New("the file ends too early")
	errTooLong = errors.New("it unpacks to more than the guest's memory can use")
)

// source is the kernel image, unpacked.
type source interface {
	// readAt fills p from byte off of the image, or fails.
	readAt(p []byte, off uint64) error
	// size is the image's length in bytes where it is known.
	size() (n uint64, known bool)
	// finish checks what only the end of the file tells.
	finish() error
	compressed() bool
}

// open looks at the file's first bytes. ram bounds unpacking, in bytes.
func open(f File, ram uint64) (source, error) {
	if f.Size < 0 {
		return nil, fail(f.Name, ErrFormat, "size of %d bytes", f.Size)
	}
	var head [0x206]byte
	n := min(int64(len(head)), f.Size)
	if err := readFull(f.R, head[:n], 0); err != nil {
		return nil, fail(f.Name, ErrTruncated, "cannot be read: %v", err)
	}
	if bytes.HasPrefix(head[:n], []byte{0x1F, 0x8B}) { // RFC 1952 §2.3.1
		s := &gzipSource{f: f, limit: min(ram+unloadedRoom, maxUnpacked)}
		if err := s.restart(); err != nil {
			return nil, fail(f.Name, ErrCompressed, "%v", err)
		}
		return s, nil
	}
	if bytes.HasPrefix(head[:n], []byte("\x7fELF")) {
		return plainSource{f}, nil
	}
	return nil, notELF(f.Name, head[:n])
}

// notELF names what the file seems to be, for whoever took the wrong one.
func notELF(name string, head []byte) error {
	// The Linux/x86 boot protocol's magic at 0x202, in every bzImage.
	if len(head) >= 0x206 && string(head[0x202:0x206]) == "HdrS" {
		return fail(name, ErrNotELF, "a Linux bzImage, not an ELF kernel: extract its vmlinux (scripts/extract-vmlinux in Linux's sources)")
	}
	for _, m := range []struct{ magic, what string }{
		{"\xFD7zXZ\x00", "xz"}, {"\x28\xB5\x2F\xFD", "zstd"}, {"BZh", "bzip2"}, {"\x04\x22\x4D\x18", "lz4"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return fail(name, ErrNotELF, "compressed with %s: unpack it first (only gzip is read directly)", m.what)
		}
	}
	if len(head) == 0 {
		return fail(name, ErrNotELF, "not an ELF kernel: the file is empty")
	}
	return fail(name, ErrNotELF, "not an ELF kernel")
}

// readFull fills p from byte off of r.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := r.ReadAt(p, off)
		if n < 0 || n > len(p) {
			return errors.New("reader misbehaves")
		}
		p, off = p[n:], off+int64(n)
		switch {
		case len(p) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return errShort
		case err != nil:
			return err
		case n == 0:
			return io.ErrNoProgress
		}
	}
	return nil
}

type plainSource struct{ f File }

func (s plainSource) readAt(p []byte, off uint64) error {
	if off > uint64(s.f.Size) || uint64(len(p)) > uint64(s.f.Size)-off {
		return errShort
	}
	return readFull(s.f.R, p, int64(off))
}
func (s plainSource) size() (uint64, bool) { return uint64(s.f.Size), true }
func (s plainSource) finish() error        { return nil }
func (s plainSource) compressed() bool     { return false }

// gzipSource unpacks forward, straight into what readAt is given, and serves
// what lies behind from there: no copy of the kernel is kept.
type gzipSource struct {
	f        File
	limit    uint64 // of unpacked bytes
	in       *bufio.Reader
	z        *gzip.Reader
	pos      uint64
	restarts int
	have     []piece
}

// piece is a run of the image that has been read.
type piece struct {
	off uint64
	b   []byte
}

func (s *gzipSource) restart() error {
	if s.restarts++; s.restarts > 1+maxRestarts {
		return errors.New("its parts lie in an order that takes too long to unpack: unpack it first (gzip -d)")
	}
	r := io.NewSectionReader(s.f.R, 0, s.f.Size)
	if s.in == nil {
		s.in = bufio.NewReaderSize(r, 32<<10)
	} else {
		s.in.Reset(r)
	}
	s.pos = 0
	if s.z == nil {
		z, err := gzip.NewReader(s.in)
		if err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		s.z = z
		return nil
	}
	if err := s.z.Reset(s.in); err != nil {
		return fmt.Errorf("gzip: %w", err)
	}
	return nil
}

func (s *gzipSource) readAt(p []byte, off uint64) error {
	for _, h := range s.have {
		if off >= h.off && off-h.off <= uint64(len(h.b)) && uint64(len(p)) <= uint64(len(h.b))-(off-h.off) {
			copy(p, h.b[off-h.off:])
			return nil
		}
	}
	if off > s.limit || uint64(len(p)) > s.limit-off {
		return errTooLong
	}
	if off < s.pos {
		if err := s.restart(); err != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, s.z, int64(off-s.pos))
	s.pos += uint64(n)
	if err != nil {
		return unpackError(err)
	}
	k, err := io.ReadFull(s.z, p)
	s.pos += uint64(k)
	if err != nil {
		return unpackError(err)
	}
	s.have = append(s.have, piece{off, p})
	return nil
}

// finish unpacks to the end, where the checksum is.
func (s *gzipSource) finish() error {
	n, err := io.CopyN(io.Discard, s.z, int64(s.limit-s.pos)+1)
	s.pos += uint64(n)
	switch {
	case err == nil:
		return errTooLong
	case errors.Is(err, io.EOF):
		return nil
	}
	return unpackError(err)
}

func (s *gzipSource) size() (uint64, bool) { return 0, false }
func (s *gzipSource) compressed() bool     { return true }

func unpackError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShort
	}
	return fmt.Errorf("gzip: %w", err)
}
