package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverlayModel compares random work on an overlay with a byte array, with
// and without file systems that can make holes, across reopening.
func TestOverlayModel(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			// Past one page of the map, and with a short last block.
			size := int(blocksPerPage*blockLen + 5*blockLen + 512*(1+rng.IntN(7)))
			base := filepath.Join(t.TempDir(), "base")
			if err := os.WriteFile(base, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(base, int64(size)); err != nil {
				t.Fatal(err)
			}
			// Only the ends are of interest: the middle is a hole.
			spots := []int64{0, blocksPerPage*blockLen - 20*blockLen, int64(size) - 30*blockLen}
			model := make([]byte, size)
			f, err := os.OpenFile(base, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range spots {
				fill(rng, model[at:min(at+20*blockLen, int64(size))])
				f.WriteAt(model[at:min(at+20*blockLen, int64(size))], at)
			}
			f.Close()
			baseBefore := append([]byte(nil), model...)

			path := filepath.Join(t.TempDir(), "changes")
			opts := Options{Path: base, Overlay: true, OverlayPath: path}
			d := open(t, opts).(*Overlay)
			d.noPunch, d.noZero = seed == 1, seed != 0
			for step := range 300 {
				at := spots[rng.IntN(len(spots))]
				off := (at + rng.Int64N(30*blockLen)) / 512 * 512
				off = min(off, int64(size)-512)
				n := (1 + rng.Int64N(min(int64(size)-off, 12*blockLen)/512)) * 512
				if rng.IntN(8) == 0 {
					n = int64(size) - off // to the very end
					n = min(n, 40*blockLen)
				}
				p := make([]byte, n)
				switch rng.IntN(8) {
				case 0, 1, 2:
					fill(rng, p)
					if err := d.WriteV(cutUp(rng, p), off); err != nil {
						t.Fatal(step, err)
					}
					copy(model[off:], p)
				case 3, 4:
					if err := d.ReadV(cutUp(rng, p), off); err != nil {
						t.Fatal(step, err)
					}
					if !bytes.Equal(p, model[off:off+n]) {
						t.Fatalf("step %d: %d bytes at %d differ", step, n, off)
					}
				case 5:
					if err := d.WriteZeroes(off, n, rng.IntN(2) == 0); err != nil {
						t.Fatal(step, err)
					}
					clear(model[off : off+n])
				case 6:
					punches := !d.noPunch
					if err := d.Discard(off, n); err != nil {
						t.Fatal(step, err)
					}
					if first, end := d.whole(off, n); punches && first < end {
						clear(model[first*blockLen : min(end*blockLen, int64(size))])
					}
				case 7:
					if rng.IntN(4) != 0 {
						if err := d.Flush(); err != nil {
							t.Fatal(step, err)
						}
						continue
					}
					if err := d.Close(); err != nil {
						t.Fatal(step, err)
					}
					np, nz := d.noPunch, d.noZero
					d = open(t, opts).(*Overlay)
					d.noPunch, d.noZero = np, nz
				}
			}
			if !bytes.Equal(bytesOf(t, d), model) {
				t.Error("content differs in the end")
			}
			if got, err := os.ReadFile(base); err != nil || !bytes.Equal(got, baseBefore) {
				t.Error("the base was written")
			}
		})
	}
}

// TestUnlinkedOverlay: it leaves no name behind, writes nothing but data before
// Freeze, and can be opened again from its descriptor afterwards.
func TestUnlinkedOverlay(t *testing.T) {
	path, want := image(t, 300<<10)
	dir := t.TempDir()
	d := open(t, Options{Path: path, Overlay: true, OverlayDir: dir}).(*Overlay)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Fatalf("left in its directory: %v, %v", names, err)
	}
	change := func(d *Overlay, off int64, b byte) {
		t.Helper()
		p := bytes.Repeat([]byte{b}, 1024)
		if err := d.WriteV([][]byte{p}, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	change(d, 512, 1)
	change(d, 100<<10, 2)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	h := make([]byte, headerLen)
	if err := d.f.read(h, 0); err != nil || !bytes.Equal(h, zeroes[:headerLen]) {
		t.Fatalf("a header before Freeze (%v)", err)
	}
	_, file := d.Files()
	reopen := func() *Overlay {
		t.Helper()
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return open(t, Options{Path: path, Overlay: true, OverlayFile: os.NewFile(uintptr(fd), "overlay")}).(*Overlay)
	}
	for i := range 3 {
		if err := d.Freeze(); err != nil {
			t.Fatal(err)
		}
		next := reopen()
		if !bytes.Equal(bytesOf(t, next), want) {
			t.Fatalf("round %d: the second opener sees another disk", i)
		}
		if next.durable {
			t.Error("a file without a name is flushed")
		}
		// The old one closes, the new one goes on.
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = next
		_, file = d.Files()
		change(d, int64(i)*20<<10+2048, byte(10+i))
	}
	if !bytes.Equal(bytesOf(t, d), want) {
		t.Error("content differs in the end")
	}
}

// TestOverlayFiles: an overlay handed in open is durable exactly if it has a
// name, and where O_TMPFILE is not known, the name is gone at once.
func TestOverlayFiles(t *testing.T) {
	path, want := image(t, 4096)
	dir := t.TempDir()
	unnamed, err := unlinkedByName(dir)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left in its directory: %v, %v", names, err)
	}
	if _, err := unlinkedByName(filepath.Join(dir, "no")); err == nil {
		t.Error("a file in a directory that is not there")
	}
	named, err := os.CreateTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for f, durable := range map[*os.File]bool{named: true, unnamed: false} {
		d := open(t, Options{Path: path, Overlay: true, OverlayFile: f}).(*Overlay)
		if d.durable != durable || d.header != durable {
			t.Errorf("durable %v, header %v; want %v", d.durable, d.header, durable)
		}
		if !bytes.Equal(bytesOf(t, d), want) {
			t.Error("content differs")
		}
	}
}

// TestOverlayDamage: each way in which a file can fail to be the overlay of
// this base has its own message, and leaves the file as it was.
func TestOverlayDamage(t *testing.T) {
	const size = 100*blockLen + 512
	path, _ := image(t, size)
	other, _ := image(t, size+512)
	sameSize := filepath.Join(t.TempDir(), "same-size")
	if err := os.WriteFile(sameSize, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "good")
	d := open(t, Options{Path: path, Overlay: true, OverlayPath: good})
	if err := d.WriteV([][]byte{make([]byte, 4096)}, 8192); err != nil {
		t.Fatal(err)
	}
	d.Close()
	le := binary.LittleEndian
	sealed := func(edit func(h []byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			edit(b)
			le.PutUint32(b[offCRC:], crc32.Checksum(b[:offCRC], castagnoli()))
			return b
		}
	}
	for name, c := range map[string]struct {
		base string
		edit func([]byte) []byte
		want string
	}{
		"as it is":          {path, func(b []byte) []byte { return b }, ""},
		"magic":             {path, sealed(func(h []byte) { h[0]++ }), "not an overlay"},
		"one byte":          {path, func(b []byte) []byte { return b[:1] }, "not an overlay"},
		"half a header":     {path, func(b []byte) []byte { return b[:2048] }, "not an overlay"},
		"version":           {path, sealed(func(h []byte) { h[offVersion]++ }), "version 2"},
		"checksum":          {path, func(b []byte) []byte { b[offCRC]++; return b }, "checksum"},
		"bit in the header": {path, func(b []byte) []byte { b[1000]++; return b }, "checksum"},
		"block size":        {path, sealed(func(h []byte) { h[offBlockLog2] = 60 }), "does not know"},
		"size":              {path, sealed(func(h []byte) { le.PutUint64(h[offDiskSize:], 1<<63) }), "made for a base image of 9223372036854775808"},
		"map elsewhere":     {path, sealed(func(h []byte) { le.PutUint64(h[offMap:], 1<<40) }), "does not know"},
		"map of any length": {path, sealed(func(h []byte) { le.PutUint64(h[offMapLen:], 1<<60) }), "does not know"},
		"data over the map": {path, sealed(func(h []byte) { le.PutUint64(h[offData:], headerLen) }), "does not know"},
		"flag":              {path, sealed(func(h []byte) { h[offFlags] = 1 }), "does not know"},
		"reserved":          {path, sealed(func(h []byte) { h[offReserved+9] = 1 }), "does not know"},
		"base's size":       {other, func(b []byte) []byte { return b }, "name the image it was made for"},
		"base's content":    {sameSize, func(b []byte) []byte { return b }, "another base image"},
		"truncated data":    {path, func(b []byte) []byte { return b[:len(b)-1] }, "truncated"},
		"header only":       {path, func(b []byte) []byte { return b[:headerLen] }, "truncated"},
		"bit behind the end": {path, func(b []byte) []byte {
			b[headerLen+101/8] |= 1 << (101 % 8)
			return b
		}, "block 101 set"},
		"last bit of the map": {path, func(b []byte) []byte { b[headerLen+mapPageLen-1] |= 0x80; return b }, "damaged overlay map"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(good)
			if err != nil {
				t.Fatal(err)
			}
			b = c.edit(b)
			file := filepath.Join(t.TempDir(), "overlay")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := Open(Options{Path: c.base, Overlay: true, OverlayPath: file})
			if err == nil {
				d.Close()
			}
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file)) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if after, _ := os.ReadFile(file); !bytes.Equal(after, b) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestBlockMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const blocks = 3*blocksPerPage + 77
	m := newBlockMap(blocks)
	model := make([]bool, blocks)
	for range 300 {
		b := rng.Int64N(blocks)
		end := b + 1 + rng.Int64N(min(blocks-b, 1+rng.Int64N(40000)))
		if rng.IntN(3) == 0 {
			m.set(b, end)
			for i := b; i < end; i++ {
				model[i] = true
			}
			continue
		}
		want := int64(1)
		for b+want < end && model[b+want] == model[b] {
			want++
		}
		if n, present := m.run(b, end); n != want || present != model[b] {
			t.Fatalf("run(%d, %d) = %d, %v; want %d, %v", b, end, n, present, want, model[b])
		}
	}
	if cap(m.dirty) != len(m.pages) || len(m.dirty) > len(m.pages) {
		t.Errorf("%d dirty pages of %d, room for %d", len(m.dirty), len(m.pages), cap(m.dirty))
	}
}

// FuzzOverlayFile opens a file with any bytes for header and map, of any length,
// sealed with a right checksum or not. What opens must read and write within
// bounds, and open again.
func FuzzOverlayFile(f *testing.F) {
	const size = 3*blockLen + 1024
	base := filepath.Join(f.TempDir(), "base")
	writeFile(f, base, randomBytes(size))
	raw, err := Open(Options{Path: base, ReadOnly: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { raw.Close() })
	fp, err := fingerprintOf(raw.(*Raw))
	if err != nil {
		f.Fatal(err)
	}
	g := newGeometry(size)
	// patch replaces header bytes from at on; bits are the start of the map.
	f.Add([]byte{}, uint16(0), []byte{}, g.fileLen, false)
	f.Add([]byte{}, uint16(0), []byte{0b1010}, g.fileLen, true)
	f.Add([]byte{}, uint16(0), []byte{0b1111}, g.fileLen+9, true)
	f.Add([]byte{}, uint16(0), []byte{0xff}, g.fileLen, true)
	f.Add([]byte{}, uint16(0), []byte{1}, g.fileLen-1, true)
	f.Add([]byte{2}, uint16(offVersion), []byte{}, g.fileLen, true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, uint16(offMapLen), []byte{1}, g.fileLen, true)
	f.Add([]byte{0, 16, 0, 0}, uint16(offData), []byte{1}, g.fileLen, true)
	f.Add([]byte("x"), uint16(0), []byte{}, int64(1), false)
	f.Fuzz(func(t *testing.T, patch []byte, at uint16, bits []byte, length int64, seal bool) {
		file := &volatileFile{now: make([]byte, g.fileLen+blockLen), fuel: 1 << 30}
		h := file.now[:headerLen]
		copy(h, encodeHeader(g, fp))
		copy(h[min(int(at), headerLen):], patch)
		if seal {
			binary.LittleEndian.PutUint32(h[offCRC:], crc32.Checksum(h[:offCRC], castagnoli()))
		}
		copy(file.now[headerLen:headerLen+g.mapLen], bits)
		length = max(0, min(length, int64(len(file.now))))
		clear(file.now[length:])

		reopen := func() (*Overlay, error) {
			o := &Overlay{base: raw.(*Raw), f: file, g: g, m: newBlockMap(g.blocks), durable: true}
			file.stable = make([]byte, len(file.now))
			return o, o.load(length, fp)
		}
		d, err := reopen()
		if err != nil {
			return
		}
		before := bytesOf(t, d)
		if err := d.WriteV([][]byte{before[:1024]}, size-1024); err != nil {
			t.Fatal(err)
		}
		copy(before[size-1024:], before[:1024])
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		if d, err = reopen(); err != nil {
			t.Fatalf("what opened once does not open again: %v", err)
		}
		if !bytes.Equal(bytesOf(t, d), before) {
			t.Fatal("content differs")
		}
	})
}
