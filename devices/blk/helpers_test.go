package blk

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// ram is a backend in memory that fails and stalls on request.
type ram struct {
	data   []byte
	ro     bool
	block  uint32
	serial string

	mu     sync.Mutex
	calls  []string
	fail   map[string]error
	frozen int
	closed bool

	entered chan struct{} // if set: told of each read, which then waits for gate
	gate    chan struct{}
}

var errDisk = errors.New("the disk is on fire")

func (r *ram) called(op string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, op)
	return r.fail[op]
}

// took gives the calls since the last time.
func (r *ram) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls
	r.calls = nil
	return c
}

func (r *ram) Size() int64       { return int64(len(r.data)) }
func (r *ram) BlockSize() uint32 { return r.block }
func (r *ram) ReadOnly() bool    { return r.ro }
func (r *ram) Serial() string    { return r.serial }

func (r *ram) ReadV(bufs [][]byte, off int64) error {
	if r.entered != nil {
		r.entered <- struct{}{}
		<-r.gate
	}
	if err := r.called("read"); err != nil {
		return err
	}
	for _, b := range bufs {
		if copy(b, r.data[off:]) < len(b) {
			return io.ErrUnexpectedEOF
		}
		off += int64(len(b))
	}
	return nil
}

func (r *ram) WriteV(bufs [][]byte, off int64) error {
	if err := r.called("write"); err != nil {
		return err
	}
	for _, b := range bufs {
		if copy(r.data[off:], b) < len(b) {
			return io.ErrShortWrite
		}
		off += int64(len(b))
	}
	return nil
}

func (r *ram) Flush() error { return r.called("flush") }

func (r *ram) Discard(off, n int64) error {
	if err := r.called("discard"); err != nil {
		return err
	}
	clear(r.data[off : off+n])
	return nil
}

func (r *ram) WriteZeroes(off, n int64, unmap bool) error {
	op := "zero"
	if unmap {
		op = "zero+unmap"
	}
	if err := r.called(op); err != nil {
		return err
	}
	clear(r.data[off : off+n])
	return nil
}

func (r *ram) Freeze() error {
	r.frozen++
	return r.fail["freeze"]
}

func (r *ram) Close() error {
	r.closed = true
	return nil
}

// newRAM makes a disk of n sectors, each of which holds its number.
func newRAM(n int) *ram {
	r := &ram{data: make([]byte, n*SectorSize), block: SectorSize, serial: "test disk", fail: map[string]error{}}
	for i := range r.data {
		r.data[i] = byte(i / SectorSize)
	}
	return r
}

const (
	everything = ^uint64(0)
	ringBits   = virtq.FeatureIndirectDesc | virtq.FeatureEventIdx
)

// header encodes the start of a request.
func header(typ uint32, sector uint64) []byte {
	h := make([]byte, headerLen)
	binary.LittleEndian.PutUint32(h, typ)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return h
}

// segs encodes sector, sectors, flags triples.
func segs(v ...uint64) []byte {
	var b []byte
	for i := 0; i+2 < len(v); i += 3 {
		b = binary.LittleEndian.AppendUint64(b, v[i])
		b = binary.LittleEndian.AppendUint32(b, uint32(v[i+1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(v[i+2]))
	}
	return b
}

// join makes one run of several.
func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// answer is a request that came back.
type answer struct {
	status byte   // 0xff where the device wrote none
	data   []byte // the writable part without the status, whole
	len    uint32 // used.len
}

// do sends one chain and waits for it. The status byte is preset to 0xff.
func do(t testing.TB, d *virtqtest.Driver, indirect bool, readable [][]byte, writable ...uint32) answer {
	t.Helper()
	r := d.Rings[0]
	add := r.Add
	if indirect {
		add = r.AddIndirect
	}
	if _, err := add(readable, writable); err != nil {
		t.Fatal(err)
	}
	d.Kick(0)
	u := d.Wait(0, 1)
	var all []byte
	for _, b := range u[0].Data {
		all = append(all, b...)
	}
	if len(all) == 0 {
		return answer{status: 0xff, len: u[0].Len}
	}
	return answer{all[len(all)-1], all[:len(all)-1], u[0].Len}
}

func newDriver(t testing.TB, dev *Device, features uint64) *virtqtest.Driver {
	t.Helper()
	return virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: features})
}
