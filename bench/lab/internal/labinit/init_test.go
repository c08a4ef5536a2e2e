package labinit

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/smolvmm/smolvmm/bench/lab/internal/wire"
)

// The init's other parts act on the whole machine: the lab's boot test runs them.

func TestIsInit(t *testing.T) {
	if IsInit() {
		t.Error("a test process takes itself for the init")
	}
}

func TestSendOut(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "file")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 3*wire.MaxPayload), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := sendOut([]string{dir, filepath.Join(dir, "not there")}, &b); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[filepath.Clean(h.Name)] = h.Size
	}
	if len(got) != 3 || got[file] != 3*wire.MaxPayload {
		t.Errorf("handed back %v: want the folder, its folder and the file, and no link", got)
	}
	b.Reset()
	if err := sendOut(nil, &b); err != nil || b.Len() != 0 {
		t.Errorf("nothing asked for: %d bytes, %v", b.Len(), err)
	}
}
