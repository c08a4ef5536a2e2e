package builder

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestCopyRules: where what is copied goes, by Docker's rules.
func TestCopyRules(t *testing.T) {
	b := newBench(t)
	b.file("one", "1")
	b.file("two", "2")
	b.file("dir/a", "a")
	b.file("dir/sub/b", "b")
	b.file("lib/extra.so", "extra")
	if err := os.Symlink("a", filepath.Join(b.dir, "dir/link")); err != nil {
		t.Fatal(err)
	}
	_, root := b.build(`FROM base,etc
COPY one /plain
COPY one /into/
COPY one two /many/
COPY one /usr/bin
COPY dir /d
COPY dir/link /followed
COPY o*e t[a-z]o /globbed/
COPY lib/ /lib
WORKDIR /w/x
COPY one .
COPY two rel/name
COPY ["dir", "json dir/"]
ADD one ../up
`)
	for name, want := range map[string]string{
		"plain": "1", "into/one": "1", "many/one": "1", "many/two": "2", "usr/bin/one": "1", "d/a": "a", "d/sub/b": "b", "followed": "a",
		"globbed/one": "1", "globbed/two": "2", "usr/lib/extra.so": "extra", "w/x/one": "1", "w/x/rel/name": "2", "w/x/json dir/a": "a", "w/up": "1",
		"usr/lib/libc.so": "libc",
	} {
		if got := text(t, root, name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	if n := node(t, root, "d/link"); n.Kind != tree.Symlink || n.Target != "a" {
		t.Errorf("%+v", n)
	}
	if n := node(t, root, "lib"); n.Kind != tree.Symlink {
		t.Errorf("lib is a %v", n.Kind)
	}
	b.fails("FROM base\nCOPY none /x\n", "Dockerfile:2:6: none: there is no such file in the build context")
	b.fails("FROM base\nCOPY no*ne /x\n", "no*ne: nothing in the build context fits")
	b.fails("FROM base\nCOPY one /sbin/init/x\n", "/sbin/init is a file in the image, not a folder")
	b.fails("FROM base\nCOPY dir /sbin/init\n", "/sbin/init is a file in the image, not a folder")
	b.fails("FROM scratch\nCOPY one /a\nCOPY dir/sub /t/a\nCOPY one /t\nCOPY dir /\nCOPY one /\nCOPY lib /one\n", "/one is a file in the image")
	b.file("clash/sbin/init/x", "1")
	b.fails("FROM base\nCOPY clash /\n", "/sbin/init is a file in the image, and a folder in what is copied")
	b.file("clash2/usr", "1")
	b.fails("FROM base\nCOPY clash2 /\n", "/usr is a folder in the image, and a file in what is copied")
}

func TestCopyFlags(t *testing.T) {
	b := newBench(t)
	b.file("d/keep.go", "1")
	b.file("d/drop.o", "1")
	b.file("d/sub/drop.o", "1")
	b.file("d/sub/prog", "1")
	if err := os.Chmod(filepath.Join(b.dir, "d/sub/prog"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, root := b.build(`FROM base,etc
COPY --chown=web --exclude=**/*.o --exclude=none d /a
COPY --chown=web:extra --chmod=u=rwX,go= d /b
COPY --chown=5 --chmod=4711 d/keep.go /c
COPY --chown=:extra --link d/keep.go /e
COPY --chmod=0600 <<one <<"two" /docs/
$PATH
one
$PATH
two
`)
	absent(t, root, "a/drop.o", "a/sub/drop.o")
	for name, want := range map[string]string{
		"a/keep.go": "1000:100 644", "a": "1000:100 755", "a/sub/prog": "1000:100 755", "b/keep.go": "1000:200 600", "b/sub": "1000:200 700",
		"b/sub/prog": "1000:200 700", "c": "5:5 4711", "e": "0:200 644", "docs/one": "0:0 600", "docs": "0:0 755",
	} {
		n := node(t, root, name)
		if got := fmt.Sprintf("%d:%d %o", n.UID, n.GID, n.Perm); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if text(t, root, "docs/one") != netbsdPath+"\n" || text(t, root, "docs/two") != "$PATH\n" {
		t.Errorf("%q %q", text(t, root, "docs/one"), text(t, root, "docs/two"))
	}
	b.fails("FROM base,etc\nCOPY --chown=nobody d /x\n", `Dockerfile:2:6: --chown=nobody: there is no user "nobody" in the image's etc/passwd`)
	b.fails("FROM base,etc\nCOPY --chown=web:nobody d /x\n", `there is no group "nobody" in the image's etc/group`)
	b.fails("FROM base\nCOPY --chmod=rw d /x\n", `--chmod: "rw" is no mode`)
	b.fails("FROM base\nCOPY --chmod=99999 d /x\n", "is no mode")
	b.fails("FROM base\nCOPY --chmod=z=r d /x\n", "is no mode")
}

func TestIgnore(t *testing.T) {
	b := newBench(t)
	for _, f := range []string{"a.txt", "b.log", "out/x", "out/keep/y", ".git/config", "src/deep/b.log", "src/deep/c"} {
		b.file(f, f)
	}
	b.o.Ignore = []byte("# comment\n**/*.log\nout\n!out/keep\n.git\n")
	_, root := b.build("FROM scratch\nCOPY . /\n")
	for _, f := range []string{"a.txt", "out/keep/y", "src/deep/c"} {
		if text(t, root, f) != f {
			t.Error(f)
		}
	}
	absent(t, root, "b.log", "out/x", ".git", "src/deep/b.log")
	b.fails("FROM scratch\nCOPY b.log /\n", "b.log: nothing in the build context fits (.dockerignore leaves it out)")
	b.o.Ignore = []byte("[\n")
	b.fails("FROM scratch\n", ".dockerignore:")
}

// TestHostileContext: nothing comes from outside of the context, and nothing that
// is no file.
func TestHostileContext(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.file("d/x", "1")
	if err := os.Symlink(outside, filepath.Join(b.dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(b.dir, "up")); err != nil {
		t.Fatal(err)
	}
	b.fails("FROM scratch\nCOPY out /x\n", "Dockerfile:2:6: out: it leads out of the build context")
	b.fails("FROM scratch\nCOPY up/secret /x\n", "it leads out of the build context")
	b.fails("FROM scratch\nINCLUDE out\n", "INCLUDE out: it leads out of the build context")
	b.fails("FROM scratch\nINCLUDE ../x\n", "INCLUDE ../x: it leads out of the build context")
	b.fails("FROM scratch\nINCLUDE d\n", "it is no regular file")
	// What begins above the context is below it, as for Docker.
	if _, root := b.build("FROM scratch\nCOPY ../../d/x /x\nCOPY d/x /../../y\n"); text(t, root, "x") != "1" || text(t, root, "y") != "1" {
		t.Error("paths above the roots are not held in them")
	}
	// A link in a folder is copied and not followed.
	if _, root := b.build("FROM scratch\nCOPY . /c\n"); node(t, root, "c/out").Target != outside {
		t.Error("a link has been followed")
	}
	if err := unix.Mkfifo(filepath.Join(b.dir, "d/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails("FROM scratch\nCOPY d /x\n", "d/pipe is a pipe: COPY takes files, folders and symbolic links")
	b.fails("FROM scratch\nINCLUDE d/pipe\n", "it is no regular file") // and nobody waits for a writer
	if err := os.Remove(filepath.Join(b.dir, "d/pipe")); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(b.dir, "d/s"))
	if err != nil {
		t.Fatal(err)
	}
	b.fails("FROM scratch\nCOPY d /x\n", "d/s is a socket")
	l.Close()
	if err := unix.Mknod(filepath.Join(b.dir, "d/dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Logf("NOT RUN as a device cannot be made here: %v", err)
	} else {
		b.fails("FROM scratch\nCOPY d /x\n", "d/dev is a device: COPY takes files, folders and symbolic links")
	}
	// Links of the image lead nowhere but into it.
	b.sets.sets["base"] = treeOf(t, "evil", "@../../../../etc", "abs", "@/var/x", "loop", "@loop", "gone", "@nothing", "var/x/", "", "etc/", "")
	b.file("f", "1")
	if _, root := b.build("FROM base\nCOPY f /evil/passwd\nCOPY f /abs/y\n"); text(t, root, "etc/passwd") == "" || text(t, root, "var/x/y") != "1" {
		t.Error("links are not resolved in the image")
	}
	b.fails("FROM base\nCOPY f /loop/x\n", "links")
	b.fails("FROM base\nCOPY f /gone/x\n", "/gone is a symbolic link to nothing in the image, and there is nothing")
}

// TestChangingFile: a file that changes while it is read is an error, and not a
// wrong entry of the cache.
func TestChangingFile(t *testing.T) {
	b := newBench(t)
	b.file("f", "before")
	c, err := openContext(b.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	s, err := c.sources("f", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "f"), []byte("after!"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(b.dir, "f"), time.Now(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	root := tree.New()
	if err := root.Put("f", s[0].node); err != nil {
		t.Fatal(err)
	}
	if err := b.o.Blobs.Import(t.Context(), root); err == nil || !strings.Contains(err.Error(), "changed while it was being read") {
		t.Error(err)
	}
}

func TestAdd(t *testing.T) {
	b := newBench(t)
	tarred := tarball(t, "usr/x", "from tar")
	b.file("a.tar", string(tarred))
	b.file("a.dat", string(tarred))
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(tarred); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.file("a.tgz", z.String())
	b.file("a.gz", z.String())
	_, root := b.build("FROM scratch\nADD a.tar /1/\nADD a.dat a.tgz /2/\nADD a.gz /3/\nADD --unpack a.gz /4/\nADD --unpack=false a.tar /5/\nCOPY a.tar /6/\n")
	for _, name := range []string{"1/usr/x", "2/usr/x", "4/usr/x"} {
		if text(t, root, name) != "from tar" {
			t.Error(name)
		}
		if n := node(t, root, name); n.UID != 0 || n.GID != 0 {
			t.Errorf("%s: owner %d:%d", name, n.UID, n.GID)
		}
	}
	for _, name := range []string{"3/a.gz", "5/a.tar", "6/a.tar"} {
		node(t, root, name)
	}
	b.file("bad.tar", string(tarred[:700]))
	b.fails("FROM scratch\nADD bad.tar /\n", "Dockerfile:2:1: bad.tar")
	b.file("evil.tar", string(tarball(t, "../x", "1")))
	b.fails("FROM scratch\nADD evil.tar /\n", "evil.tar")
}

func TestAddURL(t *testing.T) {
	b := newBench(t)
	hits, body := 0, "over HTTP"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		if r.URL.Path == "/none" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Last-Modified", "Thu, 01 Jan 2015 00:00:00 GMT")
		fmt.Fprint(w, body)
	}))
	defer srv.Close()
	url := srv.URL + "/f.txt"
	b.fails("FROM scratch\nADD "+url+" /x\n", "this build fetches nothing")
	b.o.HTTP = srv.Client()
	b.fails("FROM scratch\nADD "+url+" /x\n", "has no checksum, so that nobody would notice another file there; ADD --checksum=sha256:… of it, or build with --allow-unchecked")
	sum := tree.Bytes(body).Digest()
	text1 := "FROM scratch\nADD --checksum=" + sum + " --chmod=755 " + url + " /x\nADD --checksum=" + sum + " " + url + " /dir/\n"
	_, root := b.build(text1)
	if text(t, root, "x") != body || text(t, root, "dir/f.txt") != body || node(t, root, "x").Perm != 0o755 || hits != 1 {
		t.Errorf("%d hits", hits)
	}
	if res, _ := b.build(text1); !res.Cached || hits != 1 {
		t.Errorf("%d hits", hits)
	}
	wrong := tree.Bytes("else").Digest()
	b.fails("FROM scratch\nADD --checksum="+wrong+" "+url+" /x\n", "has the checksum "+sum+" instead of "+wrong)
	if _, err := b.o.Blobs.Open(wrong); err == nil {
		t.Error("the store has what was refused")
	}
	b.fails("FROM scratch\nADD --checksum=md5:1 "+url+" /x\n", "--checksum:")
	b.fails("FROM scratch\nADD --checksum="+wrong+" "+srv.URL+"/none /x\n", "404")
	b.fails("FROM scratch\nADD https://example.com/x.git /x\n", "git repositories are not fetched")
	b.fails("FROM scratch\nADD git@example.com:x /x\n", "git repositories are not fetched")
	b.o.AllowUnchecked = true
	// smolBSD's COPY fetches as its ADD does.
	if _, root := b.build("FROM scratch\nCOPY " + url + " /y\n"); text(t, root, "y") != body || node(t, root, "y").Mtime != time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano() {
		t.Error("COPY of an URL")
	}
}

// TestFromImage: an image of the store is a base, its configuration too, and
// something to copy from.
func TestFromImage(t *testing.T) {
	b := newBench(t)
	res, _ := b.build("FROM base,etc\nLABEL smolbsd.minimize=y\nENV A=1\nUSER web\nEXPOSE 80\nLABEL smolbsd.publish=8080:80 x=y\nRUN write /made 1\nCMD [\"/bin/app\"]\n")
	if err := res.Put(t.Context(), []string{"parent:latest"}); err != nil {
		t.Fatal(err)
	}
	b.images.images["parent"] = res.Image
	res, root := b.build("FROM parent\nENV B=$A\nENTRYPOINT [\"/bin/wrap\"]\n")
	c := res.Image.Config
	if text(t, root, "made") != "1" || strings.Join(c.Env, " ") != "PATH="+netbsdPath+" A=1 HOME=/home/web B=1" || c.UID != 1000 || c.Labels["x"] != "y" {
		t.Errorf("%+v", c)
	}
	if len(c.Argv(nil)) != 1 || len(res.Image.Publish) != 1 || len(c.ExposedPorts) != 1 {
		t.Errorf("%q %q", c.Argv(nil), res.Image.Publish)
	}
	if _, root := b.build("FROM scratch\nCOPY --from=parent /made /m\n"); text(t, root, "m") != "1" {
		t.Error("COPY --from an image")
	}
	b.images.images["raw"] = spec.Image{}
	b.fails("FROM raw\n", "image raw has a disk only")
}

// TestInit: smolinit replaces the init of NetBSD's sets and of older images, and
// not what a Dockerfile brings.
func TestInit(t *testing.T) {
	b := newBench(t)
	b.file("init", "my own")
	if _, root := b.build("FROM base\n"); text(t, root, "sbin/init") != "smolinit" {
		t.Error("NetBSD's init is there")
	}
	res, root := b.build("FROM base\nLABEL smolbsd.minimize=y\nCOPY init /sbin/init\n")
	if text(t, root, "sbin/init") != "my own" || res.Labels["smolvmm.init"] != "keep" {
		t.Error("the Dockerfile's init is not there")
	}
	absent(t, root, "etc/smolinit.json")
	if err := res.Put(t.Context(), []string{"own"}); err != nil {
		t.Fatal(err)
	}
	if _, root := b.build("FROM own\nRUN write /x 1\n"); text(t, root, "sbin/init") != "my own" {
		t.Error("an image upon it lost it")
	}
	if _, root := b.build("FROM base\nLABEL smolvmm.init=keep\n"); text(t, root, "sbin/init") != "netbsd's init" {
		t.Error("smolvmm.init=keep does not")
	}
	if _, root := b.build("FROM base AS x\nCOPY init /sbin/init\nFROM x\n"); text(t, root, "sbin/init") != "my own" {
		t.Error("a stage upon it lost it")
	}
	b.fails("FROM scratch\nLABEL smolvmm.init=keep\n", "the image has no /sbin/init")
	b.fails("FROM scratch\nLABEL smolvmm.init=me\n", "it must be smolinit or keep")
	if _, root := b.build("FROM u-root\n"); text(t, root, "bin/ls") != "u-root's ls" || text(t, root, "sbin/init") != "smolinit" {
		t.Error("FROM u-root")
	}
}

// TestSetsAndGlobs: parts of sets, folders and archives of the context as sets.
func TestSetsAndGlobs(t *testing.T) {
	b := newBench(t)
	b.file("site.tar", string(tarball(t, "usr/local/x", "site")))
	b.file("site.dir/etc/motd", "hello")
	_, root := b.build("FROM base:/usr/lib,etc:./etc/pass*,./site.tar,./site.dir\n")
	for _, name := range []string{"usr/lib/libc.so", "etc/passwd", "usr/local/x", "etc/motd"} {
		node(t, root, name)
	}
	// A set's own owners count, a folder's are root.
	if n := node(t, root, "usr/local/x"); n.UID != 7 || n.GID != 8 {
		t.Errorf("owner %d:%d", n.UID, n.GID)
	}
	absent(t, root, "bin/sh", "etc/group")
	b.fails("FROM base:/opt/*\n", "set base has nothing that fits /opt/*")
	b.fails("FROM base,./none.tgz\n", "none.tgz: there is no such file")
	b.fails("FROM base,./site.dir/etc/motd\n", "motd")
}

// TestReproducible: the same input gives the same bytes, whoever builds it.
func TestReproducible(t *testing.T) {
	var disks [2]string
	for i := range disks {
		b := newBench(t)
		b.o.Epoch = time.Unix(1700000000, 0)
		b.file("f", "1")
		if err := os.Chtimes(filepath.Join(b.dir, "f"), time.Now(), time.Unix(1600000000+int64(i), 0)); err != nil {
			t.Fatal(err)
		}
		res, _ := b.build("FROM base,etc\nWORKDIR /made\nCOPY f /f\nRUN write /g 1\nLABEL smolbsd.minimize=y smolbsd.service=x smolvmm.layout=gpt\n")
		if err := res.Put(t.Context(), []string{"x:latest"}); err != nil {
			t.Fatal(err)
		}
		if res.Image.Created != "2023-11-14T22:13:20Z" || res.Image.Disk.Root != "NAME=xroot" {
			t.Errorf("%+v", res.Image)
		}
		disks[i] = res.Image.Disk.Digest
	}
	if disks[0] != disks[1] {
		t.Error("two builds, two disks")
	}
}

// TestSizes: what labels and -size make of the disk.
func TestSizes(t *testing.T) {
	b := newBench(t)
	sizes := map[string]int64{}
	for _, label := range []string{"a=b", "smolbsd.minimize=y", "smolbsd.minimize=+9", "smolbsd.imgsize=40", "smolbsd.imgsize=40 smolbsd.minimize=y"} {
		res, _ := b.build("FROM base\nLABEL " + label + "\n")
		name := filepath.Join(t.TempDir(), "disk")
		if err := res.WriteDisk(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		sizes[label] = res.Image.Disk.Size
		if st, err := os.Stat(name); err != nil || st.Size() != res.Image.Disk.Size {
			t.Errorf("%s: %v %v", label, st, err)
		}
	}
	least := sizes["smolbsd.minimize=y"]
	if least > 4<<20 || sizes["a=b"] < 64<<20 || sizes["smolbsd.imgsize=40"] != 40<<20 || sizes["smolbsd.imgsize=40 smolbsd.minimize=y"] != least {
		t.Errorf("%v", sizes)
	}
	if d := sizes["smolbsd.minimize=+9"] - least; d < 8<<20 || d > 10<<20 {
		t.Errorf("+9: %d more", d)
	}
	b.o.Size = 1 << 20
	res, _ := b.build("FROM base\nRUN write /big " + strings.Repeat("x", 1<<15) + "\nLABEL smolbsd.imgsize=40\n")
	name := filepath.Join(t.TempDir(), "disk")
	if err := res.WriteDisk(t.Context(), name); err == nil && res.Image.Disk.Size != 1<<20 {
		t.Errorf("%d", res.Image.Disk.Size)
	}
	b.file("huge", strings.Repeat("y", 2<<20))
	res, _ = b.build("FROM base\nCOPY huge /\n")
	if err := res.WriteDisk(t.Context(), name+"2"); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("2 MiB in 1: %v", err)
	}
	if _, err := os.Stat(name + "2"); err == nil {
		t.Error("half a disk is there")
	}
	b.fails("FROM base\nLABEL smolbsd.imgsize=big\n", `LABEL smolbsd.imgsize="big": it must be a number of megabytes`)
	b.fails("FROM base\nLABEL smolbsd.minimize=maybe\n", "it must be y or n")
	b.fails("FROM base\nLABEL smolbsd.publish=80\n", "has no port of the host's")
	b.fails("FROM base\nLABEL smolbsd.service=a/b\n", "a name has letters")
}
