package builder

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/tree"
)

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

// TestPlaces: what an image cannot have is refused where the Dockerfile sets it.
func TestPlaces(t *testing.T) {
	b := newBench(t)
	for text, want := range map[string]string{
		"STOPSIGNAL a b":                         `Dockerfile:3:1: stop_signal "a b"`,
		"CMD [\"\"]":                             "Dockerfile:3:1: cmd[0] is empty",
		"ENTRYPOINT [\"\"]":                      "Dockerfile:3:1: entrypoint[0] is empty",
		"WORKDIR " + strings.Repeat("/aaa", 300): "Dockerfile:3:1: working_dir",
		"VOLUME " + strings.Repeat("/aaa", 300):  "Dockerfile:3:1: volumes",
		"USER a/b":                               `Dockerfile:3:1: user "a/b"`,
		"ENV A-B=1":                              `Dockerfile:3:5: "A-B" is no name of a variable`,
		"LABEL a=1 smolbsd.imgsize=x":            "Dockerfile:3:11: LABEL smolbsd.imgsize=\"x\": it must be a number",
		"LABEL smolbsd.publish=1:2:3":            "Dockerfile:3:7: LABEL smolbsd.publish",
		"LABEL smolvmm.layout=zfs":               "Dockerfile:3:7: LABEL smolvmm.layout",
	} {
		b.fails("FROM base,etc\nARG X=1\n"+text+"\nRUN x\n", want)
	}
	if len(b.runner.steps) != 0 {
		t.Error("a step was executed before the mistake was told")
	}
}

// TestEmptyWord: the first word of CMD may be empty where it is no program's name.
func TestEmptyWord(t *testing.T) {
	b := newBench(t)
	for _, text := range []string{
		"FROM base\nENTRYPOINT [\"/bin/app\"]\nCMD [\"\", \"x\"]\n",
		"FROM base\nCMD [\"\", \"x\"]\nEXPOSE 80\nENTRYPOINT [\"/bin/app\"]\n",
		"FROM base AS a\nCMD [\"\", \"x\"]\nFROM a\nENTRYPOINT [\"/bin/app\"]\nCMD [\"\", \"x\"]\n",
	} {
		res, _ := b.build(text)
		if got := res.Image.Config.Argv(nil); !slices.Equal(got, []string{"/bin/app", "", "x"}) {
			t.Errorf("%q: %q", text, got)
		}
	}
	b.fails("FROM base AS a\nCMD [\"\"]\nFROM scratch AS other\nENTRYPOINT [\"/x\"]\nFROM a\n", "Dockerfile:2:1: cmd[0] is empty")
}

// TestCached: an unchanged build does nothing; what changes is done, and what
// follows it.
func TestCached(t *testing.T) {
	b := newBench(t)
	b.file("a.txt", "one")
	const text1 = "FROM base,etc\nLABEL smolbsd.minimize=y\nRUN write /first 1\nCOPY a.txt /a\nRUN write /second 2\n"
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
	b.fails("FROM base,etc\nENV A=1\nUSER nobody\nENV B=1\n", `Dockerfile:3:1: USER nobody: there is no user "nobody"`)
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
	b.fails("FROM base\nFROM base\n", "there is no stage no; none has a name, they are 0 to 1")
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
