// Package archivetest makes archives for tests: no program of the host is needed.
package archivetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// Entry is an entry of an archive. The Size of its Header is that of Body where
// it is not set; no Typeflag is a file, or a directory where the name ends in "/".
type Entry struct {
	tar.Header
	Body string
}

// Tar gives the archive of the entries, with its end marker. It panics where the
// standard library cannot write an entry.
func Tar(entries ...Entry) []byte {
	var b bytes.Buffer
	z := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
			if e.Name != "" && e.Name[len(e.Name)-1] == '/' {
				e.Typeflag = tar.TypeDir
			}
		}
		if e.Size == 0 {
			e.Size = int64(len(e.Body))
		}
		if err := z.WriteHeader(&e.Header); err != nil {
			panic(err)
		}
		if _, err := z.Write([]byte(e.Body)); err != nil {
			panic(err)
		}
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Gzip packs bytes.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// Zstd packs bytes.
func Zstd(b []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(b, nil)
}

// XZ gives bytes as an .xz file (The .xz File Format 1.2.1) that does not pack
// anything: LZMA2 chunks without compression, CRC32 as the check.
func XZ(b []byte) []byte {
	const check = 1 // CRC32
	le32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	crc := func(b []byte) []byte { return le32(crc32.ChecksumIEEE(b)) }
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

	flags := []byte{0, check}
	out := append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, flags...)
	out = append(out, crc(flags)...)

	// The block's header: its size (in words, without one), no flags but one
	// filter, LZMA2 (0x21) with one byte of properties: a dictionary of 4 KiB.
	header := pad([]byte{0, 0, 0x21, 1, 0})
	header[0] = byte(len(header) / 4)
	block := append(header, crc(header)...)
	unpadded := len(block)
	for left, kind := b, byte(1); len(left) > 0; kind = 2 { // 1 resets the dictionary
		n := min(len(left), 1<<16)
		chunk := []byte{kind, byte((n - 1) >> 8), byte(n - 1)}
		block = append(append(block, chunk...), left[:n]...)
		unpadded += len(chunk) + n
		left = left[n:]
	}
	block = append(block, 0) // the end of the chunks
	unpadded++
	block = append(pad(block), crc(b)...)
	unpadded += 4

	index := append([]byte{0, 1}, binary.AppendUvarint(nil, uint64(unpadded))...)
	index = pad(binary.AppendUvarint(index, uint64(len(b))))
	index = append(index, crc(index)...)

	tail := append(le32(uint32(len(index)/4-1)), flags...)
	out = append(append(out, block...), index...)
	return append(append(append(out, crc(tail)...), tail...), 'Y', 'Z')
}
