package steplog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// mem is a disk in memory.
type mem []byte

func (m mem) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	if off%Sector != 0 || len(p)%Sector != 0 {
		return 0, errors.New("not in sectors")
	}
	return copy(m[off:], p), nil
}

func (m mem) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func newWriter(m mem, ping func()) *Writer {
	return NewWriter(m, int64(len(m)), make([]byte, MaxPayload+HeaderSize), ping)
}

func TestRoundTrip(t *testing.T) {
	m := make(mem, 1<<20)
	pings := 0
	w := newWriter(m, func() { pings++ })
	r := NewReader(m)
	big := bytes.Repeat([]byte("0123456789"), MaxPayload/4)
	for _, c := range []struct {
		t Type
		p string
	}{{Output, "hello\n"}, {Output, strings.Repeat("x", Sector-HeaderSize)}, {Output, strings.Repeat("y", Sector-HeaderSize+1)}, {Gone, "a\x00b\x00"}, {Changes, string(big)}, {Report, "{}"}} {
		if _, _, err := r.Next(); !errors.Is(err, ErrNotYet) {
			t.Fatalf("before %v: %v", c.t, err)
		}
		if _, err := w.Stream(c.t).Write([]byte(c.p)); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(got) < len(c.p) {
			ty, p, err := r.Next()
			if err != nil || ty != c.t {
				t.Fatalf("%v: type %v, %v", c.t, ty, err)
			}
			got = append(got, p...)
		}
		if string(got) != c.p {
			t.Errorf("%v: %d bytes differ", c.t, len(got))
		}
	}
	if pings != int(w.seq) || r.Offset() != w.off {
		t.Errorf("%d pings for %d frames; read to %d of %d", pings, w.seq, r.Offset(), w.off)
	}
}

func TestFull(t *testing.T) {
	w := newWriter(make(mem, 2*Sector+MaxPayload+HeaderSize), func() {})
	if err := w.Append(Output, make([]byte, Sector)); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(Output, []byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	// A report still fits, however long.
	if err := w.Append(Report, make([]byte, MaxPayload)); err != nil {
		t.Error(err)
	}
	if err := w.Append(Report, []byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

// A frame that is not there to its end, or is another one, is not given.
func TestDamage(t *testing.T) {
	whole := make(mem, 4*Sector)
	if err := NewWriter(whole, 1<<20, make([]byte, MaxPayload+HeaderSize), func() {}).Append(Output, bytes.Repeat([]byte("z"), 3*Sector)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(m mem) mem
		says   string
	}{
		"empty":    {func(m mem) mem { clear(m); return m }, "nothing behind"},
		"torn":     {func(m mem) mem { clear(m[2*Sector:]); return m }, "checksum"},
		"number":   {func(m mem) mem { m[8] = 1; return m }, "number 1"},
		"magic":    {func(m mem) mem { m[0]++; return m }, "begins with"},
		"type":     {func(m mem) mem { m[16] = 9; return m }, "type 9"},
		"type 0":   {func(m mem) mem { m[16] = 0; return m }, "type 0"},
		"length":   {func(m mem) mem { binary.LittleEndian.PutUint32(m[20:], MaxPayload+1); return m }, "bytes"},
		"length 0": {func(m mem) mem { binary.LittleEndian.PutUint32(m[20:], 0); return m }, "0 bytes"},
		"reserved": {func(m mem) mem { m[30] = 1; return m }, "checksum"},
		"cut":      {func(m mem) mem { return m[:Sector] }, "ends at byte 512"},
		"nothing":  {func(m mem) mem { return nil }, "ends at byte 0"},
	} {
		if _, _, err := NewReader(c.change(bytes.Clone(whole))).Next(); !errors.Is(err, ErrNotYet) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	m := make(mem, 8*Sector)
	w := NewWriter(m, 1<<20, make([]byte, MaxPayload+HeaderSize), func() {})
	for _, t := range []Type{Output, Gone, Changes, Report} {
		if err := w.Append(t, bytes.Repeat([]byte{byte(t)}, int(t)*200)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte(m))
	f.Add([]byte(m[:Sector]))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(mem(b))
		for total := 0; ; {
			_, p, err := r.Next()
			if err != nil {
				if !errors.Is(err, ErrNotYet) {
					t.Fatal(err)
				}
				return
			}
			if total += len(p); total > len(b) || r.Offset() > int64(len(b)+Sector) {
				t.Fatalf("%d bytes of payload, at %d, from %d", total, r.Offset(), len(b))
			}
		}
	})
}
