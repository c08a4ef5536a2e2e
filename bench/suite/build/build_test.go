package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeFolder(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	n, err := MakeFolder(a, 30, 100_000)
	if err != nil || n < 90_000 || n > 100_000 {
		t.Fatal(n, err)
	}
	if m, err := MakeFolder(b, 30, 100_000); m != n || err != nil {
		t.Errorf("%d bytes, then %d, %v", n, m, err)
	}
	x, err1 := os.ReadFile(filepath.Join(a, "7", "7", "file-7"))
	y, err2 := os.ReadFile(filepath.Join(b, "7", "7", "file-7"))
	if err1 != nil || err2 != nil || string(x) != string(y) || len(x) == 0 {
		t.Errorf("%d and %d bytes, %v, %v", len(x), len(y), err1, err2)
	}
}

// TestSubject: time, memory and the image come from the program, and its failure is no figure.
func TestSubject(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	s := Subject{Name: "s", Env: []string{"SIZE=20000"}, Argv: func(img string) []string {
		return []string{"/bin/sh", "-c", `head -c "$SIZE" /dev/urandom >` + img}
	}}
	for _, counts := range []bool{false, true} {
		if err := s.Run(t.Context(), img, 20000, counts); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.Wall) != 1 || s.Wall[0] <= 0 || s.RSS[0] <= 0.1 || s.RSS[0] > 100 || s.Disk[0] < 0.02 {
		t.Errorf("%+v", s)
	}
	if err := s.Run(t.Context(), img, 1<<30, true); err == nil || !strings.Contains(err.Error(), "the image holds") {
		t.Errorf("an image without its contents: %v", err)
	}
	s.Argv = func(string) []string { return []string{"/bin/sh", "-c", "exit 3"} }
	if err := s.Run(t.Context(), img, 0, true); err == nil || !strings.Contains(err.Error(), "ended with 0x300") {
		t.Errorf("%v", err)
	}
}
