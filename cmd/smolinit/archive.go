package main

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// archiver writes a tar archive (POSIX.1-2017 pax, "ustar Interchange Format" and
// "pax Header Block") of changed files, with holes as GNU tar writes them (GNU tar
// manual, "PAX Format, Version 1.0"). archive/tar writes no holes.
type archiver struct {
	w   io.Writer
	buf []byte // to copy with, a multiple of tarBlock
}

const (
	tarBlock = 512
	// holeUnit is what a hole is made of: less than a file system's block saves
	// no space, and each piece costs a line in the map.
	holeUnit = 16 << 10
	copySize = 64 << 10
	// maxRegions bounds a sparse file's map; a file in more pieces is written
	// with its zeros.
	maxRegions = 1 << 16
)

func newArchiver(w io.Writer) *archiver { return &archiver{w: w, buf: make([]byte, copySize)} }

// fileSource is an open file to archive.
type fileSource interface {
	io.ReaderAt
	io.Closer
}

// entry is what an archive tells of a file.
type entry struct {
	change
	target       string // of a symlink
	major, minor uint32 // of a device
}

// typeflag is tar's letter for the file.
func (e entry) typeflag() byte {
	if e.link != "" {
		return '1'
	}
	switch e.kind() {
	case modeRegular:
		return '0'
	case modeSymlink:
		return '2'
	case modeChar:
		return '3'
	case modeBlock:
		return '4'
	case modeDir:
		return '5'
	case modeFIFO:
		return '6'
	}
	return 0
}

// add writes a file; open is called if it has contents.
func (a *archiver) add(e entry, open func() (fileSource, error)) (err error) {
	typ := e.typeflag()
	if typ == 0 {
		return fmt.Errorf("%s: no archive holds a file of type %#o", e.name, e.kind())
	}
	if typ != '0' {
		_, err := a.header(e, typ, nil)
		return err
	}
	if e.Size == 0 {
		_, err := a.header(e, typ, nil)
		return err
	}
	f, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data := []region{{0, e.Size}}
	if e.Blocks*512 < e.Size {
		if data, err = a.regions(f, e.Size); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	n, err := a.header(e, typ, data)
	if err != nil {
		return err
	}
	for _, r := range data {
		if err := a.copy(f, r); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		n += r.n
	}
	return a.pad(n)
}

// region is a run of a file's bytes that are not all zero.
type region struct{ off, n int64 }

// regions finds the data of a file with holes: NetBSD does not tell where they are.
func (a *archiver) regions(f io.ReaderAt, size int64) ([]region, error) {
	var rs []region
	for off := int64(0); off < size; {
		b := a.buf[:min(int64(len(a.buf)), size-off)]
		if err := readFull(f, b, off); err != nil {
			return nil, err
		}
		for at := 0; at < len(b); at += holeUnit {
			u := b[at:min(at+holeUnit, len(b))]
			if zero(u) {
				continue
			}
			start := off + int64(at)
			if n := len(rs); n > 0 && rs[n-1].off+rs[n-1].n == start {
				rs[n-1].n += int64(len(u))
			} else if n == maxRegions {
				return []region{{0, size}}, nil
			} else {
				rs = append(rs, region{start, int64(len(u))})
			}
		}
		off += int64(len(b))
	}
	return rs, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// readFull fills b: the file cannot have become shorter, as nothing else runs.
func readFull(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("it ends at byte %d while it is read", off+int64(n))
	}
	return err
}

func (a *archiver) copy(f io.ReaderAt, r region) error {
	for r.n > 0 {
		b := a.buf[:min(int64(len(a.buf)), r.n)]
		if err := readFull(f, b, r.off); err != nil {
			return err
		}
		if _, err := a.w.Write(b); err != nil {
			return err
		}
		r.off += int64(len(b))
		r.n -= int64(len(b))
	}
	return nil
}

// header writes all that comes before a file's data and gives the number of its
// bytes that count as the data's: a sparse file's map.
func (a *archiver) header(e entry, typ byte, data []region) (int64, error) {
	name := e.name
	if typ == '5' && name != "." {
		name += "/"
	}
	link := e.target
	if e.link != "" {
		link = e.link
	}
	var pax []byte
	pax = record(pax, "path", name)
	if link != "" {
		pax = record(pax, "linkpath", link)
	}
	pax = record(pax, "mtime", seconds(e.Mtime))
	pax = record(pax, "uid", strconv.FormatUint(uint64(e.UID), 10))
	pax = record(pax, "gid", strconv.FormatUint(uint64(e.GID), 10))
	if f := flagNames(e.Flags); f != "" {
		pax = record(pax, "SCHILY.fflags", f) // as libarchive's tar
	}
	size := int64(0)
	var holes []byte
	if len(data) == 1 && data[0] == (region{0, e.Size}) {
		size = e.Size
	} else if typ == '0' && e.Size > 0 {
		holes = sparseMap(data, e.Size)
		size = int64(len(holes))
		for _, r := range data {
			size += r.n
		}
		pax = record(pax, "GNU.sparse.major", "1")
		pax = record(pax, "GNU.sparse.minor", "0")
		pax = record(pax, "GNU.sparse.name", name)
		pax = record(pax, "GNU.sparse.realsize", strconv.FormatInt(e.Size, 10))
	}
	pax = record(pax, "size", strconv.FormatInt(size, 10))

	b := block("pax", 'x', 0o644, int64(len(pax)), 0, 0)
	b = append(b, pax...)
	b = append(b, make([]byte, padding(int64(len(pax))))...)
	b = append(b, block(path.Base(e.name), typ, e.Mode&0o7777, size, e.major, e.minor)...)
	b = append(b, holes...)
	_, err := a.w.Write(b)
	return int64(len(holes)), err
}

// flagNames names the flags of a file that users and administrators set (chflags(1),
// sys/stat.h); the kernel's own are left out.
func flagNames(flags uint32) string {
	var names []string
	for _, f := range []struct {
		name string
		bit  uint32
	}{
		{"nodump", 0x1}, {"uchg", 0x2}, {"uappnd", 0x4}, {"opaque", 0x8},
		{"arch", 0x10000}, {"schg", 0x20000}, {"sappnd", 0x40000},
	} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ",")
}

// sparseMap is the map in front of a sparse file's data: numbers in decimal, one a
// line, filled up to a block.
func sparseMap(data []region, size int64) []byte {
	// GNU tar ends the map with an empty region at the file's end.
	if n := len(data); n == 0 || data[n-1].off+data[n-1].n < size {
		data = append(data[:n:n], region{size, 0})
	}
	b := strconv.AppendInt(nil, int64(len(data)), 10)
	b = append(b, '\n')
	for _, r := range data {
		b = append(strconv.AppendInt(b, r.off, 10), '\n')
		b = append(strconv.AppendInt(b, r.n, 10), '\n')
	}
	return append(b, make([]byte, padding(int64(len(b))))...)
}

// record appends "length key=value\n"; the length counts its own digits.
func record(b []byte, key, value string) []byte {
	n := len(key) + len(value) + 3
	length := n + len(strconv.Itoa(n))
	if len(strconv.Itoa(length)) != len(strconv.Itoa(n)) {
		length = n + len(strconv.Itoa(length))
	}
	b = strconv.AppendInt(b, int64(length), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

// seconds writes nanoseconds as a decimal number of seconds.
func seconds(ns int64) string {
	s, frac := ns/1e9, ns%1e9
	sign := ""
	if ns < 0 {
		sign, s, frac = "-", -s, -frac
	}
	if frac == 0 {
		return sign + strconv.FormatInt(s, 10)
	}
	return fmt.Sprintf("%s%d.%09d", sign, s, frac)
}

// block is a ustar header block. What does not fit is 0 or cut: the pax record in
// front of it counts.
func block(name string, typ byte, mode uint32, size int64, major, minor uint32) []byte {
	b := make([]byte, tarBlock)
	copy(b[:100], name)
	octal(b[100:108], uint64(mode))
	octal(b[108:116], 0)
	octal(b[116:124], 0)
	octal(b[124:136], uint64(size))
	octal(b[136:148], 0)
	copy(b[148:156], "        ")
	b[156] = typ
	copy(b[257:], "ustar\x0000")
	octal(b[329:337], uint64(major))
	octal(b[337:345], uint64(minor))
	sum := uint64(0)
	for _, c := range b {
		sum += uint64(c)
	}
	octal(b[148:155], sum)
	return b
}

// octal fills a field with digits and a NUL; a number too large gives 0.
func octal(field []byte, v uint64) {
	n := len(field) - 1
	if v>>(3*n) != 0 {
		v = 0
	}
	for i := n - 1; i >= 0; i-- {
		field[i] = '0' + byte(v&7)
		v >>= 3
	}
	field[n] = 0
}

func padding(n int64) int64 { return (tarBlock - n%tarBlock) % tarBlock }

func (a *archiver) pad(n int64) error {
	_, err := a.w.Write(make([]byte, padding(n)))
	return err
}

// close ends the archive.
func (a *archiver) close() error {
	_, err := a.w.Write(make([]byte, 2*tarBlock))
	return err
}
