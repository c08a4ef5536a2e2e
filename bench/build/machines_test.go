package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/toolbox"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// host is what the images are built and run with: from TestMachines to
// TestMachinesOnHost by the environment.
type host struct {
	Smolvmm     string
	Data, Cache string // XDG_DATA_HOME and XDG_CACHE_HOME
	Sets        string // a folder with the sets that the test has made
}

const (
	hostVariable = "SMOLVMM_BUILD_MACHINES"
	release      = "11.0"
)

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

// TestMachines builds images, with RUN steps on NetBSD, and runs them: here, or
// all in one lab. What needs a Go toolchain is built here. TestMachinesOnHost is
// the other half.
func TestMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD")
	}
	kernel, err := netbsd.Kernel()
	need(t, err)
	dir := t.TempDir()
	h := host{Smolvmm: filepath.Join(dir, "smolvmm"), Data: filepath.Join(dir, "data"), Cache: filepath.Join(dir, "cache"), Sets: filepath.Join(dir, "sets")}
	need(t, netbsd.Program(t.Context(), h.Smolvmm, "cmd/smolvmm/smolvmm-full"))
	user, err := os.UserCacheDir()
	must(t, err)
	box := toolbox.New(toolbox.Options{Cache: filepath.Join(user, "smolvmm", "toolbox"), Progress: func(s string) { t.Log(s) }})
	uroot, err := box.URoot(t.Context())
	need(t, err)
	writeSets(t, h.Sets, uroot)
	kernels := filepath.Join(h.Cache, "smolvmm", "kernels", filepath.Base(filepath.Dir(kernel)))
	must(t, os.MkdirAll(kernels, 0o700))
	copyFile(t, filepath.Join(kernels, filepath.Base(kernel)), kernel)
	// The commands of u-root as they are for this version, so that nothing is built again.
	must(t, os.CopyFS(filepath.Join(h.Cache, "smolvmm", "toolbox", "uroot"), os.DirFS(filepath.Join(user, "smolvmm", "toolbox", "uroot"))))
	h.buildPrograms(t, dir)

	self, err := os.Executable()
	must(t, err)
	argv := []string{self, "-test.run=^TestMachinesOnHost$", "-test.v", "-test.timeout=25m"}
	inner := h
	if why := netbsd.KVM(); why != nil {
		t.Logf("in the lab: %v", why)
		lab, err := netbsd.Lab(t.Context(), t.TempDir())
		need(t, err)
		inner = host{"/t/smolvmm", "/t/data", "/t/cache", "/t/sets"}
		argv = append([]string{lab, "-timeout", "26m", "-m", "3072", "-file", dir + ":/t", "-env", hostVariable}, argv...)
	}
	env, err := json.Marshal(inner)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), hostVariable+"="+string(env))
	cmd.Dir = t.TempDir() // the lab puts it in
	said, err := cmd.CombinedOutput()
	t.Logf("%s", said)
	if err != nil || !strings.Contains(string(said), "--- PASS: TestMachinesOnHost") {
		t.Errorf("%v", err)
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o600))
}

// writeSets makes base and etc: u-root's commands where NetBSD has its own.
func writeSets(t *testing.T, dir string, uroot *tree.Tree) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	base, etc := tree.New(), tree.New()
	put := func(tr *tree.Tree, name string, n *tree.Node) { n.Mtime = 1e18; must(t, tr.Put(name, n)) }
	bbin, err := uroot.Lookup("bbin")
	must(t, err)
	put(base, "rescue", bbin)
	for _, c := range bbin.Names() {
		put(base, "bin/"+c, tree.NewSymlink("../rescue/"+c))
	}
	put(base, "bin/sh", tree.NewSymlink("../rescue/gosh"))
	put(base, "bin/df", tree.NewFile(0o755, tree.Bytes("#!/bin/sh\necho \"a disk of df $*\"\n")))
	put(base, "tmp", tree.NewDir(0o1777))
	put(etc, "etc/passwd", tree.NewFile(0o644, tree.Bytes("root:*:0:0:System:/root:/bin/sh\nnobody:*:32767:39:Unprivileged user:/nonexistent:/sbin/nologin\n")))
	put(etc, "etc/group", tree.NewFile(0o644, tree.Bytes("wheel:*:0:root\nnobody:*:39:\n")))
	put(etc, "etc/motd", tree.NewFile(0o644, tree.Bytes("Welcome to the set etc\n")))
	var sums []byte
	for name, tr := range map[string]*tree.Tree{"base": base, "etc": etc} {
		var b bytes.Buffer
		must(t, archive.Write(t.Context(), &b, tr, name))
		packed := archivetest.XZ(b.Bytes())
		must(t, os.WriteFile(filepath.Join(dir, name+".tar.xz"), packed, 0o600))
		sums = fmt.Appendf(sums, "SHA512 (%s.tar.xz) = %x\n", name, sha512.Sum512(packed))
	}
	must(t, os.WriteFile(filepath.Join(dir, "SHA512"), sums, 0o600))
}

// mirror serves the sets as NetBSD's mirrors do.
func (h host) mirror(t *testing.T) string {
	prefix := "/pub/NetBSD/NetBSD-" + release + "/amd64/binary/sets/"
	s := httptest.NewServer(http.StripPrefix(prefix, http.FileServer(http.Dir(h.Sets))))
	t.Cleanup(s.Close)
	return s.URL
}

// result is what a command printed and how it ended.
type result struct {
	out, err string
	status   int
	took     time.Duration
}

// do runs smolvmm.
func (h host) do(t *testing.T, dir, in string, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, h.Smolvmm, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), append([]string{"XDG_DATA_HOME=" + h.Data, "XDG_CACHE_HOME=" + h.Cache, "XDG_RUNTIME_DIR=" + h.Data + "/run"}, env...)...)
	c.Stdin = strings.NewReader(in)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	start := time.Now()
	err := c.Run()
	r := result{out.String(), said.String(), c.ProcessState.ExitCode(), time.Since(start)}
	t.Logf("smolvmm %s: status %d after %.1f s\n%s%s", strings.Join(args, " "), r.status, r.took.Seconds(), r.out, r.err)
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return r
}

// ok is do for what has to end with a status and print these.
func (h host) ok(t *testing.T, r result, status int, want ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d", r.status, status)
	}
	for _, w := range want {
		if !strings.Contains(r.out+r.err, w) {
			t.Errorf("it does not say %q", w)
		}
	}
}

const hello = `package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("hello from", os.Args[1:], "and", os.Getenv("WHO"))
	if err := os.WriteFile("/tmp/x", []byte("x"), 0o600); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(3)
}
`

// examples are the repository's service files.
func examples(t *testing.T) string {
	dir, err := filepath.Abs("../../builder/examples")
	must(t, err)
	return dir
}

// buildPrograms builds the images that need no machine, and a toolchain perhaps.
func (h host) buildPrograms(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "hello"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "hello", "main.go"), []byte(hello), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "hello", "go.mod"), []byte("module example.com/hello\n\ngo 1.24\n"), 0o600))
	h.ok(t, h.do(t, filepath.Join(dir, "hello"), "", nil, "build", "--go", ".", "-t", "hello"), 0, "hello:latest")

	// As its Dockerfile says.
	goweb := filepath.Join(dir, "goweb")
	must(t, os.CopyFS(goweb, os.DirFS(filepath.Join(examples(t), "goweb"))))
	c := exec.CommandContext(t.Context(), "go", "build", "-o", "goweb", ".")
	c.Dir = goweb
	c.Env = append(os.Environ(), "GOOS=netbsd", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	h.ok(t, h.do(t, goweb, "", nil, "build"), 0, "goweb:latest")
	h.ok(t, h.do(t, goweb, "", nil, "build", filepath.Join(examples(t), "shell")), 0, "shell:latest")
	h.ok(t, h.do(t, goweb, "", nil, "build", "--mirror", h.mirror(t), filepath.Join(examples(t), "job")), 0, "job:latest", "set base is ready")
	must(t, errors.Join(os.RemoveAll(filepath.Join(dir, "hello")), os.RemoveAll(goweb)))
}

// steps has RUN in its forms: a variable, a folder, a secret and a heredoc, a user
// without rights, a removal, and what one stage made in another.
const steps = `FROM base,etc AS made
LABEL smolvmm.quoting=docker
ARG GREETING=hello
ENV WHO=world
RUN --network=none echo "$GREETING $WHO from $(pwd)" > /made && chmod 640 /made && mkdir -p /srv/data && echo "the step speaks"
WORKDIR /srv
RUN --network=none --mount=type=secret,id=token <<END
cat /run/secrets/token | wc -c > token.size
rm /etc/motd
END
USER nobody
RUN --network=none id > /tmp/who && ! touch /made

FROM base,etc
LABEL smolvmm.quoting=docker
COPY --from=made /made /srv/token.size /tmp/who /out/
ENV STATUS=9
RUN --network=none ls /out > /out/list
CMD ["/bin/sh", "-c", "cat /out/made /out/token.size /out/who /out/list /etc/motd; exit $STATUS"]
`

// TestMachinesOnHost is part of TestMachines, where there is a KVM that runs NetBSD.
func TestMachinesOnHost(t *testing.T) {
	var h host
	text := os.Getenv(hostVariable)
	if text == "" {
		t.Skip("part of TestMachines")
	}
	must(t, json.Unmarshal([]byte(text), &h))
	for _, c := range []struct {
		name string
		run  func(t *testing.T)
	}{{"go", h.goProgram}, {"goweb", h.goweb}, {"shell", h.shell}, {"job", h.job}, {"run", h.runSteps}, {"fails", h.runFails}, {"u-root", h.runURoot}} {
		t.Run(c.name, c.run)
	}
	// Nothing is left of builds and machines, whether they failed or not.
	for _, pattern := range []string{"smolvmm/images/.*", "smolvmm/images/blobs/tmp/*"} {
		if left, err := filepath.Glob(filepath.Join(h.Data, pattern)); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	if all := h.do(t, t.TempDir(), "", nil, "ps", "-a", "-q"); all.out != "" {
		t.Errorf("machines are left: %q", all.out)
	}
}

// dockerfile makes a context of one file.
func dockerfile(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o600))
	return dir
}

func (h host) goProgram(t *testing.T) {
	h.ok(t, h.do(t, t.TempDir(), "", nil, "run", "--rm", "-e", "WHO=NetBSD", "hello", "one", "two words"), 3, "hello from [one two words] and NetBSD")
}

func (h host) goweb(t *testing.T) {
	dir := t.TempDir()
	h.ok(t, h.do(t, dir, "", nil, "run", "-d", "--name", "web", "--ready", "port:8080", "--ready-timeout", "4m", "goweb"), 0, "web")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The port is published by the image's own label.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8081/", nil)
	must(t, err)
	if res, err := http.DefaultClient.Do(req); err != nil {
		t.Error(err)
	} else {
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "hello from netbsd/amd64, up for ") {
			t.Errorf("%q, %v", body, err)
		}
		t.Logf("%s", body)
	}
	h.ok(t, h.do(t, dir, "", nil, "logs", "web"), 0)
	h.ok(t, h.do(t, dir, "", nil, "stop", "web"), 0)
	h.ok(t, h.do(t, dir, "", nil, "rm", "web"), 0)
}

func (h host) shell(t *testing.T) {
	h.ok(t, h.do(t, t.TempDir(), "", nil, "run", "--rm", "shell", "/bin/sh", "-c", "ls /bbin | wc -l; uname; exit 5"), 5,
		fmt.Sprint(len(toolbox.Commands())+1), "NetBSD")
}

func (h host) job(t *testing.T) {
	h.ok(t, h.do(t, t.TempDir(), "", nil, "run", "--rm", "-e", "EVERY=0", "job"), 0, "UTC", "a disk of df")
}

func (h host) runSteps(t *testing.T) {
	dir := dockerfile(t, steps)
	args := []string{"build", "--mirror", h.mirror(t), "--build-arg", "NETBSD_RELEASE=" + release, "--build-arg", "GREETING=good morning", "--secret", "token", "-t", "steps"}
	secret := []string{"token=s3cret-of-the-build"}
	h.ok(t, h.do(t, dir, "", secret, args...), 0, "the step speaks", "steps:latest")
	again := h.do(t, dir, "", secret, args...)
	h.ok(t, again, 0, "CACHED")
	if strings.Contains(again.err, "DONE") {
		t.Error("an unchanged build did something")
	}
	r := h.do(t, dir, "", nil, "run", "--rm", "-e", "STATUS=7", "steps")
	h.ok(t, r, 7, "good morning world from /", "21", "uid=32767", "Welcome to the set etc")
	lines := strings.Fields(r.out)
	for _, name := range []string{"made", "token.size", "who", "list"} {
		if !slices.Contains(lines, name) {
			t.Errorf("/out/list lacks %s", name)
		}
	}
	// The secret is in no content, whole or packed in a disk.
	err := filepath.WalkDir(h.Data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("s3cret-of-the-build")) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
	must(t, err)
}

func (h host) runFails(t *testing.T) {
	dir := dockerfile(t, "FROM base,etc\nLABEL smolvmm.quoting=docker\nRUN --network=none echo before the end; exit 42\n")
	r := h.do(t, dir, "", nil, "build", "--mirror", h.mirror(t), "--build-arg", "NETBSD_RELEASE="+release, "-t", "fails")
	h.ok(t, r, 1, "before the end", "Dockerfile:3", "42")
	if all := h.do(t, dir, "", nil, "images"); strings.Contains(all.out, "fails") {
		t.Error("a build that failed made an image")
	}
}

func (h host) runURoot(t *testing.T) {
	dir := dockerfile(t, "FROM u-root\nRUN --network=none echo made by u-root > /made\nRUN --network=none cat /made\n")
	h.ok(t, h.do(t, dir, "", nil, "build", "-t", "toolbox"), 0, "toolbox:latest", " made by u-root\n")
}
