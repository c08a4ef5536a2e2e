package virtq_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

const (
	ram  = 1 << 20 // bytes of guest memory in most tests
	base = 0x4000  // where rings go
)

// pair makes a ring and the queue over it.
func pair(t testing.TB, o virtqtest.Options) (*virtqtest.Ring, *virtq.Queue) {
	t.Helper()
	r, err := virtqtest.NewRing(virtqtest.NewMemory(t, ram), base, 0x80000, o)
	if err != nil {
		t.Fatal(err)
	}
	q, err := virtq.New(r.Mem, r.Cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, q
}

func TestNewChecks(t *testing.T) {
	mem := virtqtest.NewMemory(t, ram)
	good := virtq.Config{Size: 256, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	for _, c := range []struct {
		name string
		edit func(*virtq.Config)
		want string // part of the error, "" for none
	}{
		{"good", func(*virtq.Config) {}, ""},
		{"size 1", func(c *virtq.Config) { c.Size = 1 }, ""},
		{"size 32768", func(c *virtq.Config) { c.Size, c.Desc, c.Avail, c.Used = 32768, 0, 0x80000, 0xa0000 }, ""},
		{"size 0", func(c *virtq.Config) { c.Size = 0 }, "power of two"},
		{"size 3", func(c *virtq.Config) { c.Size = 3 }, "power of two"},
		{"size 65535", func(c *virtq.Config) { c.Size = 65535 }, "power of two"},
		{"indirect 32768", func(c *virtq.Config) { c.MaxIndirect = 32768 }, ""},
		{"indirect 32769", func(c *virtq.Config) { c.MaxIndirect = 32769 }, "at most 32768"},
		{"desc misaligned", func(c *virtq.Config) { c.Desc += 8 }, "descriptor table at 0x1008: must be a multiple of 16"},
		{"avail at 2", func(c *virtq.Config) { c.Avail += 2 }, ""},
		{"avail misaligned", func(c *virtq.Config) { c.Avail++ }, "available ring at 0x2001: must be a multiple of 2"},
		{"used misaligned", func(c *virtq.Config) { c.Used += 2 }, "used ring at 0x3002: must be a multiple of 4"},
		{"desc ends with RAM", func(c *virtq.Config) { c.Desc = ram - 256*16 }, ""},
		{"desc past RAM", func(c *virtq.Config) { c.Desc = ram - 255*16 }, "descriptor table: guest address 0xff010"},
		{"avail ends with RAM", func(c *virtq.Config) { c.Avail = ram - 518 }, ""},
		{"avail past RAM", func(c *virtq.Config) { c.Avail = ram - 516 }, "available ring"},
		{"used past RAM", func(c *virtq.Config) { c.Used = ram - 2052 }, "used ring"},
		{"desc wraps", func(c *virtq.Config) { c.Desc = math.MaxUint64 &^ 15 }, "descriptor table"},
		{"avail wraps", func(c *virtq.Config) { c.Avail = math.MaxUint64 &^ 1 }, "available ring"},
		{"used wraps", func(c *virtq.Config) { c.Used = math.MaxUint64 &^ 3 }, "used ring"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.edit(&cfg)
			q, err := virtq.New(mem, cfg)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if ch, err := q.Pop(); ch != nil || err != nil {
					t.Fatalf("Pop of an empty ring: %v, %v", ch, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestHole lays rings and buffers around the hole below 4 GiB: a run that
// spans it is no memory.
func TestHole(t *testing.T) {
	mem := virtqtest.NewMemory(t, guestmem.HoleStart+ram)
	cfg := virtq.Config{Size: 8, Desc: guestmem.HoleStart - 64, Avail: 0x2000, Used: 0x3000}
	if _, err := virtq.New(mem, cfg); err == nil {
		t.Error("a descriptor table across the hole was taken")
	}
	r, err := virtqtest.NewRing(mem, guestmem.HoleEnd, 0x10000, virtqtest.Options{Size: 8})
	if err != nil {
		t.Fatal(err)
	}
	q, err := virtq.New(mem, r.Cfg)
	if err != nil {
		t.Fatal(err)
	}
	add := func(gpa uint64, n uint32) {
		if _, err := r.AddBufs([]virtqtest.Buf{{GPA: gpa, Len: n}}, nil); err != nil {
			t.Fatal(err)
		}
		r.Kick()
	}
	add(guestmem.HoleStart-4096, 4096)
	if c, err := q.Pop(); c == nil || err != nil {
		t.Fatalf("a buffer up to the hole: %v", err)
	}
	add(guestmem.HoleStart-4096, 4097)
	if _, err := q.Pop(); !errors.Is(err, guestmem.ErrOutOfRange) {
		t.Errorf("a buffer into the hole: %v", err)
	}
}

func TestPushWithoutPop(t *testing.T) {
	_, q := pair(t, virtqtest.Options{Size: 8})
	defer func() {
		if recover() == nil {
			t.Error("Push of a chain never taken went through")
		}
	}()
	q.Push(0, 0)
}

func TestChainCopies(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 16})
	if _, err := r.Add([][]byte{[]byte("ab"), []byte("cde"), []byte("f")}, []uint32{1, 3, 2}); err != nil {
		t.Fatal(err)
	}
	r.Kick()
	c, err := q.Pop()
	if err != nil || c == nil {
		t.Fatal(err)
	}
	const text = "abcdef"
	for off := range 9 {
		for n := range 9 {
			want := text[min(off, 6):min(off+n, 6)]
			p := make([]byte, n)
			if got := string(p[:c.CopyOut(p, uint64(off))]); got != want {
				t.Errorf("CopyOut(%d bytes, %d) = %q, want %q", n, off, got, want)
			}
			var got strings.Builder
			for _, b := range c.ReadableAt(nil, uint64(off), uint64(n)) {
				if len(b) == 0 || cap(b) != len(b) {
					t.Errorf("ReadableAt(%d, %d): run of %d with room for %d", off, n, len(b), cap(b))
				}
				got.Write(b)
			}
			if got.String() != want {
				t.Errorf("ReadableAt(%d, %d) = %q, want %q", off, n, got.String(), want)
			}
			for _, b := range c.Writable() {
				copy(b, "......")
			}
			wrote := c.CopyIn([]byte(text[:min(n, 6)]), uint64(off))
			if want := max(0, min(min(n, 6), 6-off)); wrote != want {
				t.Errorf("CopyIn(%d bytes, %d) = %d, want %d", n, off, wrote, want)
			}
			all := make([]byte, 0, 6)
			for _, b := range c.WritableAt(nil, 0, math.MaxUint64) {
				all = append(all, b...)
			}
			if want := (strings.Repeat(".", min(off, 6)) + text[:wrote] + "......")[:6]; string(all) != want {
				t.Errorf("CopyIn(%d bytes, %d): %q, want %q", n, off, all, want)
			}
		}
	}
	if c.CopyOut(make([]byte, 1), math.MaxUint64) != 0 || len(c.ReadableAt(nil, math.MaxUint64, math.MaxUint64)) != 0 {
		t.Error("an offset beyond everything finds bytes")
	}
}

// TestHeaderIsCopied changes a descriptor and a buffer behind the queue's back:
// what has been judged stays as it was judged.
func TestHeaderIsCopied(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 8})
	head, err := r.Add([][]byte{[]byte("header")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Kick()
	c, err := q.Pop()
	if err != nil {
		t.Fatal(err)
	}
	var hdr [6]byte
	c.CopyOut(hdr[:], 0)
	r.SetDesc(head, math.MaxUint64, math.MaxUint32, virtqtest.Next, 65535)
	copy(c.Readable()[0], "HEADER")
	if string(hdr[:]) != "header" || c.ReadLen() != 6 || len(c.Readable()[0]) != 6 {
		t.Errorf("the guest reached a copy: %q, %d bytes", hdr, c.ReadLen())
	}
}

// TestOddAvail uses an available ring at 2 modulo 4, as VirtIO permits: its
// flags, idx and used_event are each found in the right half of their words.
func TestOddAvail(t *testing.T) {
	for _, event := range []bool{false, true} {
		for _, size := range []uint16{1, 2, 8} {
			r, q := pair(t, virtqtest.Options{Size: size, EventIdx: event, OddAvail: true})
			if r.Cfg.Avail%4 != 2 {
				t.Fatalf("available ring at %#x", r.Cfg.Avail)
			}
			for i := range 70000 {
				if r.EnableInterrupts() {
					t.Fatal("used elements out of nowhere")
				}
				quiet := i%3 == 0
				if quiet && event {
					r.SetUsedEvent(r.UsedIdx() - 1)
				} else if quiet {
					r.DisableInterrupts()
				}
				if _, err := r.Add([][]byte{{byte(i)}}, nil); err != nil {
					t.Fatal(err)
				}
				q.EnableKicks()
				if !r.Kick() {
					t.Fatalf("request %d: no kick wanted", i)
				}
				c, err := q.Pop()
				if err != nil || c == nil || c.Readable()[0][0] != byte(i) {
					t.Fatalf("request %d: %v, %v", i, c, err)
				}
				q.Push(c.Head(), 0)
				if q.Publish() == quiet {
					t.Fatalf("request %d: interrupt %v, the driver asked for %v", i, quiet, !quiet)
				}
				if u, err := r.Collect(); len(u) != 1 || err != nil {
					t.Fatalf("request %d: %v, %v", i, u, err)
				}
			}
		}
	}
}

// TestAvailEventNeighbour sees to it that the two bytes behind the used ring,
// which belong to the guest, survive a store of avail_event.
func TestAvailEventNeighbour(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 8, EventIdx: true})
	gpa := r.Cfg.Used + 4 + 8*8
	if err := r.Mem.WriteAt([]byte{0xff, 0xff, 0xaa, 0xbb}, gpa); err != nil {
		t.Fatal(err)
	}
	q.EnableKicks()
	if v, _ := r.Mem.Uint32(gpa); v != 0xbbaa0000 {
		t.Errorf("avail_event and its neighbour read %#x", v)
	}
}

func TestDropAndAttach(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 8, EventIdx: true})
	serve := func(want string) {
		t.Helper()
		c, err := q.Pop()
		if err != nil || c == nil || string(c.Readable()[0]) != want {
			t.Fatalf("Pop: %v, %v", c, err)
		}
		q.Push(c.Head(), 0)
		q.Publish()
	}
	for _, s := range []string{"one", "two"} {
		if _, err := r.Add([][]byte{[]byte(s)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.Kick()
	serve("one")
	c, _ := q.Pop()
	q.Push(c.Head(), 0)
	before, _ := r.Mem.Uint32(r.Cfg.Used)
	r.SetUsedEvent(1)
	q.Drop()
	if len(c.Readable()) != 0 {
		t.Error("a dropped queue's chain still holds guest memory")
	}
	if _, err := q.Pop(); err != virtq.ErrDropped {
		t.Errorf("Pop: %v", err)
	}
	q.DisableKicks()
	q.Push(0, 0)
	if q.Publish() || q.EnableKicks() {
		t.Error("a dropped queue has news")
	}
	if after, _ := r.Mem.Uint32(r.Cfg.Used); after != before {
		t.Error("a dropped queue wrote to guest memory")
	}
	if err := q.Attach(r.Mem); err != nil {
		t.Fatal(err)
	}
	if !q.Publish() {
		t.Error("what was pushed before the pause is not published behind it")
	}
	if u, err := r.Collect(); len(u) != 2 || err != nil {
		t.Errorf("%v came back, %v", u, err)
	}
}

func TestStateRoundTrip(t *testing.T) {
	r, q := pair(t, virtqtest.Options{Size: 4, EventIdx: true, Indirect: true})
	r.StartAt(65534)
	q, err := virtq.Restore(r.Mem, virtq.State{Config: r.Cfg, NextAvail: 65534, NextUsed: 65534})
	if err != nil {
		t.Fatal(err)
	}
	for i := range byte(20) {
		if _, err := r.Add([][]byte{{i}}, []uint32{1}); err != nil {
			t.Fatal(err)
		}
		r.Kick()
		if i%3 == 0 {
			js, err := json.Marshal(q.State())
			if err != nil {
				t.Fatal(err)
			}
			q.Drop()
			var s virtq.State
			if err := json.Unmarshal(js, &s); err != nil {
				t.Fatal(err)
			}
			if q, err = virtq.Restore(r.Mem, s); err != nil {
				t.Fatalf("%s: %v", js, err)
			}
		}
		c, err := q.Pop()
		if err != nil || c == nil {
			t.Fatalf("request %d: %v, %v", i, c, err)
		}
		c.CopyIn(c.Readable()[0], 0)
		q.Push(c.Head(), 1)
		q.Publish()
		u, err := r.Collect()
		if err != nil || len(u) != 1 || u[0].Joined()[0] != i {
			t.Fatalf("request %d: %v, %v", i, u, err)
		}
	}
	s := q.State()
	s.NextAvail++
	if _, err := virtq.Restore(r.Mem, s); err == nil || !strings.Contains(err.Error(), "1 requests in flight") {
		t.Errorf("a state with a request in flight: %v", err)
	}
}
