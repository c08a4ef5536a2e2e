package toolbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// module makes a module of one's own, as a user has it.
func module(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.com/hello\n\ngo 1.21\n"
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestProgram(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	dir := module(t, map[string]string{
		"cmd/hello/main.go": "package main\n\nfunc main() { println(\"hello\") }\n",
		"lib/lib.go":        "package lib\n",
		"broken/main.go":    "package main\n\nfunc main() { undefined() }\n",
	})
	cache := t.TempDir()
	box := New(Options{Cache: cache})
	c, err := box.Program(t.Context(), dir, "./cmd/hello")
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.ReadAll(c, 1<<30)
	if err != nil || checkProgram("hello", b) != nil || strings.Contains(string(b), dir) {
		t.Errorf("%v, %v; the folder in it: %v", err, checkProgram("hello", b), strings.Contains(string(b), dir))
	}
	for pkg, want := range map[string]string{
		"./lib": "is a library", "./broken": "undefined: undefined", "./none": "none", "-x": "is not a package",
		"./cmd/... ./lib": "",
	} {
		if _, err := box.Program(t.Context(), dir, pkg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", pkg, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := box.Program(ctx, dir, "./cmd/hello"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := New(Options{Go: "/nonexistent/go"}).Program(t.Context(), dir, "./cmd/hello"); !errors.Is(err, ErrNoGo) {
		t.Errorf("no toolchain: %v", err)
	}
	if _, err := New(Options{Go: "/nonexistent/go", Cache: t.TempDir()}).URoot(t.Context()); !errors.Is(err, ErrNoGo) {
		t.Errorf("no toolchain: %v", err)
	}
	left, err := os.ReadDir(cache)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestURootFromCache: what was built is taken from the cache without a toolchain, and
// what is damaged there is named.
func TestURootFromCache(t *testing.T) {
	init, err := New(Options{}).Init(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.ReadAll(init, maxProgram)
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	box := New(Options{Cache: cache, Go: "/nonexistent/go"})
	file := box.urootFile(filepath.Join(cache, "uroot"))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil { // any program will do
		t.Fatal(err)
	}
	root, err := box.URoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/bin/sh", "/bbin/ls", "/bbin/gosh"} {
		real, n, err := root.Resolve(name)
		if err != nil || n.Kind != tree.File || !strings.HasSuffix(real, "bbin/bb") {
			t.Errorf("%s leads to %q, %v", name, real, err)
		}
	}
	if err := os.WriteFile(file, b[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := box.URoot(t.Context()); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("damaged: %v", err)
	}
}
