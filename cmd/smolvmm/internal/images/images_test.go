package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// host is one user's folders and streams.
type host struct {
	t   *testing.T
	dir string
	env map[string]string
	in  string
	Env
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, dir: dir, env: map[string]string{"HOME": dir}}
	h.Store, h.Keys, h.Cache = filepath.Join(dir, "images"), filepath.Join(dir, "keys"), filepath.Join(dir, "cache")
	h.Size = func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }
	h.Variable = func(k string) (string, bool) { v, ok := h.env[k]; return v, ok }
	return h
}

// run runs a verb as the command does.
func (h *host) run(line ...string) (stdout string, err error) {
	h.t.Helper()
	for _, v := range Verbs() {
		if v.Name != line[0] {
			continue
		}
		f, run := v.New()
		if err := f.Parse(line[1:]); err != nil {
			h.t.Fatal(err)
		}
		var out, stderr bytes.Buffer
		e := h.Env
		e.In, e.Out, e.Err = strings.NewReader(h.in), &out, &stderr
		err := run(h.t.Context(), e, f.Args())
		return out.String() + stderr.String(), err
	}
	h.t.Fatalf("no verb %q", line[0])
	return "", nil
}

func (h *host) must(line ...string) string {
	h.t.Helper()
	out, err := h.run(line...)
	if err != nil {
		h.t.Fatalf("%q: %v", line, err)
	}
	return out
}

// fails expects an error that says want, and tells usage errors from others.
func (h *host) fails(want string, usage bool, line ...string) {
	h.t.Helper()
	_, err := h.run(line...)
	var u *UsageError
	if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, &u) != usage {
		h.t.Errorf("%q: %v; want %q, of the user's making: %v", line, err, want, usage)
	}
}

// put stores an image.
func (h *host) put(seed int64, names ...string) store.Entry {
	h.t.Helper()
	s, err := store.Open(h.Store)
	if err != nil {
		h.t.Fatal(err)
	}
	disk := filepath.Join(h.t.TempDir(), "disk")
	data := make([]byte, 64<<10)
	rand.New(rand.NewSource(seed)).Read(data)
	err = os.WriteFile(disk, data, 0o600)
	if err := errors.Join(err, os.Truncate(disk, 4<<20)); err != nil {
		h.t.Fatal(err)
	}
	c, err := store.OpenFile(disk)
	if err != nil {
		h.t.Fatal(err)
	}
	p := store.Put{Disk: c, Tree: tree.New(), Image: spec.Image{
		Architecture: "amd64", OS: "netbsd", Created: "2026-02-03T04:05:06Z",
		Disk: spec.Disk{Layout: spec.LayoutFFS, Root: "ld0a"},
	}}
	for _, n := range names {
		r, err := spec.ParseReference(n)
		if err != nil {
			h.t.Fatal(err)
		}
		p.Names = append(p.Names, r)
	}
	e, err := s.Put(h.t.Context(), p)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func TestLifeOfAnImage(t *testing.T) {
	h := newHost(t)
	if out := h.must("images"); !strings.Contains(out, "no images yet") {
		t.Error(out)
	}
	if out := h.must("images", "--format", "json"); out != "[]\n" {
		t.Errorf("%q", out)
	}
	e := h.put(1, "web")
	h.must("tag", "web", "localhost:5000/team/web:1.0")
	want := regexp.MustCompile(`^NAME                         ID            CREATED           DISK     STORED +SIGNED BY\n` +
		`localhost:5000/team/web:1\.0  ` + store.ShortID(e.ID) + `  2026-02-03 04:05  4\.0 MiB  \d+\.\d KiB +-\n` +
		`web:latest                   ` + store.ShortID(e.ID) + `  2026-02-03 04:05  4\.0 MiB  \d+\.\d KiB +-\n$`)
	if out := h.must("images"); !want.MatchString(out) {
		t.Errorf("%s\nwant %s", out, want)
	}
	if out := h.must("images", "-q", "web"); out != store.ShortID(e.ID)+"\n" {
		t.Errorf("%q", out)
	}
	if out := h.must("images", "-q", "we"); out != "" {
		t.Errorf("%q", out)
	}
	var list []view
	if err := json.Unmarshal([]byte(h.must("image", "inspect", "web")), &list); err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	if v := list[0]; v.ID != e.ID || v.Disk != 4<<20 || v.Room > 200<<10 || !v.HasTree || v.Image.Disk.Root != "ld0a" || len(v.Names) != 2 {
		t.Errorf("%+v", v)
	}
	if out := h.must("image", "inspect", "--format", "document", "web"); out != string(e.Document) {
		t.Errorf("%q", out)
	}
	if out := h.must("image", "check", "web"); !strings.Contains(out, "whole") {
		t.Error(out)
	}
	h.put(2, "web") // takes the name
	h.must("rmi", "localhost:5000/team/web:1.0")
	if out := h.must("images"); strings.Contains(out, store.ShortID(e.ID)) {
		t.Error(out)
	}
	h.fails("2 names", false, "rmi", h.two(3))
	if out := h.must("rmi", "-f", h.two(3)); strings.Count(out, "untagged") != 2 || !strings.Contains(out, "freed)") {
		t.Error(out)
	}
	h.put(4, "db")
	h.put(5, "db")
	if out := h.must("prune"); !strings.HasPrefix(out, "0 images, 0 contents") {
		t.Error(out)
	}
	if out := h.must("prune", "-n", "--grace", "0s"); !strings.Contains(out, "1 images,") || !strings.Contains(out, "would be freed") {
		t.Error(out)
	}
	if out := h.must("prune", "--grace", "0s"); !strings.Contains(out, "1 images,") || !strings.Contains(out, " freed") {
		t.Error(out)
	}
}

// TestPruneKeepsCaches: what the step cache and the unpacked sets refer to stays,
// unless --cache says otherwise.
func TestPruneKeepsCaches(t *testing.T) {
	h := newHost(t)
	s, err := store.Open(h.Store)
	if err != nil {
		t.Fatal(err)
	}
	root := tree.New()
	if err := root.Put("a", tree.NewFile(0o644, tree.Bytes("of a step"))); err != nil {
		t.Fatal(err)
	}
	_, err = builder.Build(t.Context(), builder.Options{
		Text: []byte("FROM scratch\nLABEL smolvmm.init=keep\nCOPY --from=base / /\nWORKDIR /made\n"), Roots: map[string]*tree.Tree{"base": root},
		Blobs: s.Blobs(), Cache: filepath.Join(h.Cache, "steps"),
	})
	if err == nil || !strings.Contains(err.Error(), "/sbin/init") {
		t.Fatal(err) // it is not bootable, and its steps are cached
	}
	for _, c := range []string{"of a step", "of nobody"} {
		if _, err := s.Blobs().Put(t.Context(), tree.Bytes(c)); err != nil {
			t.Fatal(err)
		}
	}
	has := func(c string) bool {
		_, err := s.Blobs().Open(tree.Bytes(c).Digest())
		return err == nil
	}
	h.must("prune", "--grace", "0s")
	if !has("of a step") || has("of nobody") {
		t.Errorf("a step's is there: %v, nobody's: %v", has("of a step"), has("of nobody"))
	}
	h.must("prune", "--grace", "0s", "--cache")
	if has("of a step") {
		t.Error("--cache leaves what only the cache needs")
	}
}

// two gives the ID of an image with two names.
func (h *host) two(seed int64) string { return store.ShortID(h.put(seed, "a", "b").ID) }

func TestRemoveUnderAMachine(t *testing.T) {
	h := newHost(t)
	e := h.put(1, "web", "web:1")
	h.Machines = func(disk string) ([]string, error) {
		if disk == e.Disk.Path() {
			return []string{"otto"}, nil
		}
		return nil, nil
	}
	h.must("rmi", "web:1") // another name is left
	h.fails("the machine otto", false, "rmi", "web")
	h.must("rmi", "-f", "web")
}

func TestSaveAndLoad(t *testing.T) {
	h, other := newHost(t), newHost(t)
	e := h.put(1, "web")
	h.must("key", "generate")
	h.must("sign", "web")
	file := filepath.Join(h.dir, "web.tar")
	h.must("save", "-o", file, "web")
	if out := h.must("save", "web"); len(out) == 0 {
		t.Error("nothing went to standard output")
	}
	h.OutIsTerminal = true
	h.fails("terminal", true, "save", "web")
	other.fails("not signed by a trusted key", false, "load", "--verify", strings.TrimSpace(newKey(t)), file)
	if out := other.must("load", "--verify", strings.TrimSpace(h.must("key", "show")), file); out != "loaded web:latest "+store.ShortID(e.ID)+"\n" {
		t.Errorf("%q", out)
	}
	other.fails("more than 100 bytes", false, "load", "--max-size", "100", file)
	other.fails("no such file", true, "load", "/does/not/exist")
	other.in = "hello"
	other.fails("standard input: refused: this is not a whole tar archive", false, "load")
	left, err := filepath.Glob(filepath.Join(h.dir, ".web*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	h.fails("no such image", false, "save", "-o", filepath.Join(h.dir, "x.tar"), "nothing")
	if _, err := os.Stat(filepath.Join(h.dir, "x.tar")); err == nil {
		t.Error("there is a file that has nothing")
	}
}

func newKey(t *testing.T) string {
	h := newHost(t)
	h.must("key", "generate")
	return h.must("key", "show")
}

func TestPushAndPull(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	defer srv.Close()
	at := strings.TrimPrefix(srv.URL, "http://")
	h, other := newHost(t), newHost(t)
	e := h.put(1, "web", at+"/team/web:1.0")
	h.must("key", "generate")
	h.must("sign", "web")
	key := strings.TrimSpace(h.must("key", "show"))
	h.must("push", at+"/team/web:1.0")
	out := h.must("push", "web", at+"/team/web")
	digest := regexp.MustCompile(`^pushed ` + regexp.QuoteMeta(at) + `/team/web@(sha256:[0-9a-f]{64})\n$`).FindStringSubmatch(out)
	if digest == nil {
		t.Fatalf("%q", out)
	}
	if out := other.must("pull", "--verify", key, at+"/team/web:1.0"); out != "pulled "+at+"/team/web:1.0 "+store.ShortID(e.ID)+"\n" {
		t.Errorf("%q", out)
	}
	other.must("pull", at+"/team/web@"+digest[1])
	third := newHost(t)
	third.fails("not signed by a trusted key", false, "pull", "--verify", strings.TrimSpace(newKey(t)), at+"/team/web")
	if out := third.must("images", "-q"); out != "" {
		t.Error(out)
	}
	// A name without a registry is smolBSD's, or the variable's.
	third.env[RegistryVariable] = at + "/team/"
	third.must("pull", "web:1.0")
	if out := third.must("images", "web"); !strings.Contains(out, "web:1.0") {
		t.Error(out)
	}
	third.env[RegistryVariable] = "nonsense"
	third.fails(RegistryVariable, true, "pull", "web")
	third.fails("no such image", false, "pull", at+"/team/none")
	third.fails("belong together", true, "pull", "-u", "otto", at+"/team/web")
	third.fails("on standard input", true, "pull", "-u", "otto", "--password-stdin", at+"/team/web")
	third.fails("names no registry", true, "push", "web:1.0")
	third.fails("-max-size", true, "pull", "--max-size", "lots", at+"/x")
	if err := os.MkdirAll(filepath.Join(third.dir, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(third.dir, ".docker/config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	third.fails("config.json", false, "pull", at+"/team/web")
}

func TestDefaultRegistry(t *testing.T) {
	h := newHost(t)
	ref, err := spec.ParseReference("rescue-amd64:latest")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := remoteName(h.Env, ref); err != nil || got.String() != "ghcr.io/netbsdfr/smolbsd/rescue-amd64:latest" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestKeys(t *testing.T) {
	h := newHost(t)
	h.put(1, "web")
	if out := h.must("key", "list"); !strings.Contains(out, "no keys yet") {
		t.Error(out)
	}
	h.fails("no key is trusted", true, "verify", "web")
	h.fails("smolvmm key generate", true, "sign", "web")
	h.must("key", "generate")
	h.fails("there already", true, "key", "generate")
	secret := filepath.Join(h.Keys, "default.key")
	for name, want := range map[string]os.FileMode{secret: 0o600, h.Keys: 0o700 | os.ModeDir} {
		if st, err := os.Stat(name); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	h.fails("no signature at all", false, "verify", "web")
	h.must("sign", "-c", "fit for use", "web")
	if out := h.must("verify", "web"); !strings.Contains(out, "fit for use") {
		t.Error(out)
	}
	for _, how := range []string{"default", filepath.Join(h.Keys, "default.pub"), strings.TrimSpace(h.must("key", "show"))} {
		h.must("verify", "--key", how, "web")
	}
	h.fails("neither a file", true, "verify", "--key", "nonsense", "web")
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	h.fails("chmod 600", true, "sign", "web")
	h.fails("the name", true, "key", "generate", "../x")
	h.fails("the name", true, "sign", "-k", "-x", "web")
	if out := h.must("key", "list"); !strings.Contains(out, "default  ") {
		t.Error(out)
	}
	h.fails("generate, list or show", true, "key")
	if out := h.must("images"); !regexp.MustCompile(`[0-9A-F]{16}\n$`).MatchString(out) {
		t.Errorf("who signed it is not listed:\n%s", out)
	}
}

// TestMinisign: the document that is printed and a signature are minisign's.
func TestMinisign(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("NOT RUN: minisign is not installed (Debian's package minisign)")
	}
	h := newHost(t)
	h.put(1, "web")
	h.must("key", "generate")
	h.must("sign", "web")
	s, err := store.Open(h.Store)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Resolve("web")
	if err != nil {
		t.Fatal(err)
	}
	doc, sig := filepath.Join(h.dir, "web.json"), filepath.Join(h.dir, "web.minisig")
	err = errors.Join(os.WriteFile(doc, []byte(h.must("image", "inspect", "--format", "document", "web")), 0o600), os.WriteFile(sig, e.Signatures[0], 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("minisign", "-V", "-p", filepath.Join(h.Keys, "default.pub"), "-x", sig, "-m", doc).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 1023 << 10: "1.0 MiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 1 << 40: "1.0 TiB", 5000 << 40: "5000.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	h := newHost(t)
	h.put(1, "web")
	file := filepath.Join(h.dir, "web.tar")
	for _, v := range Verbs() {
		if v.Name != "save" {
			continue
		}
		f, run := v.New()
		if err := f.Parse([]string{"-o", file, "web"}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		e := h.Env
		e.Out, e.Err = io.Discard, io.Discard
		e.Progress = func(string, int64, int64) { cancel() }
		if err := run(ctx, e, f.Args()); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(h.dir, "*web*")); err != nil || len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
