package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ref(t *testing.T, s string) spec.Reference {
	t.Helper()
	r, err := spec.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// image puts an image with kernel, tree and holes into a store.
func image(t *testing.T, s *store.Store, name string) store.Entry {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 100<<10)
	rand.New(rand.NewSource(1)).Read(data)
	_, err = f.WriteAt(data, 1<<20)
	if err := errors.Join(err, f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	disk, err := store.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	root := tree.New()
	if err := root.Put("/bin/web", tree.NewFile(0o755, tree.Bytes("web"))); err != nil {
		t.Fatal(err)
	}
	e, err := s.Put(t.Context(), store.Put{
		Names: []spec.Reference{ref(t, name)}, Disk: disk, Kernel: tree.Bytes("kernel"), Tree: root,
		Image: spec.Image{Architecture: "amd64", OS: "netbsd", Config: spec.Config{Cmd: []string{"/bin/web"}}, Disk: spec.Disk{Layout: spec.LayoutFFS, Root: "ld0a"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func keyFor(t *testing.T, s *store.Store, e store.Entry) (store.Entry, sign.PublicKey) {
	t.Helper()
	k, err := sign.Generate()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Sign(e.Document, "image:web", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddSignature(t.Context(), e.ID, sig.File()); err != nil {
		t.Fatal(err)
	}
	if e, err = s.Resolve(e.ID); err != nil {
		t.Fatal(err)
	}
	return e, k.Public()
}

// TestPushAndPull goes through two registries that nobody here wrote: one has
// the referrers API, the other has not.
func TestPushAndPull(t *testing.T) {
	for name, host := range map[string]func(*testing.T) string{
		"in process": func(t *testing.T) string { return serve(t, inProcess()) },
		"Debian":     func(t *testing.T) string { return debian(t, false) },
	} {
		t.Run(name, func(t *testing.T) {
			host := host(t)
			s := open(t)
			e := image(t, s, "web")
			e, key := keyFor(t, s, e)
			e, key2 := keyFor(t, s, e)
			to := ref(t, host+"/team/web:1.0")
			moved := map[string]int64{}
			digest, err := Push(t.Context(), s, e, to, PushOptions{Options: Options{Progress: func(what string, got, total int64) { moved[what] = got }}})
			if err != nil {
				t.Fatal(err)
			}
			if moved["disk"] == 0 || moved["disk"] > 1<<20 {
				t.Errorf("moved %v: are holes sent?", moved)
			}
			clear(moved)
			if again, err := Push(t.Context(), s, e, to, PushOptions{Options: Options{Progress: func(what string, got, _ int64) { moved[what] = got }}}); err != nil || again != digest || len(moved) != 0 {
				t.Errorf("again: %s, %v, %v", again, err, moved)
			}
			for _, from := range []string{host + "/team/web:1.0", host + "/team/web@" + digest} {
				s2 := open(t)
				got, err := Pull(t.Context(), s2, ref(t, from), PullOptions{Keys: []sign.PublicKey{key}, Names: []spec.Reference{ref(t, "mine")}})
				if err != nil {
					t.Fatal(err)
				}
				if got.ID != e.ID || len(got.Signatures) != 2 || got.Names[0] != "mine:latest" {
					t.Errorf("%+v", got)
				}
				if _, err := got.Verify([]sign.PublicKey{key2}); err != nil {
					t.Error(err)
				}
				a, err := os.ReadFile(e.Disk.Path())
				b, err2 := os.ReadFile(got.Disk.Path())
				if errors.Join(err, err2) != nil || !bytes.Equal(a, b) {
					t.Error("the disk has other bytes")
				}
				if room := s2.Room(got); room > 1<<20 {
					t.Errorf("%d bytes in the store: where are the holes?", room)
				}
				if _, err := s2.OpenTree(got); err != nil {
					t.Error(err)
				}
				if _, err := s2.Resolve(host + "/team/web@" + digest); err != nil {
					t.Error(err)
				}
			}
			other, err := sign.Generate()
			if err != nil {
				t.Fatal(err)
			}
			s3 := open(t)
			if _, err := Pull(t.Context(), s3, to, PullOptions{Keys: []sign.PublicKey{other.Public()}}); !errors.Is(err, store.ErrUnsigned) {
				t.Errorf("another key: %v", err)
			}
			if all, err := s3.List(); err != nil || len(all) != 0 {
				t.Errorf("%d images, %v", len(all), err)
			}
			if _, err := Pull(t.Context(), s3, ref(t, host+"/team/web:2"), PullOptions{}); !errors.Is(err, ErrNotFound) {
				t.Errorf("no such tag: %v", err)
			}
		})
	}
}

// TestOrasPushesSmolBSD pushes as smolBSD's smoler does, with the library that
// its oras is made of, and pulls it.
func TestOrasPushesSmolBSD(t *testing.T) {
	host := serve(t, inProcess())
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o700); err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 1<<20)
	copy(disk[64<<10+1372:], []byte{0x19, 0x01, 0x54, 0x19})
	if err := os.WriteFile(filepath.Join(dir, "images/rescue-amd64.img"), disk, 0o600); err != nil {
		t.Fatal(err)
	}
	fs, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	ctx := t.Context()
	layer, err := fs.Add(ctx, "images/rescue-amd64.img", "application/x-raw-disk-image", "")
	if err != nil {
		t.Fatal(err)
	}
	for version, pack := range map[string]oras.PackManifestVersion{"v10": oras.PackManifestVersion1_0, "v11": oras.PackManifestVersion1_1} {
		m, err := oras.PackManifest(ctx, fs, pack, "application/vnd.smolbsd.image", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
		if err != nil {
			t.Fatal(err)
		}
		if err := fs.Tag(ctx, m, version); err != nil {
			t.Fatal(err)
		}
		repo, err := remote.NewRepository(host + "/netbsdfr/smolbsd/rescue-amd64")
		if err != nil {
			t.Fatal(err)
		}
		repo.PlainHTTP = true
		if _, err := oras.Copy(ctx, fs, version, repo, version, oras.DefaultCopyOptions); err != nil {
			t.Fatal(err)
		}
		s := open(t)
		e, err := Pull(ctx, s, ref(t, host+"/netbsdfr/smolbsd/rescue-amd64:"+version), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(e.Disk.Path())
		if err != nil || !bytes.Equal(got, disk) || e.Image.Disk.Layout != spec.LayoutFFS || e.Image.Disk.Root != "ld0a" || e.Image.Created == "" {
			t.Errorf("%s: %+v, %v", version, e.Image, err)
		}
	}
}

// TestOrasPullsOurs: a raw push is a file for `oras pull`, and for smoler.
func TestOrasPullsOurs(t *testing.T) {
	host := serve(t, inProcess())
	s := open(t)
	e := image(t, s, "web:1.0")
	if _, err := Push(t.Context(), s, e, ref(t, host+"/web:1.0"), PushOptions{Raw: true, NoTree: true}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fs, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	repo, err := remote.NewRepository(host + "/web")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	if _, err := oras.Copy(t.Context(), repo, "1.0", fs, "", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(filepath.Join(dir, "images/web-amd64:1.0.img"))
	b, err2 := os.ReadFile(e.Disk.Path())
	if errors.Join(err, err2) != nil || !bytes.Equal(a, b) {
		t.Errorf("%v, %v", err, err2)
	}
	s2 := open(t)
	if got, err := Pull(t.Context(), s2, ref(t, host+"/web:1.0"), PullOptions{}); err != nil || got.ID != e.ID || got.Tree != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCredentials(t *testing.T) {
	host := debian(t, true)
	s := open(t)
	e := image(t, s, "web")
	to := ref(t, host+"/web")
	as := func(c Credential) Options { return Options{Credentials: func(string) Credential { return c }} }
	if _, err := Push(t.Context(), s, e, to, PushOptions{}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "--password-stdin") {
		t.Errorf("nobody: %v", err)
	}
	if _, err := Push(t.Context(), s, e, to, PushOptions{Options: as(Credential{Username: testUser, Password: "guess"})}); !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "guess") {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := Push(t.Context(), s, e, to, PushOptions{Options: as(Credential{Helper: "desktop"})}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "docker-credential-desktop") {
		t.Errorf("a helper: %v", err)
	}
	if _, err := Push(t.Context(), s, e, to, PushOptions{Options: as(Credential{Username: testUser, Password: testPassword})}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.json")
	// base64 of otto:s3cret:with a colon
	if err := os.WriteFile(config, []byte(`{"auths":{"https://`+host+`/v2/":{"auth":"b3R0bzpzM2NyZXQ6d2l0aCBhIGNvbG9u"}},"credsStore":"desktop"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	get, err := DockerCredentials(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Pull(t.Context(), open(t), to, PullOptions{Options: Options{Credentials: get}}); err != nil {
		t.Error(err)
	}
}

func TestDockerConfig(t *testing.T) {
	get, err := parseDocker([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"},"ghcr.io":{"username":"u","password":"p"},"t.example":{"auth":"PHRva2VuPjo=","identitytoken":"tok"},"empty.example":{}},
		"credHelpers":{"gcr.io":"gcloud"},"credsStore":"desktop"}`))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]Credential{
		"docker.io": {Username: "a", Password: "b"}, "ghcr.io": {Username: "u", Password: "p"}, "t.example": {IdentityToken: "tok"},
		"gcr.io": {Helper: "gcloud"}, "other.example": {Helper: "desktop"}, "empty.example": {Helper: "desktop"},
	} {
		if got := get(host); got != want {
			t.Errorf("%s: %+v, want %+v", host, got, want)
		}
	}
	for _, bad := range []string{"", "[]", `{"auths":{"h":{"auth":"secret!"}}}`, `{"auths":{"h":{"auth":"bm9jb2xvbg=="}}}`, strings.Repeat(" ", maxDockerConfig+1)} {
		if _, err := parseDocker([]byte(bad)); err == nil || strings.Contains(err.Error(), "secret!") {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	if get, err := DockerCredentials("/does/not/exist"); err != nil || get("x") != (Credential{}) {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(inProcess())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	s := open(t)
	e := image(t, s, "web")
	to := ref(t, strings.TrimPrefix(srv.URL, "https://")+"/web")
	r, err := (&Options{Transport: srv.Client().Transport}).repository(to)
	if err != nil {
		t.Fatal(err)
	}
	// The loopback is taken for a plain registry; here it stands for one elsewhere.
	r.PlainHTTP = false
	p, err := s.Pack(t.Context(), e, store.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := r.push(t.Context(), p, "latest"); err != nil {
		t.Fatal(err)
	}
	// A certificate that nobody vouches for is no certificate.
	if r, err = (&Options{}).repository(to); err != nil {
		t.Fatal(err)
	}
	r.PlainHTTP = false
	if err := r.push(t.Context(), p, "latest"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func TestGuard(t *testing.T) {
	var asked atomic.Int32
	ok := roundTrip(func(*http.Request) (*http.Response, error) { asked.Add(1); return nil, errors.New("asked") })
	for _, c := range []struct {
		registry string
		plain    bool
		url      string
		ok       bool
	}{
		{"r.example", false, "https://r.example/v2/", true},
		{"r.example", false, "https://cdn.example/x", true},
		{"r.example", false, "http://r.example/v2/", false},
		{"r.example", false, "http://127.0.0.1/", false},
		{"r.example", false, "ftp://r.example/", false},
		{"r.example", true, "http://r.example/v2/", true},
		{"r.example", true, "http://evil.example/token", false},
		{"localhost:5000", false, "http://localhost:5000/v2/", true},
		{"127.0.0.1:5000", false, "http://127.0.0.1:5000/v2/", true},
		{"[::1]:5000", false, "http://[::1]:5000/v2/", true},
		{"127.0.0.1:5000", false, "http://evil.example/", false},
	} {
		o := &Options{PlainHTTP: c.plain, Transport: ok}
		r, err := o.repository(ref(t, c.registry+"/x"))
		if err != nil {
			t.Fatal(err)
		}
		asked.Store(0)
		req, err := http.NewRequest("GET", c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Client.Do(req)
		if (asked.Load() > 0) != c.ok || !c.ok && !errors.Is(err, store.ErrRefused) {
			t.Errorf("%+v: asked %d times, %v", c, asked.Load(), err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCancel(t *testing.T) {
	h := inProcess()
	host := serve(t, h)
	s := open(t)
	if _, err := Push(t.Context(), s, image(t, s, "web"), ref(t, host+"/web"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	interrupt := errors.New("interrupt")
	ctx, cancel := context.WithCancelCause(t.Context())
	s2 := open(t)
	_, err := Pull(ctx, s2, ref(t, host+"/web"), PullOptions{Options: Options{Progress: func(what string, got, total int64) { cancel(interrupt) }}})
	if !errors.Is(err, interrupt) {
		t.Errorf("%v", err)
	}
	left, err := os.ReadDir(filepath.Join(s2.Blobs().Dir(), "tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if all, err := s2.List(); err != nil || len(all) != 0 {
		t.Errorf("%d images, %v", len(all), err)
	}
	if _, err := Pull(t.Context(), s2, ref(t, "web"), PullOptions{}); err == nil || !strings.Contains(err.Error(), "names no registry") {
		t.Error(err)
	}
}
