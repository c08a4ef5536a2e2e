package ffs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// The Sleuth Kit is a reader that nobody here wrote. It is not always there, and
// what is not read by it is said so.

func tool(t *testing.T, name string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	t.Skipf("NOT RUN: no %s (sleuthkit and makefs are Debian's packages, fsck_ffs is NetBSD's)", name)
	return ""
}

func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, stderr.String())
	}
	return out
}

// seen is what fls tells of a name: a line of its mactime format.
type seen struct {
	inode          string
	mode           string
	uid, gid, size string
	mtime          int64
	times          bool // access and change have the same; it does not know the birth
	target         string
}

// fls gives all names, without those that the Sleuth Kit makes up.
func fls(t *testing.T, image string) map[string]seen {
	t.Helper()
	out := map[string]seen{}
	s := bufio.NewScanner(bytes.NewReader(command(t, tool(t, "fls"), "-f", "ufs", "-r", "-p", "-m", "", image)))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// md5|name|inode|mode|uid|gid|size|atime|mtime|ctime|crtime
		f := strings.Split(s.Text(), "|")
		if len(f) != 11 {
			t.Fatalf("fls: %q", s.Text())
		}
		name, target, _ := strings.Cut(strings.TrimPrefix(f[1], "/"), " -> ")
		if strings.HasPrefix(name, "$OrphanFiles") {
			if name != "$OrphanFiles" {
				t.Errorf("an orphan: %s", s.Text())
			}
			continue
		}
		if strings.Contains(name, "(deleted") {
			t.Errorf("a name that was never there: %s", s.Text())
		}
		mtime, err := strconv.ParseInt(f[8], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := out[name]; ok {
			t.Errorf("%s comes twice", name)
		}
		out[name] = seen{inode: f[2], mode: f[3], uid: f[4], gid: f[5], size: f[6], mtime: mtime, times: f[7] == f[8] && f[9] == f[8], target: target}
	}
	return out
}

func icat(t *testing.T, image, inode string) []byte {
	t.Helper()
	return command(t, tool(t, "icat"), "-f", "ufs", image, inode)
}

// maxShown bounds the target of a symlink that fls shows whole.
const maxShown = 200

// readable is a tree whose names and times the Sleuth Kit prints as they are.
func readable(r *rand.Rand) *tree.Tree {
	t := tree.New()
	put := func(path string, n *tree.Node) {
		n.UID, n.GID, n.Mtime = uint32(r.IntN(1<<30)), uint32(r.IntN(1<<30)), 1700000000e9+r.Int64N(1e17)
		n.Perm = uint16(r.IntN(0o10000))
		if err := t.Put(path, n); err != nil {
			panic(err)
		}
	}
	t.Root.Mtime = 1700000000e9
	for i := range 25 {
		put(fmt.Sprintf("files/%d/size-%d", i%5, i), tree.NewFile(0, tree.Bytes(noise(r, i*i*400))))
	}
	for i := range 300 {
		put(fmt.Sprintf("many/%s-%d", strings.Repeat("n", i%200), i), tree.NewFile(0, nil))
	}
	put("big", tree.NewFile(0, tree.Bytes(noise(r, 5<<20+123))))
	put("sparse", tree.NewFile(0, sparse{9 << 20, []tree.Extent{{Off: 100000, Len: 50}, {Off: 7 << 20, Len: 70000}}}))
	put("short", tree.NewSymlink("files/0/size-0"))
	put("edge", tree.NewSymlink(strings.Repeat("e", 119)))
	put("past", tree.NewSymlink(strings.Repeat("p", 120)))
	put("long", tree.NewSymlink(strings.Repeat("l", 1000)))
	put("dev/null", &tree.Node{Kind: tree.CharDevice, Major: 2, Minor: 2})
	put("dev/ld0a", &tree.Node{Kind: tree.BlockDevice, Major: 19})
	put("fifo", &tree.Node{Kind: tree.FIFO})
	put("socket", &tree.Node{Kind: tree.Socket})
	n, err := t.Lookup("files/1/size-21")
	if err == nil {
		err = errors.Join(t.Put("linked", n), t.Put("files/2/linked", n))
	}
	if err != nil {
		panic(err)
	}
	return t
}

// image writes a tree to a file.
func image(t *testing.T, tr *tree.Tree, o Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ffs.img"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := Write(t.Context(), f, tr, o)
	if err = errors.Join(err, f.Truncate(info.Size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// modeString is a mode as fls writes it: the type by name and by inode, then ls's.
func modeString(n *tree.Node) string {
	b := []byte("rwxrwxrwx")
	for i := range b {
		if n.Perm>>(8-i)&1 == 0 {
			b[i] = '-'
		}
	}
	for i, c := range []struct {
		bit    uint16
		at     int
		x, dot byte
	}{{0o4000, 2, 's', 'S'}, {0o2000, 5, 's', 'S'}, {0o1000, 8, 't', 'T'}} {
		_ = i
		if n.Perm&c.bit != 0 {
			if b[c.at] == 'x' {
				b[c.at] = c.x
			} else {
				b[c.at] = c.dot
			}
		}
	}
	kind := map[tree.Kind]string{tree.Dir: "d/d", tree.File: "r/r", tree.Symlink: "l/l", tree.CharDevice: "c/c", tree.BlockDevice: "b/b", tree.FIFO: "p/p", tree.Socket: "s/h"}
	return kind[n.Kind] + string(b)
}

// TestSleuthKit: fsstat, fls and icat read every name, owner, mode, time, link
// and byte, and the counts of what is free.
func TestSleuthKit(t *testing.T) {
	for _, o := range []Options{{Minimize: true}, {Block: 4096, Fragment: 1024, Size: 100 << 20, Label: "webroot"}} {
		tr := readable(rand.New(rand.NewPCG(3, 3)))
		img := image(t, tr, o)
		l, err := Plan(tr, o)
		if err != nil {
			t.Fatal(err)
		}
		info := l.Info()
		stat := string(command(t, tool(t, "fsstat"), "-f", "ufs", img))
		for _, want := range []string{
			"File System Type: UFS 2", "Volume Name: " + o.Label, "Root Directory: 2",
			fmt.Sprintf("Num of Avail Inodes: %d\n", info.FreeInodes), fmt.Sprintf("Block Size: %d\n", info.Block),
			fmt.Sprintf("Fragment Size: %d\n", info.Fragment), fmt.Sprintf("Number of Cylinder Groups: %d\n", info.Groups),
			fmt.Sprintf("Fragment Range: 0 - %d\n", info.Size/int64(info.Fragment)-1),
		} {
			if !strings.Contains(stat, want) {
				t.Errorf("fsstat lacks %q:\n%s", want, stat[:min(2000, len(stat))])
			}
		}
		got := fls(t, img)
		names := 0
		inodes := map[*tree.Node]string{}
		err = tr.Walk(func(path string, n *tree.Node) error {
			if path == "." {
				return nil
			}
			names++
			s, ok := got[path]
			if !ok {
				t.Errorf("fls lacks %s", path)
				return nil
			}
			target := n.Target
			size := fmt.Sprint(n.Size())
			switch n.Kind {
			case tree.Dir:
				size = fmt.Sprint(dirSize(n.Names()))
			case tree.Symlink:
				size = fmt.Sprint(len(target))
			}
			want := seen{inode: s.inode, mode: modeString(n), uid: fmt.Sprint(n.UID), gid: fmt.Sprint(n.GID), size: size, mtime: n.Mtime / 1e9, times: true, target: target}
			if len(target) > maxShown {
				if b := icat(t, img, s.inode); string(b) != target {
					t.Errorf("%s: icat gives another target, %q", path, b)
				}
				s.target, want.target = "", ""
			}
			if s != want {
				t.Errorf("%s: fls says %+v, want %+v", path, s, want)
			}
			if known := inodes[n]; known != "" && known != s.inode {
				t.Errorf("%s is inode %s and %s", path, s.inode, known)
			}
			inodes[n] = s.inode
			if n.Kind == tree.File && n.Size() > 0 {
				if b := icat(t, img, s.inode); !bytes.Equal(b, contents(t, n)) {
					t.Errorf("%s: icat gives other bytes, %d of %d", path, len(b), n.Size())
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if names != len(got) {
			t.Errorf("fls has %d names, the tree %d", len(got), names)
		}
	}
}

func contents(t *testing.T, n *tree.Node) []byte {
	t.Helper()
	if n.Content == nil {
		return nil
	}
	r, err := n.Content.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, n.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAsMakefs: Debian's makefs makes images of the same tree. The Sleuth Kit sees
// the same in its FFSv1 image as in ours, and our reader in its FFSv2 image, which
// has the superblock where the Sleuth Kit does not look.
func TestAsMakefs(t *testing.T) {
	makefs := tool(t, "makefs")
	tool(t, "fls")
	r := rand.New(rand.NewPCG(4, 4))
	dir := t.TempDir()
	tr := tree.New()
	tr.Root.Mtime = 1700000000e9
	own := func(n *tree.Node) *tree.Node {
		n.UID, n.GID, n.Mtime = uint32(os.Getuid()), uint32(os.Getgid()), 1700000000e9
		return n
	}
	own(tr.Root)
	for _, d := range []string{"bin", "etc", "etc/rc.d", "var"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o755), tr.Put(d, own(tree.NewDir(0o755)))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 32 {
		name := fmt.Sprintf("%s/file-%d", []string{"bin", "etc", "etc/rc.d", "var"}[i%4], i)
		b := noise(r, r.IntN(1+i*4000))
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), b, 0o644), tr.Put(name, own(tree.NewFile(0o644, tree.Bytes(b))))); err != nil {
			t.Fatal(err)
		}
	}
	first, err := tr.Lookup("bin/file-0")
	if err == nil {
		err = errors.Join(tr.Put("etc/linked", first), os.Link(filepath.Join(dir, "bin/file-0"), filepath.Join(dir, "etc/linked")))
	}
	for name, target := range map[string]string{"short": "etc/rc.d", "var/long": strings.Repeat("t", 300)} {
		err = errors.Join(err, os.Symlink(target, filepath.Join(dir, name)), tr.Put(name, own(tree.NewSymlink(target))))
	}
	if err != nil {
		t.Fatal(err)
	}
	touch := []string{"-h", "-d", "@1700000000"}
	for name := range fls(t, image(t, tr, Options{})) {
		touch = append(touch, filepath.Join(dir, name))
	}
	command(t, "touch", append(touch, dir)...)
	theirs := filepath.Join(t.TempDir(), "makefs.img")
	command(t, makefs, "-t", "ffs", "-s", "16m", "-o", "version=2,bsize=16384,fsize=2048", theirs, dir)
	f, err := os.Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := ffstest.Open(f, false)
	if err == nil {
		err = errors.Join(d.Verify(), d.Compare(tr))
	}
	if err != nil {
		t.Errorf("our reader of makefs's FFSv2: %v", err)
	}
	command(t, makefs, "-t", "ffs", "-s", "16m", "-o", "version=1,bsize=16384,fsize=2048", theirs, dir)
	ours := image(t, tr, Options{})
	a, b := fls(t, theirs), fls(t, ours)
	if !slices.Equal(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b))) {
		t.Fatalf("names: makefs %q, here %q", slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
	}
	for name, s := range a {
		o := b[name]
		if s.mode[0] == 'r' {
			if a, b := icat(t, theirs, s.inode), icat(t, ours, o.inode); !bytes.Equal(a, b) {
				t.Errorf("%s: other bytes, %d and %d", name, len(a), len(b))
			}
		}
		if (a["bin/file-0"].inode == s.inode) != (b["bin/file-0"].inode == o.inode) {
			t.Errorf("%s: a link in one of them only", name)
		}
		s.inode, o.inode = "", ""
		s.times, o.times = true, true
		if s != o {
			t.Errorf("%s: makefs %+v, here %+v", name, s, o)
		}
	}
}
