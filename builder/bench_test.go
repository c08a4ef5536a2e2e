package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// bench is a builder's surroundings in a folder of the test's.
type bench struct {
	t      testing.TB
	dir    string // the build context
	o      Options
	sets   *fakeSets
	images *fakeImages
	runner *fakeRunner
	events []Event
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), sets: &fakeSets{sets: map[string]*tree.Tree{}}, runner: &fakeRunner{}}
	store, err := blob.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	b.images = &fakeImages{dir: t.TempDir(), images: map[string]spec.Image{}, disks: map[string]string{}, trees: map[string]*tree.Tree{}}
	b.o = Options{
		Dockerfile: "Dockerfile", Context: b.dir, Args: map[string]string{}, Blobs: store, Cache: filepath.Join(t.TempDir(), "steps"),
		Sets: b.sets, Images: b.images, Runner: b.runner, Toolbox: fakeTools{}, Secrets: map[string][]byte{},
	}
	b.o.Progress = func(ev Event) {
		ev.Data = bytes.Clone(ev.Data)
		b.events = append(b.events, ev)
	}
	b.sets.sets["base"] = treeOf(t,
		"bin/sh", "the shell", "sbin/init", "netbsd's init", "usr/bin/", "", "usr/bin/id", "id", "lib", "@usr/lib", "usr/lib/libc.so", "libc")
	b.sets.sets["etc"] = treeOf(t,
		"etc/passwd", "root:*:0:0:Charlie &:/root:/bin/sh\nweb:*:1000:100:Web:/home/web:/bin/sh\n",
		"etc/group", "wheel:*:0:root\nusers:*:100:\nextra:*:200:web,root\n")
	return b
}

// treeOf makes a tree of pairs path, content. A path that ends in a slash is a
// folder, a content that begins with @ a link's target.
func treeOf(t testing.TB, pairs ...string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for i := 0; i < len(pairs); i += 2 {
		n := tree.NewFile(0o644, tree.Bytes(pairs[i+1]))
		if target, ok := strings.CutPrefix(pairs[i+1], "@"); ok {
			n = tree.NewSymlink(target)
		} else if strings.HasSuffix(pairs[i], "/") {
			n = tree.NewDir(0o755)
		}
		n.Mtime = 1e18
		if err := out.Put(pairs[i], n); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// file writes a file of the build context.
func (b *bench) file(name, text string) {
	b.t.Helper()
	name = filepath.Join(b.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) try(text string) (*Result, error) {
	b.events = nil
	o := b.o
	o.Text = []byte(text)
	return Build(context.Background(), o)
}

func (b *bench) build(text string) (*Result, *tree.Tree) {
	b.t.Helper()
	res, err := b.try(text)
	if err != nil {
		b.t.Fatal(err)
	}
	root, err := res.Root()
	if err != nil {
		b.t.Fatal(err)
	}
	return res, root
}

// fails builds what has to fail, and checks the message.
func (b *bench) fails(text, want string) {
	b.t.Helper()
	_, err := b.try(text)
	if err == nil || !strings.Contains(err.Error(), want) {
		b.t.Errorf("%q\n got %v\nwant …%s…", text, err, want)
	} else if strings.Contains(err.Error(), "\n") {
		b.t.Errorf("%q: more than a line: %v", text, err)
	}
}

// kinds counts events.
func (b *bench) kinds(k EventKind) int {
	n := 0
	for _, ev := range b.events {
		if ev.Kind == k {
			n++
		}
	}
	return n
}

func (b *bench) warnings() string {
	var out []string
	for _, ev := range b.events {
		if ev.Kind == EventWarning {
			out = append(out, ev.Text)
		}
	}
	return strings.Join(out, "\n")
}

// text reads a file of a root, links followed.
func text(t testing.TB, root *tree.Tree, name string) string {
	t.Helper()
	_, n, err := root.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.ReadAll(n.Content, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func node(t testing.TB, root *tree.Tree, name string) *tree.Node {
	t.Helper()
	n, err := root.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func absent(t testing.TB, root *tree.Tree, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := root.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there (%v)", name, err)
		}
	}
}

type fakeSets struct {
	mu      sync.Mutex
	sets    map[string]*tree.Tree
	opened  int
	release string
}

func (s *fakeSets) Fetch(_ context.Context, release string, names []string) ([]Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release = release
	var out []Layer
	for _, n := range names {
		t := s.sets[n]
		if t == nil {
			return nil, fmt.Errorf("set %s: the mirror does not have it", n)
		}
		d, err := t.Digest()
		if err != nil {
			return nil, err
		}
		out = append(out, Layer{n, d, func(context.Context, bool) (*tree.Tree, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.opened++
			return t, nil
		}})
	}
	return out, nil
}

type fakeTools struct{}

func (fakeTools) Init(context.Context) (tree.Content, error) { return tree.Bytes("smolinit"), nil }
func (fakeTools) Scratch() (*tree.Tree, error)               { return tree.New(), nil }
func (fakeTools) Devices(t *tree.Tree) error {
	return t.Put("dev/null", &tree.Node{Kind: tree.CharDevice, Perm: 0o666, Major: 2, Minor: 2})
}
func (fakeTools) URoot(context.Context) (*tree.Tree, error) {
	t := tree.New()
	return t, t.Put("bin/ls", tree.NewFile(0o755, tree.Bytes("u-root's ls")))
}

type fakeImages struct {
	dir    string
	images map[string]spec.Image
	trees  map[string]*tree.Tree
	disks  map[string]string
	puts   int
}

func (f *fakeImages) Resolve(_ context.Context, ref string) (spec.Image, error) {
	img, ok := f.images[ref]
	if !ok {
		return img, fs.ErrNotExist
	}
	return img, nil
}
func (f *fakeImages) Tree(_ context.Context, img spec.Image) (*tree.Tree, error) {
	return f.trees[img.Tree], nil
}
func (f *fakeImages) HasDisk(d string) bool { return f.disks[d] != "" }
func (f *fakeImages) Temp() (string, error) {
	w, err := os.CreateTemp(f.dir, "new-*")
	if err != nil {
		return "", err
	}
	return w.Name(), w.Close()
}
func (f *fakeImages) Put(_ context.Context, refs []string, img spec.Image, disk string, root func() (*tree.Tree, error)) (spec.Image, error) {
	f.puts++
	if disk != "" {
		b, err := os.ReadFile(disk)
		if err != nil {
			return img, err
		}
		img.Disk.Digest = tree.Bytes(b).Digest()
		to := filepath.Join(f.dir, strings.ReplaceAll(img.Disk.Digest, ":", "-"))
		if err := os.Rename(disk, to); err != nil {
			return img, err
		}
		f.disks[img.Disk.Digest] = to
	}
	if f.trees[img.Tree] == nil {
		var err error
		if f.trees[img.Tree], err = root(); err != nil {
			return img, err
		}
	}
	if _, err := img.Encode(); err != nil {
		return img, err
	}
	for _, r := range refs {
		f.images[r] = img
	}
	return img, nil
}

// fakeRunner does what the last word of the command says, a line each: "write
// PATH TEXT", "remove PATH", "print TEXT", "exit N", "env NAME PATH", "who PATH",
// "secret ID PATH", "wait".
type fakeRunner struct {
	mu    sync.Mutex
	steps []RunStep
	hook  func(ctx context.Context, s RunStep) error
}

func (r *fakeRunner) Run(ctx context.Context, s RunStep) (*tree.Tree, error) {
	r.mu.Lock()
	r.steps = append(r.steps, s)
	r.mu.Unlock()
	if r.hook != nil {
		if err := r.hook(ctx, s); err != nil {
			return nil, err
		}
	}
	root := s.Root.Clone()
	script := s.Argv[len(s.Argv)-1]
	if len(s.Argv) == 1 {
		b, err := readFile(root, s.Argv[0], 1<<20)
		if err != nil {
			return nil, err
		}
		script = b
	}
	put := func(name, text string) error {
		n := tree.NewFile(0o644, tree.Bytes(text))
		n.UID, n.GID, n.Mtime = s.UID, s.GID, time.Now().UnixNano()
		return root.Put(name, n)
	}
	for line := range strings.Lines(script) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		f = append(f, "", "")
		var err error
		switch f[0] {
		case "write":
			err = put(f[1], f[2])
		case "remove":
			err = root.Remove(f[1])
		case "print":
			_, err = io.WriteString(s.Output, strings.TrimSpace(line[6:])+"\n")
		case "env":
			value := "(unset)"
			for _, e := range s.Env {
				if v, ok := strings.CutPrefix(e, f[1]+"="); ok {
					value = v
				}
			}
			err = put(f[2], value)
		case "who":
			err = put(f[1], fmt.Sprintf("%d:%d %v %s", s.UID, s.GID, s.Groups, s.Cwd))
		case "copy":
			var b string
			if b, err = readFile(root, f[1], 1<<20); err == nil {
				err = put(f[2], b)
			}
		case "exit":
			var n int
			fmt.Sscan(f[1], &n)
			err = &ExitError{n}
		}
		if err != nil {
			return nil, err
		}
	}
	return root, nil
}

// tarball packs pairs as treeOf has them.
func tarball(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), Typeflag: tar.TypeReg, Uid: 7, Gid: 8}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
