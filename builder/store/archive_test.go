package store

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

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/klauspost/compress/zstd"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func save(t testing.TB, s *Store, o PackOptions, es ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(t.Context(), &b, es, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func signed(t testing.TB, s *Store, e Entry) (Entry, sign.PublicKey) {
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

func TestSaveAndLoad(t *testing.T) {
	s := open(t)
	p := sample(t, 1, "web", "web:1.0")
	e, err := s.Put(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	e, key := signed(t, s, e)
	other := put(t, s, 2)
	for _, o := range []PackOptions{{}, {Raw: true}} {
		archive := save(t, s, o, e, other)
		if !bytes.Equal(archive, save(t, s, o, e, other)) {
			t.Error("the same images are other bytes")
		}
		if limit := 300 << 10; !o.Raw && len(archive) > limit {
			t.Errorf("the archive has %d bytes, more than %d: are the holes in it?", len(archive), limit)
		}
		to := open(t)
		all, err := to.Load(t.Context(), bytes.NewReader(archive), LoadOptions{})
		if err != nil || len(all) != 2 {
			t.Fatalf("%d images, %v", len(all), err)
		}
		got, err := to.Resolve("web:1.0")
		if err != nil || got.ID != e.ID || !slices.Equal(got.Names, e.Names) || !bytes.Equal(got.Document, e.Document) {
			t.Fatalf("%+v, %v", got, err)
		}
		sameDisk(t, got, p.Disk.(File))
		if k, err := os.ReadFile(got.Kernel.Path()); err != nil || string(k) != "kernel 1" {
			t.Errorf("%q, %v", k, err)
		}
		root, err := to.OpenTree(got)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := root.Digest(); err != nil || d != e.Image.Tree {
			t.Errorf("%s, %v", d, err)
		}
		if _, err := got.Verify([]sign.PublicKey{key}); err != nil {
			t.Error(err)
		}
		if _, err := to.Resolve(other.ID); err != nil {
			t.Error(err)
		}
		if n, _ := filepath.Glob(filepath.Join(to.dir, ".tmp*")); len(n) != 0 {
			t.Errorf("left: %q", n)
		}
	}
}

func TestLoadWithoutTree(t *testing.T) {
	s := open(t)
	e := put(t, s, 1, "web")
	to := open(t)
	if _, err := to.Load(t.Context(), bytes.NewReader(save(t, s, PackOptions{NoTree: true}, e)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := to.Resolve("web")
	if err != nil || got.Tree != nil || got.ID != e.ID {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := to.OpenTree(got); err == nil || !strings.Contains(err.Error(), "pull it again") {
		t.Error(err)
	}
	if _, err := to.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Error(err)
	}
	// The tree comes later.
	if _, err := to.Load(t.Context(), bytes.NewReader(save(t, s, PackOptions{}, e)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err = to.Resolve("web"); err != nil {
		t.Fatal(err)
	}
	if _, err := to.OpenTree(got); err != nil {
		t.Error(err)
	}
}

// TestOthersReadTheArchive: a reader nobody here wrote checks the layout.
func TestOthersReadTheArchive(t *testing.T) {
	s := open(t)
	e, _ := signed(t, s, put(t, s, 1, "web"))
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(save(t, s, PackOptions{}, e))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, h.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil || !bytes.Equal(config, e.Document) {
		t.Errorf("%s, %v", config, err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		d, err2 := l.Digest()
		if want := describe("", b); errors.Join(err, err2) != nil || d.String() != want.Digest {
			t.Errorf("%v has %s, %v", d, want.Digest, err)
		}
	}
	if man, err := img.Manifest(); err != nil || string(man.Config.MediaType) != spec.MediaType || man.Layers[0].Annotations[annotationTitle] != "images/web-amd64:latest.img" {
		t.Errorf("%+v, %v", man, err)
	}
}

// lay builds an archive from an index and contents.
type lay struct {
	idx   ociIndex
	blobs map[string][]byte
}

func newLay() *lay { return &lay{ociIndex{SchemaVersion: 2}, map[string][]byte{}} }

func (l *lay) add(mediaType string, b []byte) Descriptor {
	d := describe(mediaType, b)
	l.blobs[d.Digest] = b
	return d
}

func (l *lay) manifest(m Manifest, name string) {
	if m.SchemaVersion == 0 {
		m.SchemaVersion = 2
	}
	b, _ := json.Marshal(m)
	d := l.add(TypeManifest, b)
	if name != "" {
		d.Annotations = map[string]string{annotationName: name}
	}
	l.idx.Manifests = append(l.idx.Manifests, d)
}

func (l *lay) tar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	file := func(name string, data []byte) {
		w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644})
		w.Write(data)
	}
	for d, data := range l.blobs {
		file(blobPrefix+d[7:], data)
	}
	idx, _ := json.Marshal(l.idx)
	file(indexFile, idx)
	file(layoutFile, []byte(layoutJSON))
	w.Close()
	return b.Bytes()
}

func squash(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

// hostile is an image whose parts a test spoils.
type hostile struct {
	*lay
	img      spec.Image
	disk     []byte
	m        Manifest
	layers   []Descriptor
	name     string
	document []byte
	onDisk   []byte // the tree's map, where it is not to say that nothing is there
}

func newHostile() *hostile {
	h := &hostile{lay: newLay(), name: "evil", disk: bytes.Repeat([]byte("disk"), 1024)}
	h.img = spec.Image{Architecture: "amd64", OS: "netbsd", Disk: spec.Disk{
		Digest: describe("", h.disk).Digest, Size: int64(len(h.disk)), Layout: spec.LayoutRaw, Root: "ld0a",
	}}
	return h
}

func (h *hostile) archive() []byte {
	if h.layers == nil {
		h.layers = []Descriptor{h.add(TypeZstdDisk, squash(h.disk))}
	}
	if h.document == nil {
		h.document, _ = json.Marshal(h.img)
	}
	h.m.Config = h.add(spec.MediaType, h.document)
	h.m.Layers = h.layers
	h.manifest(h.m, h.name)
	return h.tar()
}

func (h *hostile) tree(files map[string][]byte, more ...string) {
	root := tree.New()
	for name, b := range files {
		root.Put(name, tree.NewFile(0o644, tree.Bytes(b)))
	}
	var enc, arc bytes.Buffer
	root.Encode(&enc)
	h.img.Tree = describe("", enc.Bytes()).Digest
	distinct := map[string]bool{}
	for _, b := range files {
		distinct[string(b)] = true
	}
	if h.onDisk == nil {
		h.onDisk = make([]byte, len(distinct)) // nothing is
	}
	w := tar.NewWriter(&arc)
	w.WriteHeader(&tar.Header{Name: treeEntry, Size: int64(enc.Len())})
	w.Write(enc.Bytes())
	w.WriteHeader(&tar.Header{Name: diskEntry, Size: int64(len(h.onDisk))})
	w.Write(h.onDisk)
	for _, name := range more {
		b := []byte("content")
		w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b))})
		w.Write(b)
	}
	w.Close()
	h.layers = []Descriptor{h.add(TypeZstdDisk, squash(h.disk)), h.add(TypeTree, squash(arc.Bytes()))}
}

// noMap is an archive of a tree as it was before it had a map.
func (h *hostile) noMap() {
	var arc bytes.Buffer
	var enc bytes.Buffer
	tree.New().Encode(&enc)
	w := tar.NewWriter(&arc)
	w.WriteHeader(&tar.Header{Name: treeEntry, Size: int64(enc.Len())})
	w.Write(enc.Bytes())
	w.WriteHeader(&tar.Header{Name: strings.Repeat("0", 64)})
	w.Close()
	h.layers[1] = h.add(TypeTree, squash(arc.Bytes()))
}

func TestLoadRefuses(t *testing.T) {
	content := describe("", []byte("content")).Digest[7:]
	for name, c := range map[string]struct {
		want  string
		spoil func(*hostile)
	}{
		"a wrong disk": {"what should be", func(h *hostile) {
			h.layers = []Descriptor{h.add(TypeZstdDisk, squash(bytes.Repeat([]byte("Disk"), 1024)))}
		}},
		"a longer disk":  {"longer", func(h *hostile) { h.layers = []Descriptor{h.add(TypeZstdDisk, squash(append(h.disk, 0)))} }},
		"a shorter disk": {"instead of", func(h *hostile) { h.layers = []Descriptor{h.add(TypeZstdDisk, squash(h.disk[1:]))} }},
		"a bomb":         {"longer", func(h *hostile) { h.layers = []Descriptor{h.add(TypeZstdDisk, squash(make([]byte, 64<<20)))} }},
		"no zstd":        {"cannot be decompressed", func(h *hostile) { h.layers = []Descriptor{h.add(TypeZstdDisk, h.disk)} }},
		"half a frame":   {"cannot be decompressed", func(h *hostile) { b := squash(h.disk); h.layers = []Descriptor{h.add(TypeZstdDisk, b[:len(b)/2])} }},
		"more behind the disk": {"longer", func(h *hostile) {
			h.layers = []Descriptor{h.add(TypeZstdDisk, append(squash(h.disk), squash([]byte("x"))...))}
		}},
		"a terabyte":           {"at most", func(h *hostile) { h.img.Disk.Size = 1 << 40 }},
		"another architecture": {"arm64", func(h *hostile) { h.img.Architecture = "arm64" }},
		"a root with a space":  {"root", func(h *hostile) { h.img.Disk.Root = "ld0a -s" }},
		"an unknown field":     {"unknown field", func(h *hostile) { h.document = []byte(`{"surprise":1}`) }},
		"a container's layer": {"application/vnd.oci.image.layer.v1.tar+gzip", func(h *hostile) {
			h.layers = []Descriptor{h.add("application/vnd.oci.image.layer.v1.tar+gzip", h.disk)}
		}},
		"two disks": {"two layers", func(h *hostile) { d := h.add(TypeZstdDisk, squash(h.disk)); h.layers = []Descriptor{d, d} }},
		"no disk":   {"no disk", func(h *hostile) { h.layers = []Descriptor{} }},
		"a kernel too many": {"does not know", func(h *hostile) {
			h.layers = []Descriptor{h.add(TypeZstdDisk, squash(h.disk)), h.add(TypeKernel, squash(h.disk))}
		}},
		"a kernel too few":    {"there is no layer", func(h *hostile) { h.img.Kernel = spec.Kernel{Digest: h.img.Disk.Digest, Size: 7} }},
		"a layer that lies":   {"longer", func(h *hostile) { d := h.add(TypeZstdDisk, squash(h.disk)); d.Size--; h.layers = []Descriptor{d} }},
		"a layer that is not": {"lacks", func(h *hostile) { h.layers = []Descriptor{describe(TypeZstdDisk, []byte("x"))} }},
		"a bad digest": {"digest", func(h *hostile) {
			h.layers = []Descriptor{{MediaType: TypeZstdDisk, Digest: "sha256:../../../etc/passwd", Size: 1}}
		}},
		"a negative size":    {"-1 bytes", func(h *hostile) { d := h.add(TypeZstdDisk, squash(h.disk)); d.Size = -1; h.layers = []Descriptor{d} }},
		"many layers":        {"at most", func(h *hostile) { h.layers = make([]Descriptor, maxLayers+1) }},
		"an index":           {"several platforms", func(h *hostile) { h.m.MediaType = TypeIndex }},
		"docker's schema 1":  {"schema version", func(h *hostile) { h.m.SchemaVersion = 1 }},
		"a bad name":         {"image name", func(h *hostile) { h.name = "../../evil" }},
		"a tree unasked for": {"a tree that", func(h *hostile) { h.tree(nil); h.img.Tree = "" }},
		"another tree":       {"what should be", func(h *hostile) { h.tree(nil); h.img.Tree = h.img.Disk.Digest }},
		"a tree with a hole": {"lacks", func(h *hostile) { h.tree(map[string][]byte{"/a": []byte("content")}) }},
		"a tree with more":   {"does not name", func(h *hostile) { h.tree(nil, content) }},
		"a tree's traversal": {"does not name", func(h *hostile) { h.tree(nil, "../../x") }},
		"a map cut short":    {"damaged", func(h *hostile) { h.onDisk = []byte{2, 0, 0}; h.tree(map[string][]byte{"/a": []byte("disk")}) }},
		"no map":             {"goes on with", func(h *hostile) { h.tree(nil); h.noMap() }},
		"a map too long":     {"too many", func(h *hostile) { h.onDisk = []byte{0, 0}; h.tree(map[string][]byte{"/a": []byte("content")}, content) }},
		"a map of much": {"damaged", func(h *hostile) {
			h.onDisk = bytes.Repeat([]byte{0xff}, 12)
			h.tree(map[string][]byte{"/a": []byte("disk")})
		}},
		"a run too long":   {"5 bytes at 0", func(h *hostile) { h.onDisk = []byte{2, 0, 0, 5}; h.tree(map[string][]byte{"/a": []byte("disk")}) }},
		"a run of nothing": {"0 bytes at 0", func(h *hostile) { h.onDisk = []byte{2, 0, 0, 0}; h.tree(map[string][]byte{"/a": []byte("disk")}) }},
		"a run too far": {"4 bytes at 4093", func(h *hostile) {
			h.onDisk = []byte{2, 0, 0xfd, 0x1f, 4}
			h.tree(map[string][]byte{"/a": []byte("disk")})
		}},
		"another run":      {"what should be", func(h *hostile) { h.onDisk = []byte{2, 0, 1, 4}; h.tree(map[string][]byte{"/a": []byte("disk")}) }},
		"a run behind all": {"1 bytes at 0", func(h *hostile) { h.onDisk = []byte{2, 4, 0, 1}; h.tree(map[string][]byte{"/a": []byte("disk")}) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			mine := put(t, s, 3, "mine")
			h := newHostile()
			c.spoil(h)
			_, err := s.Load(t.Context(), bytes.NewReader(h.archive()), LoadOptions{})
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if all, err := s.List(); err != nil || len(all) != 1 || all[0].ID != mine.ID {
				t.Errorf("%d images, %v", len(all), err)
			}
			if left, _ := os.ReadDir(filepath.Join(s.blobs.Dir(), "tmp")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	// The archive that the others are spoilt from is taken, with a good tree too.
	h := newHostile()
	h.tree(map[string][]byte{"/a": []byte("content"), "/b": []byte("content")}, content)
	if _, err := open(t).Load(t.Context(), bytes.NewReader(h.archive()), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	// And one whose files are on the disk: in two runs, with zeros around them.
	h = newHostile()
	h.onDisk = []byte{3, 1, 3, 2, 1, 0, 4}
	h.tree(map[string][]byte{"/a": []byte("\x00kd\x00disk\x00")})
	if _, err := open(t).Load(t.Context(), bytes.NewReader(h.archive()), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestLoadRefusesArchives(t *testing.T) {
	good := newHostile().archive()
	raw := func(hs ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			w.WriteHeader(&h)
			w.Write(make([]byte, h.Size))
		}
		w.Close()
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		archive []byte
		limit   int64
		want    string
	}{
		"nothing":       {nil, 0, "no OCI image layout"},
		"cut short":     {good[:522], 0, "tar"},
		"text":          {bytes.Repeat([]byte("hello world "), 100), 0, "tar"},
		"gzip":          {append([]byte{0x1f, 0x8b}, make([]byte, 600)...), 0, "tar"},
		"too large":     {good, 100, "more than 100 bytes"},
		"a link":        {raw(tar.Header{Name: blobPrefix + strings.Repeat("0", 64), Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}), 0, "no file"},
		"a traversal":   {raw(tar.Header{Name: blobPrefix + "../../../x", Size: 1}), 0, "digest"},
		"a large index": {raw(tar.Header{Name: indexFile, Size: MaxManifest + 1}), 0, "at most"},
		"twice":         {raw(tar.Header{Name: blobPrefix + strings.Repeat("0", 64), Size: 1}, tar.Header{Name: blobPrefix + strings.Repeat("0", 64), Size: 1}), 0, "twice"},
		"no image":      {newLay().tar(), 0, "without an image"},
	} {
		if _, err := open(t).Load(t.Context(), bytes.NewReader(c.archive), LoadOptions{MaxDisk: c.limit}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t).Load(ctx, bytes.NewReader(good), LoadOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Ctrl-C: %v", err)
	}
}

func TestVerify(t *testing.T) {
	s := open(t)
	e, key := signed(t, s, put(t, s, 1, "web"))
	k2, err := sign.Generate()
	if err != nil {
		t.Fatal(err)
	}
	archive := save(t, s, PackOptions{}, e)
	for _, c := range []struct {
		keys []sign.PublicKey
		ok   bool
	}{{nil, true}, {[]sign.PublicKey{key}, true}, {[]sign.PublicKey{k2.Public(), key}, true}, {[]sign.PublicKey{k2.Public()}, false}} {
		to := open(t)
		_, err := to.Load(t.Context(), bytes.NewReader(archive), LoadOptions{Keys: c.keys})
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrUnsigned) {
			t.Errorf("%v: %v", c.keys, err)
		}
		if all, _ := to.List(); (len(all) == 1) != c.ok {
			t.Errorf("%d images stored", len(all))
		}
	}
	if _, err := e.Verify(nil); !errors.Is(err, ErrUnsigned) {
		t.Errorf("no keys: %v", err)
	}
	bare := put(t, s, 2, "bare")
	if _, err := bare.Verify([]sign.PublicKey{key}); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "no signature") {
		t.Error(err)
	}
	// A signature of one image is none of another.
	if err := s.AddSignature(t.Context(), bare.ID, e.Signatures[0]); err != nil {
		t.Fatal(err)
	}
	if bare, err = s.Resolve("bare"); err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Verify([]sign.PublicKey{key}); !errors.Is(err, ErrUnsigned) || !errors.Is(err, sign.ErrSignature) {
		t.Error(err)
	}
}
