package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// bench is a builder's surroundings in a folder of the test's.
type bench struct {
	t      testing.TB
	dir    string // the build context
	o      Options
	sets   *fakeSets
	images *fakeImages
	runner *fakeRunner
	events []Event
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), sets: &fakeSets{sets: map[string]*tree.Tree{}}, runner: &fakeRunner{}}
	store, err := blob.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	b.images = &fakeImages{dir: t.TempDir(), images: map[string]spec.Image{}, disks: map[string]string{}, trees: map[string]*tree.Tree{}}
	b.o = Options{
		Dockerfile: "Dockerfile", Context: b.dir, Args: map[string]string{}, Blobs: store, Cache: filepath.Join(t.TempDir(), "steps"),
		Sets: b.sets, Images: b.images, Runner: b.runner, Toolbox: fakeTools{}, Secrets: map[string][]byte{},
	}
	b.o.Progress = func(ev Event) {
		ev.Data = bytes.Clone(ev.Data)
		b.events = append(b.events, ev)
	}
	b.sets.sets["base"] = treeOf(t,
		"bin/sh", "the shell", "sbin/init", "netbsd's init", "usr/bin/", "", "usr/bin/id", "id", "lib", "@usr/lib", "usr/lib/libc.so", "libc")
	b.sets.sets["etc"] = treeOf(t,
		"etc/passwd", "root:*:0:0:Charlie &:/root:/bin/sh\nweb:*:1000:100:Web:/home/web:/bin/sh\n",
		"etc/group", "wheel:*:0:root\nusers:*:100:\nextra:*:200:web,root\n")
	return b
}

// treeOf makes a tree of pairs path, content. A path that ends in a slash is a
// folder, a content that begins with @ a link's target.
func treeOf(t testing.TB, pairs ...string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for i := 0; i < len(pairs); i += 2 {
		n := tree.NewFile(0o644, tree.Bytes(pairs[i+1]))
		if target, ok := strings.CutPrefix(pairs[i+1], "@"); ok {
			n = tree.NewSymlink(target)
		} else if strings.HasSuffix(pairs[i], "/") {
			n = tree.NewDir(0o755)
		}
		n.Mtime = 1e18
		if err := out.Put(pairs[i], n); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// file writes a file of the build context.
func (b *bench) file(name, text string) {
	b.t.Helper()
	name = filepath.Join(b.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) try(text string) (*Result, error) {
	b.events = nil
	o := b.o
	o.Text = []byte(text)
	return Build(context.Background(), o)
}

func (b *bench) build(text string) (*Result, *tree.Tree) {
	b.t.Helper()
	res, err := b.try(text)
	if err != nil {
		b.t.Fatal(err)
	}
	root, err := res.Root()
	if err != nil {
		b.t.Fatal(err)
	}
	return res, root
}

// fails builds what has to fail, and checks the message.
func (b *bench) fails(text, want string) {
	b.t.Helper()
	_, err := b.try(text)
	if err == nil || !strings.Contains(err.Error(), want) {
		b.t.Errorf("%q\n got %v\nwant …%s…", text, err, want)
	} else if strings.Contains(err.Error(), "\n") {
		b.t.Errorf("%q: more than a line: %v", text, err)
	}
}

// kinds counts events.
func (b *bench) kinds(k EventKind) int {
	n := 0
	for _, ev := range b.events {
		if ev.Kind == k {
			n++
		}
	}
	return n
}

func (b *bench) warnings() string {
	var out []string
	for _, ev := range b.events {
		if ev.Kind == EventWarning {
			out = append(out, ev.Text)
		}
	}
	return strings.Join(out, "\n")
}

// text reads a file of a root, links followed.
func text(t testing.TB, root *tree.Tree, name string) string {
	t.Helper()
	_, n, err := root.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.ReadAll(n.Content, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func node(t testing.TB, root *tree.Tree, name string) *tree.Node {
	t.Helper()
	n, err := root.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func absent(t testing.TB, root *tree.Tree, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := root.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there (%v)", name, err)
		}
	}
}

type fakeSets struct {
	sets    map[string]*tree.Tree
	opened  int
	release string
}

func (s *fakeSets) Fetch(_ context.Context, release string, names []string) ([]Layer, error) {
	s.release = release
	var out []Layer
	for _, n := range names {
		t := s.sets[n]
		if t == nil {
			return nil, fmt.Errorf("set %s: the mirror does not have it", n)
		}
		d, err := t.Digest()
		if err != nil {
			return nil, err
		}
		out = append(out, Layer{n, d, func(context.Context) (*tree.Tree, error) { s.opened++; return t, nil }})
	}
	return out, nil
}

type fakeTools struct{}

func (fakeTools) Init(context.Context) (tree.Content, error) { return tree.Bytes("smolinit"), nil }
func (fakeTools) URoot(context.Context) (*tree.Tree, error) {
	t := tree.New()
	return t, t.Put("bin/ls", tree.NewFile(0o755, tree.Bytes("u-root's ls")))
}

type fakeImages struct {
	dir    string
	images map[string]spec.Image
	trees  map[string]*tree.Tree
	disks  map[string]string
	puts   int
}

func (f *fakeImages) Resolve(_ context.Context, ref string) (spec.Image, error) {
	img, ok := f.images[ref]
	if !ok {
		return img, fs.ErrNotExist
	}
	return img, nil
}
func (f *fakeImages) Tree(_ context.Context, img spec.Image) (*tree.Tree, error) {
	return f.trees[img.Tree], nil
}
func (f *fakeImages) HasDisk(d string) bool { return f.disks[d] != "" }
func (f *fakeImages) Temp() (string, error) {
	w, err := os.CreateTemp(f.dir, "new-*")
	if err != nil {
		return "", err
	}
	return w.Name(), w.Close()
}
func (f *fakeImages) Put(_ context.Context, refs []string, img spec.Image, disk string, root *tree.Tree) error {
	f.puts++
	if _, err := img.Encode(); err != nil {
		return err
	}
	if disk != "" {
		to := filepath.Join(f.dir, strings.ReplaceAll(img.Disk.Digest, ":", "-"))
		if err := os.Rename(disk, to); err != nil {
			return err
		}
		f.disks[img.Disk.Digest] = to
		f.trees[img.Tree] = root
	}
	for _, r := range refs {
		f.images[r] = img
	}
	return nil
}

// fakeRunner does what the last word of the command says, a line each: "write
// PATH TEXT", "remove PATH", "print TEXT", "exit N", "env NAME PATH", "who PATH",
// "secret ID PATH", "wait".
type fakeRunner struct {
	mu    sync.Mutex
	steps []RunStep
	hook  func(ctx context.Context, s RunStep) error
}

func (r *fakeRunner) Run(ctx context.Context, s RunStep) (*tree.Tree, error) {
	r.mu.Lock()
	r.steps = append(r.steps, s)
	r.mu.Unlock()
	if r.hook != nil {
		if err := r.hook(ctx, s); err != nil {
			return nil, err
		}
	}
	root := s.Root.Clone()
	script := s.Argv[len(s.Argv)-1]
	if len(s.Argv) == 1 {
		b, err := readFile(root, s.Argv[0], 1<<20)
		if err != nil {
			return nil, err
		}
		script = b
	}
	put := func(name, text string) error {
		n := tree.NewFile(0o644, tree.Bytes(text))
		n.UID, n.GID, n.Mtime = s.UID, s.GID, time.Now().UnixNano()
		return root.Put(name, n)
	}
	for line := range strings.Lines(script) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		f = append(f, "", "")
		var err error
		switch f[0] {
		case "write":
			err = put(f[1], f[2])
		case "remove":
			err = root.Remove(f[1])
		case "print":
			_, err = io.WriteString(s.Output, strings.TrimSpace(line[6:])+"\n")
		case "env":
			value := "(unset)"
			for _, e := range s.Env {
				if v, ok := strings.CutPrefix(e, f[1]+"="); ok {
					value = v
				}
			}
			err = put(f[2], value)
		case "who":
			err = put(f[1], fmt.Sprintf("%d:%d %v %s", s.UID, s.GID, s.Groups, s.Cwd))
		case "copy":
			var b string
			if b, err = readFile(root, f[1], 1<<20); err == nil {
				err = put(f[2], b)
			}
		case "exit":
			var n int
			fmt.Sscan(f[1], &n)
			err = &ExitError{n}
		}
		if err != nil {
			return nil, err
		}
	}
	return root, nil
}

// tarball packs pairs as treeOf has them.
func tarball(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), Typeflag: tar.TypeReg, Uid: 7, Gid: 8}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBuildSets(t *testing.T) {
	b := newBench(t)
	res, root := b.build(`
ARG NETBSD_RELEASE=10.1
FROM base,etc
LABEL smolbsd.publish="8881:8880" smolbsd.imgsize=32 version=1
ENV GREETING="hello world"
EXPOSE 8880 53/udp 9000:90
VOLUME ["/data"]
WORKDIR /srv/app
USER web
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s CMD fetch / || exit 1
ENTRYPOINT ["/bin/app"]
CMD ["--serve"]
`)
	if b.sets.release != "10.1" {
		t.Errorf("release %q", b.sets.release)
	}
	c := res.Image.Config
	if c.UID != 1000 || c.GID != 100 || !slices.Equal(c.Groups, []uint32{200}) || c.User != "web" {
		t.Errorf("user: %+v", c)
	}
	if !slices.Equal(c.Argv(nil), []string{"/bin/app", "--serve"}) || c.WorkingDir != "/srv/app" || c.StopSignal != "SIGINT" {
		t.Errorf("%+v", c)
	}
	if !slices.Equal(c.Env, []string{"PATH=" + netbsdPath, "GREETING=hello world", "HOME=/home/web"}) {
		t.Errorf("env %q", c.Env)
	}
	if !slices.Equal(c.ExposedPorts, []string{"8880/tcp", "53/udp", "90/tcp"}) || !slices.Equal(res.Image.Publish, []string{"9000:90/tcp", "8881:8880/tcp"}) {
		t.Errorf("%q %q", c.ExposedPorts, res.Image.Publish)
	}
	if !slices.Equal(c.Healthcheck.Test, []string{"CMD-SHELL", "fetch / || exit 1"}) || c.Healthcheck.Interval != 30*time.Second {
		t.Errorf("%+v", c.Healthcheck)
	}
	for _, d := range []string{"srv/app", "data", "dev", "tmp"} {
		if n := node(t, root, d); n.Kind != tree.Dir {
			t.Errorf("%s is a %v", d, n.Kind)
		}
	}
	if n := node(t, root, "dev/null"); n.Kind != tree.CharDevice || n.Major != 2 || n.Minor != 2 || n.Perm != 0o666 {
		t.Errorf("dev/null: %+v", n)
	}
	if got := text(t, root, "sbin/init"); got != "smolinit" {
		t.Errorf("init is %q", got)
	}
	if conf := text(t, root, "etc/smolinit.json"); !strings.Contains(conf, `"/bin/app"`) || !strings.Contains(conf, `"uid": 1000`) {
		t.Error(conf)
	}
	if err := res.Put(t.Context(), []string{"web:latest"}); err != nil {
		t.Fatal(err)
	}
	if d := res.Image.Disk; d.Size != 32<<20 || d.Root != "ld0a" || d.Layout != "ffs" {
		t.Errorf("%+v", d)
	}
}

// TestCached: an unchanged build does nothing; what changes is done, and what
// follows it.
func TestCached(t *testing.T) {
	b := newBench(t)
	b.file("a.txt", "one")
	const text1 = "FROM base,etc\nRUN write /first 1\nCOPY a.txt /a\nRUN write /second 2\n"
	res, _ := b.build(text1)
	if res.Cached || len(b.runner.steps) != 2 {
		t.Fatalf("%v, %d steps", res.Cached, len(b.runner.steps))
	}
	if err := res.Put(t.Context(), []string{"x:latest"}); err != nil {
		t.Fatal(err)
	}
	opened := b.sets.opened
	res, err := b.try(text1)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Put(t.Context(), []string{"x:latest"}); err != nil {
		t.Fatal(err)
	}
	if !res.Cached || len(b.runner.steps) != 2 || b.sets.opened != opened || res.state.root != nil || b.kinds(EventCached) != 4 || b.kinds(EventDone) != 0 {
		t.Errorf("cached %v, %d steps, sets opened %d times, %+v", res.Cached, len(b.runner.steps), b.sets.opened, b.events)
	}
	// Another time of a file is no change, another content is.
	if err := os.Chtimes(filepath.Join(b.dir, "a.txt"), time.Now(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if res, _ := b.build(text1); !res.Cached {
		t.Error("another time is a change")
	}
	b.file("a.txt", "two")
	if _, root := b.build(text1); len(b.runner.steps) != 3 || text(t, root, "a") != "two" {
		t.Errorf("%d steps", len(b.runner.steps))
	}
	// The first content is cached still.
	b.file("a.txt", "one")
	if res, root := b.build(text1); !res.Cached || text(t, root, "a") != "one" {
		t.Error("the first content is not cached any more")
	}
	// A variable counts for the steps behind it.
	b.build("FROM base,etc\nRUN write /first 1\nENV A=1\nCOPY a.txt /a\nRUN write /second 2\n")
	if len(b.runner.steps) != 4 {
		t.Errorf("%d steps", len(b.runner.steps))
	}
	b.o.NoCache = true
	if b.build(text1); len(b.runner.steps) != 6 {
		t.Errorf("NoCache: %d steps", len(b.runner.steps))
	}
	b.o.NoCache = false
	// A damaged entry, or one whose contents are gone, is none.
	entries := 0
	err = filepath.WalkDir(b.o.Cache, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			entries++
			err = os.WriteFile(p, []byte("{"), 0o600)
		}
		return err
	})
	if err != nil || entries == 0 {
		t.Fatal(entries, err)
	}
	if res, _ := b.build(text1); res.Cached {
		t.Error("a damaged cache counts")
	}
	if err := os.RemoveAll(filepath.Join(b.o.Blobs.Dir(), "sha256")); err != nil {
		t.Fatal(err)
	}
	if res, _ := b.build(text1); res.Cached {
		t.Error("an empty blob store counts")
	}
}

func TestRunStep(t *testing.T) {
	b := newBench(t)
	b.o.Args = map[string]string{"V": "given", "http_proxy": "http://p", "NOBODY": "1"}
	b.o.Secrets["tok"] = []byte("s3cret")
	b.o.Timeout = time.Minute
	_, root := b.build(`FROM base,etc
ARG V=default
ARG W=two
ENV E=env W=hidden
USER web
WORKDIR /home/web
RUN <<EOF
env V /v
env W /w
env E /e
env http_proxy /p
env HOME /h
who /who
print hello there
EOF
RUN --network=none --mount=type=secret,id=tok,env=TOK --mount=type=secret,id=tok,target=/x,mode=0440,uid=5 --mount=type=secret,id=none write /n 1
RUN <<EOF
#!/bin/ksh
write /script ok
EOF
`)
	for name, want := range map[string]string{"v": "given", "w": "hidden", "e": "env", "p": "http://p", "h": "/home/web", "who": "1000:100 [200] /home/web", "script": "ok"} {
		if got := text(t, root, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	absent(t, root, scriptName)
	s := b.runner.steps[1]
	if s.Network || s.Timeout != time.Minute || len(s.Secrets) != 2 {
		t.Fatalf("%+v", s)
	}
	if x := s.Secrets[0]; x.Env != "TOK" || x.Path != "" || string(x.Data) != "s3cret" || x.UID != 1000 {
		t.Errorf("%+v", x)
	}
	if x := s.Secrets[1]; x.Path != "/x" || x.Mode != 0o440 || x.UID != 5 || x.GID != 100 {
		t.Errorf("%+v", x)
	}
	if b.kinds(EventOutput) != 1 || !strings.Contains(b.warnings(), "build argument NOBODY: no ARG declares it") || strings.Contains(b.warnings(), "proxy") {
		t.Errorf("%+v", b.events)
	}
	b.fails("FROM base,etc\nRUN print oops\nRUN exit 7\n", "Dockerfile:3:1: the command failed: exit status 7")
	_, err := b.try("FROM base,etc\nRUN exit 7\n")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 7 {
		t.Errorf("%v", err)
	}
	b.fails("FROM base,etc\nUSER nobody\nRUN x\n", `USER nobody: there is no user "nobody" in the image's etc/passwd`)
	b.fails("FROM base,etc\nUSER nobody\n", `there is no user "nobody"`)
	b.fails("FROM base,etc\nRUN --mount=type=secret,id=no,required x\n", "Dockerfile:2:5: the secret no is not given: --secret no")
	b.o.Runner = nil
	b.fails("FROM base,etc\nRUN x1\n", "RUN needs a machine")
}

func TestMounts(t *testing.T) {
	b := newBench(t)
	b.file("src/in.txt", "context")
	_, root := b.build(`FROM base AS tools
RUN write /opt/tool tool
FROM base,etc
RUN --mount=type=cache,target=/var/cache/x,id=c write /var/cache/x/kept 1
RUN --mount=type=cache,target=/other,id=c copy /other/kept /seen
RUN --mount=type=bind,source=src,target=/src --mount=type=bind,from=tools,source=/opt,target=/usr/bin \
  --mount=type=tmpfs,target=/scratch <<EOF
copy /src/in.txt /copied
copy /usr/bin/tool /tool
write /src/lost 1
write /scratch/lost 1
EOF
`)
	for name, want := range map[string]string{"seen": "1", "copied": "context", "tool": "tool", "usr/bin/id": "id"} {
		if got := text(t, root, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	absent(t, root, "var/cache/x", "other", "src", "scratch", "usr/bin/tool")
	if n := node(t, root, "var/cache"); n.Kind != tree.Dir {
		t.Error(n.Kind)
	}
	b.fails("FROM base\nRUN --mount=type=bind,source=none,target=/x y\n", "Dockerfile:2:5: --mount=type=bind: none: there is no such file")
	b.fails("FROM base\nRUN --mount=type=bind,from=web,target=/x y\n", `there is no stage, set or image "web"`)
	b.fails("FROM base\nRUN --mount=type=tmpfs,target=/ y\n", "/ is the image's own")
	b.fails("FROM base\nRUN --mount=type=tmpfs,target=/lib y\n", "/lib is a symbolic link to usr/lib")
}

func TestStages(t *testing.T) {
	b := newBench(t)
	b.o.Args["BASE"] = "base"
	_, root := b.build(`ARG BASE=none
ARG TARGETARCH
FROM ${BASE} AS build
ARG BASE
ENV KEEP=1
RUN write /out/app ${BASE}
FROM base AS unused
RUN exit 1
FROM build AS more
RUN env KEEP /keep
FROM scratch
COPY --from=build /out/ /bin/
COPY --from=more --chown=7:8 --chmod=0500 /keep /keep
COPY --from=2 /keep /again
`)
	if text(t, root, "bin/app") != "${BASE}" || text(t, root, "keep") != "1" || text(t, root, "again") != "1" {
		t.Error("what stages made is not there")
	}
	if n := node(t, root, "keep"); n.UID != 7 || n.GID != 8 || n.Perm != 0o500 {
		t.Errorf("%+v", n)
	}
	absent(t, root, "usr", "out")
	n := len(b.runner.steps)
	// The part that is not copied may change.
	b.build("ARG BASE\nFROM ${BASE} AS build\nENV KEEP=1\nRUN write /out/app ${BASE}\nRUN write /else 1\nFROM scratch\nCOPY --from=build /out/ /bin/\nCOPY --from=build /out/ /bin2/\n")
	b.build("ARG BASE\nFROM ${BASE} AS build\nENV KEEP=1\nRUN write /out/app ${BASE}\nRUN write /else 2\nFROM scratch\nCOPY --from=build /out/ /bin/\nCOPY --from=build /out/ /bin2/\n")
	if b.kinds(EventDone) != 1 || len(b.runner.steps) != n+3 {
		t.Errorf("%d done, %d steps", b.kinds(EventDone), len(b.runner.steps)-n)
	}
	b.o.Target = "build"
	if _, root := b.build("FROM base AS build\nRUN write /x 1\nFROM scratch\n"); text(t, root, "x") != "1" {
		t.Error("the target is not built")
	}
	b.o.Target = "no"
	b.fails("FROM base AS build\n", "there is no stage no; the stages with names: build")
	b.o.Target = ""
	b.fails("FROM base AS a\nCOPY --from=b /x /y\nFROM base AS b\nFROM a\n", "stage b comes later")
	b.fails("FROM base AS a\nFROM base\nCOPY --from=a /no /y\n", "Dockerfile:3:15: /no: there is no such file in a")
	b.fails("FROM base AS a\nFROM base\nCOPY --from=a /no* /y\n", "/no*: nothing in a fits")
	b.fails("FROM web:1\n", `Dockerfile:1:1: there is no stage, set or image "web:1"`)
	b.fails("FROM base,games\n", "set games: the mirror does not have it")
}

// TestParallel: stages that do not need one another are made at once, and the
// failure of one ends the other.
func TestParallel(t *testing.T) {
	b := newBench(t)
	both := make(chan struct{}, 2)
	met := make(chan struct{})
	b.runner.hook = func(ctx context.Context, s RunStep) error {
		both <- struct{}{}
		if len(both) == 2 {
			close(met)
		}
		select {
		case <-met:
			return nil
		case <-time.After(20 * time.Second):
			return errors.New("the other stage has not begun")
		}
	}
	const text = "FROM base AS a\nRUN write /a 1\nFROM base AS b\nRUN write /b 1\nFROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
	b.build(text)
	b.o.NoCache = true
	started := make(chan struct{})
	b.runner.hook = func(ctx context.Context, s RunStep) error {
		if strings.Contains(s.Argv[2], "/a") {
			<-started
			return &ExitError{3}
		}
		close(started)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	_, err := b.try(text)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 3 {
		t.Error(err)
	}
}

// TestCancel: a build that is given up leaves nothing half done.
func TestCancel(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("Ctrl-C")
	b.runner.hook = func(ctx context.Context, s RunStep) error {
		cancel(why)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	o := b.o
	o.Text = []byte("FROM base\nRUN write /a 1\n")
	_, err := Build(ctx, o)
	if !errors.Is(err, why) {
		t.Fatal(err)
	}
	b.runner.hook = nil
	if _, root := b.build("FROM base\nRUN write /a 1\n"); text(t, root, "a") != "1" {
		t.Error("the cache has half a step")
	}
	for _, dir := range []string{filepath.Join(b.o.Blobs.Dir(), "tmp"), b.images.dir} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v %v", dir, left, err)
		}
	}
}

func TestDigests(t *testing.T) {
	b := newBench(t)
	b.build("FROM base\nRUN write /a only here\n")
	keep, err := Digests(b.o.Cache, b.o.Blobs)
	if err != nil {
		t.Fatal(err)
	}
	if !keep[tree.Bytes("only here").Digest()] || !keep[tree.Bytes("the shell").Digest()] {
		t.Errorf("%v", slices.Sorted(maps.Keys(keep)))
	}
	if _, _, err := b.o.Blobs.Prune(t.Context(), func(d string) bool { return keep[d] }); err != nil {
		t.Fatal(err)
	}
	if res, root := b.build("FROM base\nRUN write /a only here\n"); !res.Cached || text(t, root, "a") != "only here" {
		t.Error("what the cache refers to is gone")
	}
}
