package blk_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// slots is a driver that keeps a fixed number of chains going, prepared once,
// so that little but the device is measured: header, data, status.
type slots struct {
	b      *testing.B
	r      *virtqtest.Ring
	kick   *devices.Doorbell
	used   chan struct{}
	ram    []byte
	header []uint64 // guest address of each slot's header
	status []uint64
	served uint16
	fence  atomic.Uint32
	irqs   int
}

func (s *slots) Used() {
	select {
	case s.used <- struct{}{}:
	default:
	}
}
func (s *slots) ConfigChanged()  {}
func (s *slots) Fault(err error) { panic(err) }

func newSlots(b *testing.B, dev *blk.Device, depth, size int, typ uint32) *slots {
	const ramSize = 64 << 20
	mem := virtqtest.NewMemory(b, ramSize)
	s := &slots{b: b, used: make(chan struct{}, 1)}
	var err error
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	s.ram, err = mem.Slice(0, ramSize)
	check(err)
	s.r, err = virtqtest.NewRing(mem, 1<<20, 60<<20, virtqtest.Options{Size: 128, EventIdx: true})
	check(err)
	s.kick, err = devices.NewDoorbell()
	check(err)
	for i := range depth {
		var bufs [3]virtqtest.Buf
		for k, n := range []uint32{16, uint32(size), 1} {
			bufs[k], err = s.r.Alloc(n)
			check(err)
		}
		flags := uint16(virtqtest.Next)
		if typ == blk.TypeIn {
			flags |= virtqtest.Write
		}
		id := uint16(3 * i)
		s.r.SetDesc(id, bufs[0].GPA, 16, virtqtest.Next, id+1)
		s.r.SetDesc(id+1, bufs[1].GPA, uint32(size), flags, id+2)
		s.r.SetDesc(id+2, bufs[2].GPA, 1, virtqtest.Write, 0)
		copy(s.ram[bufs[0].GPA:], blk.Header(typ, 0))
		s.header, s.status = append(s.header, bufs[0].GPA), append(s.status, bufs[2].GPA)
		clear(s.ram[bufs[1].GPA:][:size]) // touched: no page fault is measured
	}
	q, err := virtq.New(mem, s.r.Cfg)
	check(err)
	check(dev.Activate(devices.Activation{
		Mem: mem, Features: dev.Features(), Driver: s,
		Queues: []*devices.Queue{{Queue: q, Kick: s.kick}},
	}))
	b.Cleanup(func() {
		dev.Reset()
		s.kick.Close()
	})
	return s
}

// drive sends n requests, at sectors that next gives, and sleeps on interrupts.
func (s *slots) drive(n int, next func() uint64) {
	sent, done := 0, 0
	send := func(slot int) {
		binary.LittleEndian.PutUint64(s.ram[s.header[slot]+8:], next())
		s.r.PushHead(uint16(3 * slot))
		sent++
	}
	for i := range min(len(s.header), n) {
		send(i)
	}
	for {
		if s.r.Kick() {
			s.kick.Ring()
		}
		for s.served != s.r.UsedIdx() {
			slot := int(binary.LittleEndian.Uint32(s.ram[s.r.Cfg.Used+4+8*uint64(s.served%s.r.Cfg.Size):])) / 3
			if st := s.ram[s.status[slot]]; st != 0 {
				s.b.Fatalf("status %d", st)
			}
			s.served++
			done++
			if sent < n {
				send(slot)
			}
		}
		if done == n {
			return
		}
		if sent-done > 0 && s.r.AvailIdx() != s.served+uint16(sent-done) {
			continue // some are prepared and not yet announced
		}
		s.r.SetUsedEvent(s.served)
		if s.fence.Swap(1); s.served == s.r.UsedIdx() {
			<-s.used
			s.irqs++
		}
	}
}

// BenchmarkDevice measures the whole way of a request: doorbell, worker, file in
// the page cache, used ring, interrupt. The metric x-plain is its time over that
// of the bare pread or pwrite of the same size and places on the same file in
// the same run; irq/op counts the interrupts.
func BenchmarkDevice(b *testing.B) {
	const size = 64 << 20
	path := filepath.Join(b.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, o := range []disk.Options{{Path: path}, {Path: path, Overlay: true}} {
		for _, typ := range []uint32{blk.TypeIn, blk.TypeOut} {
			for _, depth := range []int{1, 32} {
				for _, n := range []int{4096, 1 << 20} {
					name := fmt.Sprintf("%s/%s/%dKiB/qd%d", map[bool]string{false: "raw", true: "overlay"}[o.Overlay],
						map[uint32]string{blk.TypeIn: "read", blk.TypeOut: "write"}[typ], n>>10, depth)
					b.Run(name, func(b *testing.B) { benchmark(b, o, typ, depth, n, size) })
				}
			}
		}
	}
}

func benchmark(b *testing.B, o disk.Options, typ uint32, depth, n, size int) {
	back, err := disk.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	dev := blk.New(blk.Config{Backend: back})
	defer dev.Close()
	s := newSlots(b, dev, depth, n, typ)
	places := func() func() uint64 {
		rng, at := rand.New(rand.NewPCG(1, 1)), uint64(0)
		return func() uint64 {
			if n == 4096 {
				return rng.Uint64N(uint64(size/n)) * uint64(n/blk.SectorSize)
			}
			at = (at + uint64(n)) % uint64(size)
			return at / blk.SectorSize
		}
	}
	// An overlay's first writes take new room; the bare writes do not.
	s.drive(2*size/n, places())
	b.SetBytes(int64(n))
	b.ReportAllocs()
	s.irqs = 0
	b.ResetTimer()
	start := time.Now()
	s.drive(b.N, places())
	device := time.Since(start)
	b.StopTimer()

	f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf, next := make([]byte, n), places()
	start = time.Now()
	for range b.N {
		off := int64(next()) * blk.SectorSize
		if typ == blk.TypeIn {
			_, err = unix.Pread(int(f.Fd()), buf, off)
		} else {
			_, err = unix.Pwrite(int(f.Fd()), buf, off)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(device)/float64(time.Since(start)), "x-plain")
	b.ReportMetric(float64(s.irqs)/float64(b.N), "irq/op")
}

// BenchmarkWakeup is the floor below a request at depth 1: a doorbell to a
// goroutine that sleeps on it, and a channel back.
func BenchmarkWakeup(b *testing.B) {
	bell, err := devices.NewDoorbell()
	if err != nil {
		b.Fatal(err)
	}
	defer bell.Close()
	back := make(chan struct{}, 1)
	var stop atomic.Bool
	go func() {
		for bell.Wait() == nil {
			if stop.Load() {
				close(back)
				return
			}
			back <- struct{}{}
		}
	}()
	defer func() {
		stop.Store(true)
		bell.Ring()
		<-back
	}()
	for b.Loop() {
		bell.Ring()
		<-back
	}
}
