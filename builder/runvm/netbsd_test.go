package runvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/toolbox"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/vmm"
)

// filesVariable names the folder with what the steps need, where this test has put
// it for itself: the lab has neither a toolchain nor a cache.
const filesVariable = "SMOLVMM_STEP_FILES"

func need(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, netbsd.ErrMissing) || errors.Is(err, toolbox.ErrNoGo) {
		t.Skipf("NOT RUN: %v", err)
	}
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write puts a content into a file.
func write(t *testing.T, file string, c tree.Content) {
	t.Helper()
	b, err := tree.ReadAll(c, 1<<30)
	must(t, err)
	must(t, os.WriteFile(file, b, 0o755))
}

// TestNetBSD executes steps on a NetBSD kernel: here, where KVM can, or in the lab.
func TestNetBSD(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD")
	}
	kernel, err := netbsd.Kernel()
	need(t, err)
	cache, err := os.UserCacheDir()
	must(t, err)
	dir := t.TempDir()
	box := toolbox.New(toolbox.Options{Cache: filepath.Join(cache, "smolvmm", "toolbox"), Progress: func(s string) { t.Log(s) }})
	// The source's own smolinit, whatever is built in.
	init, err := box.Program(t.Context(), ".", "github.com/smolvmm/smolvmm/cmd/smolinit")
	need(t, err)
	write(t, filepath.Join(dir, "smolinit"), init)
	root, err := box.URoot(t.Context())
	need(t, err)
	bb, err := root.Lookup("bbin/bb")
	must(t, err)
	write(t, filepath.Join(dir, "bb"), bb.Content)
	if why := netbsd.KVM(); why != nil {
		t.Logf("in the lab: %v", why)
		lab, err := netbsd.Lab(t.Context(), t.TempDir())
		need(t, err)
		c := exec.CommandContext(t.Context(), lab, "-timeout", "12m", "-m", "3072", "-file", dir+":/t", "-file", kernel+":/t/netbsd", "-env", filesVariable+"=/t",
			os.Args[0], "-test.run=^TestSteps$", "-test.v", "-test.timeout=11m")
		out, err := c.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !strings.Contains(string(out), "--- PASS: TestSteps") {
			t.Errorf("in the lab: %v", err)
		}
		return
	}
	must(t, os.Symlink(kernel, filepath.Join(dir, "netbsd")))
	steps(t, dir)
}

// TestSteps is TestNetBSD's other half, where it runs in the lab.
func TestSteps(t *testing.T) {
	dir := os.Getenv(filesVariable)
	if dir == "" {
		t.Skip("part of TestNetBSD")
	}
	steps(t, dir)
}

// fromFile gives a file's content.
func fromFile(t *testing.T, name string) tree.Content {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return tree.Bytes(b)
}

// uroot is FROM u-root with what the steps look for.
func uroot(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	root, err := toolbox.Scratch()
	must(t, err)
	put := func(name string, n *tree.Node) { n.Mtime = 1e18; must(t, root.Put(name, n)) }
	put("bbin", tree.NewDir(0o755))
	put("bbin/bb", tree.NewFile(0o755, fromFile(t, filepath.Join(dir, "bb"))))
	for _, c := range toolbox.Commands() {
		put("bbin/"+c, tree.NewSymlink("bb"))
	}
	put("bin", tree.NewDir(0o755))
	put("bin/sh", tree.NewSymlink("../bbin/gosh"))
	put("srv", tree.NewDir(0o755))
	two := tree.NewFile(0o640, tree.Bytes("one of two"))
	two.UID, two.GID = 7, 8
	put("srv/one", two)
	put("srv/two", two)
	put("srv/gone", tree.NewDir(0o755))
	put("srv/gone/with it", tree.NewFile(0o644, tree.Bytes("x")))
	put("srv/kept", tree.NewFile(0o4711, tree.Bytes("kept")))
	put("sbin/init", tree.NewFile(0o700, tree.Bytes("the image's own init")))
	return root
}

// lines writes a tree down, a line for each name; times only of what the step made
// are not known.
func lines(t *testing.T, tr *tree.Tree) map[string]string {
	t.Helper()
	first := map[*tree.Node]string{}
	all := map[string]string{}
	must(t, tr.Walk(func(name string, n *tree.Node) error {
		l := fmt.Sprintf("%v %04o %d:%d", n.Kind, n.Perm, n.UID, n.GID)
		switch n.Kind {
		case tree.File:
			b := []byte{}
			if n.Content != nil {
				var err error
				if b, err = tree.ReadAll(n.Content, 1<<30); err != nil {
					return err
				}
			}
			if len(b) > 100 {
				l += fmt.Sprintf(" %d bytes", len(b))
			} else {
				l += fmt.Sprintf(" %q", b)
			}
		case tree.Symlink:
			l += " " + n.Target
		case tree.CharDevice, tree.BlockDevice:
			l += fmt.Sprintf(" %d,%d", n.Major, n.Minor)
		}
		if f, ok := first[n]; ok {
			l += " = " + f
		} else {
			first[n] = name
		}
		all[name] = l
		return nil
	}))
	return all
}

// compare says what differs between two trees.
func compare(before, after map[string]string) (diff []string) {
	for _, n := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[n]; !ok {
			diff = append(diff, "- "+n)
		} else if after[n] != before[n] {
			diff = append(diff, "! "+n+" "+after[n])
		}
	}
	for _, n := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[n]; !ok {
			diff = append(diff, "+ "+n+" "+after[n])
		}
	}
	return diff
}

// said takes a step's output and calls when it has a text.
type saying struct {
	mu   sync.Mutex
	b    bytes.Buffer
	text string
	call func()
}

func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
	if s.call != nil && strings.Contains(s.b.String(), s.text) {
		s.call()
		s.call = nil
	}
	return len(p), nil
}

func (s *saying) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRunner(t *testing.T, dir string, free int64) *Runner {
	t.Helper()
	store, err := blob.Open(t.TempDir())
	must(t, err)
	r, err := New(Options{
		Kernel: func(context.Context) (vmm.File, error) { return vmm.File{Path: filepath.Join(dir, "netbsd")}, nil },
		Init:   func(context.Context) (tree.Content, error) { return fromFile(t, filepath.Join(dir, "smolinit")), nil },
		Blobs:  store, Memory: 192 << 20, Free: free, Temp: t.TempDir(),
	})
	must(t, err)
	return r
}

// sawConsole logs what a machine that failed said last.
func sawConsole(t *testing.T, err error) {
	t.Helper()
	var m *MachineError
	if errors.As(err, &m) {
		t.Logf("the console:\n%s", m.Console)
	}
}

// silent is a name server that has nothing to say, but is there.
type silent struct{}

func (silent) Answer(context.Context, []byte, bool) []byte { return nil }

func steps(t *testing.T, dir string) {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	env := []string{"PATH=" + toolbox.URootPath, "GREETING=hello world"}
	const secret = "t0p-s3cret-value"

	t.Run("changes", func(t *testing.T) {
		root := uroot(t, dir)
		before := lines(t, root)
		out := &saying{}
		started := time.Now()
		after, err := newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Cwd: "/srv", Output: out, Argv: sh(`
			echo "$GREETING from $(pwd)"; echo to standard error >&2
			mkdir new; echo made > new/file; chmod 600 new/file; ln -s file new/link; mkfifo new/pipe
			echo more >> two
			rm -r gone
			mv /etc/group /etc/grp
			dd if=/dev/zero of=holes bs=1 count=0 seek=5000000 2>/dev/null; truncate -s 3000000 holes
			cat /sbin/init; echo; ls /sbin
			echo text > /dev/null; echo kernel line > /dev/console
		`)})
		t.Logf("%v, output:\n%s", time.Since(started), out)
		sawConsole(t, err)
		must(t, err)
		want := []string{
			"- etc/group", "- srv/gone", "- srv/gone/with it",
			`! srv/one file 0640 7:8 "one of twomore\n"`, `! srv/two file 0640 7:8 "one of twomore\n" = srv/one`,
			`+ etc/grp ` + before["etc/group"], "+ srv/holes file 0644 0:0 3000000 bytes", "+ srv/new directory 0755 0:0",
			`+ srv/new/file file 0600 0:0 "made\n"`, "+ srv/new/link symlink 0755 0:0 file", "+ srv/new/pipe FIFO 0666 0:0",
		}
		got := compare(before, lines(t, after))
		for i := range got { // modes of what shells and links make are theirs
			if strings.HasPrefix(got[i], "+ srv/new/link") || strings.HasPrefix(got[i], "+ srv/new/pipe") {
				f := strings.Fields(got[i])
				w := strings.Fields(want[i])
				f[3] = w[3]
				got[i] = strings.Join(f, " ")
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("the step changed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if d := compare(before, lines(t, root)); d != nil {
			t.Errorf("the step's own root was changed: %q", d)
		}
		wantOut := "hello world from /srv\nto standard error\nthe image's own init\ninit\n"
		if out.String() != wantOut {
			t.Errorf("output %q, want %q", out, wantOut)
		}
		if n, err := after.Lookup("srv/kept"); err != nil || n.Mtime != 1e18 || n.Perm != 0o4711 {
			t.Errorf("srv/kept: %+v, %v", n, err)
		}
		if n, err := after.Lookup("srv/new/file"); err != nil || time.Since(time.Unix(0, n.Mtime)).Abs() > time.Hour {
			t.Errorf("srv/new/file: %+v, %v", n, err)
		}
		if n, err := after.Lookup("srv/holes"); err == nil {
			if e, err := tree.Extents(n.Content); err != nil || len(e) != 0 {
				t.Errorf("srv/holes has data: %v, %v", e, err)
			}
		}
	})

	t.Run("failures", func(t *testing.T) {
		root := uroot(t, dir)
		out := &saying{}
		_, err := newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Output: out, UID: 7, GID: 8, Argv: sh("id; cat /srv/one; touch /srv/x || exit 42")})
		var e *builder.ExitError
		if !errors.As(err, &e) || e.Status != 42 || !strings.Contains(out.String(), "one of two") {
			t.Errorf("%v, output %q", err, out)
		}
		out = &saying{}
		_, err = newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Output: out, Argv: []string{"nosuch"}})
		if !errors.As(err, &e) || e.Status != 127 || !strings.Contains(out.String(), "nosuch") {
			t.Errorf("%v, output %q", err, out)
		}
	})

	t.Run("secrets", func(t *testing.T) {
		root := uroot(t, dir)
		before := lines(t, root)
		out := &saying{}
		after, err := newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Output: out, UID: 7, GID: 8, Argv: sh(
			`cat /run/secrets/plain; cat /srv/netrc/.netrc; echo "$TOKEN"; ls -l /run/secrets`),
			Secrets: []builder.Secret{
				{ID: "plain", Path: "/run/secrets/plain", Mode: 0o400, UID: 7, GID: 8, Data: []byte(secret + "\n")},
				{ID: "netrc", Path: "/srv/netrc/.netrc", Mode: 0o400, UID: 7, GID: 8, Data: []byte(secret + "\n")},
				{ID: "token", Env: "TOKEN", Data: []byte(secret)},
			}})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		if d := compare(before, lines(t, after)); d != nil {
			t.Errorf("changed: %q", d)
		}
		if n := strings.Count(out.String(), secret); n != 3 {
			t.Errorf("%d times in %q", n, out)
		}
	})

	t.Run("ends", func(t *testing.T) {
		root := uroot(t, dir)
		// The output is there while the command runs, and the caller can end it.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		out := &saying{text: "begun\n", call: cancel}
		if _, err := newRunner(t, dir, 64<<20).Run(ctx, builder.RunStep{Root: root, Env: env, Output: out, Argv: sh("echo begun; sleep 1000")}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, output %q", err, out)
		}
		_, err := newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Timeout: 2 * time.Second, Argv: sh("sleep 1000")})
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("%v", err)
		}
	})

	t.Run("full", func(t *testing.T) {
		root := uroot(t, dir)
		out := &saying{}
		_, err := newRunner(t, dir, 4<<20).Run(t.Context(), builder.RunStep{Root: root, Env: env, Output: out, Argv: sh("dd if=/dev/urandom of=/srv/big bs=65536 count=400; true")})
		var full *FullError
		if !errors.As(err, &full) {
			t.Errorf("%v, output %q", err, out)
		}
	})

	t.Run("network", func(t *testing.T) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "served %s", r.URL.Path)
		})}
		go func() { _ = srv.Serve(l) }()
		defer srv.Close()
		port := l.Addr().(*net.TCPAddr).Port
		root := uroot(t, dir)
		must(t, root.Put("etc/resolv.conf", tree.NewFile(0o644, tree.Bytes("nameserver 192.0.2.1\n"))))
		before := lines(t, root)
		r := newRunner(t, dir, 64<<20)
		r.o.Network = func(context.Context) (Network, error) {
			n, err := netstack.New(netstack.Config{HostServices: []uint16{uint16(port)}, NameServer: silent{}})
			if err != nil {
				return Network{}, err
			}
			return Network{Nets: []vmm.Net{{Backend: n, MAC: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}}}, Close: n.Close}, nil
		}
		// The name servers of the network are there for the step and not in what it
		// leaves behind, even if it moves them.
		out := &saying{}
		started := time.Now()
		after, err := r.Run(t.Context(), builder.RunStep{Root: root, Env: env, Output: out, Network: true, Cwd: "/srv", Argv: sh(fmt.Sprintf(
			"wget -O page http://10.0.2.2:%d/a/page; cat /etc/resolv.conf; mv /etc/resolv.conf /etc/resolv.was", port))})
		t.Logf("%v, output:\n%s", time.Since(started), out)
		sawConsole(t, err)
		must(t, err)
		want := []string{"- etc/resolv.conf", "+ etc/resolv.was " + before["etc/resolv.conf"], `+ srv/page file 0644 0:0 "served /a/page"`}
		got := compare(before, lines(t, after))
		for i := range got {
			got[i] = strings.Replace(got[i], "srv/page file 0600", "srv/page file 0644", 1) // wget's own choice
		}
		if !slices.Equal(got, want) || !strings.Contains(out.String(), "nameserver 10.0.2.3") {
			t.Errorf("changed %q, want %q; output %q", got, want, out)
		}
	})

	t.Run("bare", func(t *testing.T) {
		// Nothing but a program: no /sbin, no /dev, no /etc.
		root := tree.New()
		must(t, root.Put("bb", tree.NewFile(0o755, fromFile(t, filepath.Join(dir, "bb")))))
		must(t, root.Put("mkdir", tree.NewSymlink("bb")))
		before := lines(t, root)
		out := &saying{}
		after, err := newRunner(t, dir, 64<<20).Run(t.Context(), builder.RunStep{Root: root, Output: out, Argv: []string{"/mkdir", "/made"}})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got, want := compare(before, lines(t, after)), []string{"+ made directory 0755 0:0"}; !slices.Equal(got, want) {
			t.Errorf("changed %q, want %q", got, want)
		}
	})
}
