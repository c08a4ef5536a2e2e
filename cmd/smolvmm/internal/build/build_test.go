package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/store"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// site is a user's folders, and a mirror with two small sets.
type site struct {
	t       *testing.T
	dir     string // the build context
	o       Options
	out     bytes.Buffer
	err     bytes.Buffer
	env     map[string]string
	fetched atomic.Int64 // sets and other files asked for
	sums    func(name string, b []byte) []byte
	files   map[string][]byte
}

func entry(name, body string, mode int64) archivetest.Entry {
	return archivetest.Entry{Header: tar.Header{Name: name, Mode: mode, ModTime: time.Unix(1600000000, 0)}, Body: body}
}

func newSite(t *testing.T) *site {
	s := &site{t: t, dir: t.TempDir(), env: map[string]string{}}
	s.files = map[string][]byte{
		"base.tar.xz": archivetest.XZ(archivetest.Tar(
			entry("./bin/", "", 0o755), entry("./bin/sh", "the shell", 0o555), entry("./sbin/init", "NetBSD's", 0o500), entry("./usr/bin/su", "su", 0o4555),
			archivetest.Entry{Header: tar.Header{Name: "./dev/zero", Typeflag: tar.TypeChar, Devmajor: 2, Devminor: 12, Mode: 0o666}},
			archivetest.Entry{Header: tar.Header{Name: "./bin/ksh", Typeflag: tar.TypeLink, Linkname: "./bin/sh"}},
		)),
		"etc.tgz": archivetest.Gzip(archivetest.Tar(
			entry("./etc/master.passwd", "root:*:0:0::0:0:Charlie &:/root:/bin/sh\n_httpd:*:24:24::0:0:web:/var/www:/sbin/nologin\n", 0o600),
			entry("./etc/group", "wheel:*:0:root\n_httpd:*:24:\n", 0o644),
		)),
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, "/pub/NetBSD/NetBSD-11.0/amd64/binary/sets/")
		if name, isFile := strings.CutPrefix(r.URL.Path, "/files/"); isFile {
			s.fetched.Add(1)
			fmt.Fprint(w, "file "+name)
			return
		}
		if ok && name == "SHA512" {
			for n, b := range s.files {
				if s.sums != nil {
					b = s.sums(n, b)
				}
				fmt.Fprintf(w, "SHA512 (%s) = %x\n", n, sha512.Sum512(b))
			}
			return
		}
		b := s.files[name]
		if !ok || b == nil {
			http.NotFound(w, r)
			return
		}
		s.fetched.Add(1)
		_, _ = w.Write(b)
	}))
	t.Cleanup(srv.Close)
	base := t.TempDir()
	s.o = Options{
		Context: s.dir, Mirror: srv.URL, Images: filepath.Join(base, "images"), Cache: filepath.Join(base, "cache"), Progress: "plain", CPUs: 1,
		Env: func(n string) (string, bool) { v, ok := s.env[n]; return v, ok },
		In:  strings.NewReader(""), Out: &s.out, Err: &s.err,
	}
	return s
}

func (s *site) file(name, text string) {
	s.t.Helper()
	name = filepath.Join(s.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) run() error {
	s.out.Reset()
	s.err.Reset()
	return Run(s.t.Context(), s.o)
}

func (s *site) build() {
	s.t.Helper()
	if err := s.run(); err != nil {
		s.t.Fatalf("%v\n%s", err, s.err.String())
	}
}

func (s *site) fails(want string) {
	s.t.Helper()
	if err := s.run(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		s.t.Errorf("got %v\nwant …%s…", err, want)
	}
	s.clean()
}

// clean checks that nothing is left that was half made.
func (s *site) clean() {
	s.t.Helper()
	for _, dir := range []string{s.o.Images, s.o.Cache} {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasPrefix(d.Name(), ".") || filepath.Base(filepath.Dir(p)) == "tmp") {
				s.t.Errorf("%s is left", p)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.t.Error(err)
		}
	}
}

// image opens an image of the store, checks its disk against its tree with a
// reader that the builder does not use, and gives both.
func (s *site) image(name string) (store.Entry, *tree.Tree) {
	s.t.Helper()
	st, err := store.Open(s.o.Images)
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := st.Resolve(name)
	if err != nil {
		s.t.Fatal(err)
	}
	root, err := st.OpenTree(e)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Open(e.Disk.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	d, err := ffstest.Open(f, true)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(d.Verify(), d.Compare(root)); err != nil {
		s.t.Fatal(err)
	}
	return e, root
}

// TestBuild: sets from a mirror become an image whose file system has what they
// and the Dockerfile say.
func TestBuild(t *testing.T) {
	s := newSite(t)
	s.file("Dockerfile", `FROM base,etc
LABEL smolbsd.publish="8080:80" smolbsd.minimize=y
COPY --chown=_httpd www /var/www
EXPOSE 80
USER _httpd
CMD ["/usr/libexec/httpd", "-I", "80"]
`)
	s.file("www/index.html", "<p>hello")
	s.o.Tags = []string{"web", "web:1"}
	s.build()
	if s.out.String() != "web:latest\nweb:1\n" {
		t.Errorf("%q", s.out.String())
	}
	for _, want := range []string{"set base: fetching", "set base is ready", "#1 [stage 0 1/6] FROM base,etc\n", "#2 [stage 0 3/6] COPY --chown=_httpd www /var/www\n", "#2 DONE "} {
		if !strings.Contains(s.err.String(), want) {
			t.Errorf("%q lacks %q", s.err.String(), want)
		}
	}
	e, root := s.image("web:1")
	n, err := root.Lookup("var/www/index.html")
	if err != nil || n.UID != 24 || n.GID != 24 {
		t.Fatalf("%+v %v", n, err)
	}
	if su, err := root.Lookup("usr/bin/su"); err != nil || su.Perm != 0o4555 {
		t.Errorf("%+v %v", su, err)
	}
	sh, _ := root.Lookup("bin/sh")
	if ksh, _ := root.Lookup("bin/ksh"); ksh == nil || ksh != sh {
		t.Error("the hard link is none")
	}
	if z, err := root.Lookup("dev/zero"); err != nil || z.Kind != tree.CharDevice || z.Minor != 12 {
		t.Errorf("%+v %v", z, err)
	}
	c := e.Image.Config
	if c.UID != 24 || strings.Join(c.Argv(nil), " ") != "/usr/libexec/httpd -I 80" || len(e.Image.Publish) != 1 || e.Image.Publish[0] != "8080:80/tcp" {
		t.Errorf("%+v", e.Image)
	}
	// Once more: nothing is done, nothing fetched, the image is the same.
	fetched, begun := s.fetched.Load(), time.Now()
	s.build()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("an unchanged build took %v", took)
	}
	if again, _ := s.image("web"); again.ID != e.ID || s.fetched.Load() != fetched || strings.Contains(s.err.String(), "DONE") {
		t.Errorf("an unchanged build: %s", s.err.String())
	}
	// Upon the image, and out of it.
	s.file("Dockerfile", "FROM web:1 AS up\nENV A=1\nFROM scratch\nCOPY --from=up /var/www /w\nCOPY --from=web:1 /bin/sh /sh\nLABEL smolbsd.service=copied\nCMD [\"/sh\"]\n")
	s.o.Tags = nil
	s.build()
	if s.out.String() != "copied:latest\n" {
		t.Errorf("%q", s.out.String())
	}
	if _, root := s.image("copied"); true {
		for _, f := range []string{"w/index.html", "sh", "sbin/init", "etc/smolinit.json", "dev/console"} {
			if _, err := root.Lookup(f); err != nil {
				t.Error(err)
			}
		}
	}
	s.clean()
}

// TestEachInput: where Dockerfiles, arguments, secrets and names come from.
func TestEachInput(t *testing.T) {
	s := newSite(t)
	const text = "ARG V=none\nFROM scratch\nARG V\nCOPY f /$V\n"
	s.file("f", "1")
	s.file("sub/Other", text)
	s.file("files/demo.smol", text)
	s.env["V"] = "from-env"
	s.o.Progress = "quiet"
	for _, c := range []struct {
		prepare func()
		out     string
		file    string
	}{
		{func() { s.o.File, s.o.Tags = filepath.Join(s.dir, "sub/Other"), []string{"a"} }, "a:latest\n", "none"},
		{func() { s.o.Args = []string{"V=given", "W=unused"} }, "a:latest\n", "given"},
		{func() { s.o.Args = []string{"V", "NOTSET"} }, "a:latest\n", "from-env"},
		{func() { s.o.File, s.o.In = "-", strings.NewReader(text) }, "a:latest\n", "from-env"},
		{func() { s.o.File, s.o.Tags = filepath.Join(s.dir, "files/demo.smol"), nil }, "demo:latest\n", "from-env"},
	} {
		c.prepare()
		s.build()
		if s.out.String() != c.out || s.err.String() != "" {
			t.Errorf("%q %q", s.out.String(), s.err.String())
		}
		if _, root := s.image(strings.TrimSpace(c.out)); true {
			if _, err := root.Lookup(c.file); err != nil {
				t.Error(err)
			}
		}
	}
	s.o.File = ""
	s.o.Context = filepath.Join(s.dir, "nowhere")
	s.fails("build context " + s.o.Context + ": no such file or directory")
	s.file("Named", "FROM scratch\n")
	s.o.Context, s.o.File = filepath.Join(s.dir, "Named"), "Named"
	s.fails("build context " + s.o.Context + ": it is no folder")
	s.o.Context, s.o.File = s.dir, ""
	s.fails("there is no Dockerfile in " + s.dir + ": name one with -f, or a Go package with --go")
	s.file("SMOLerfile", "FROM scratch\n")
	s.file("SMOLerfile.dockerignore", "f\n")
	s.build()
	s.file("SMOLerfile", "FROM scratch\nCOPY f /\n")
	s.fails("SMOLerfile:2:6: f: nothing in the build context fits (.dockerignore leaves it out)")
	s.file("SMOLerfile", "FROM scratch\n")
	for want, change := range map[string]func(*Options){
		`-t: image name "A B"`:                      func(o *Options) { o.Tags = []string{"A B"} },
		`--build-arg "=x"`:                          func(o *Options) { o.Args = []string{"=x"} },
		"--progress \"loud\"":                       func(o *Options) { o.Progress = "loud" },
		"--secret tok: not set in the environment":  func(o *Options) { o.Secrets = []string{"tok"} },
		"--secret tok=…: a value on the command":    func(o *Options) { o.Secrets = []string{"tok=abc"} },
		"--secret \"id=a,b=c\": \"b\" is not known": func(o *Options) { o.Secrets = []string{"id=a,b=c"} },
		"no such file or directory":                 func(o *Options) { o.Secrets = []string{"tok=@/nowhere/x"} },
		"SOURCE_DATE_EPOCH=\"x\"":                   func(o *Options) { o.Args = []string{"SOURCE_DATE_EPOCH=x"} },
		"--go makes an image of a program":          func(o *Options) { o.Go, o.File = "./x", "y" },
		"deny-everything":                           func(o *Options) { o.Net.Egress = []string{"deny-everything"} },
	} {
		old := s.o
		change(&s.o)
		s.fails(want)
		var usage *UsageError
		if err := s.run(); !errors.As(err, &usage) {
			t.Errorf("%s: a %T", want, err)
		}
		s.o = old
	}
	got, err := secrets([]string{"V", "a=@" + filepath.Join(s.dir, "f"), "id=b,src=" + filepath.Join(s.dir, "f"), "id=c,env=V"}, s.o.Env)
	if err != nil || string(got["V"]) != "from-env" || string(got["a"]) != "1" || string(got["b"]) != "1" || string(got["c"]) != "from-env" {
		t.Errorf("%q %v", got, err)
	}
}

// TestOutput: -o writes a disk image and nothing to the store.
func TestOutput(t *testing.T) {
	s := newSite(t)
	s.file("Dockerfile", "FROM base\n")
	s.o.Output = filepath.Join(t.TempDir(), "disk.img")
	s.o.Size = 16 << 20
	s.build()
	st, err := os.Stat(s.o.Output)
	if err != nil || st.Size() != 16<<20 || s.out.String() != s.o.Output+"\n" {
		t.Errorf("%v %v %q", st, err, s.out.String())
	}
	images, err := store.Open(s.o.Images)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := images.List(); err != nil || len(l) != 0 {
		t.Errorf("%v %v", l, err)
	}
	s.o.Output = filepath.Join(t.TempDir(), "none", "disk.img")
	s.fails("no such file or directory")
	s.o.Output = filepath.Join(t.TempDir(), "small.img")
	s.o.Size = 1 << 20
	s.file("big", strings.Repeat("x", 2<<20))
	s.file("Dockerfile", "FROM base\nCOPY big /\n")
	s.fails("disk image in ")
	if _, err := os.Stat(s.o.Output); !errors.Is(err, fs.ErrNotExist) {
		t.Error("half an image has the final name")
	}
}

// TestBadInput: what is damaged or lies is one clear line, and a mended input
// builds at once: the cache is not poisoned.
func TestBadInput(t *testing.T) {
	s := newSite(t)
	s.o.Tags = []string{"x"}
	s.file("Dockerfile", "FROM base,etc\n")
	good := s.files["base.tar.xz"]
	for name, c := range map[string]struct {
		set  []byte
		sums func(string, []byte) []byte
		want string
	}{
		"truncated set": {set: good[:len(good)-9], sums: func(name string, b []byte) []byte {
			if name == "base.tar.xz" {
				return good
			}
			return b
		}, want: "base.tar.xz"},
		"truncated archive": {set: good[:len(good)-9], want: "base"},
		"checksum":          {set: good, sums: func(string, []byte) []byte { return []byte("else") }, want: "SHA512"},
		"traversal":         {set: archivetest.XZ(archivetest.Tar(entry("../../etc/passwd", "x", 0o644))), want: "base"},
		"absolute link":     {set: archivetest.XZ(archivetest.Tar(archivetest.Entry{Header: tar.Header{Name: "./l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}})), want: "base"},
		"not an archive":    {set: []byte("hello"), want: "base"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.files["base.tar.xz"], s.sums = c.set, c.sums
			_ = os.RemoveAll(s.o.Cache)
			if err := s.run(); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			s.files["base.tar.xz"], s.sums = good, nil
			_ = os.RemoveAll(filepath.Join(s.o.Cache, "sets"))
			s.build()
			s.image("x")
		})
	}
	s.t = t
	s.file("Dockerfile", "FROM base,games\n")
	s.fails("games")
	s.file("Dockerfile", "ARG NETBSD_RELEASE=9.9\nFROM base\n")
	s.fails("9.9")
	s.file("Dockerfile", "FROM base\nADD "+s.o.Mirror+"/files/a /a\n")
	s.fails("Dockerfile:2:5: ")
	s.file("Dockerfile", fmt.Sprintf("FROM base\nADD --checksum=sha256:%x %s/files/a /a\n", sha256.Sum256([]byte("file a")), s.o.Mirror))
	s.build()
	s.o.Kernel = "/nowhere/netbsd"
	s.file("Dockerfile", "FROM base\nRUN true\n")
	s.fails("Dockerfile:2:1: RUN: ")
}

// TestFoundPipes: what a context has where a file is looked for is not waited for.
func TestFoundPipes(t *testing.T) {
	for _, name := range []string{"Dockerfile", ".dockerignore"} {
		s := newSite(t)
		if name != "Dockerfile" {
			s.file("Dockerfile", "FROM base,etc\n")
		}
		if err := syscall.Mkfifo(filepath.Join(s.o.Context, name), 0o600); err != nil {
			t.Fatal(err)
		}
		s.fails(name + ": it is no regular file")
	}
}

// TestInterrupted: a build that is given up, as by Ctrl-C, leaves nothing.
func TestInterrupted(t *testing.T) {
	s := newSite(t)
	s.file("Dockerfile", "FROM base\nCOPY f /\n")
	s.file("f", "1")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	hold := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel(why)
		<-hold
	}))
	defer srv.Close()
	defer close(hold)
	o := s.o
	o.Mirror, o.Tags = srv.URL, []string{"x"}
	if err := Run(ctx, o); err == nil || !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.clean()
	s.o.Tags = []string{"x"}
	s.build()
}

// TestLocalSets: --sets takes them from a folder.
func TestLocalSets(t *testing.T) {
	s := newSite(t)
	s.o.Sets = t.TempDir()
	for name, b := range s.files {
		if err := os.WriteFile(filepath.Join(s.o.Sets, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.file("Dockerfile", "FROM base:/bin/*,etc\n")
	s.o.Tags = []string{"x"}
	s.build()
	if s.fetched.Load() != 0 {
		t.Error("something was fetched")
	}
	if _, root := s.image("x"); true {
		if _, err := root.Lookup("usr"); err == nil {
			t.Error("more than /bin/* of base is there")
		}
	}
	s.file("Dockerfile", "FROM comp\n")
	s.fails("there is no set comp in " + s.o.Sets)
}

// TestGo: a Go program becomes an image without a Dockerfile.
func TestGo(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT RUN: it needs the go command: %v", err)
	}
	s := newSite(t)
	s.file("go.mod", "module example.com/hello\n\ngo 1.24\n")
	s.file("cmd/hello/main.go", "package main\n\nfunc main() { println(\"hello\") }\n")
	s.o.Go = "./cmd/hello"
	s.build()
	if s.out.String() != "hello:latest\n" {
		t.Errorf("%q", s.out.String())
	}
	e, root := s.image("hello")
	prog, err := root.Lookup("bin/hello")
	if err != nil {
		t.Fatal(err)
	}
	ini, err := root.Lookup("sbin/init")
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(e.Disk.Path())
	if err != nil {
		t.Fatal(err)
	}
	if programs := prog.Size() + ini.Size(); st.Size() > programs*14/10 {
		t.Errorf("an image of %d bytes for programs of %d", st.Size(), programs)
	}
	if got := strings.Join(e.Image.Config.Argv([]string{"x"}), " "); got != "/bin/hello x" {
		t.Error(got)
	}
	s.o.Go = "./cmd/none"
	// What the go command says may have several lines; the command joins them.
	if err := s.run(); err == nil || !strings.Contains(err.Error(), "cmd/none") {
		t.Error(err)
	}
	s.clean()
}

// TestCarriedOnce: what goes to others has each file once, on the disk, and the tree
// is whole again where it arrives.
func TestCarriedOnce(t *testing.T) {
	s := newSite(t)
	r := rand.New(rand.NewPCG(8, 8))
	noise := make([]byte, 2<<20+777)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for i, n := range []int{len(noise), 300_000, 5000, 100} { // indirect blocks, fragments
		s.file(fmt.Sprintf("files/%d", i), string(noise[len(noise)-n:]))
	}
	for _, layout := range []string{"ffs", "gpt"} {
		s.file("Dockerfile", "FROM base,etc\nLABEL smolbsd.service=once smolbsd.minimize=y smolvmm.layout="+layout+"\nCOPY files /srv\n")
		s.build()
		from, err := store.Open(s.o.Images)
		if err != nil {
			t.Fatal(err)
		}
		e, err := from.Resolve("once")
		if err != nil {
			t.Fatal(err)
		}
		var whole, bare bytes.Buffer
		if err := errors.Join(from.Save(t.Context(), &whole, []store.Entry{e}, store.PackOptions{}), from.Save(t.Context(), &bare, []store.Entry{e}, store.PackOptions{NoTree: true})); err != nil {
			t.Fatal(err)
		}
		// smolinit's file is on the disk, too: what comes with the tree is names.
		if more := whole.Len() - bare.Len(); more > 64<<10 {
			t.Errorf("%s: %d bytes with the tree, %d without", layout, whole.Len(), bare.Len())
		}
		to, err := store.Open(filepath.Join(t.TempDir(), "images"))
		if err != nil {
			t.Fatal(err)
		}
		all, err := to.Load(t.Context(), &whole, store.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		root, err := to.OpenTree(all[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range []int{len(noise), 300_000, 5000, 100} {
			f, err := root.Lookup(fmt.Sprintf("srv/%d", i))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := tree.ReadAll(f.Content, 1<<30); err != nil || !bytes.Equal(b, noise[len(noise)-n:]) {
				t.Errorf("%s: %d bytes of %d, %v", layout, len(b), n, err)
			}
		}
		if all[0].ID != e.ID {
			t.Errorf("%s is %s here", e.ID, all[0].ID)
		}
	}
}
