package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

const (
	// maxDict bounds the memory that an .xz may want for its dictionary: that of
	// xz -9 (xz(1)).
	maxDict = 64 << 20
	// maxWindow bounds that of a .zst: what zstd(1) takes without --long.
	maxWindow = 128 << 20

	tarBlock = 512
	// sniffed is how much is looked at to tell formats apart: a tar header.
	sniffed = tarBlock
)

// source is what an archive is read from: it counts, and keeps the error that
// is not the archive's fault.
type source struct {
	ctx context.Context
	r   io.Reader
	n   atomic.Int64 // bytes read
	mu  sync.Mutex
	err error
}

func (s *source) Read(p []byte) (int, error) {
	err := s.ctx.Err()
	n := 0
	if err == nil {
		n, err = s.r.Read(p)
		s.n.Add(int64(n))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// unpack tells the compression by its magic number and undoes it; ahead of the
// one who reads, as both have work to do. close ends that work and must be called.
func unpack(s *source) (r io.Reader, closer func(), err error) {
	b := bufio.NewReaderSize(s, 64<<10)
	head, err := b.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	var z io.Reader
	free := func() {}
	switch {
	case len(head) == 0:
		return nil, nil, errors.New("it is empty")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}): // RFC 1952 §2.3.1
		z, err = gzip.NewReader(b)
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}): // The .xz File Format §2.1.1.1
		z, err = xz.NewReader(b, maxDict)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), // RFC 8878 §3.1.1
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.HasPrefix(head[1:], []byte{0x2a, 0x4d, 0x18}): // §3.1.2
		var d *zstd.Decoder
		d, err = zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err == nil {
			z, free = d, d.Close
		}
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, nil, errors.New("bzip2 is not read: pack it as .tar, .tar.gz, .tar.xz or .tar.zst")
	case !isTar(head):
		return nil, nil, fmt.Errorf("neither tar nor a compressed tar (gz, xz, zst): it begins with %.16q", head)
	default:
		return b, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	p := newPump(z)
	return p, func() { p.close(); free() }, nil
}

// isTar says whether a block is a tar header: its checksum is right (POSIX pax,
// "ustar Interchange Format"). An archive of nothing is two blocks of zeros.
func isTar(b []byte) bool {
	if len(b) < tarBlock {
		return false
	}
	sum, field, zero := int64(0), int64(0), true
	for i, c := range b[:tarBlock] {
		zero = zero && c == 0
		switch {
		case i < 148 || i >= 156:
			sum += int64(c)
		default:
			sum += ' '
			if c >= '0' && c <= '7' {
				field = field<<3 | int64(c-'0')
			}
		}
	}
	return zero || sum == field
}

const (
	pumpBuffers = 4
	pumpBuffer  = 128 << 10
)

// pump reads ahead in a goroutine of its own.
type pump struct {
	full, empty chan []byte
	stop        chan struct{}
	done        chan struct{}
	err         error // set before full is closed
	whole, left []byte
}

func newPump(r io.Reader) *pump {
	p := &pump{
		full: make(chan []byte, pumpBuffers), empty: make(chan []byte, pumpBuffers),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range pumpBuffers {
		p.empty <- make([]byte, pumpBuffer)
	}
	go p.run(r)
	return p
}

func (p *pump) run(r io.Reader) {
	defer close(p.done)
	defer close(p.full)
	for {
		var buf []byte
		select {
		case buf = <-p.empty:
		case <-p.stop:
			return
		}
		n, err := fill(r, buf[:pumpBuffer])
		if n > 0 {
			p.full <- buf[:n] // has room for every buffer
		}
		if err != nil {
			p.err = err
			return
		}
	}
}

// fill is io.ReadFull, but for an end that it leaves as it is: a decompressor's
// io.ErrUnexpectedEOF is a truncated archive.
func fill(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b) && err == nil; idle++ {
		var m int
		if m, err = r.Read(b[n:]); m > 0 {
			n, idle = n+m, 0
		}
		if idle > 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, err
}

func (p *pump) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		if p.whole != nil {
			p.empty <- p.whole[:pumpBuffer]
			p.whole = nil
		}
		buf, ok := <-p.full
		if !ok {
			if p.err == nil {
				return 0, io.ErrClosedPipe
			}
			return 0, p.err
		}
		p.whole, p.left = buf, buf
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

// close waits until the goroutine is gone: nobody reads the source after it.
func (p *pump) close() {
	close(p.stop)
	<-p.done
}

// limited is the unpacked archive: it holds it to its limits, and knows whether
// the last bytes were zeros, as the end of a tar is.
type limited struct {
	r     io.Reader
	s     *source
	l     *Limits
	n     int64
	zeros int // at the end, counted up to two blocks
}

var (
	errTooLong  = errors.New("it unpacks to more bytes than are taken")
	errTooDense = errors.New("it unpacks to far more than it holds")
)

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.n += int64(n)
	trailing := 0
	for trailing < min(n, 2*tarBlock) && p[n-1-trailing] == 0 {
		trailing++
	}
	if trailing == n {
		trailing += l.zeros
	}
	l.zeros = min(trailing, 2*tarBlock)
	switch {
	case l.n > l.l.Bytes:
		return 0, errTooLong
	case l.n > ratioFrom && l.n/l.l.Ratio > l.s.n.Load():
		return 0, errTooDense
	case n == 0 && err == nil:
		return 0, l.s.ctx.Err()
	}
	return n, err
}
