package blk

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// TestRequests sends every type of request in every form of ring and chain:
// direct and indirect, with and without event indices, and cut up differently.
func TestRequests(t *testing.T) {
	const disk = 64 // sectors
	data := bytes.Repeat([]byte{0xab}, 3*SectorSize)
	type want struct {
		status byte
		filled int      // bytes of data in front of the status
		calls  []string // of the backend
	}
	ok := func(filled int, calls ...string) want { return want{statusOK, filled, calls} }
	bad := want{status: statusIOErr}
	unsupp := want{status: statusUnsupp}
	for _, c := range []struct {
		name string
		req  []byte
		room int
		want want
	}{
		{"read", header(typeIn, 3), 2 * SectorSize, ok(2*SectorSize, "read")},
		{"read the last sector", header(typeIn, disk-1), SectorSize, ok(SectorSize, "read")},
		{"read nothing", header(typeIn, disk), 0, ok(0, "read")},
		{"read all", header(typeIn, 0), disk * SectorSize, ok(disk*SectorSize, "read")},
		{"read behind the end", header(typeIn, disk-1), 2 * SectorSize, bad},
		{"read at the end", header(typeIn, disk), SectorSize, bad},
		{"read far out", header(typeIn, 1<<55), SectorSize, bad},
		{"read, sector overflows", header(typeIn, ^uint64(0)), SectorSize, bad},
		{"read, byte offset overflows", header(typeIn, 1<<63/SectorSize*2), SectorSize, bad},
		{"read half a sector", header(typeIn, 0), SectorSize / 2, bad},
		{"read a sector and a byte", header(typeIn, 0), SectorSize + 1, bad},
		{"read with data to write", join(header(typeIn, 0), data[:SectorSize]), SectorSize, bad},
		{"write", join(header(typeOut, 5), data), 0, ok(0, "write")},
		{"write nothing", header(typeOut, 5), 0, ok(0, "write")},
		{"write behind the end", join(header(typeOut, disk-2), data), 0, bad},
		{"write, sector overflows", join(header(typeOut, ^uint64(0)-1), data), 0, bad},
		{"write an odd length", join(header(typeOut, 0), data[:100]), 0, bad},
		{"write with room to read", join(header(typeOut, 0), data), SectorSize, bad},
		{"flush", header(typeFlush, 0), 0, ok(0, "flush")},
		{"flush anywhere", header(typeFlush, 1<<60), 0, ok(0, "flush")},
		{"flush with data", join(header(typeFlush, 0), data), 0, bad},
		{"flush with room", header(typeFlush, 0), SectorSize, bad},
		{"get id", header(typeGetID, 0), SerialLen, ok(SerialLen)},
		{"get id, short", header(typeGetID, 0), SerialLen - 1, bad},
		{"get id, no room", header(typeGetID, 0), 0, bad},
		{"get id with data", join(header(typeGetID, 0), data), SerialLen, bad},
		{"discard", join(header(typeDiscard, 0), segs(8, 8, 0)), 0, ok(0, "discard")},
		{"discard several", join(header(typeDiscard, 0), segs(8, 8, 0, 0, 1, 0, disk, 0, 0)), 0, ok(0, "discard", "discard", "discard")},
		{"discard the most", join(header(typeDiscard, 0), segs(slices.Repeat([]uint64{1, 1, 0}, maxDiscardSegs)...)), 0, ok(0, slices.Repeat([]string{"discard"}, maxDiscardSegs)...)},
		{"discard too many", join(header(typeDiscard, 0), segs(slices.Repeat([]uint64{1, 1, 0}, maxDiscardSegs+1)...)), 0, bad},
		{"discard nothing", header(typeDiscard, 0), 0, bad},
		{"discard half a segment", join(header(typeDiscard, 0), segs(8, 8, 0)[:8]), 0, bad},
		{"discard a segment and a half", join(header(typeDiscard, 0), segs(8, 8, 0, 8, 8, 0)[:24]), 0, bad},
		{"discard behind the end", join(header(typeDiscard, 0), segs(0, 1, 0, disk-1, 2, 0)), 0, bad},
		{"discard, sector overflows", join(header(typeDiscard, 0), segs(^uint64(0), 2, 0)), 0, bad},
		{"discard above the limit", join(header(typeDiscard, 0), segs(0, maxDiscardSectors+1, 0)), 0, bad},
		{"discard with unmap", join(header(typeDiscard, 0), segs(0, 1, 1)), 0, unsupp},
		{"discard with a reserved flag", join(header(typeDiscard, 0), segs(0, 1, 0, 0, 1, 1<<31)), 0, unsupp},
		{"discard with room", join(header(typeDiscard, 0), segs(0, 1, 0)), 1, bad},
		{"zero", join(header(typeWriteZeroes, 0), segs(8, 8, 0)), 0, ok(0, "zero")},
		{"zero with unmap", join(header(typeWriteZeroes, 0), segs(8, 8, 1, 1, 1, 0)), 0, ok(0, "zero+unmap", "zero")},
		{"zero too many", join(header(typeWriteZeroes, 0), segs(slices.Repeat([]uint64{1, 1, 0}, maxZeroesSegs+1)...)), 0, bad},
		{"zero with a reserved flag", join(header(typeWriteZeroes, 0), segs(0, 1, 2)), 0, unsupp},
		{"zero behind the end", join(header(typeWriteZeroes, 0), segs(disk, 1, 0)), 0, bad},
		{"zero above the limit", join(header(typeWriteZeroes, 0), segs(0, maxZeroesSectors+1, 0)), 0, bad},
		{"unknown type", header(9, 0), 0, unsupp},
		{"unknown type with data", join(header(0xffffffff, 0), data), SectorSize, unsupp},
		{"secure erase", join(header(14, 0), segs(0, 1, 0)), 0, unsupp},
		{"legacy barrier", header(1<<31, 0), 0, unsupp},
		{"half a header", header(typeIn, 0)[:15], SectorSize, bad},
		{"no header", nil, SectorSize, bad},
	} {
		for form := range 8 {
			features, indirect, pieces := everything, form&1 != 0, form&2 != 0
			if form&4 != 0 {
				features &^= ringBits
				indirect = false
			}
			t.Run(fmt.Sprintf("%s/%d", c.name, form), func(t *testing.T) {
				back := newRAM(disk)
				before := bytes.Clone(back.data)
				dev := New(Config{Backend: back})
				d := newDriver(t, dev, features)
				readable, writable := [][]byte{c.req}, []uint32{uint32(c.room) + 1}
				if pieces {
					readable, writable = inPieces(c.req, c.room)
				}
				if len(c.req) == 0 {
					readable = nil
				}
				a := do(t, d, indirect, readable, writable...)
				// The race detector does not see guest memory order anything.
				dev.Quiesce()
				if a.status != c.want.status {
					t.Errorf("status %d, want %d", a.status, c.want.status)
				}
				wantLen := uint32(0)
				if c.want.filled == c.room {
					wantLen = uint32(c.room) + 1
				}
				if a.len != wantLen {
					t.Errorf("used.len %d, want %d", a.len, wantLen)
				}
				if calls := back.took(); !slices.Equal(calls, c.want.calls) {
					t.Errorf("backend: %v, want %v", calls, c.want.calls)
				}
				checkEffect(t, c.name, a, before, back.data, data)
				checkStats(t, dev.Stats(), c.name, c.want.status)
			})
		}
	}
}

// inPieces cuts a request at awkward places: inside the header, inside the
// data, and in front of the status.
func inPieces(req []byte, room int) (readable [][]byte, writable []uint32) {
	for _, k := range []int{1, 3, 9, 7, 30} {
		if k = min(k, len(req)); k > 0 {
			readable = append(readable, req[:k])
			req = req[k:]
		}
	}
	if len(req) > 0 {
		readable = append(readable, req)
	}
	for _, k := range []int{5, 600, 1} {
		if k = min(k, room); k > 0 {
			writable = append(writable, uint32(k))
			room -= k
		}
	}
	return readable, append(writable, uint32(room)+1)
}

func checkEffect(t *testing.T, name string, a answer, before, after, data []byte) {
	t.Helper()
	want := bytes.Clone(before)
	zero := func(sector, sectors int) { clear(want[sector*SectorSize:][:sectors*SectorSize]) }
	switch name {
	case "read":
		if !bytes.Equal(a.data, before[3*SectorSize:5*SectorSize]) {
			t.Error("read something else")
		}
	case "read all":
		if !bytes.Equal(a.data, before) {
			t.Error("read something else")
		}
	case "get id":
		if got := strings.TrimRight(string(a.data), "\x00"); got != "test disk" {
			t.Errorf("identity %q", got)
		}
	case "write":
		copy(want[5*SectorSize:], data)
	case "discard", "zero":
		zero(8, 8)
	case "discard several":
		zero(8, 8)
		zero(0, 1)
	case "discard the most":
		zero(1, 1)
	case "zero with unmap":
		zero(8, 8)
		zero(1, 1)
	}
	if !bytes.Equal(after, want) {
		t.Error("the disk's content is not what it should be")
	}
}

func checkStats(t *testing.T, s Stats, name string, status byte) {
	t.Helper()
	var wantBad, wantUnsupp, wantDone uint64
	switch status {
	case statusOK:
		wantDone = 1
	case statusIOErr:
		wantBad = 1
	case statusUnsupp:
		wantUnsupp = 1
	}
	done := s.Read.Requests + s.Write.Requests + s.Flush.Requests + s.Discard.Requests + s.WriteZeroes.Requests + s.GetID.Requests
	if done != wantDone || s.Malformed != wantBad || s.Unsupported != wantUnsupp {
		t.Errorf("%s: counted %+v", name, s)
	}
	switch name {
	case "read":
		if s.Read.Bytes != 2*SectorSize {
			t.Errorf("%d bytes read", s.Read.Bytes)
		}
	case "discard several":
		if s.Discard.Bytes != 9*SectorSize {
			t.Errorf("%d bytes discarded", s.Discard.Bytes)
		}
	}
}

// TestNoStatusByte: a chain without a writable byte comes back with nothing
// written, and the queue goes on.
func TestNoStatusByte(t *testing.T) {
	back := newRAM(8)
	dev := New(Config{Backend: back})
	d := newDriver(t, dev, everything)
	if a := do(t, d, false, [][]byte{join(header(typeOut, 0), make([]byte, SectorSize))}); a.len != 0 {
		t.Errorf("used.len %d", a.len)
	}
	if c := back.took(); c != nil || dev.Stats().Malformed != 1 {
		t.Errorf("backend: %v, stats %+v", c, dev.Stats())
	}
	if a := do(t, d, false, [][]byte{header(typeIn, 1)}, SectorSize, 1); a.status != statusOK || a.len != SectorSize+1 {
		t.Errorf("the next one: %+v", a)
	}
}

// TestTooLong: one request may not keep the worker busy without bound.
func TestTooLong(t *testing.T) {
	back := &ram{data: make([]byte, 2*maxTransfer), block: SectorSize}
	d := newDriver(t, New(Config{Backend: back}), everything)
	r := d.Rings[0]
	h, err := r.Alloc(headerLen)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Mem.WriteAt(header(typeIn, 0), h.GPA); err != nil {
		t.Fatal(err)
	}
	buf, err := r.Alloc(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Alloc(1)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]byte{maxTransfer >> 20: statusOK, maxTransfer>>20 + 1: statusIOErr} {
		// The same megabyte again and again: a guest may.
		wr := slices.Repeat([]virtqtest.Buf{buf}, n)
		wr = append(wr, st)
		if _, err := r.AddBufs([]virtqtest.Buf{h}, wr); err != nil {
			t.Fatal(err)
		}
		d.Kick(0)
		u := d.Wait(0, 1)[0]
		if got := u.Data[len(u.Data)-1][0]; got != want {
			t.Errorf("%d MiB: status %d, want %d", n, got, want)
		}
	}
}

// TestNotNegotiated: what the driver did not take is not there.
func TestNotNegotiated(t *testing.T) {
	for name, c := range map[string]struct {
		feature uint64
		req     []byte
	}{
		"discard": {featureDiscard, join(header(typeDiscard, 0), segs(0, 1, 0))},
		"zeroes":  {featureWriteZeroes, join(header(typeWriteZeroes, 0), segs(0, 1, 0))},
	} {
		back := newRAM(8)
		d := newDriver(t, New(Config{Backend: back}), everything&^c.feature)
		if a := do(t, d, false, [][]byte{c.req}, 1); a.status != statusUnsupp || back.took() != nil {
			t.Errorf("%s: status %d", name, a.status)
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	back := newRAM(8)
	back.ro = true
	dev := New(Config{Backend: back})
	if f := dev.Features(); f&featureRO == 0 || f&(featureDiscard|featureWriteZeroes|featureConfigWCE) != 0 || f&featureFlush == 0 {
		t.Errorf("features %#x", f)
	}
	d := newDriver(t, dev, everything)
	for _, c := range []struct {
		req    []byte
		status byte
	}{
		{join(header(typeOut, 0), make([]byte, SectorSize)), statusIOErr},
		{join(header(typeDiscard, 0), segs(0, 1, 0)), statusUnsupp},
		{join(header(typeWriteZeroes, 0), segs(0, 1, 0)), statusUnsupp},
		{header(typeFlush, 0), statusOK},
	} {
		if a := do(t, d, false, [][]byte{c.req}, 1); a.status != c.status {
			t.Errorf("type %d: status %d, want %d", c.req[0], a.status, c.status)
		}
	}
	if c := back.took(); !slices.Equal(c, []string{"flush"}) {
		t.Errorf("backend: %v", c)
	}
}

// TestCacheModes: writes are followed by a flush exactly where the driver has
// no way to ask for one, or has turned the cache off.
func TestCacheModes(t *testing.T) {
	none := everything &^ (featureFlush | featureConfigWCE)
	for _, c := range []struct {
		name     string
		features uint64
		set      int // value written to writeback; -1: none
		through  bool
		field    byte // writeback as read afterwards
	}{
		{"neither", none, -1, true, 1},
		{"neither, and the field cleared", none, 0, true, 0},
		{"flush", none | featureFlush, -1, false, 1},
		{"flush, and the field cleared without CONFIG_WCE", none | featureFlush, 0, false, 0},
		{"both", everything, -1, false, 1},
		{"both, off", everything, 0, true, 0},
		{"both, on", everything, 1, false, 1},
		{"both, odd value", everything, 0xfe, true, 0},
		{"wce alone", none | featureConfigWCE, -1, true, 0},
		{"wce alone, on", none | featureConfigWCE, 1, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			back := newRAM(8)
			dev := New(Config{Backend: back})
			d := newDriver(t, dev, c.features)
			if c.set >= 0 {
				dev.WriteConfig(cfgWriteback, []byte{byte(c.set)})
			}
			var field [1]byte
			if dev.ReadConfig(cfgWriteback, field[:]); field[0] != c.field {
				t.Errorf("writeback reads %d, want %d", field[0], c.field)
			}
			for _, r := range []struct {
				req  []byte
				want []string
			}{
				{join(header(typeOut, 0), make([]byte, SectorSize)), []string{"write"}},
				{join(header(typeWriteZeroes, 0), segs(0, 1, 0)), []string{"zero"}},
			} {
				if c.through {
					r.want = append(r.want, "flush")
				}
				if a := do(t, d, false, [][]byte{r.req}, 1); a.status != statusOK {
					t.Errorf("status %d", a.status)
				}
				if got := back.took(); !slices.Equal(got, r.want) {
					t.Errorf("backend: %v, want %v", got, r.want)
				}
			}
			if c.through {
				// A write that cannot be made durable has failed.
				back.fail["flush"] = errDisk
				a := do(t, d, false, [][]byte{join(header(typeOut, 0), make([]byte, SectorSize))}, 1)
				if a.status != statusIOErr {
					t.Errorf("status %d of a write whose flush failed", a.status)
				}
			}
		})
	}
}
