package blk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// workers counts goroutines inside a worker. A worker has left it before Reset,
// Quiesce or Close return.
func workers() int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "blk.(*worker).run(")
}

func TestConfigSpace(t *testing.T) {
	back := newRAM(1000)
	back.block = 4096
	for _, ro := range []bool{false, true} {
		back.ro = ro
		d := New(Config{Backend: back})
		var c [cfgLen + 8]byte
		for i := range c {
			c[i] = 0xee
		}
		d.ReadConfig(0, c[:])
		le := binary.LittleEndian
		check := func(name string, got, want uint64) {
			t.Helper()
			if got != want {
				t.Errorf("ro %v: %s %d, want %d", ro, name, got, want)
			}
		}
		rw := func(v uint64) uint64 {
			if ro {
				return 0
			}
			return v
		}
		check("capacity", le.Uint64(c[0:]), 1000)
		check("size_max", uint64(le.Uint32(c[8:])), 0)
		check("seg_max", uint64(le.Uint32(c[12:])), 254)
		check("blk_size", uint64(le.Uint32(c[20:])), 4096)
		check("physical_block_exp", uint64(c[24]), 0)
		check("min_io_size", uint64(le.Uint16(c[26:])), 1)
		check("writeback", uint64(c[32]), 1)
		check("max_discard_sectors", uint64(le.Uint32(c[36:])), rw(1<<21))
		check("max_discard_seg", uint64(le.Uint32(c[40:])), rw(16))
		check("discard_sector_alignment", uint64(le.Uint32(c[44:])), rw(8))
		check("max_write_zeroes_sectors", uint64(le.Uint32(c[48:])), rw(1<<16))
		check("max_write_zeroes_seg", uint64(le.Uint32(c[52:])), rw(2))
		check("write_zeroes_may_unmap", uint64(c[56]), rw(1))
		check("behind the end", le.Uint64(c[cfgLen:]), 0)

		// A driver may read in any width, from anywhere.
		for _, off := range []uint64{0, 31, 32, 33, 59, 60, 1 << 40, ^uint64(0), ^uint64(0) - 3} {
			for n := 1; n <= 8; n *= 2 {
				p := bytes.Repeat([]byte{0xee}, n)
				d.ReadConfig(off, p)
				for i := range p {
					want := byte(0)
					if at := off + uint64(i); at >= off && at < cfgLen {
						want = c[at]
					}
					if p[i] != want {
						t.Fatalf("ro %v: byte %d of %d at %#x is %#x, want %#x", ro, i, n, off, p[i], want)
					}
				}
			}
		}
		// Nothing but writeback can be written, and not on a read-only disk.
		for off := range uint64(80) {
			d.WriteConfig(off, []byte{0})
		}
		d.WriteConfig(^uint64(0), make([]byte, 8))
		c[32] = byte(1 - rw(1))
		var after [cfgLen + 8]byte
		if d.ReadConfig(0, after[:]); after != c {
			t.Errorf("ro %v: configuration space changed", ro)
		}
		d.WriteConfig(28, []byte{0, 0, 0, 0, 1, 0, 0, 0})
		if d.ReadConfig(32, after[:1]); after[0] != 1 {
			t.Errorf("ro %v: a wide write does not reach writeback", ro)
		}
	}
}

func TestActivateRefuses(t *testing.T) {
	d := New(Config{Backend: newRAM(8)})
	for name, a := range map[string]devices.Activation{
		"no queue":    {},
		"two queues":  {Queues: make([]*devices.Queue, 2)},
		"not offered": {Queues: make([]*devices.Queue, 1), Features: featureRO},
	} {
		if d.Activate(a) == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := d.Activate(devices.Activation{Queues: make([]*devices.Queue, 1)}); err != nil {
		t.Errorf("a driver that enables no queue: %v", err)
	}
	if d.Activate(devices.Activation{Queues: make([]*devices.Queue, 1)}) == nil {
		t.Error("activated twice")
	}
	if err := d.Quiesce(); err != nil {
		t.Error(err)
	}
	if err := d.Resume(); err != nil {
		t.Error(err)
	}
	d.Reset()
}

// TestHostErrors: the guest gets IOERR, the failure is counted and logged once
// a minute for each kind, also across resets.
func TestHostErrors(t *testing.T) {
	var log bytes.Buffer
	back := newRAM(64)
	dev := New(Config{Backend: back, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, op := range []string{"read", "write", "flush", "discard", "zero"} {
		back.fail[op] = errDisk
	}
	for round := range 3 {
		d := newDriver(t, dev, everything)
		for _, c := range []struct {
			req  []byte
			room uint32
		}{
			{header(typeIn, 0), SectorSize},
			{join(header(typeOut, 0), make([]byte, SectorSize)), 0},
			{header(typeFlush, 0), 0},
			{join(header(typeDiscard, 0), segs(0, 1, 0, 1, 1, 0)), 0},
			{join(header(typeWriteZeroes, 0), segs(0, 1, 0)), 0},
		} {
			a := do(t, d, false, [][]byte{c.req}, c.room+1)
			wantLen := uint32(1)
			if c.room > 0 {
				wantLen = 0 // the data in front of the status was not written
			}
			if a.status != statusIOErr || a.len != wantLen {
				t.Errorf("type %d: status %d, used.len %d", c.req[0], a.status, a.len)
			}
		}
		dev.Reset()
		want := Count{Requests: uint64(round + 1), Errors: uint64(round + 1)}
		if s := dev.Stats(); s.Read != want || s.Write != want || s.Flush != want || s.Discard != want || s.WriteZeroes != want || s.Malformed != 0 {
			t.Errorf("round %d: %+v", round, s)
		}
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 5 {
		t.Errorf("%d log lines, want one for each kind:\n%s", len(lines), log.String())
	}
	for _, l := range lines {
		if !strings.Contains(l, errDisk.Error()) || !strings.Contains(l, "test disk") {
			t.Errorf("log line %q", l)
		}
	}
}

// TestLogsAgainLater: the silence ends after a minute.
func TestLogsAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := &worker{d: New(Config{Backend: newRAM(8), Log: slog.New(slog.NewTextHandler(&log, nil))})}
		w.backend = w.d.backend
		for range 3 {
			w.finish(kindRead, 0, errDisk)
			w.finish(kindRead, 0, errDisk)
			time.Sleep(logEvery)
		}
		if n := strings.Count(log.String(), "\n"); n != 3 || !strings.Contains(log.String(), "failures=5") {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
	})
}

// TestFault: a driver that breaks the rules of the ring is told, the worker
// ends, and a reset brings the device back.
func TestFault(t *testing.T) {
	dev := New(Config{Backend: newRAM(8)})
	d := newDriver(t, dev, everything)
	r := d.Rings[0]
	r.SetDesc(0, 0, 512, virtqtest.Next, 0) // a loop
	r.PushHead(0)
	d.Kick(0)
	if err := d.WaitFault(); err == nil || !strings.Contains(err.Error(), "loop") {
		t.Errorf("fault: %v", err)
	}
	// Pausing and resuming a broken device changes nothing.
	if err := dev.Quiesce(); err != nil {
		t.Error(err)
	}
	if n := workers(); n != 0 {
		t.Errorf("%d workers after a fault", n)
	}
	if err := dev.Resume(); err != nil {
		t.Error(err)
	}
	if err := d.WaitFault(); err == nil {
		t.Error("no fault after resuming")
	}
	dev.Reset()
	d = newDriver(t, dev, everything)
	if a := do(t, d, false, [][]byte{header(typeIn, 2)}, SectorSize, 1); a.status != statusOK {
		t.Errorf("status %d after a reset", a.status)
	}
}

// stalled makes a device with n reads in its ring, the first of them stuck in
// the backend.
func stalled(t *testing.T, n int) (*ram, *Device, *virtqtest.Driver) {
	t.Helper()
	back := newRAM(64)
	back.entered, back.gate = make(chan struct{}), make(chan struct{})
	dev := New(Config{Backend: back})
	d := newDriver(t, dev, everything)
	for i := range n {
		if _, err := d.Rings[0].Add([][]byte{header(typeIn, uint64(i))}, []uint32{SectorSize, 1}); err != nil {
			t.Fatal(err)
		}
	}
	d.Kick(0)
	<-back.entered
	return back, dev, d
}

// TestResetInFlight: a reset waits for the request at hand, drops the others,
// and leaves neither goroutine nor guest memory behind.
func TestResetInFlight(t *testing.T) {
	for name, stop := range map[string]func(*Device){
		"reset": (*Device).Reset,
		"close": func(d *Device) { d.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			back, dev, d := stalled(t, 5)
			if workers() != 1 {
				t.Errorf("%d workers", workers())
			}
			done := make(chan struct{})
			go func() {
				stop(dev)
				close(done)
			}()
			// The reset has begun when the worker is told to stop.
			for !dev.stop.Load() {
				runtime.Gosched()
			}
			select {
			case <-done:
				t.Fatal("returned with a request in flight")
			default:
			}
			back.gate <- struct{}{}
			<-done
			if n := workers(); n != 0 {
				t.Errorf("%d workers left", n)
			}
			if got := back.took(); len(got) != 1 {
				t.Errorf("backend: %v", got)
			}
			u, err := d.Rings[0].Collect()
			if err != nil || len(u) != 1 || u[0].Data[0][0] != 0 || u[0].Data[1][0] != statusOK {
				t.Errorf("came back: %v, %v", u, err)
			}
			if _, err := d.Queues[0].Pop(); err == nil {
				t.Error("the queue still has guest memory")
			}
			// The doorbell of a device at rest moves nothing.
			d.Notify(0)
			if name == "close" && !back.closed {
				t.Error("the backend is open")
			}
		})
	}
}

// TestQuiesceInFlight: a pause finishes the request at hand, keeps the others,
// and they are served after Resume without a notification.
func TestQuiesceInFlight(t *testing.T) {
	back, dev, d := stalled(t, 5)
	paused := make(chan error)
	go func() { paused <- dev.Quiesce() }()
	for !dev.stop.Load() {
		runtime.Gosched()
	}
	back.gate <- struct{}{}
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if n, u := workers(), d.Rings[0].UsedIdx(); n != 0 || u != 1 {
		t.Errorf("%d workers, used.idx %d", n, u)
	}
	if n := d.Queues[0].InFlight(); n != 0 {
		t.Errorf("%d requests in flight", n)
	}
	if err := dev.Quiesce(); err != nil {
		t.Errorf("second quiesce: %v", err)
	}
	back.entered, back.gate = nil, nil
	if err := dev.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Resume(); err != nil {
		t.Errorf("second resume: %v", err)
	}
	for i, u := range d.Wait(0, 5) {
		if u.Data[1][0] != statusOK || u.Data[0][0] != byte(i) {
			t.Errorf("request %d: %v", i, u.Data[1])
		}
	}
}

// TestLifeCycleRace: accesses of vCPUs, pauses and requests at once.
func TestLifeCycleRace(t *testing.T) {
	dev := New(Config{Backend: newRAM(64)})
	d := newDriver(t, dev, everything)
	var wg sync.WaitGroup
	done := make(chan struct{})
	turn := make(chan struct{}, 1) // a pause for each request, else there is nothing but pauses
	for _, f := range []func(){
		func() {
			select {
			case <-turn:
			case <-done:
				return
			}
			if err := dev.Quiesce(); err != nil {
				t.Error(err)
			}
			if _, err := dev.State(); err != nil {
				t.Error(err)
			}
			if err := dev.Resume(); err != nil {
				t.Error(err)
			}
		},
		func() {
			var b [8]byte
			dev.ReadConfig(28, b[:])
			dev.WriteConfig(32, []byte{1})
			dev.Stats()
		},
		func() { d.Queues[0].Kick.Ring() },
	} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		})
	}
	for i := range 500 {
		turn <- struct{}{}
		a := do(t, d, i%2 == 0, [][]byte{header(typeIn, uint64(i%64))}, SectorSize, 1)
		if a.status != statusOK || a.data[0] != byte(i%64) {
			t.Fatalf("request %d: %+v", i, a)
		}
	}
	close(done)
	wg.Wait()
}

func TestState(t *testing.T) {
	back := newRAM(8)
	d := New(Config{Backend: back})
	if _, err := d.State(); err == nil {
		t.Error("state of a running device")
	}
	d.WriteConfig(cfgWriteback, []byte{0})
	if err := d.Quiesce(); err != nil {
		t.Fatal(err)
	}
	s, err := d.State()
	if err != nil || back.frozen != 1 {
		t.Fatalf("%v, frozen %d times", err, back.frozen)
	}
	back.fail["freeze"] = errDisk
	if _, err := d.State(); err == nil {
		t.Error("the state of a disk that cannot be frozen")
	}
	other := newRAM(8)
	other.serial = "moved.img" // the guest goes on seeing the old name
	n := New(Config{Backend: other})
	if err := n.Restore(s); err != nil {
		t.Fatal(err)
	}
	delete(back.fail, "freeze")
	if again, err := n.State(); err != nil || !bytes.Equal(again, s) {
		t.Errorf("state %s became %s (%v)", s, again, err)
	}
	for name, edit := range map[string][2]string{
		"version":       {`"version":1`, `"version":2`},
		"size":          {`"size":4096`, `"size":4608`},
		"read-only":     {`"read_only":false`, `"read_only":true`},
		"block size":    {`"block_size":512`, `"block_size":4096`},
		"serial":        {`test disk`, `a serial that is too long`},
		"unknown field": {`"version":1`, `"version":1,"x":2`},
		"no JSON":       {`{`, `[`},
		"cut off":       {`}`, ``},
	} {
		bad := strings.Replace(string(s), edit[0], edit[1], 1)
		if bad == string(s) {
			t.Fatalf("%s: nothing edited in %s", name, s)
		}
		if err := New(Config{Backend: newRAM(8)}).Restore([]byte(bad)); err == nil {
			t.Errorf("%s: %s was taken", name, bad)
		}
	}
	used := New(Config{Backend: newRAM(8)})
	newDriver(t, used, everything)
	if used.Restore(s) == nil {
		t.Error("restored into a device in use")
	}
}

// TestWritebackAfterReset: a reset turns the cache on again.
func TestWritebackAfterReset(t *testing.T) {
	d := New(Config{Backend: newRAM(8)})
	d.WriteConfig(cfgWriteback, []byte{0})
	d.Reset()
	var p [1]byte
	if d.ReadConfig(cfgWriteback, p[:]); p[0] != 1 {
		t.Errorf("writeback %d", p[0])
	}
}

// TestNoAllocations: serving a request costs none, once the rooms have grown.
func TestNoAllocations(t *testing.T) {
	back := newRAM(1024)
	back.calls = make([]string, 0, 1<<20)
	mem := virtqtest.NewMemory(t, 8<<20)
	for _, c := range []struct {
		name     string
		readable [][]byte
		writable []uint32
	}{
		{"read", [][]byte{header(typeIn, 0)}, append(bytesOf(254, 512), 1)},
		{"write", append([][]byte{header(typeOut, 0)}, runs(254, 512)...), []uint32{1}},
		{"flush", [][]byte{header(typeFlush, 0)}, []uint32{1}},
		{"get id", [][]byte{header(typeGetID, 0)}, []uint32{20, 1}},
		{"discard", [][]byte{header(typeDiscard, 0), segs(0, 1, 0, 3, 4, 0)}, []uint32{1}},
		{"zeroes", [][]byte{header(typeWriteZeroes, 0), segs(0, 1, 1)}, []uint32{1}},
		{"malformed", [][]byte{header(typeOut, 1<<40), make([]byte, 512)}, []uint32{1}},
		{"unknown", [][]byte{header(77, 0)}, []uint32{1}},
	} {
		w, r := benchWorker(t, New(Config{Backend: back}), mem)
		const n = 8
		const runsOf = 50
		fill := func() {
			r.Collect()
			for range n {
				if _, err := r.AddIndirect(c.readable, c.writable); err != nil {
					t.Fatal(err)
				}
			}
			r.Kick()
		}
		fill()
		w.drain()
		var before, after runtime.MemStats
		total := uint64(0)
		for range runsOf {
			fill()
			runtime.ReadMemStats(&before)
			w.drain()
			runtime.ReadMemStats(&after)
			total += after.Mallocs - before.Mallocs
		}
		// The runtime allocates now and then for itself.
		if total > runsOf*n/20 {
			t.Errorf("%s: %d allocations in %d requests", c.name, total, runsOf*n)
		}
	}
}

func bytesOf(n int, v uint32) []uint32 {
	b := make([]uint32, n)
	for i := range b {
		b[i] = v
	}
	return b
}

func runs(n, size int) [][]byte {
	b := make([][]byte, n)
	for i := range b {
		b[i] = make([]byte, size)
	}
	return b
}

func ExampleDevice_Stats() {
	d := New(Config{Backend: newRAM(8)})
	fmt.Println(d.Stats().Read.Requests)
	// Output: 0
}
