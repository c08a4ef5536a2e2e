package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// volatileFile is a store whose writes since the last sync are lost, kept or
// half kept when the power goes: each sector of each write on its own.
type volatileFile struct {
	now     []byte // what readers see
	stable  []byte // what survives for certain
	pending []pendingOp
	fuel    int // operations until the power goes
}

type pendingOp struct {
	off  int64
	data []byte // zeroes for a hole
}

var errPower = errors.New("power cut")

func (v *volatileFile) burn() error {
	if v.fuel--; v.fuel < 0 {
		return errPower
	}
	return nil
}

func (v *volatileFile) put(off int64, data []byte) {
	copy(v.now[off:], data)
	v.pending = append(v.pending, pendingOp{off, data})
}

func (v *volatileFile) readv(bufs [][]byte, skip, n, off int64) error {
	return each(bufs, skip, n, func(p []byte) {
		copy(p, v.now[off:])
		off += int64(len(p))
	})
}

func (v *volatileFile) writev(bufs [][]byte, skip, n, off int64) error {
	// The power can go in the middle: what was begun is pending all the same.
	err := v.burn()
	var all []byte
	if e := each(bufs, skip, n, func(p []byte) { all = append(all, p...) }); e != nil {
		return e
	}
	v.put(off, all)
	return err
}

func each(bufs [][]byte, skip, n int64, do func([]byte)) error {
	for _, b := range bufs {
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		b = b[:min(int64(len(b)), n)]
		if do(b); n == int64(len(b)) {
			return nil
		}
		n -= int64(len(b))
	}
	if n > 0 {
		return fmt.Errorf("%d bytes too many", n)
	}
	return nil
}

func (v *volatileFile) read(p []byte, off int64) error {
	return v.readv([][]byte{p}, 0, int64(len(p)), off)
}

func (v *volatileFile) write(p []byte, off int64) error {
	return v.writev([][]byte{p}, 0, int64(len(p)), off)
}

func (v *volatileFile) sync() error {
	if err := v.burn(); err != nil {
		return err
	}
	copy(v.stable, v.now)
	v.pending = v.pending[:0]
	return nil
}

func (v *volatileFile) fallocate(_ uint32, off, n int64) error {
	err := v.burn()
	v.put(off, make([]byte, n))
	return err
}

func (v *volatileFile) close() error { return nil }

// crash gives the file as it is found after the power came back.
func (v *volatileFile) crash(rng *rand.Rand) *volatileFile {
	keep := rng.IntN(3) // of each sector: seldom, half, mostly
	for _, op := range v.pending {
		for at, p := op.off, op.data; len(p) > 0; {
			k := min(int64(len(p)), 512-at%512) // to the sector's end
			if rng.IntN(4) <= keep {
				copy(v.stable[at:], p[:k])
			}
			at, p = at+k, p[k:]
		}
	}
	return &volatileFile{now: append([]byte(nil), v.stable...), stable: v.stable, fuel: 1 << 30}
}

// sectorModel is what one sector may hold after a power cut: what it held at the
// last completed flush, or anything written since.
type sectorModel struct{ may []uint64 }

// TestOverlayCrash cuts the power at a random operation, again and again on the
// same overlay, and checks each sector against what may be there.
func TestOverlayCrash(t *testing.T) {
	const size = 23*blockLen + 3*512
	path, content := image(t, size)
	// Each sector is 64 times one 8-byte tag.
	for s := range size / 512 {
		stamp(content[s*512:][:512], uint64(s)+1<<32)
	}
	writeFile(t, path, content)
	base := open(t, Options{Path: path, ReadOnly: true}).(*Raw)
	fp, err := fingerprintOf(base)
	if err != nil {
		t.Fatal(err)
	}
	g := newGeometry(size)
	cuts, inFlush := 0, 0
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 9))
		file := &volatileFile{now: make([]byte, g.fileLen), stable: make([]byte, g.fileLen), fuel: 1 << 30}
		file.write(encodeHeader(g, fp), 0)
		file.sync()
		model := make([]sectorModel, size/512)
		for s := range model {
			model[s].may = []uint64{uint64(s) + 1<<32}
		}
		tag := uint64(0)
		for life := range 6 {
			ov := &Overlay{base: base, f: file, g: g, m: newBlockMap(g.blocks), durable: true}
			ov.noPunch, ov.noZero = rng.IntN(3) == 0, rng.IntN(3) == 0
			if err := ov.load(g.fileLen, fp); err != nil {
				t.Fatalf("seed %d, life %d: does not open after the power cut: %v", seed, life, err)
			}
			verify(t, ov, model, fmt.Sprintf("seed %d, life %d", seed, life))
			file.fuel = 1 + rng.IntN(60)
			for alive := true; alive; {
				off := rng.Int64N(size/512) * 512
				n := (1 + rng.Int64N(min(size-off, 5*blockLen)/512)) * 512
				var err error
				set := func(v uint64, from, to int64) {
					for s := from / 512; s < to/512; s++ {
						model[s].may = append(model[s].may, v)
					}
				}
				switch rng.IntN(8) {
				case 0, 1, 2, 3:
					tag++
					p := make([]byte, n)
					stamp(p, tag)
					set(tag, off, off+n)
					err = ov.WriteV(cutUp(rng, p), off)
				case 4:
					set(0, off, off+n)
					err = ov.WriteZeroes(off, n, rng.IntN(2) == 0)
				case 5:
					if first, end := ov.whole(off, n); first < end && !ov.noPunch {
						set(0, first*blockLen, min(end*blockLen, size))
					}
					err = ov.Discard(off, n)
				default:
					if err = ov.Flush(); err == nil {
						// The one value left is the last one written.
						for s := range model {
							m := &model[s]
							m.may = m.may[len(m.may)-1:]
						}
					} else {
						inFlush++
					}
				}
				if err != nil {
					if !errors.Is(err, errPower) {
						t.Fatal(err)
					}
					alive = false
				}
			}
			cuts++
			file = file.crash(rng)
		}
	}
	if inFlush < cuts/20 {
		t.Errorf("only %d of %d power cuts came in a flush", inFlush, cuts)
	}
}

func stamp(p []byte, tag uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], tag)
	}
}

// verify reads every sector and takes what is there for what is flushed: the
// disk has just been opened, so it will not change by itself any more.
func verify(t *testing.T, ov *Overlay, model []sectorModel, when string) {
	t.Helper()
	p := make([]byte, 512)
	for s := range model {
		if err := ov.ReadV([][]byte{p}, int64(s)*512); err != nil {
			t.Fatal(err)
		}
		got := binary.LittleEndian.Uint64(p)
		want := make([]byte, 512)
		stamp(want, got)
		ok := string(p) == string(want)
		if ok {
			ok = false
			for _, v := range model[s].may {
				ok = ok || v == got
			}
		}
		if !ok {
			t.Fatalf("%s: sector %d (block %d) holds %#x, may hold %#x", when, s, s*512/blockLen, got, model[s].may)
		}
		model[s].may = append(model[s].may[:0], got)
	}
}
