package archive

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"strings"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
)

func osDir(path string) fs.FS { return os.DirFS(path) }

// fixXZ puts the checksum of a changed block header right.
func fixXZ(b []byte) []byte {
	n := 12 + int(b[12])*4 // the stream's header, then the block's without its checksum
	binary.LittleEndian.PutUint32(b[n:], crc32.ChecksumIEEE(b[12:n]))
	return b
}

// seal writes a header's checksum.
func seal(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// setSize writes a size that the file itself does not have.
func setSize(h []byte, size int64) {
	copy(h[124:136], fmt.Sprintf("%011o\x00", size))
	seal(h)
}

func block(s string) []byte {
	b := make([]byte, (len(s)+511)&^511)
	copy(b, s)
	return b
}

// oldGNUSparse is a file "sparse" of size bytes, all a hole but "data" at its
// end, as GNU tar's format has it (tar.h, struct sparse): the last run has a
// length, and a run of length 0 at the end gives the size.
func oldGNUSparse(size int64) []byte {
	h := archivetest.Tar(with(tar.Header{Name: "sparse", Format: tar.FormatGNU}, ""))[:512]
	h[156] = 'S'
	number := func(at int, v int64) {
		if v < 1<<33 {
			copy(h[at:at+12], fmt.Sprintf("%011o\x00", v))
			return
		}
		h[at] = 0x80 // base 256
		for i := range 11 {
			h[at+11-i] = byte(v >> (8 * i))
		}
	}
	number(386, size-4)
	number(398, 4)
	number(410, size)
	number(422, 0)
	number(483, size)
	setSize(h, 4)
	return append(append(h, block("data")...), make([]byte, 1024)...)
}

// paxSparse is the same in PAX's sparse format 1.0 (GNU tar's manual, "PAX Format,
// Versions 1.0 and up"): the map stands before the data.
func paxSparse(size int64) []byte {
	var records strings.Builder
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=sparse", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 4 // " ", "\n" and two digits of the length
		fmt.Fprintf(&records, "%d %s\n", n, kv)
	}
	x := archivetest.Tar(with(tar.Header{Name: "PaxHeaders/sparse"}, ""))[:512]
	x[156] = 'x'
	setSize(x, int64(records.Len()))
	h := archivetest.Tar(with(tar.Header{Name: "GNUSparseFile/sparse"}, ""))[:512]
	setSize(h, 512+4)
	out := append(x, block(records.String())...)
	out = append(out, h...)
	out = append(out, block(fmt.Sprintf("1\n%d\n4\n", size-4))...)
	return append(append(out, block("data")...), make([]byte, 1024)...)
}
