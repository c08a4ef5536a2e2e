package bus

import (
	"bytes"
	"math"
	"testing"
)

type recorder struct {
	log []string
	mem [16]byte
}

func (r *recorder) Read(off uint64, p []byte) { copy(p, r.mem[off:]) }
func (r *recorder) Write(off uint64, p []byte) {
	r.log = append(r.log, string(p))
	copy(r.mem[off:], p)
}

type bulky struct {
	recorder
	many [][]byte
}

func (b *bulky) WriteMany(off uint64, p []byte) { b.many = append(b.many, bytes.Clone(p)) }

func TestOverlap(t *testing.T) {
	var b Bus
	add := func(base, size uint64, ok bool) {
		t.Helper()
		if err := b.Add("d", base, size, &recorder{}); (err == nil) != ok {
			t.Errorf("Add(%#x, %#x): %v, want ok=%v", base, size, err, ok)
		}
	}
	add(0x10, 0x10, true)
	add(0x0f, 2, false)
	add(0x1f, 2, false)
	add(0x00, 0x100, false)
	add(0x14, 1, false)
	add(0x10, 0x10, false)
	add(0x20, 4, true)
	add(0x0f, 1, true)
	add(0x30, 0, false)
	add(math.MaxUint64, 2, false)
}

func TestAccess(t *testing.T) {
	var b Bus
	d := &recorder{}
	if err := b.Add("d", 0x100, 16, d); err != nil {
		t.Fatal(err)
	}
	copy(d.mem[:], "0123456789abcdef")
	for _, c := range []struct {
		addr    uint64
		n       int
		want    string
		claimed bool
	}{
		{0x100, 4, "0123", true},
		{0x10c, 4, "cdef", true},
		{0x10d, 4, "\xff\xff\xff\xff", false}, // straddles the end
		{0xfe, 4, "\xff\xff\xff\xff", false},  // straddles the start
		{0x110, 1, "\xff", false},
		{math.MaxUint64, 8, "\xff\xff\xff\xff\xff\xff\xff\xff", false},
	} {
		p := make([]byte, c.n)
		if got := b.Read(c.addr, p); got != c.claimed || string(p) != c.want {
			t.Errorf("Read(%#x, %d) = %q, %v; want %q, %v", c.addr, c.n, p, got, c.want, c.claimed)
		}
	}
	if b.Write(0x10f, []byte{1, 2}) || len(d.log) != 0 {
		t.Error("a write over the edge reached the device")
	}
}

func TestStrings(t *testing.T) {
	var b Bus
	d, bulk := &recorder{}, &bulky{}
	if err := b.Add("plain", 0, 16, d); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("bulk", 16, 16, bulk); err != nil {
		t.Fatal(err)
	}
	b.WriteString(2, 2, []byte("abcdef"))
	if len(d.log) != 3 || d.log[2] != "ef" {
		t.Errorf("string of words arrived as %q", d.log)
	}
	b.WriteString(16, 1, []byte("hello"))
	if len(bulk.many) != 1 || string(bulk.many[0]) != "hello" || len(bulk.log) != 0 {
		t.Errorf("string of bytes arrived as %q and %q", bulk.many, bulk.log)
	}
	p := make([]byte, 6)
	if !b.ReadString(2, 2, p) || string(p) != "efefef" {
		t.Errorf("ReadString = %q", p)
	}
	if b.ReadString(100, 1, p) || p[0] != 0xff {
		t.Errorf("ReadString of nothing = %q", p)
	}
}
