package runvm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// memory is a log's disk.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p) - len(m.b); n > 0 {
		m.b = append(m.b, make([]byte, n)...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

// frame is what a guest may append.
type frame struct {
	t steplog.Type
	p string
}

func logOf(t testing.TB, frames ...frame) *memory {
	t.Helper()
	m := &memory{}
	w := steplog.NewWriter(m, 1<<30, make([]byte, steplog.MaxPayload+steplog.HeaderSize), func() {})
	for _, f := range frames {
		if err := w.Append(f.t, []byte(f.p)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// followed reads a whole log, as of a machine that has ended.
func followed(m *memory, output io.Writer) (*follower, error) {
	f := &follower{r: steplog.NewReader(m), output: output, left: 1 << 20}
	ended := make(chan struct{})
	close(ended)
	return f, f.follow(nil, ended)
}

func tarOf(t testing.TB, hs ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		h.Size = int64(len(h.Uname)) // the contents, for these tests
		body := h.Uname
		h.Uname = ""
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func result(t testing.TB, r steplog.Result) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func testRunner(t testing.TB) *Runner {
	t.Helper()
	store, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{
		Kernel: func(context.Context) (vmm.File, error) {
			k := demo.Kernel()
			return vmm.File{Name: "demo", Data: k, Size: k.Size()}, nil
		},
		Init:  func(context.Context) (tree.Content, error) { return tree.Bytes("no program"), nil },
		Blobs: store, Temp: t.TempDir(), Memory: 32 << 20, Free: 16 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sampleRoot is what a step begins with in these tests.
func sampleRoot(t testing.TB) *tree.Tree {
	t.Helper()
	root := tree.New()
	for name, text := range map[string]string{"a/one": "1", "a/two": "2", "b/three": "3"} {
		if err := root.Put(name, tree.NewFile(0o644, tree.Bytes(text))); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestOutcome: what a log tells becomes a tree or one of the errors.
func TestOutcome(t *testing.T) {
	r := testRunner(t)
	ok := frame{steplog.Report, result(t, steplog.Result{})}
	for _, c := range []struct {
		name   string
		frames []frame
		full   bool
		diff   []string
		output string
		check  func(error) bool
	}{
		{"nothing changed", []frame{{steplog.Output, "hello\n"}, ok}, false, nil, "hello\n", nil},
		{"changes", []frame{{steplog.Gone, "a/one\x00b\x00not there\x00"}, {steplog.Changes, tarOf(t,
			tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o700}, tar.Header{Name: "a/two", Typeflag: tar.TypeReg, Mode: 0o600, Uname: "new"},
			tar.Header{Name: "c", Typeflag: tar.TypeLink, Linkname: "a/two"})}, ok}, false,
			[]string{"! a directory 0700 0:0", "- a/one", `! a/two file 0600 0:0 "new"`, "- b", "- b/three", `+ c file 0600 0:0 "new" = a/two`}, "", nil},
		{"exit status", []frame{{steplog.Report, result(t, steplog.Result{Status: 3})}}, false, nil, "", func(err error) bool {
			var e *builder.ExitError
			return errors.As(err, &e) && e.Status == 3
		}},
		{"did not start", []frame{{steplog.Report, result(t, steplog.Result{Status: 127, Start: "find in PATH x:\x1b[31m file does not exist"})}}, false, nil,
			"find in PATH x: [31m file does not exist\n", func(err error) bool {
				var e *builder.ExitError
				return errors.As(err, &e) && e.Status == 127
			}},
		{"smolinit failed", []frame{{steplog.Report, result(t, steplog.Result{Status: 125, Error: "no\nway"})}}, false, nil, "", func(err error) bool {
			var e *MachineError
			return errors.As(err, &e) && strings.Contains(err.Error(), "no way")
		}},
		{"full, and the command went on", []frame{ok}, true, nil, "", func(err error) bool {
			var e *FullError
			return errors.As(err, &e) && strings.Contains(err.Error(), "64 MiB free")
		}},
		{"output lost, a socket", []frame{{steplog.Report, result(t, steplog.Result{Lost: 5, Skipped: []string{"tmp/s"}})}}, false, nil,
			"\n[5 more bytes of output are left out]\n[/tmp/s is a socket: images have none]\n", nil},
		{"a name that leads out", []frame{{steplog.Gone, "../etc\x00"}, ok}, false, nil, "", func(err error) bool {
			var e *MachineError
			return errors.As(err, &e)
		}},
		{"the root is gone", []frame{{steplog.Gone, ".\x00"}, ok}, false, nil, "", func(err error) bool {
			var e *MachineError
			return errors.As(err, &e)
		}},
		{"an archive that leads out", []frame{{steplog.Changes, tarOf(t, tar.Header{Name: "../x", Typeflag: tar.TypeReg, Mode: 0o600})}, ok}, false, nil, "",
			func(err error) bool { return strings.Contains(err.Error(), "the step's changes") }},
		{"half an archive", []frame{{steplog.Changes, tarOf(t, tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o600, Uname: "abc"})[:700]}, ok}, false, nil, "",
			func(err error) bool { return strings.Contains(err.Error(), "cut short") }},
	} {
		var out strings.Builder
		f, err := followed(logOf(t, c.frames...), &out)
		if err != nil || !f.reported {
			t.Errorf("%s: %v, reported %v", c.name, err, f.reported)
			continue
		}
		f.said.full = c.full
		root := sampleRoot(t)
		before := lines(t, root)
		after, err := r.outcome(t.Context(), builder.RunStep{Root: root, Output: &out}, &f.said, 64<<20)
		switch {
		case c.check != nil:
			if err == nil || !c.check(err) || after != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		default:
			if d := compare(before, lines(t, after)); !slices.Equal(d, c.diff) {
				t.Errorf("%s: %q, want %q", c.name, d, c.diff)
			}
		}
		if out.String() != c.output {
			t.Errorf("%s: output %q, want %q", c.name, out.String(), c.output)
		}
		if d := compare(before, lines(t, root)); d != nil {
			t.Errorf("%s: the step's own root was changed: %q", c.name, d)
		}
	}
}

// TestFollowStreams: output is passed on as it is marked, not at the end.
func TestFollowStreams(t *testing.T) {
	m, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	defer m.Close()
	marked, ended := make(chan struct{}), make(chan struct{})
	w := steplog.NewWriter(m, 1<<20, make([]byte, steplog.MaxPayload+steplog.HeaderSize), func() {})
	got := make(chan string, 10)
	f := &follower{r: steplog.NewReader(m), left: 1 << 20, output: writerFunc(func(p []byte) (int, error) { got <- string(p); return len(p), nil })}
	done := make(chan error, 1)
	go func() { done <- f.follow(marked, ended) }()
	marked <- struct{}{} // it has looked at the empty log, and waits again or will
	for _, s := range []string{"one", "two"} {
		must(t, w.Append(steplog.Output, []byte(s)))
		marked <- struct{}{}
		if g := <-got; g != s {
			t.Errorf("%q, want %q", g, s)
		}
	}
	close(ended)
	if err := <-done; err != nil || f.reported || f.incomplete == nil {
		t.Errorf("%v, reported %v, %v", err, f.reported, f.incomplete)
	}
	// Who cannot write what the command says ends the step.
	broken := errors.New("broken pipe")
	if _, err := followed(logOf(t, frame{steplog.Output, "x"}), writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestOutputIsBounded: a guest that does not keep to the bound of its output has a
// disk of gigabytes to fill with it.
func TestOutputIsBounded(t *testing.T) {
	m := logOf(t, frame{steplog.Output, strings.Repeat("x", 3<<19)}, frame{steplog.Output, "more"}, frame{steplog.Report, "{}"})
	var out bytes.Buffer
	f, err := followed(m, &out)
	if err != nil || !f.reported || out.Len() != 1<<20 {
		t.Errorf("%d bytes given on, reported %v, %v", out.Len(), f.reported, err)
	}
}

func TestConsole(t *testing.T) {
	c := &console{}
	for range 10000 {
		_, _ = c.Write([]byte("a line of the kernel's\r\n"))
	}
	_, _ = c.Write([]byte("uid 0, pid 7, command dd, on /: file sys"))
	if text, full := c.end(); full || len(text) > maxConsole || !strings.HasSuffix(text, "on /: file sys\n") {
		t.Errorf("%d bytes, full %v, ends %q", len(text), full, lastLine(text))
	}
	if len(c.tail) > 2*maxConsole || cap(c.tail) > 8*maxConsole {
		t.Errorf("%d bytes are kept, %d taken", len(c.tail), cap(c.tail))
	}
	for line, want := range map[string]bool{
		"uid 0, pid 7, command dd, on /: file system full": true, "/: write failed, file system is full": true,
		"uid 0, pid 7, command dd, on /: out of inodes": true, "uid 0, pid 7, command dd, on /tmp: file system full": false, "": false,
	} {
		c := &console{}
		_, _ = c.Write([]byte("x\r\n" + line + "\r\ny"))
		if _, full := c.end(); full != want {
			t.Errorf("%q: full %v", line, full)
		}
	}
}

// TestMachines: guests that are no step's, with the demo guest in smolinit's place.
func TestMachines(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skipf("NOT RUN: %v", err)
	} else {
		f.Close()
	}
	for _, c := range []struct {
		name, mode string
		says       string
	}{
		{"ends without a report", "demo=exit=0", "ended without a report: the guest exited with status 0"},
		{"resets itself", "demo=reboot=kbd", "ended without a report: reboot"},
		{"crashes", "demo=triple", "triple fault"},
		{"talks and ends", "demo=hello", "its console ends with: demo: "},
		{"writes over the log", "demo=blkbench=4,4096,w,64,dev=1", "ended without a report"},
	} {
		r := testRunner(t)
		r.o.Cmdline = c.mode
		_, err := r.Run(t.Context(), builder.RunStep{Root: sampleRoot(t), Argv: []string{"x"}})
		var m *MachineError
		if !errors.As(err, &m) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		left, err := filepath.Glob(filepath.Join(r.o.Temp, "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left behind %q, %v", c.name, left, err)
		}
	}
	// A guest that never ends is ended by time or by the caller.
	r := testRunner(t)
	r.o.Cmdline = "demo=spin"
	started := time.Now()
	if _, err := r.Run(t.Context(), builder.RunStep{Root: sampleRoot(t), Argv: []string{"x"}, Timeout: 50 * time.Millisecond}); !errors.Is(err, ErrTimeout) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.o.Network = func(context.Context) (Network, error) {
		cancel()
		return Network{Close: func() error { return nil }}, nil
	}
	if _, err := r.Run(ctx, builder.RunStep{Root: sampleRoot(t), Argv: []string{"x"}, Network: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if d := time.Since(started); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	// The network is closed whatever happens, and its error is not lost.
	broken := errors.New("broken network")
	r.o.Cmdline = "demo=exit=1"
	r.o.Network = func(context.Context) (Network, error) { return Network{Close: func() error { return broken }}, nil }
	if _, err := r.Run(t.Context(), builder.RunStep{Root: sampleRoot(t), Argv: []string{"x"}, Network: true}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestItemsAreWiped: a step's secrets end with its machine, also with one that fails.
func TestItemsAreWiped(t *testing.T) {
	list, err := items(builder.RunStep{Argv: []string{"x"}, Secrets: []builder.Secret{{ID: "token", Env: "TOKEN", Data: []byte("t0p")}}}, &booting{}, 1<<20, 0)
	must(t, err)
	if len(list) != 2 || list[0].Len() != 3 || list[1].Len() == 0 {
		t.Fatalf("%v", list)
	}
	m := &machine{cfg: vmm.Config{Kernel: vmm.File{Path: filepath.Join(t.TempDir(), "no kernel")}, Items: list}}
	if _, err := m.run(t.Context()); err == nil {
		t.Error("a machine without a kernel")
	}
	for _, it := range list {
		if it.Len() != 0 {
			t.Errorf("%v is there after its machine", it)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("a runner of nothing")
	}
}

// FuzzOutcome: whatever a guest has written to the log, a step ends with a sound tree
// or an error, and without more memory than the log is large.
func FuzzOutcome(f *testing.F) {
	ok := frame{steplog.Report, result(f, steplog.Result{})}
	for _, frames := range [][]frame{
		{{steplog.Output, "hello\n"}, ok},
		{{steplog.Gone, "a/one\x00b\x00"}, {steplog.Changes, tarOf(f, tar.Header{Name: "a/two", Typeflag: tar.TypeReg, Mode: 0o600, Uname: "new"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"})}, ok},
		{{steplog.Report, result(f, steplog.Result{Status: 3, Error: "x", Skipped: []string{"y"}})}},
	} {
		for _, fr := range frames {
			f.Add(uint8(fr.t), []byte(fr.p), []byte(frames[0].p))
		}
	}
	r := testRunner(f)
	r.o.Blobs = nil // contents in memory: a file for each would be all that is measured
	f.Fuzz(func(t *testing.T, ty uint8, p, changes []byte) {
		frames := []frame{{steplog.Type(ty%4 + 1), string(p)}, {steplog.Changes, string(changes)}, ok}
		fo, err := followed(logOf(t, frames...), io.Discard)
		if err != nil {
			return
		}
		root := sampleRoot(t)
		after, err := r.outcome(t.Context(), builder.RunStep{Root: root, Output: io.Discard}, &fo.said, 0)
		if err != nil {
			return
		}
		if err := after.Encode(io.Discard); err != nil {
			t.Fatal(err)
		}
		if n, err := root.Lookup("a/one"); err != nil || n.Size() != 1 {
			t.Fatal("the step's own root was changed")
		}
	})
}
