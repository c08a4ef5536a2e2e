package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
)

// The layout of an overlay file: see the package's comment.
const (
	overlayMagic   = "SMOLOVLY"
	overlayVersion = 1
	headerLen      = 4096
	blockLog2      = 12
	blockLen       = 1 << blockLog2 // bytes
	mapPageLen     = 4096           // bytes of the map read and written at once
	blocksPerPage  = mapPageLen * 8
	dataAlign      = 64 << 10

	offVersion     = 8
	offBlockLog2   = 12
	offDiskSize    = 16
	offMap         = 24
	offMapLen      = 32
	offData        = 40
	offFlags       = 48
	offFingerprint = 56
	offReserved    = offFingerprint + sha256.Size
	offCRC         = headerLen - 4

	// maxOverlayDisk bounds the disk below an overlay in bytes: file systems
	// end near there, and its whole map in memory would be 512 MiB.
	maxOverlayDisk = 16 << 40
)

// geometry is all of the layout that follows from the size of the disk.
type geometry struct {
	size    int64 // of the disk in bytes
	blocks  int64
	mapLen  int64 // bytes
	data    int64 // offset in the file
	fileLen int64
}

func newGeometry(size int64) geometry {
	g := geometry{size: size, blocks: (size + blockLen - 1) / blockLen}
	g.mapLen = roundUp((g.blocks+7)/8, mapPageLen)
	g.data = roundUp(headerLen+g.mapLen, dataAlign)
	g.fileLen = g.data + size
	return g
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// fingerprint tells one base image from another of the same size.
type fingerprint [sha256.Size]byte

// fingerprintOf reads the ends of an image, where file systems and partition
// tables keep what changes whenever they are written.
func fingerprintOf(r *Raw) (fingerprint, error) {
	const head, tail = 2 << 20, 64 << 10
	h := sha256.New()
	buf := make([]byte, 64<<10)
	sum := func(off, end int64) error {
		for off < end {
			p := buf[:min(end-off, int64(len(buf)))]
			if err := r.f.read(p, off); err != nil {
				return err
			}
			h.Write(p)
			off += int64(len(p))
		}
		return nil
	}
	var fp fingerprint
	err := sum(0, min(head, r.size))
	if err == nil {
		err = sum(max(head, r.size-tail), r.size)
	}
	if err != nil {
		return fp, fmt.Errorf("reading the base image: %w", err)
	}
	h.Sum(fp[:0])
	return fp, nil
}

// castagnoli is made when the first overlay needs it: most machines have none.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// encodeHeader makes the first 4096 bytes of an overlay file.
func encodeHeader(g geometry, fp fingerprint) []byte {
	h := make([]byte, headerLen)
	copy(h, overlayMagic)
	le := binary.LittleEndian
	le.PutUint32(h[offVersion:], overlayVersion)
	le.PutUint32(h[offBlockLog2:], blockLog2)
	le.PutUint64(h[offDiskSize:], uint64(g.size))
	le.PutUint64(h[offMap:], headerLen)
	le.PutUint64(h[offMapLen:], uint64(g.mapLen))
	le.PutUint64(h[offData:], uint64(g.data))
	copy(h[offFingerprint:], fp[:])
	le.PutUint32(h[offCRC:], crc32.Checksum(h[:offCRC], castagnoli()))
	return h
}

// checkHeader accepts exactly what encodeHeader makes for this base, and
// otherwise says which field is at fault. Nothing in the header is used: all of
// it must equal what the base's size gives.
func checkHeader(h []byte, g geometry, fp fingerprint) error {
	le := binary.LittleEndian
	if len(h) != headerLen || !bytes.HasPrefix(h, []byte(overlayMagic)) {
		return errors.New("not an overlay file of smolvmm, and not empty: it is left as it is; name another")
	}
	if v := le.Uint32(h[offVersion:]); v != overlayVersion {
		return fmt.Errorf("overlay version %d: this program knows version %d", v, overlayVersion)
	}
	if got, want := le.Uint32(h[offCRC:]), crc32.Checksum(h[:offCRC], castagnoli()); got != want {
		return fmt.Errorf("damaged overlay header: checksum %#x, should be %#x", got, want)
	}
	if n := le.Uint64(h[offDiskSize:]); n != uint64(g.size) {
		return fmt.Errorf("made for a base image of %d bytes, this one has %d: name the image it was made for", n, g.size)
	}
	if !bytes.Equal(h[offFingerprint:offReserved], fp[:]) {
		return errors.New("made for another base image, or its base has been written since: name the image it was made for, unchanged")
	}
	if !bytes.Equal(h, encodeHeader(g, fp)) {
		return errors.New("overlay header with a layout or flags that this program does not know")
	}
	return nil
}

// blockMap is the map in memory: a bit a block, in pages made when first set.
// Its memory is bounded by the size of the disk: 4 KiB for each 128 MiB that
// hold a changed block.
type blockMap struct {
	blocks int64
	pages  []*mapPage
	dirty  []int // pages whose bits are not in the file yet
}

type mapPage struct {
	bits  [mapPageLen]byte
	dirty bool
}

func newBlockMap(blocks int64) *blockMap {
	n := int((blocks + blocksPerPage - 1) / blocksPerPage)
	// Room for every page, so that marking one costs nothing later.
	return &blockMap{blocks: blocks, pages: make([]*mapPage, n), dirty: make([]int, 0, n)}
}

// has says whether block b is in the overlay.
func (m *blockMap) has(b int64) bool {
	p := m.pages[b/blocksPerPage]
	return p != nil && p.bits[b%blocksPerPage/8]>>(b%8)&1 != 0
}

// run counts the blocks from b up to and without end that are where b is.
func (m *blockMap) run(b, end int64) (n int64, present bool) {
	present = m.has(b)
	same := byte(0)
	if present {
		same = 0xff
	}
	i := b + 1
	for i < end {
		p := m.pages[i/blocksPerPage]
		switch {
		case p == nil && present:
			return i - b, present
		case p == nil:
			i = min(end, (i/blocksPerPage+1)*blocksPerPage)
		case i%8 == 0 && p.bits[i%blocksPerPage/8] == same:
			i = min(end, i+8)
		case m.has(i) != present:
			return i - b, present
		default:
			i++
		}
	}
	return i - b, present
}

// set puts blocks b to end (without it) into the overlay.
func (m *blockMap) set(b, end int64) {
	for b < end {
		i := int(b / blocksPerPage)
		p := m.pages[i]
		if p == nil {
			p = new(mapPage)
			m.pages[i] = p
		}
		for stop := min(end, int64(i+1)*blocksPerPage); b < stop; {
			at, bit := b%blocksPerPage/8, byte(1)<<(b%8)
			step := int64(1)
			if b%8 == 0 && stop-b >= 8 {
				bit, step = 0xff, 8
			}
			if p.bits[at]&bit != bit {
				p.bits[at] |= bit
				if !p.dirty {
					p.dirty = true
					m.dirty = append(m.dirty, i)
				}
			}
			b += step
		}
	}
}

// load takes page i from a file. It refuses bits behind the last block.
func (m *blockMap) load(i int, page []byte) error {
	if int64(i+1)*blocksPerPage > m.blocks {
		for b := m.blocks - int64(i)*blocksPerPage; b < blocksPerPage; b++ {
			if page[b/8]>>(b%8)&1 != 0 {
				return fmt.Errorf("damaged overlay map: block %d set, the disk has %d", int64(i)*blocksPerPage+b, m.blocks)
			}
		}
	}
	if bytes.Equal(page, zeroes[:mapPageLen]) {
		return nil
	}
	p := new(mapPage)
	copy(p.bits[:], page)
	m.pages[i] = p
	return nil
}

// save writes the pages that changed.
func (m *blockMap) save(s store) error {
	for len(m.dirty) > 0 {
		i := m.dirty[len(m.dirty)-1]
		p := m.pages[i]
		if err := s.write(p.bits[:], headerLen+int64(i)*mapPageLen); err != nil {
			return err
		}
		p.dirty = false
		m.dirty = m.dirty[:len(m.dirty)-1]
	}
	return nil
}
