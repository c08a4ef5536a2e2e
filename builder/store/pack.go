package store

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// PackOptions say how an image goes to others.
type PackOptions struct {
	// Raw leaves the disk uncompressed, as smolBSD's tools and `oras pull` want it.
	Raw bool
	// NoTree leaves the tree out: nobody can build FROM the image then.
	NoTree bool
	// Progress is told how much of what has been compressed, bytes; nil is nobody.
	Progress func(what string, got, total int64)
}

// Part is a content of a packed image.
type Part struct {
	Descriptor
	open func() (io.ReadCloser, error)
}

// Open gives the content's bytes.
func (p Part) Open() (io.ReadCloser, error) { return p.open() }

// Packed is an image as an OCI artifact. Close frees what it takes on the disk.
type Packed struct {
	Part       // the manifest
	Bytes      []byte
	Parts      []Part // config and layers
	Signatures []*Packed
	files      []*os.File
}

// Close removes the temporary files.
func (p *Packed) Close() {
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

// Pack makes an OCI artifact of an image: the description is the config, disk,
// kernel and tree are layers; each signature is an artifact of its own whose
// subject is the image's manifest.
func (s *Store) Pack(ctx context.Context, e Entry, o PackOptions) (*Packed, error) {
	if e.Err != nil {
		return nil, e.Err
	}
	p := &Packed{}
	if err := s.pack(ctx, p, e, o); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (s *Store) pack(ctx context.Context, p *Packed, e Entry, o PackOptions) (err error) {
	m := Manifest{SchemaVersion: 2, MediaType: TypeManifest, ArtifactType: ArtifactType}
	if e.Image.Created != "" {
		m.Annotations = map[string]string{annotationCreated: e.Image.Created}
	}
	m.Config = p.bytes(spec.MediaType, e.Document)
	title := map[string]string{annotationTitle: ShortID(e.ID) + ".img"}
	if len(e.Names) > 0 {
		if r, err := spec.ParseReference(e.Names[0]); err == nil {
			name := r.Name[lastSlash(r.Name):]
			title[annotationTitle] = "images/" + name + "-" + e.Image.Architecture + ":" + r.Tag + ".img" // as smoler names them
		}
	}
	var disk Descriptor
	if o.Raw {
		disk = Descriptor{MediaType: TypeRawDisk, Digest: e.Disk.Digest(), Size: e.Disk.Size()}
		p.Parts = append(p.Parts, Part{disk, func() (io.ReadCloser, error) { return os.Open(e.Disk.Path()) }})
	} else if disk, err = s.squeeze(ctx, p, TypeZstdDisk, func(w io.Writer) error {
		return copyBlob(ctx, w, e.Disk, "disk", o.Progress)
	}); err != nil {
		return err
	}
	disk.Annotations = title
	m.Layers = []Descriptor{disk}
	if e.Kernel != nil {
		d, err := s.squeeze(ctx, p, TypeKernel, func(w io.Writer) error { return copyBlob(ctx, w, *e.Kernel, "kernel", o.Progress) })
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
	}
	if e.Tree != nil && !o.NoTree {
		d, err := s.squeeze(ctx, p, TypeTree, func(w io.Writer) error { return s.tarTree(ctx, w, e, o.Progress) })
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
	}
	if err := p.manifest(m); err != nil {
		return err
	}
	for _, file := range e.Signatures {
		sig, err := PackSignature(p.Descriptor, file)
		if err != nil {
			return err
		}
		p.Signatures = append(p.Signatures, sig)
	}
	return nil
}

// PackSignature makes the artifact that attaches a signature to an image's manifest.
func PackSignature(subject Descriptor, file []byte) (*Packed, error) {
	p := &Packed{}
	subject.Annotations = nil
	m := Manifest{SchemaVersion: 2, MediaType: TypeManifest, ArtifactType: sign.MediaType, Subject: &subject}
	m.Config = p.bytes(TypeEmpty, []byte(emptyJSON))
	m.Layers = []Descriptor{p.bytes(sign.MediaType, file)}
	return p, p.manifest(m)
}

func lastSlash(s string) int {
	for i := len(s); i > 0; i-- {
		if s[i-1] == '/' {
			return i
		}
	}
	return 0
}

func (p *Packed) manifest(m Manifest) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	p.Bytes = b
	p.Part = Part{describe(TypeManifest, b), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
	p.ArtifactType = m.ArtifactType
	return nil
}

func (p *Packed) bytes(mediaType string, b []byte) Descriptor {
	d := describe(mediaType, b)
	p.Parts = append(p.Parts, Part{d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }})
	return d
}

// squeeze compresses what fill writes into a file that has no name.
func (s *Store) squeeze(ctx context.Context, p *Packed, mediaType string, fill func(io.Writer) error) (Descriptor, error) {
	f, err := s.nameless()
	if err != nil {
		return Descriptor{}, err
	}
	p.files = append(p.files, f)
	h := sha256.New()
	// One goroutine: the result does not depend on how many there are.
	z, err := zstd.NewWriter(io.MultiWriter(f, h), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Descriptor{}, err
	}
	if err := errors.Join(fill(z), z.Close()); err != nil {
		return Descriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return Descriptor{}, err
	}
	d := Descriptor{MediaType: mediaType, Digest: tree.DigestPrefix + hex.EncodeToString(h.Sum(nil)), Size: size}
	p.Parts = append(p.Parts, Part{d, func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, size)), nil }})
	return d, nil
}

// nameless gives a temporary file that is gone when it is closed, however that
// comes about.
func (s *Store) nameless() (*os.File, error) {
	f, err := os.CreateTemp(s.dir, ".tmp-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyBlob writes a content, told to progress.
func copyBlob(ctx context.Context, w io.Writer, b blob.Blob, what string, progress func(string, int64, int64)) error {
	r, err := b.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, &watched{ctx: ctx, r: io.NewSectionReader(r, 0, b.Size()), what: what, total: b.Size(), progress: progress})
	return err
}

// watched is a reader that tells how far it is, and ends with its context.
type watched struct {
	ctx        context.Context
	r          io.Reader
	what       string
	got, total int64
	progress   func(string, int64, int64)
}

func (w *watched) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.got += int64(n)
	if w.progress != nil {
		w.progress(w.what, w.got, w.total)
	}
	return n, err
}

const (
	treeEntry = "tree" // the encoding in the archive of a tree
	diskEntry = "disk" // where on the disk its contents are: see share.go
	// maxTree bounds a tree's encoding, bytes: a million files with long names.
	maxTree = 256 << 20
)

// tarTree writes the archive of a tree: its encoding, where on the disk its contents
// are, and those that are not there by their digests' 64 digits, in their order.
func (s *Store) tarTree(ctx context.Context, w io.Writer, e Entry, progress func(string, int64, int64)) error {
	sizes, err := s.contentsOf(e.Tree.Path())
	if err != nil {
		return err
	}
	contents := make([]blob.Blob, 0, len(sizes))
	for _, d := range slices.Sorted(maps.Keys(sizes)) {
		b, err := s.content(d, sizes[d])
		if err != nil {
			return err
		}
		contents = append(contents, b)
	}
	sh, err := newSharer(ctx, e.Disk)
	if err != nil {
		return err
	}
	defer sh.disk.Close()
	table, own, err := sh.shared(ctx, contents)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	header := func(name string, size int64) error {
		return t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX})
	}
	if err := header(treeEntry, e.Tree.Size()); err != nil {
		return err
	}
	if err := copyBlob(ctx, t, *e.Tree, "tree", nil); err != nil {
		return err
	}
	if err := header(diskEntry, int64(len(table))); err != nil {
		return err
	}
	if _, err := t.Write(table); err != nil {
		return err
	}
	for i, b := range own {
		if err := header(b.Digest()[len(tree.DigestPrefix):], b.Size()); err != nil {
			return err
		}
		if err := copyBlob(ctx, t, b, "tree", nil); err != nil {
			return err
		}
		if progress != nil {
			progress("tree", int64(i+1), int64(len(own)))
		}
	}
	return t.Close()
}

// contentsOf reads a tree's encoding and gives the contents that it names, with
// their sizes.
func (s *Store) contentsOf(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sizes := map[string]int64{}
	_, err = tree.Decode(f, func(digest string, size int64) (tree.Content, error) {
		if old, ok := sizes[digest]; ok && old != size {
			return nil, refused("the tree has %s with %d bytes and with %d", digest, old, size)
		}
		sizes[digest] = size
		return tree.Ref{Sum: digest, Bytes: size}, nil
	})
	return sizes, err
}
