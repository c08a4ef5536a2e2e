package toolbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/smolvmm/smolvmm/builder/tree"
)

var (
	update  = flag.Bool("update", false, "write smolinit.zst and smolinit.json anew from cmd/smolinit")
	release = flag.Bool("release", false, "fail if smolinit.zst is older than its source in any way")
)

const (
	smolinitPackage = "github.com/smolvmm/smolvmm/cmd/smolinit"
	maxBlob         = 1500 << 10 // bytes: it is in the repository's history for good
)

// goTool runs the go command for the guest.
func goTool(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT COMPARED with its source: %v", err)
	}
	c := exec.Command("go", args...)
	c.Env = append(append(os.Environ(), netbsd()...), "GOFLAGS=-mod=readonly", "GOWORK=off")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", c, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// sourceDigest is of all that smolinit is built from: the files of this module, and
// the versions of others.
func sourceDigest(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	for line := range strings.Lines(goTool(t, "list", "-deps", "-f",
		"{{if .Module}}{{if .Module.Main}}{{range .GoFiles}}{{$.Dir}}/{{.}}\n{{end}}{{range .SFiles}}{{$.Dir}}/{{.}}\n{{end}}{{else}}{{.Module.Path}}@{{.Module.Version}}\n{{end}}{{end}}", smolinitPackage)) {
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		if !filepath.IsAbs(name) {
			fmt.Fprintln(h, name)
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(h, filepath.Base(name), len(b))
		h.Write(b)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// sourceLevel is the constant in cmd/smolinit.
func sourceLevel(t *testing.T) int {
	t.Helper()
	file := filepath.Join("..", "..", "cmd", "smolinit", "level.go")
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	level := 0
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "level" {
			level, _ = strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	if level == 0 {
		t.Fatalf("%s has no level", file)
	}
	return level
}

// buildSmolinit builds it in a module's folder, which must not show in the bytes.
func buildSmolinit(t *testing.T) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "smolinit")
	goTool(t, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, smolinitPackage)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSmolinitIsItsSource: the bytes are of the level that hosts rely on, and what the
// source builds to where source and toolchain are those of the record.
func TestSmolinitIsItsSource(t *testing.T) {
	here := record{Level: sourceLevel(t), Go: goTool(t, "env", "GOVERSION"), Source: sourceDigest(t)}
	if *update {
		b := buildSmolinit(t)
		here.Digest, here.Size = digest(b), len(b)
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
		if err != nil {
			t.Fatal(err)
		}
		j, err := json.MarshalIndent(here, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"smolinit.zst": e.EncodeAll(b, nil), "smolinit.json": append(j, '\n')} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d bytes", name, len(data))
		}
		return
	}
	var r record
	if err := json.Unmarshal([]byte(smolinitRecord), &r); err != nil {
		t.Fatal(err)
	}
	const renew = "run go generate ./builder/toolbox"
	if r.Level != here.Level {
		t.Errorf("the built-in smolinit is of level %d and cmd/smolinit of level %d: %s", r.Level, here.Level, renew)
	}
	if r.Source != here.Source {
		if *release {
			t.Errorf("the built-in smolinit is older than cmd/smolinit: %s", renew)
		} else {
			t.Logf("NOT COMPARED: the built-in smolinit is older than cmd/smolinit, by nothing that hosts rely on; %s before a release", renew)
		}
		return
	}
	if r.Go != here.Go {
		t.Skipf("NOT COMPARED with its source: built by %s, here is %s", r.Go, here.Go)
	}
	if b := buildSmolinit(t); digest(b) != r.Digest {
		t.Errorf("the built-in smolinit is not what its source builds to: %s", renew)
	}
}

func TestSmolinitIsThere(t *testing.T) {
	if len(smolinitBytes) > maxBlob {
		t.Errorf("%d bytes, more than %d", len(smolinitBytes), maxBlob)
	}
	box := New(Options{})
	c, err := box.Init(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.ReadAll(c, maxProgram)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkProgram("smolinit", b); err != nil {
		t.Error(err)
	}
	own := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(own, b[:4096], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Init: own}).Init(t.Context()); err == nil {
		t.Error("half a program is an init")
	}
	if err := os.WriteFile(own, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := New(Options{Init: own}).Init(t.Context()); err != nil || c.Size() != int64(len(b)) {
		t.Errorf("%v", err)
	}
}

func TestCheckProgram(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := checkProgram("test", self); err == nil || !strings.Contains(err.Error(), "GOOS=netbsd") {
		t.Errorf("a program for Linux: %v", err)
	}
	if err := checkProgram("text", []byte("#!/bin/sh\n")); err == nil {
		t.Error("a script is a program")
	}
}

func TestScratch(t *testing.T) {
	a, err := Scratch()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Scratch()
	if err != nil {
		t.Fatal(err)
	}
	da, errA := a.Digest()
	db, errB := b.Digest()
	if errA != nil || errB != nil || da != db {
		t.Errorf("two trees: %s %v, %s %v", da, errA, db, errB)
	}
	for name, want := range map[string]tree.Node{
		"dev/console": {Kind: tree.CharDevice, Perm: 0o600}, "dev/null": {Kind: tree.CharDevice, Perm: 0o666, Major: 2, Minor: 2},
		"dev/ld0a": {Kind: tree.BlockDevice, Perm: 0o640, Major: 19}, "dev/rld1d": {Kind: tree.CharDevice, Perm: 0o640, Major: 69, Minor: 19},
		"tmp": {Kind: tree.Dir, Perm: 0o1777}, "sbin": {Kind: tree.Dir, Perm: 0o755}, "dev/pts": {Kind: tree.Dir, Perm: 0o755},
	} {
		n, err := a.Lookup(name)
		if err != nil || n.Kind != want.Kind || n.Perm != want.Perm || n.Major != want.Major || n.Minor != want.Minor {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if err := a.Put("dev/null", tree.NewFile(0o600, nil)); err != nil {
		t.Fatal(err)
	}
	if err := Devices(a); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Lookup("dev/null"); err != nil || n.Kind != tree.File {
		t.Error("what has a node's name was replaced")
	}
}

func TestCommands(t *testing.T) {
	names := Commands()
	for _, n := range []string{"gosh", "ls", "cat", "cp", "rm", "mkdir", "tar", "wget"} {
		if !slices.Contains(names, n) {
			t.Errorf("no %s", n)
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) || len(names) < 70 {
		t.Errorf("%d names: %q", len(names), names)
	}
}
