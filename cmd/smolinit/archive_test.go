package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestArchiveHeaders holds what an archive says against a reader that knows nothing
// of it, at the edges of each field.
func TestArchiveHeaders(t *testing.T) {
	long := strings.Repeat("directory/", 60) + "file"
	for _, c := range []struct {
		name string
		e    entry
		want tar.Header
		recs map[string]string
	}{
		{"device", entry{change: change{name: "dev/rld1d", inode: inode{Mode: modeChar | 0o640, GID: 5, Mtime: 5}}, major: 69, minor: 11},
			tar.Header{Name: "dev/rld1d", Typeflag: tar.TypeChar, Mode: 0o640, Gid: 5, Devmajor: 69, Devminor: 11}, nil},
		{"block device", entry{change: change{name: "dev/ld0a", inode: inode{Mode: modeBlock | 0o640}}, major: 19},
			tar.Header{Name: "dev/ld0a", Typeflag: tar.TypeBlock, Mode: 0o640, Devmajor: 19}, nil},
		{"long name, large owner, flags", entry{change: change{name: long, inode: inode{Mode: modeRegular | 0o4755, UID: 1<<32 - 2, GID: 1 << 31, Flags: 0x20001 | 0x200000, Mtime: -1500000000}}},
			tar.Header{Name: long, Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1<<32 - 2, Gid: 1 << 31}, map[string]string{"SCHILY.fflags": "nodump,schg", "mtime": "-1.500000000"}},
		{"link", entry{change: change{name: "b", inode: inode{Mode: modeRegular | 0o644, Size: 77}, link: long}},
			tar.Header{Name: "b", Typeflag: tar.TypeLink, Mode: 0o644, Linkname: long}, nil},
		{"symlink", entry{change: change{name: "name\nof = two", inode: inode{Mode: modeSymlink | 0o755, Size: 3}}, target: "../\xff"},
			tar.Header{Name: "name\nof = two", Typeflag: tar.TypeSymlink, Mode: 0o755, Linkname: "../\xff"}, nil},
		{"the root", entry{change: change{name: ".", inode: inode{Mode: modeDir | 0o1755}}},
			tar.Header{Name: ".", Typeflag: tar.TypeDir, Mode: 0o1755}, nil},
	} {
		var b bytes.Buffer
		a := newArchiver(&b)
		if err := errors.Join(a.add(c.e, nil), a.close()); err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(&b)
		h, err := r.Next()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := tar.Header{Name: h.Name, Typeflag: h.Typeflag, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Linkname: h.Linkname, Devmajor: h.Devmajor, Devminor: h.Devminor}
		if c.want.Typeflag != tar.TypeLink && c.want.Typeflag != tar.TypeSymlink {
			got.Linkname = ""
		}
		if got.Name != c.want.Name || got.Typeflag != c.want.Typeflag || got.Mode != c.want.Mode || got.Uid != c.want.Uid || got.Gid != c.want.Gid ||
			got.Linkname != c.want.Linkname || got.Devmajor != c.want.Devmajor || got.Devminor != c.want.Devminor || h.ModTime.UnixNano() != c.e.Mtime {
			t.Errorf("%s: %+v, mtime %d", c.name, got, h.ModTime.UnixNano())
		}
		for k, v := range c.recs {
			if h.PAXRecords[k] != v {
				t.Errorf("%s: %s is %q", c.name, k, h.PAXRecords[k])
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: %v behind the entry", c.name, err)
		}
	}
}

// A pax record counts its own length, also where the count gets a digit more by it.
func TestRecordLength(t *testing.T) {
	for n := range 1100 {
		b := record(nil, "k", strings.Repeat("v", n))
		if digits, _, _ := bytes.Cut(b, []byte(" ")); string(digits) != itoa(len(b)) {
			t.Fatalf("a value of %d bytes: the record says %s and has %d", n, digits, len(b))
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// memSource is a file in memory, of which reading can fail.
type memSource struct{ *strings.Reader }

func (memSource) Close() error { return nil }

// TestArchiveHoles: a file with holes has its data only, whatever its form.
func TestArchiveHoles(t *testing.T) {
	const unit = holeUnit
	gap := func(n int) string { return strings.Repeat("\x00", n) }
	full := strings.Repeat("d", unit)
	for name, c := range map[string]struct {
		content string
		most    int // bytes of the archive
	}{
		"all hole":       {gap(100 * unit), 4 << 10},
		"hole, data":     {gap(10*unit) + "x", 4<<10 + unit},
		"data, hole":     {"x" + gap(20*unit), 4<<10 + unit},
		"odd end":        {full + gap(5*unit+77), 4<<10 + unit},
		"islands":        {gap(3*unit) + full + gap(unit) + full + full + gap(7*unit), 5<<10 + 3*unit},
		"no hole at all": {full + full, 4<<10 + 2*unit},
	} {
		var b bytes.Buffer
		a := newArchiver(&b)
		e := entry{change: change{name: "f", inode: inode{Mode: modeRegular | 0o644, Size: int64(len(c.content))}}}
		if err := errors.Join(a.add(e, func() (fileSource, error) { return memSource{strings.NewReader(c.content)}, nil }), a.close()); err != nil {
			t.Fatal(err)
		}
		if b.Len() > c.most {
			t.Errorf("%s: %d bytes of archive, at most %d", name, b.Len(), c.most)
		}
		r := tar.NewReader(&b)
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != c.content || h.Name != "f" {
			t.Errorf("%s: %d bytes of %q, %v; want %d", name, len(got), h.Name, err, len(c.content))
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: %v behind the entry", name, err)
		}
	}
}

// A file that is not as long as it was said ends the step, not the archive's sense.
func TestArchiveShortFile(t *testing.T) {
	a := newArchiver(io.Discard)
	e := entry{change: change{name: "f", inode: inode{Mode: modeRegular, Size: 100, Blocks: 1}}}
	err := a.add(e, func() (fileSource, error) { return memSource{strings.NewReader("short")}, nil })
	if err == nil || !strings.Contains(err.Error(), "f: it ends at byte 5") {
		t.Errorf("%v", err)
	}
	if err := a.add(entry{change: change{name: "s", inode: inode{Mode: modeSocket}}}, nil); err == nil {
		t.Error("a socket is in the archive")
	}
}
