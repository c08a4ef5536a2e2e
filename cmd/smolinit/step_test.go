//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
)

// disk is a log's disk in memory, as large as what is written.
type disk struct{ b []byte }

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p) - len(d.b); n > 0 {
		d.b = append(d.b, make([]byte, n)...)
	}
	return copy(d.b[off:], p), nil
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d.b).ReadAt(p, off) }

func (d *disk) writer() *steplog.Writer {
	return steplog.NewWriter(d, 1<<40, make([]byte, steplog.MaxPayload+steplog.HeaderSize), func() {})
}

// payload joins what the log has of a type.
func (d *disk) payload(t *testing.T, want steplog.Type) []byte {
	t.Helper()
	var all []byte
	for r := steplog.NewReader(d); ; {
		ty, p, err := r.Next()
		if errors.Is(err, steplog.ErrNotYet) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if ty == want {
			all = append(all, p...)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// changesOf runs step on dir and gives what sendChanges tells of it.
func changesOf(t *testing.T, dir string, mine *own, step func()) (gone []string, archive []byte, skipped []string) {
	t.Helper()
	f := rootFiles(dir)
	before, err := take(f)
	must(t, err)
	step()
	d := &disk{}
	skipped, err = sendChanges(d.writer(), f, before, mine)
	must(t, err)
	gone = strings.Split(string(d.payload(t, steplog.Gone)), "\x00")
	return gone[:len(gone)-1], d.payload(t, steplog.Changes), skipped
}

// apply does to dir what a log says, by a reader of tar that knows nothing of the writer.
func apply(t *testing.T, dir string, gone []string, archive []byte) (told []string) {
	t.Helper()
	type stamp struct {
		name string
		at   time.Time
	}
	var stamps []stamp
	// A tree of values keeps the times of directories that are not told.
	old, err := take(rootFiles(dir))
	must(t, err)
	for _, g := range gone {
		must(t, os.RemoveAll(filepath.Join(dir, g)))
	}
	for name, st := range old {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil && st.kind() == modeDir {
			stamps = append(stamps, stamp{filepath.Join(dir, name), time.Unix(0, st.Mtime)})
		}
	}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		name := filepath.Join(dir, h.Name)
		told = append(told, path.Clean(h.Name))
		if h.Typeflag != tar.TypeDir {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			must(t, err)
			must(t, os.WriteFile(name, b, 0o600))
		case tar.TypeSymlink:
			must(t, os.Symlink(h.Linkname, name))
		case tar.TypeLink:
			must(t, os.Link(filepath.Join(dir, h.Linkname), name))
			continue
		case tar.TypeFifo:
			must(t, unix.Mkfifo(name, 0o600))
		default:
			t.Fatalf("%s: type %c", h.Name, h.Typeflag)
		}
		if h.Typeflag != tar.TypeSymlink {
			must(t, unix.Chmod(name, uint32(h.Mode)))
		}
		stamps = append(stamps, stamp{name, h.ModTime})
	}
	for _, s := range stamps { // nothing is made any more: their order does not matter
		ts := unix.NsecToTimespec(s.at.UnixNano())
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, s.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return told
}

// describe writes down all that a directory has, so that two can be compared.
func describe(t *testing.T, dir string) string {
	t.Helper()
	s, err := take(rootFiles(dir))
	must(t, err)
	names := make([]string, 0, len(s))
	for n := range s {
		names = append(names, n)
	}
	slices.Sort(names)
	first := map[uint64]string{}
	var b strings.Builder
	for _, n := range names {
		st := s[n]
		if st.kind() == modeFIFO {
			st.Mtime = 0 // not looked at: what goes through one changes it
		}
		fmt.Fprintf(&b, "%s mode %o owner %d:%d mtime %d", n, st.Mode, st.UID, st.GID, st.Mtime)
		switch st.kind() {
		case modeRegular:
			c, err := os.ReadFile(filepath.Join(dir, n))
			must(t, err)
			fmt.Fprintf(&b, " %d bytes %x", len(c), hash(c))
		case modeSymlink:
			to, err := os.Readlink(filepath.Join(dir, n))
			must(t, err)
			b.WriteString(" -> " + to)
		}
		if st.kind() != modeDir && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = n
			}
			b.WriteString(" the same as " + first[st.Ino])
		}
		b.WriteString("\n")
	}
	return b.String()
}

func hash(b []byte) (h uint64) {
	for _, c := range b {
		h = h*1099511628211 + uint64(c) + 1
	}
	return h
}

// tick lets the clock of the file system go on, so that a change is one by its time.
func tick() { time.Sleep(12 * time.Millisecond) }

// scribble changes a directory in many ways, by chance.
func scribble(t *testing.T, rnd *rand.Rand, dir string, rounds int) {
	t.Helper()
	names := func() []string {
		s, err := take(rootFiles(dir))
		must(t, err)
		var ns []string
		for n := range s {
			ns = append(ns, n)
		}
		slices.Sort(ns)
		return ns
	}
	dirs := func() []string {
		return slices.DeleteFunc(names(), func(n string) bool {
			st, err := os.Lstat(filepath.Join(dir, n))
			return err != nil || !st.IsDir()
		})
	}
	for i := range rounds {
		all, in := names(), dirs()
		fresh := filepath.Join(dir, in[rnd.IntN(len(in))], fmt.Sprintf("n%d-%d", i, rnd.IntN(1000)))
		some := filepath.Join(dir, all[rnd.IntN(len(all))])
		st, err := os.Lstat(some)
		must(t, err)
		switch rnd.IntN(12) {
		case 0, 1:
			b := make([]byte, rnd.IntN(200<<10))
			for j := range min(len(b), 4096) {
				b[j] = byte(rnd.Uint32())
			}
			must(t, os.WriteFile(fresh, b, 0o644))
		case 2:
			must(t, os.Mkdir(fresh, 0o755))
		case 3:
			must(t, os.Symlink("../somewhere", fresh))
		case 4:
			if st.Mode().IsRegular() {
				must(t, os.Link(some, fresh))
			}
		case 5:
			if some != dir+"/." && some != dir {
				must(t, os.RemoveAll(some))
			}
		case 6:
			if some != dir && !strings.HasPrefix(fresh, some+"/") {
				must(t, os.Rename(some, fresh))
			}
		case 7:
			if st.Mode().Type() != fs.ModeSymlink {
				must(t, unix.Chmod(some, uint32(0o700+rnd.IntN(64))|uint32(rnd.IntN(8))<<9))
			}
		case 8:
			if st.Mode().IsRegular() {
				f, err := os.OpenFile(some, os.O_APPEND|os.O_WRONLY, 0)
				must(t, err)
				_, err = f.WriteString("more")
				must(t, errors.Join(err, f.Close()))
			}
		case 9:
			f, err := os.Create(fresh)
			must(t, err)
			_, err = f.WriteAt([]byte("island"), int64(rnd.IntN(300<<10)))
			must(t, errors.Join(err, f.Truncate(512<<10), f.Close()))
		case 10:
			must(t, unix.Mkfifo(fresh, 0o640))
		case 11: // a file in a directory's place, or the other way round
			if some != dir {
				must(t, os.RemoveAll(some))
				if st.IsDir() {
					must(t, os.WriteFile(some, []byte("was a directory"), 0o600))
				} else {
					must(t, os.MkdirAll(some+"/deep/er", 0o755))
				}
			}
		}
	}
}

// copyTree makes a copy by an archive of all.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	d := &disk{}
	_, err := sendChanges(d.writer(), rootFiles(from), snapshot{}, nil)
	must(t, err)
	apply(t, to, nil, d.payload(t, steplog.Changes))
}

// TestChanges: what a log tells of a step turns the old tree into the new one,
// whatever the step did.
func TestChanges(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		image, copied := t.TempDir(), t.TempDir()
		scribble(t, rnd, image, 30)
		copyTree(t, image, copied)
		if a, b := describe(t, image), describe(t, copied); a != b {
			t.Fatalf("seed %d: the copy differs:\n%s\n%s", seed, a, b)
		}
		tick()
		gone, archive, _ := changesOf(t, image, nil, func() { scribble(t, rnd, image, 1+rnd.IntN(15)) })
		apply(t, copied, gone, archive)
		if a, b := describe(t, image), describe(t, copied); a != b {
			t.Fatalf("seed %d: gone %q; the image is\n%s\nand with the changes\n%s", seed, gone, a, b)
		}
	}
}

// TestChangesAreFew: what a step left alone is not told.
func TestChangesAreFew(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	for _, d := range []string{"a/b", "a-b", "c"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"a/b/one", "a/two", "a-b/three", "c/four", "c/five"} {
		must(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644))
	}
	must(t, os.Link(dir+"/a/two", dir+"/c/2"))
	must(t, unix.Mkfifo(dir+"/pipe", 0o600))
	copyTree(t, dir, copied)
	for _, c := range []struct {
		name       string
		step       func()
		gone, told []string
	}{
		{"nothing", func() {}, nil, nil},
		{"read", func() { _, err := os.ReadFile(dir + "/a/two"); must(t, err) }, nil, nil},
		{"in place", func() { must(t, os.WriteFile(dir+"/a/b/one", []byte("ONE"), 0)) }, nil, []string{"a/b/one"}},
		{"mode", func() { must(t, os.Chmod(dir+"/a-b/three", 0o600)) }, nil, []string{"a-b/three"}},
		{"both names", func() { must(t, os.WriteFile(dir+"/c/2", []byte("TWO"), 0)) }, nil, []string{"a/two", "c/2"}},
		{"gone", func() { must(t, os.RemoveAll(dir+"/a")) }, []string{"a"}, []string{".", "c/2"}},
		{"moved", func() { must(t, os.Rename(dir+"/c", dir+"/d")) }, []string{"c"}, []string{".", "d", "d/2", "d/five", "d/four"}},
		{"kind", func() { must(t, errors.Join(os.RemoveAll(dir+"/d"), os.Symlink("a-b", dir+"/d"))) }, []string{"d"}, []string{".", "d"}},
		{"pipe used", func() {
			f, err := os.OpenFile(dir+"/pipe", os.O_RDWR, 0)
			must(t, err)
			_, err = f.Write([]byte("x"))
			must(t, errors.Join(err, f.Close()))
		}, nil, nil},
	} {
		tick()
		gone, archive, _ := changesOf(t, dir, nil, c.step)
		told := apply(t, copied, gone, archive)
		if !slices.Equal(gone, c.gone) || !slices.Equal(told, c.told) {
			t.Errorf("%s: gone %q, told %q; want %q and %q", c.name, gone, told, c.gone, c.told)
		}
		if a, b := describe(t, dir), describe(t, copied); a != b {
			t.Errorf("%s: %s\n%s", c.name, a, b)
		}
	}
}

// TestOwnFileStaysOut: what smolinit wrote for the step is in no change, wherever
// the step has moved it; what the step wrote into it is.
func TestOwnFileStaysOut(t *testing.T) {
	for _, c := range []struct {
		name     string
		original string // "" is none
		step     func(dir string)
		told     string // the file's contents in the archive by the name; "" is none
	}{
		{"left alone", "old", func(string) {}, ""},
		{"moved", "", func(d string) { _ = os.Rename(d+"/etc", d+"/etc2") }, "etc2 "},
		{"moved, with an original", "old", func(d string) { _ = os.Rename(d+"/etc", d+"/etc2") }, "etc2 etc2/resolv.conf=old "},
		{"mode changed", "old", func(d string) { _ = os.Chmod(d+"/etc/resolv.conf", 0o600) }, "etc/resolv.conf=old "},
		{"written by the step", "old", func(d string) { _ = os.WriteFile(d+"/etc/resolv.conf", []byte("new one"), 0) }, "etc/resolv.conf=new one "},
	} {
		dir := t.TempDir()
		file := dir + "/etc/resolv.conf"
		must(t, os.Mkdir(dir+"/etc", 0o755))
		if c.original != "" {
			must(t, os.WriteFile(file, []byte(c.original), 0o644))
		}
		ask := noteOwn(file)
		tick()
		must(t, os.WriteFile(file, []byte("nameserver 10.0.2.3\n"), 0o644))
		_, archive, _ := changesOf(t, dir, ask(), func() { tick(); c.step(dir) })
		told := ""
		for tr := tar.NewReader(bytes.NewReader(archive)); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			if h.Name == "./" || h.Name == "." {
				continue
			}
			b, err := io.ReadAll(tr)
			must(t, err)
			if told += path.Clean(h.Name); len(b) > 0 {
				told += "=" + string(b)
			}
			told += " "
		}
		if told != c.told {
			t.Errorf("%s: told %q, want %q", c.name, told, c.told)
		}
	}
	if o := noteOwn(t.TempDir() + "/none")(); o != nil {
		t.Error("a file that nobody wrote")
	}
}

func TestSocketsAreSkipped(t *testing.T) {
	dir := t.TempDir()
	_, _, skipped := changesOf(t, dir, nil, func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/sock"}))
		must(t, unix.Close(fd))
	})
	if !slices.Equal(skipped, []string{"sock"}) {
		t.Errorf("%q", skipped)
	}
}

func TestOutputIsBounded(t *testing.T) {
	d := &disk{}
	lost, err := copyOutput(d.writer(), strings.NewReader(strings.Repeat("0123456789", 20000)), 123456)
	if err != nil || lost != 200000-123456 || len(d.payload(t, steplog.Output)) != 123456 {
		t.Errorf("%d lost of 200000, %d there, %v", lost, len(d.payload(t, steplog.Output)), err)
	}
	// A log that is full does not stop the command.
	w := steplog.NewWriter(&disk{}, 1<<20, make([]byte, steplog.MaxPayload+steplog.HeaderSize), func() {})
	r := strings.NewReader(strings.Repeat("x", 2<<20))
	if lost, err = copyOutput(w, r, 1<<30); !errors.Is(err, steplog.ErrFull) || r.Len() != 0 {
		t.Errorf("%d lost, %v, %d not read", lost, err, r.Len())
	}
}
