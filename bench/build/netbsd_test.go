package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/bench/testimg"
	"github.com/smolvmm/smolvmm/builder/image"
	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// holey is a content with runs of bytes between holes.
type holey struct {
	data []byte // what every run has
	runs []tree.Extent
	size int64
}

func (h holey) Size() int64                      { return h.size }
func (h holey) Open() (tree.ReadAtCloser, error) { return h, nil }
func (h holey) Close() error                     { return nil }
func (h holey) Extents() ([]tree.Extent, error)  { return h.runs, nil }
func (h holey) ReadAt(b []byte, off int64) (int, error) {
	n := copy(b, make([]byte, max(0, min(int64(len(b)), h.size-off))))
	for _, r := range h.runs {
		for at := max(r.Off, off); at < min(r.Off+r.Len, off+int64(n)); at++ {
			b[at-off] = h.data[at-r.Off]
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// allKinds is a tree with all that a file system has to hold.
func allKinds(t *testing.T) *tree.Tree {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 5))
	tr := tree.New()
	put := func(path string, n *tree.Node) *tree.Node {
		n.Mtime = 1767225600e9 + r.Int64N(1e15)
		if err := tr.Put(path, n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := range 60 {
		n := put(fmt.Sprintf("files/%d/%d", i%4, i), tree.NewFile(uint16(r.IntN(0o10000)), tree.Bytes(noise(r, i*i*50))))
		n.UID, n.GID = r.Uint32N(1<<31), r.Uint32N(1<<31)
		n.Flags = []uint32{0, 1, 2, 4, 8, 0x10000, 0x20000, 0x40000}[i%8] // chflags(2): UF_NODUMP … SF_APPEND
	}
	for i := range 800 {
		put(fmt.Sprintf("many/%d%s", i, strings.Repeat("n", i%150)), tree.NewFile(0o644, nil))
	}
	put("files/indirect", tree.NewFile(0o600, tree.Bytes(noise(r, 3<<20+77))))
	put("files/sparse", tree.NewFile(0o600, holey{noise(r, 70000), []tree.Extent{{Off: 5, Len: 9}, {Off: 20 << 20, Len: 70000}, {Off: 40 << 20, Len: 100}}, 40<<20 + 8000}))
	put("files/hole", tree.NewFile(0o600, holey{nil, nil, 5 << 20}))
	put("links/short", tree.NewSymlink("../files/0/0"))
	put("links/edge", tree.NewSymlink(strings.Repeat("e", 119)))
	put("links/past", tree.NewSymlink(strings.Repeat("p", 120)))
	put("links/long", tree.NewSymlink(strings.Repeat("l", 1023)))
	linked := put("links/a", tree.NewFile(0o644, tree.Bytes("linked")))
	put("links/b", linked)
	put("links/below/c", linked)
	put("nodes/fifo", &tree.Node{Kind: tree.FIFO, Perm: 0o640, UID: 7})
	put("nodes/socket", &tree.Node{Kind: tree.Socket, Perm: 0o600})
	put("nodes/char", &tree.Node{Kind: tree.CharDevice, Perm: 0o600, Major: 0xfff, Minor: 0xfffff})
	put("nodes/block", &tree.Node{Kind: tree.BlockDevice, Perm: 0o600, Major: 19, Minor: 3})
	return tr
}

// rootTree is that, NetBSD boots it, ffscheck finds its manifest, and /victims to
// change.
func rootTree(t *testing.T) *tree.Tree {
	t.Helper()
	tr := allKinds(t)
	r := rand.New(rand.NewPCG(6, 6))
	put := func(path string, n *tree.Node) {
		n.Mtime = 1767225600e9
		if err := tr.Put(path, n); err != nil {
			t.Fatal(err)
		}
	}
	for path, pkg := range map[string]string{"sbin/init": "/cmd/smolinit", "bin/ffscheck": "/bench/build/ffscheck"} {
		program, err := testimg.Program(t.Context(), testimg.Module+pkg)
		if err != nil {
			t.Fatal(err)
		}
		put(path, tree.NewFile(0o755, tree.Bytes(program)))
	}
	for _, d := range []string{"tmp", "var/run", "dev"} {
		put(d, tree.NewDir(0o755))
	}
	put("dev/console", &tree.Node{Kind: tree.CharDevice, Perm: 0o600})
	put("dev/null", &tree.Node{Kind: tree.CharDevice, Perm: 0o666, Major: 2, Minor: 2})
	for i := range 40 {
		put(fmt.Sprintf("victims/tree/%d/%d", i%3, i), tree.NewFile(0o644, tree.Bytes(noise(r, i*3000))))
	}
	put("victims/grown", tree.NewFile(0o644, tree.Bytes(noise(r, 3000))))
	put("victims/shrunk", tree.NewFile(0o644, tree.Bytes(noise(r, 400000))))
	put("manifest.json", tree.NewFile(0o644, tree.Bytes(manifest(t, tr))))
	return tr
}

// entry is ffscheck's Entry.
type entry struct {
	Path                         string
	Mode, UID, GID, Flags, Links uint32
	Mtime, Size                  int64
	Dev                          uint64
	Sum, Target, Same            string
}

func manifest(t *testing.T, tr *tree.Tree) []byte {
	t.Helper()
	links, err := tr.Links()
	if err != nil {
		t.Fatal(err)
	}
	var list []entry
	err = tr.Walk(func(path string, n *tree.Node) error {
		top, _, _ := strings.Cut(path, "/")
		if top == "." || top == "dev" || top == "tmp" || top == "var" || top == "victims" {
			return nil // mounted over, or to be changed
		}
		kind := map[tree.Kind]uint32{tree.Dir: 0o040000, tree.File: 0o100000, tree.Symlink: 0o120000, tree.CharDevice: 0o020000, tree.BlockDevice: 0o060000, tree.FIFO: 0o010000, tree.Socket: 0o140000}[n.Kind]
		e := entry{Path: "/" + path, Mode: kind | uint32(n.Perm), UID: n.UID, GID: n.GID, Flags: n.Flags, Links: 1, Mtime: n.Mtime, Target: n.Target}
		switch n.Kind {
		case tree.Dir:
			e.Links = 2
			for _, name := range n.Names() {
				if n.Child(name).Kind == tree.Dir {
					e.Links++
				}
			}
		case tree.Symlink:
			e.Size = int64(len(n.Target))
		case tree.CharDevice, tree.BlockDevice:
			e.Dev = uint64(tree.Dev(n.Major, n.Minor))
		case tree.File:
			e.Size = n.Size()
			h := sha256.New()
			if n.Content != nil {
				c, err := n.Content.Open()
				if err != nil {
					return err
				}
				if _, err := io.Copy(h, io.NewSectionReader(c, 0, n.Size())); err != nil {
					return err
				}
			}
			e.Sum = hex.EncodeToString(h.Sum(nil))
		}
		if names := links[n]; names != nil {
			e.Links, e.Same = uint32(len(names)), "/"+names[0]
		}
		list = append(list, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// boot runs NetBSD on the image in QEMU's emulation, and gives what the console
// said. ffscheck does the steps.
func boot(t *testing.T, kernel, img, root string, steps ...string) string {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("NOT RUN: no qemu-system-x86_64")
	}
	config, err := json.Marshal(map[string]any{"argv": append([]string{"/bin/ffscheck"}, steps...)})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "init.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu,
		"-M", "microvm,x-option-roms=off,rtc=on,acpi=off,pic=off,auto-kernel-cmdline=on,accel=tcg", "-m", "256",
		"-kernel", kernel, "-append", "root="+root+" console=com -z",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-nodefaults",
		"-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=hd0",
		"-drive", "format=raw,id=hd0,if=none,cache=unsafe,file="+img,
		"-device", "isa-debug-exit,iobase=0x501,iosize=1", // its status is twice the byte, plus one
		"-fw_cfg", "name=opt/smolvmm/init.json,file="+file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != 1 {
		t.Fatalf("%s: %v\n%s", steps, err, out.String())
	}
	for _, s := range steps {
		if !strings.Contains(out.String(), "ffscheck: "+s+": ") {
			t.Errorf("%s was not run:\n%s", s, out.String())
		}
	}
	// What the kernel says of file systems that it does not like.
	for _, bad := range []string{"WARNING: mount of", "unclean", "bad dir", "panic", "mangled", "corrupted"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("the console says %q:\n%s", bad, out.String())
		}
	}
	return out.String()
}

// TestNetBSD: the kernel mounts our images read-write as its root, reads every
// name and byte, fills them to the last block and inode, changes and frees, mounts
// again; afterwards every table is still right.
func TestNetBSD(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD in emulation")
	}
	kernel, err := netbsd.Kernel()
	if errors.Is(err, netbsd.ErrMissing) {
		t.Skipf("NOT RUN: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	tr := rootTree(t)
	for _, c := range []struct {
		name string
		o    image.Options
	}{
		{"bare", image.Options{Minimize: true, Free: 12 << 20}},
		{"wedge", image.Options{Layout: image.GPT, Label: "webroot", Free: 12 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "root.img")
			info, err := image.Create(t.Context(), img, tr, c.o)
			if err != nil {
				t.Fatal(err)
			}
			said := boot(t, kernel, img, info.Root, "check", "fill", "check", "change")
			// What Info calls free, files can have, but for the indirect blocks.
			if room := roomIn(t, said); room > info.FS.Free || room < info.FS.Free*99/100 {
				t.Errorf("room for %d bytes, and %d are free", room, info.FS.Free)
			}
			judge(t, img, info)
			said += boot(t, kernel, img, info.Root, "check", "changed", "fill")
			judge(t, img, info)
			for line := range strings.Lines(said) {
				if strings.HasPrefix(line, "ffscheck:") {
					t.Logf("%s", strings.TrimSpace(line))
				}
			}
		})
	}
}

// roomIn finds in what ffscheck said how many bytes had room.
func roomIn(t *testing.T, said string) (n int64) {
	t.Helper()
	_, after, _ := strings.Cut(said, "ffscheck: fill: room for ")
	if _, err := fmt.Sscanf(after, "%d bytes", &n); err != nil {
		t.Error(err)
	}
	return n
}

// judge reads what the kernel has left: clean, every block and inode counted.
func judge(t *testing.T, img string, info image.Info) {
	t.Helper()
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := ffstest.Open(io.NewSectionReader(f, info.Offset, info.FS.Size), false)
	if err == nil {
		err = d.Verify()
	}
	if err != nil {
		t.Error(err)
	}
	fsck, err := exec.LookPath("fsck_ffs")
	if err != nil || info.Offset != 0 {
		return
	}
	if out, err := exec.CommandContext(t.Context(), fsck, "-F", "-f", "-n", img).CombinedOutput(); err != nil || strings.Contains(string(out), "? no") {
		t.Errorf("fsck_ffs: %v\n%s", err, out)
	}
}
