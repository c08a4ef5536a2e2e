package testimg

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	for _, c := range []struct {
		name string
		spec Spec
	}{
		{"1k", Spec{Files: []File{{Path: "/a/b/hello", Data: []byte("hello\n"), Mode: 0o755}}, Dirs: []string{"/tmp"}, Size: 4 << 20}},
		{"4k", Spec{Files: []File{{Path: "/a/b/hello", Data: []byte("hello\n"), Mode: 0o755}}, Dirs: []string{"/tmp"}, Size: 8 << 20, Block: 4096}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			if err := Build(t.Context(), img, c.spec); err != nil {
				t.Fatal(err)
			}
			fsck(t, img)
			for _, q := range []struct{ ask, want string }{
				{"stat /dev/console", "character special"},
				{"stat /dev/console", "0600"},
				{"stat /dev/null", "0666"},
				{"stat /dev/null", "major/minor number: 02:02"},
				{"stat /dev/ld0a", "major/minor number: 19:00"},
				{"stat /a/b/hello", "Mode:  0755"},
				{"stat /a/b/hello", "User:     0   Group:     0"},
				{"stat /tmp", "Mode:  01777"},
				{"cat /a/b/hello", "hello"},
			} {
				if got := debug(t, img, q.ask); !strings.Contains(got, q.want) {
					t.Errorf("%s lacks %q:\n%s", q.ask, q.want, got)
				}
			}
			if f := debug(t, img, "features"); strings.Contains(f, "extent") || strings.Contains(f, "64bit") || strings.Contains(f, "metadata_csum") {
				t.Errorf("NetBSD cannot write to a file system with %s", f)
			}
			again := filepath.Join(t.TempDir(), "img")
			if err := Build(t.Context(), again, c.spec); err != nil {
				t.Fatal(err)
			}
			a, errA := os.ReadFile(img)
			b, errB := os.ReadFile(again)
			if errA != nil || errB != nil || !bytes.Equal(a, b) {
				t.Errorf("the same image twice differs (%v, %v)", errA, errB)
			}
		})
	}
}

func TestBuildErrors(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	for name, s := range map[string]Spec{
		"no room":       {Files: []File{{Path: "/big", Data: bytes.Repeat([]byte{1}, 8<<20)}}, Size: 1 << 20},
		"odd path":      {Files: []File{{Path: "/a b"}}},
		"relative path": {Files: []File{{Path: "a"}}},
		"dots":          {Dirs: []string{"/a/../b"}},
	} {
		if err := Build(context.Background(), img, s); err == nil {
			t.Errorf("%s: built all the same", name)
		}
	}
}

func debug(t *testing.T, img, ask string) string {
	t.Helper()
	debugfs, err := tool("debugfs")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(debugfs, "-R", ask, img).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", ask, err, out)
	}
	return string(out)
}

// fsck holds an image against a checker that knows nothing of this package.
func fsck(t *testing.T, img string) {
	t.Helper()
	e2fsck, err := tool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(e2fsck, "-f", "-n", img).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
