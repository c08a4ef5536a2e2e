package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/bench/lab/internal/image"
	"github.com/smolvmm/smolvmm/bench/lab/internal/wire"
)

func TestVMArgs(t *testing.T) {
	v := vm{kernel: "/k", initrd: "/i", portFD: 4, memory: 512, cpus: 3, drives: []string{"/a,b.img", "/c.qcow2"}, kernelArgs: "loglevel=7"}
	line := strings.Join(v.args(), " ")
	for _, want := range []string{
		"-accel tcg", "-smp 3", "-m 512", "-kernel /k", "-initrd /i", "-cpu EPYC-v4,+svm,+npt", "-no-reboot",
		"socket,id=lab,fd=4", "virtserialport,chardev=lab,nr=1",
		"if=none,id=d0,file=/a,,b.img,format=raw,cache=unsafe,snapshot=on", "virtio-blk-pci,drive=d0",
		"if=none,id=d1,file=/c.qcow2,format=qcow2,cache=unsafe,snapshot=on", "virtio-blk-pci,drive=d1",
		"panic=-1 loglevel=7",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
}

func TestGoTestPaths(t *testing.T) {
	got := goTestPaths([]string{
		"-test.testlogfile=/tmp/b/testlog.txt", "-test.paniconexit0", "-test.coverprofile=/tmp/b/c.out", "--test.cpuprofile=cpu.out",
		"-test.outputdir=/pkg", "-test.gocoverdir=/tmp/b/cov", "-test.run=X", "-other=/etc", "name",
	}, "/pkg")
	for _, d := range []string{"/tmp/b", "/pkg", "/tmp/b/cov"} {
		if !slices.Contains(got.dirs, d) {
			t.Errorf("dirs %q lack %s", got.dirs, d)
		}
	}
	want := []outPath{{"/tmp/b/c.out", "/tmp/b/c.out"}, {"/pkg/cpu.out", "/pkg/cpu.out"}, {"/tmp/b/cov", "/tmp/b/cov"}}
	if !slices.Equal(got.outs, want) {
		t.Errorf("outs %v, want %v", got.outs, want)
	}
}

func TestHostGuest(t *testing.T) {
	for _, c := range []struct{ arg, host, guest string }{
		{"a", "/w/a", "/w/a"},
		{"/x/a:/etc/a", "/x/a", "/etc/a"},
		{"a:b/c", "/w/a", "/w/b/c"},
		{"/bin/true", "/bin/true", "/usr/bin/true"},
		{":b", "", ""},
		{"a:", "", ""},
	} {
		host, guest, err := hostGuest(c.arg, "/w")
		if host != c.host || guest != c.guest || (err != nil) != (c.host == "") {
			t.Errorf("hostGuest(%q) = %q, %q, %v", c.arg, host, guest, err)
		}
	}
}

func TestGuestEnv(t *testing.T) {
	t.Setenv("LAB_TEST_SET", "here")
	t.Setenv("GODEBUG", "x=1")
	env, err := guestEnv([]string{"LAB_TEST_SET", "LAB_TEST_UNSET", "HOME=/elsewhere", "EMPTY="}, "/bin", "/home/u", "/w")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SMOLVMM_LAB=1", "PATH=/bin", "HOME=/elsewhere", "PWD=/w", "LAB_TEST_SET=here", "EMPTY=", "GODEBUG=x=1"} {
		if !slices.Contains(env, want) {
			t.Errorf("%q lacks %s", env, want)
		}
	}
	if slices.ContainsFunc(env, func(e string) bool { return e == "HOME=/home/u" || strings.HasPrefix(e, "LAB_TEST_UNSET") }) {
		t.Errorf("%q has what was replaced or is not set", env)
	}
	if _, err := guestEnv([]string{"=x"}, "", "", ""); err == nil {
		t.Error("a variable without a name was accepted")
	}
}

func TestWorkDir(t *testing.T) {
	mod := t.TempDir()
	pkg := filepath.Join(mod, "pkg")
	must(t, os.MkdirAll(filepath.Join(pkg, "testdata"), 0o755))
	must(t, os.WriteFile(filepath.Join(mod, "go.mod"), []byte("module m\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(mod, "other.go"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(pkg, "testdata", "x"), []byte("x"), 0o644))
	tree := image.NewTree()
	var notes bytes.Buffer
	must(t, workDir(tree, pkg, &notes))
	if !tree.Has(filepath.Join(mod, "go.mod")) || !tree.Has(filepath.Join(pkg, "testdata", "x")) || tree.Has(filepath.Join(mod, "other.go")) {
		t.Error("want the module's go.mod and the package's folder, and nothing else")
	}

	// A sparse file makes the folder too large.
	must(t, os.WriteFile(filepath.Join(pkg, "big"), nil, 0o644))
	must(t, os.Truncate(filepath.Join(pkg, "big"), maxWorkDir+1))
	tree = image.NewTree()
	must(t, workDir(tree, pkg, &notes))
	if tree.Has(filepath.Join(pkg, "testdata", "x")) || !tree.Has(pkg) || !strings.Contains(notes.String(), "-file") {
		t.Errorf("a large folder: want it empty and a note, got note %q", notes.String())
	}

	tree = image.NewTree()
	alone := t.TempDir()
	must(t, os.WriteFile(filepath.Join(alone, "x"), nil, 0o644))
	must(t, workDir(tree, alone, &notes))
	if !tree.Has(alone) || tree.Has(filepath.Join(alone, "x")) {
		t.Error("outside a module: want the folder, empty")
	}
}

func TestUnpackOut(t *testing.T) {
	host := t.TempDir()
	outs := []outPath{{"/g/file", filepath.Join(host, "file")}, {"/g/dir", filepath.Join(host, "dir")}}
	archive := func(names ...string) io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			must(t, w.WriteHeader(&tar.Header{Name: n, Size: 2, Mode: 0o644, Typeflag: tar.TypeReg}))
			_, err := w.Write([]byte("ok"))
			must(t, err)
		}
		must(t, w.Close())
		return &b
	}
	must(t, unpackOut(archive("/g/file", "/g/dir/a/b"), outs))
	for _, p := range []string{"file", "dir/a/b"} {
		if b, err := os.ReadFile(filepath.Join(host, p)); string(b) != "ok" || err != nil {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
	for _, bad := range []string{"/etc/passwd", "/g/dir/../../etc/x", "/g/dirx", "../x"} {
		if err := unpackOut(archive(bad), outs); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	must(t, os.Symlink("/nowhere", filepath.Join(host, "dir", "link")))
	if err := unpackOut(archive("/g/dir/link"), outs); err == nil {
		t.Error("a symbolic link was followed")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "/g/dir/l", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}))
	must(t, w.Close())
	if err := unpackOut(&b, outs); err == nil {
		t.Error("a symbolic link was made")
	}
}

func TestTail(t *testing.T) {
	var x tail
	for range 40 {
		_, _ = x.Write(bytes.Repeat([]byte("a"), 10<<10))
	}
	mark := x.total()
	if mark != 400<<10 {
		t.Errorf("total %d, want %d", mark, 400<<10)
	}
	if n := len(x.since(0)); n < maxTail || n > 2*maxTail+10<<10 {
		t.Errorf("%d bytes kept", n)
	}
	_, _ = x.Write([]byte("\r\n[ 1.0] Kernel panic - not syncing: why\r\nlast\r\n"))
	if got := string(x.since(mark)); !strings.HasPrefix(got, "\r\n[ 1.0]") {
		t.Errorf("since the mark: %q", got)
	}
	if got := x.panicLine(); got != "kernel panic: not syncing: why" {
		t.Errorf("panic line %q", got)
	}
	if got := x.lines(":"); !strings.HasSuffix(got, "\nlast") {
		t.Errorf("lines end with %q", got[len(got)-10:])
	}
	var q tail
	_, _ = q.Write([]byte("qemu: warning: TCG\nqemu: no such file\nmore\n"))
	if got := q.firstError(); got != "qemu: no such file" {
		t.Errorf("first error %q", got)
	}
}

// TestBeat: a lab that runs is interrupted again and again, and one that does not read
// holds up nobody.
func TestBeat(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	port, theirs := os.NewFile(uintptr(pair[0]), "port"), os.NewFile(uintptr(pair[1]), "theirs")
	defer port.Close()
	defer theirs.Close()
	r := &running{o: &options{timeout: time.Minute}, port: port, stdout: io.Discard, stderr: io.Discard, started: make(chan struct{})}
	ended := make(chan result, 1)
	go func() {
		status, err := r.wait(nil, nil)
		ended <- result{status, err}
	}()
	w, read := wire.NewWriter(theirs), wire.NewReader(theirs)
	if err := w.Frame(wire.Started, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if k, p, err := read.Frame(); k != wire.Beat || len(p) != 0 || err != nil {
			t.Fatalf("frame %d of %d bytes, %v", k, len(p), err)
		}
	}
	if err := w.Frame(wire.Ended, []byte(`{"Code":7}`)); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e.err != nil || e.status != 7 {
		t.Errorf("%+v", e)
	}
	for range 10_000 { // far more than the socket holds
		r.beat()
	}
	if err := wire.NewWriter(port).Frame(wire.Bye, nil); err != nil {
		t.Error(err)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-timeout", "x", "/bin/true"}, "invalid value"},
		{nil, "lab [flags] PROGRAM"},
		{[]string{"setup", "-kernel", "other"}, "cloud or"},
		{[]string{"-kernel", "other", "vmlinux"}, "cloud or generic"},
	} {
		status, _, stderr := runStreams(t, c.args, nil)
		if status != exitLab || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: status %d, %q; want %d and %q", c.args, status, stderr, exitLab, c.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
