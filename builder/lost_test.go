package builder

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestLost: whatever contents are pruned, or cut short by a power failure, the
// build goes on, and does again what needs them and no more.
func TestLost(t *testing.T) {
	const text1 = "FROM base AS one\nRUN write /first 1\nFROM base,etc\nCOPY a.txt /a\nCOPY --from=one /first /copied\nRUN write /second 2\n"
	for _, c := range []struct {
		name string
		lose func(b blob.Blob) error
	}{
		{"gone", func(b blob.Blob) error { return os.Remove(b.Path()) }},
		{"cut", func(b blob.Blob) error {
			return errors.Join(os.Chmod(b.Path(), 0o600), os.Truncate(b.Path(), b.Size()/2))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.file("a.txt", "context's")
			res, root := b.build(text1)
			want := timeless(t, root)
			all, err := b.o.Blobs.List()
			if err != nil || len(all) < 8 {
				t.Fatalf("%d contents, %v", len(all), err)
			}
			again := 0
			for _, lost := range all {
				if err := c.lose(lost); err != nil {
					t.Fatal(err)
				}
				// A change at the end: the steps before it are looked up, and then used.
				for _, text := range []string{text1, text1 + "RUN write /third 3\n"} {
					if res, err = b.try(text); err != nil {
						t.Fatalf("without %s: %v", lost.Digest(), err)
					}
					if err := res.WriteDisk(t.Context(), filepath.Join(t.TempDir(), "disk")); err != nil {
						t.Fatalf("without %s: %v", lost.Digest(), err)
					}
					if strings.Contains(b.warnings(), "done again") {
						again++
					}
					if text != text1 {
						continue
					}
					root, err := res.Root()
					if err != nil {
						t.Fatal(err)
					}
					if timeless(t, root) != want {
						t.Errorf("without %s: another root", lost.Digest())
					}
				}
			}
			if again == 0 {
				t.Error("nothing was ever done again")
			}
			if res, err = b.try(text1); err != nil || !res.Cached {
				t.Errorf("not mended: %v", err)
			}
		})
	}
}

// timeless is a root's digest without times, as a RUN has another each time.
func timeless(t *testing.T, root *tree.Tree) string {
	t.Helper()
	root = root.Clone()
	err := root.Walk(func(_ string, n *tree.Node) error { n.Mtime = 0; return nil })
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestLostForStore: the same where the disk is made, and where it is there already.
func TestLostForStore(t *testing.T) {
	b := newBench(t)
	const text = "FROM base\nRUN write /first only there\n"
	digest := tree.Bytes("only there").Digest()
	for i, ref := range []string{"x:latest", "y:latest"} {
		res, err := b.try(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.o.Blobs.Remove(digest); err != nil {
			t.Fatal(err)
		}
		clear(b.images.trees)
		res.state.root = nil // as in a process that did none of the steps
		if err := res.Put(t.Context(), []string{ref}); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
		if _, err := b.o.Blobs.Open(digest); err != nil {
			t.Errorf("put %d: %v", i, err)
		}
	}
	if len(b.runner.steps) != 3 {
		t.Errorf("%d steps, want one, and one more for each loss", len(b.runner.steps))
	}
}

// TestLostImage: what an image has lost no step makes again; the error says what
// would.
func TestLostImage(t *testing.T) {
	b := newBench(t)
	b.file("a.txt", "the image's alone")
	res, _ := b.build("FROM base\nCOPY a.txt /a\n")
	if err := res.Put(t.Context(), []string{"parent:latest"}); err != nil {
		t.Fatal(err)
	}
	b.images.images["parent"] = res.Image
	if err := b.o.Blobs.Remove(tree.Bytes("the image's alone").Digest()); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"FROM parent\n": "Dockerfile:1:1: files of image parent are gone from the store: pull or build it again",
		"FROM scratch\nCOPY --from=parent /a /b\n": "Dockerfile:2:6: --from=parent: files of image parent are gone",
	} {
		res, err := b.try(text)
		if err == nil {
			err = res.WriteDisk(t.Context(), filepath.Join(t.TempDir(), "disk"))
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q\n got %v\nwant …%s…", text, err, want)
		}
	}
	if _, root := b.build("FROM scratch\nCOPY --from=parent /bin/sh /b\n"); text(t, root, "b") != "the shell" {
		t.Error("a file that is there")
	}
}

// TestKept: nothing is in the cache's folder before it is flushed, and the steps
// of a build that failed are.
func TestKept(t *testing.T) {
	b := newBench(t)
	c := &stepCache{dir: b.o.Cache, blobs: b.o.Blobs}
	key := newKey("test").sum()
	c.put(entry{Key: key})
	if _, ok := c.get(key); !ok {
		t.Error("the build that put it does not find it")
	}
	other := &stepCache{dir: b.o.Cache, blobs: b.o.Blobs}
	if _, ok := other.get(key); ok {
		t.Error("it is there before its contents are on the disk")
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	if _, ok := other.get(key); !ok {
		t.Error("flushed, and not there")
	}
	b.file("a.txt", "one")
	b.fails("FROM base\nRUN write /a 1\nCOPY a.txt /a.txt\nCOPY nosuch /x\n", "no such file")
	if _, err := b.try("FROM base\nRUN write /a 1\nCOPY a.txt /a.txt\n"); err != nil || b.kinds(EventCached) != 3 || len(b.runner.steps) != 1 {
		t.Errorf("%v, %+v", err, b.events)
	}
}

// TestCopyFromKeepsKeys: what follows a COPY --from is cached, whether the step was
// found by the whole stage, by what is copied, or was done.
func TestCopyFromKeepsKeys(t *testing.T) {
	b := newBench(t)
	const text = "FROM base AS one\nRUN write /first 1\nFROM base,etc\nCOPY --from=one /first /copied\nRUN write /second 2\n"
	for i := range 3 {
		if _, err := b.try(text); err != nil {
			t.Fatal(err)
		}
		if len(b.runner.steps) != 2 {
			t.Fatalf("build %d: %d steps", i+1, len(b.runner.steps))
		}
	}
	// Another stage with the same file.
	if _, err := b.try(strings.Replace(text, "FROM base AS", "FROM base,etc AS", 1)); err != nil || len(b.runner.steps) != 3 {
		t.Fatalf("%v, %d steps", err, len(b.runner.steps))
	}
}

// TestURootPath: the commands are found by RUN and by what the image runs.
func TestURootPath(t *testing.T) {
	b := newBench(t)
	res, _ := b.build("FROM u-root\nRUN write /a 1\n")
	if want := "PATH=" + urootPath; !slices.Contains(res.Image.Config.Env, want) || !slices.Contains(b.runner.steps[0].Env, want) {
		t.Errorf("%q, %q", res.Image.Config.Env, b.runner.steps[0].Env)
	}
}

// TestSwappedForPipe: a file that becomes a pipe after it was looked at is an error
// and no wait for somebody who writes to it.
func TestSwappedForPipe(t *testing.T) {
	b := newBench(t)
	b.file("f", "before")
	c, err := openContext(b.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	s, err := c.sources("f", nil)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(b.dir, "f")
	if err := errors.Join(os.Remove(name), unix.Mkfifo(name, 0o600)); err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 2)
	go func() {
		_, err := s[0].node.Content.Open()
		end <- err
		_, err = c.readFile("f", 10) // as INCLUDE reads
		end <- err
	}()
	for _, want := range []string{"changed while it was being read", "no regular file"} {
		select {
		case err := <-end:
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it waits for a writer")
		}
	}
}
