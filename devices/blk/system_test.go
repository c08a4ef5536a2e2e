package blk_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// dup gives another handle on the same open file, as a hand-over does.
func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	if f == nil {
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// machine is a disk, its device and a driver that work is done through.
type machine struct {
	t       *testing.T
	opts    disk.Options
	backend blk.Backend
	dev     *blk.Device
	drv     *virtqtest.Driver
	model   []byte
	rng     *rand.Rand
	pending []func(virtqtest.Used) // checks of requests under way, in ring order
}

func (m *machine) start(o disk.Options) {
	m.t.Helper()
	b, err := disk.Open(o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.backend, m.dev = b, blk.New(blk.Config{Backend: b})
}

// send puts one random request into the ring, and what must come of it into
// pending. The worker serves the ring in order, so the model can run ahead.
func (m *machine) send() bool {
	sectors := int64(len(m.model) / blk.SectorSize)
	sector := m.rng.Int64N(sectors)
	n := 1 + m.rng.Int64N(min(sectors-sector, 64))
	part := m.model[sector*blk.SectorSize:][:n*blk.SectorSize]
	var readable [][]byte
	var writable []uint32
	check := func(virtqtest.Used) error { return nil }
	switch m.rng.IntN(10) {
	case 0, 1, 2, 3:
		readable = [][]byte{blk.Header(blk.TypeIn, uint64(sector))}
		want := bytes.Clone(part)
		for left := uint32(len(part)); left > 0; {
			k := min(left, 1+uint32(m.rng.IntN(9000)))
			writable, left = append(writable, k), left-k
		}
		check = func(u virtqtest.Used) error {
			got := u.Joined()
			if len(got) != len(want)+1 || !bytes.Equal(got[:len(want)], want) {
				return fmt.Errorf("read of %d sectors at %d: %d bytes, or not the right ones", n, sector, len(got))
			}
			return nil
		}
	case 4, 5, 6:
		p := make([]byte, len(part))
		for i := range p {
			p[i] = byte(m.rng.Uint32())
		}
		copy(part, p)
		readable = [][]byte{blk.Header(blk.TypeOut, uint64(sector))}
		for len(p) > 0 {
			k := min(len(p), 1+m.rng.IntN(9000))
			readable, p = append(readable, p[:k]), p[k:]
		}
	case 7:
		readable = [][]byte{blk.Header(blk.TypeFlush, 0)}
	case 8:
		clear(part)
		readable = [][]byte{blk.Header(blk.TypeWriteZeroes, 0), blk.Segs(uint64(sector), uint64(n), uint64(m.rng.IntN(2)))}
	case 9:
		// What a discard leaves is not promised, so zeroes follow at once.
		clear(part)
		if _, err := m.drv.Rings[0].Add([][]byte{blk.Join(blk.Header(blk.TypeDiscard, 0), blk.Segs(uint64(sector), uint64(n), 0))}, []uint32{1}); err != nil {
			return false
		}
		m.expect(func(virtqtest.Used) error { return nil })
		readable = [][]byte{blk.Join(blk.Header(blk.TypeWriteZeroes, 0), blk.Segs(uint64(sector), uint64(n), 1))}
	}
	writable = append(writable, 1)
	add := m.drv.Rings[0].Add
	if m.drv.Rings[0].Cfg.Indirect && m.rng.IntN(2) == 0 {
		add = m.drv.Rings[0].AddIndirect
	}
	if _, err := add(readable, writable); err != nil {
		m.t.Fatal(err) // the model has changed already
	}
	m.expect(check)
	return true
}

func (m *machine) expect(check func(virtqtest.Used) error) {
	m.pending = append(m.pending, func(u virtqtest.Used) {
		m.t.Helper()
		if st := u.Data[len(u.Data)-1]; st[len(st)-1] != 0 {
			m.t.Fatalf("status %d", st[len(st)-1])
		}
		if err := check(u); err != nil {
			m.t.Fatal(err)
		}
	})
}

// settle waits for all that is under way.
func (m *machine) settle() {
	m.t.Helper()
	if len(m.pending) == 0 {
		return
	}
	for i, u := range m.drv.Wait(0, len(m.pending)) {
		m.pending[i](u)
	}
	m.pending = m.pending[:0]
}

// move brings everything to a new device over the same open files, and to a
// new mapping of guest memory, with requests under way.
func (m *machine) move() {
	m.t.Helper()
	old := m.dev
	m.drv.Pause()
	// The state decides what the new one finds in the files, so it comes first.
	if _, err := old.State(); err != nil {
		m.t.Fatal(err)
	}
	image, overlay := m.backend.(disk.Files).Files()
	o := m.opts
	o.Path, o.OverlayPath, o.File, o.OverlayFile = "", "", dup(m.t, image), dup(m.t, overlay)
	m.start(o)
	mem, err := guestmem.FromFile(dup(m.t, m.drv.Mem.File()), m.drv.Mem.Size())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { mem.Close() })
	if err := m.drv.MoveTo(m.dev, mem); err != nil {
		m.t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// TestDiskModel compares random requests, many at a time, with a byte array, on
// every kind of file, with pauses and moves to a new machine in between.
func TestDiskModel(t *testing.T) {
	const size = 3<<20 + 5*blk.SectorSize
	for _, kind := range []string{"raw", "overlay", "overlay with a name"} {
		for _, features := range []uint64{^uint64(0), ^(virtq.FeatureIndirectDesc | virtq.FeatureEventIdx)} {
			t.Run(fmt.Sprintf("%s/%#x", kind, features), func(t *testing.T) {
				m := &machine{t: t, model: make([]byte, size), rng: rand.New(rand.NewPCG(5, features))}
				for i := range m.model {
					m.model[i] = byte(i>>9) ^ byte(i)
				}
				base := bytes.Clone(m.model)
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, m.model, 0o600); err != nil {
					t.Fatal(err)
				}
				m.opts = disk.Options{Path: path, Overlay: kind != "raw", Serial: "model"}
				if kind == "overlay with a name" {
					m.opts.OverlayPath = path + ".changes"
				}
				m.start(m.opts)
				m.drv = virtqtest.NewDriver(t, m.dev, virtqtest.DriverOptions{Features: features})
				for range 60 {
					for range 1 + m.rng.IntN(8) {
						m.send()
					}
					m.drv.Kick(0)
					switch m.rng.IntN(6) {
					case 0:
						m.drv.Pause()
						m.drv.Resume()
					case 1:
						m.move()
					}
					m.settle()
				}
				if _, err := m.drv.Rings[0].Add([][]byte{blk.Header(blk.TypeFlush, 0)}, []uint32{1}); err != nil {
					t.Fatal(err)
				}
				m.drv.Kick(0)
				m.drv.Wait(0, 1)
				if err := m.dev.Close(); err != nil {
					t.Fatal(err)
				}
				want := m.model
				if m.opts.Overlay {
					want = base
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("the image is not as it should be (%v)", err)
				}
				if m.opts.OverlayPath == "" {
					return
				}
				again, err := disk.Open(m.opts)
				if err != nil {
					t.Fatal(err)
				}
				defer again.Close()
				got := make([]byte, size)
				if err := again.ReadV([][]byte{got}, 0); err != nil || !bytes.Equal(got, m.model) {
					t.Errorf("the overlay opened again is not what was written (%v)", err)
				}
			})
		}
	}
}

// TestTruncatedImage: the guest gets IOERR for what is gone, and the rest.
func TestTruncatedImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := disk.Open(disk.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	dev := blk.New(blk.Config{Backend: b})
	defer dev.Close()
	d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: ^uint64(0)})
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for sector, want := range map[uint64]byte{0: 0, 7: 0, 8: 1, 2047: 1} {
		if _, err := d.Rings[0].Add([][]byte{blk.Header(blk.TypeIn, sector)}, []uint32{512, 1}); err != nil {
			t.Fatal(err)
		}
		d.Kick(0)
		if got := d.Wait(0, 1)[0].Data[1][0]; got != want {
			t.Errorf("sector %d: status %d, want %d", sector, got, want)
		}
	}
}

// TestWrittenBeforeUsed: when a write has come back, its bytes are in the file,
// for whoever reads it.
func TestWrittenBeforeUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := disk.Open(disk.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	dev := blk.New(blk.Config{Backend: b})
	defer dev.Close()
	d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: ^uint64(0)})
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	got := make([]byte, 512)
	for i := range 128 {
		want := bytes.Repeat([]byte{byte(i + 1)}, 512)
		d.Do(0, [][]byte{blk.Header(blk.TypeOut, uint64(i)), want}, 1)
		if _, err := other.ReadAt(got, int64(i)*512); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("sector %d: not in the file (%v)", i, err)
		}
	}
}
