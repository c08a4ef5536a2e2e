package store

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	layoutFile = "oci-layout"
	indexFile  = "index.json"
	blobPrefix = "blobs/sha256/"
	layoutJSON = `{"imageLayoutVersion":"1.0.0"}`

	// maxArchived bounds the contents of an archive: a thousand images have that
	// many; each is remembered.
	maxArchived = 16384
	// maxImages of an archive.
	maxImages = 1024
)

// Save writes images as one tar archive, an OCI image layout (OCI image-spec,
// image-layout.md). The same images give the same bytes.
func (s *Store) Save(ctx context.Context, w io.Writer, images []Entry, o PackOptions) error {
	idx := ociIndex{SchemaVersion: 2, MediaType: TypeIndex}
	var all []Part
	seen := map[string]bool{}
	add := func(p *Packed) {
		for _, part := range append(p.Parts, p.Part) {
			if !seen[part.Digest] {
				seen[part.Digest] = true
				all = append(all, part)
			}
		}
	}
	for _, e := range images {
		p, err := s.Pack(ctx, e, o)
		if err != nil {
			return err
		}
		defer p.Close()
		add(p)
		d := p.Descriptor
		if len(e.Names) == 0 {
			idx.Manifests = append(idx.Manifests, d)
		}
		for _, name := range e.Names {
			d.Annotations = map[string]string{annotationName: name}
			idx.Manifests = append(idx.Manifests, d)
		}
		for _, sig := range p.Signatures {
			add(sig)
			idx.Manifests = append(idx.Manifests, sig.Descriptor)
		}
	}
	doc, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(w, 1<<20)
	t := tar.NewWriter(b)
	file := func(name string, size int64, r io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(t, &watched{ctx: ctx, r: r})
		return err
	}
	err = errors.Join(
		file(layoutFile, int64(len(layoutJSON)), strings.NewReader(layoutJSON)),
		file(indexFile, int64(len(doc)), strings.NewReader(string(doc))))
	for _, p := range all {
		if err != nil {
			return err
		}
		r, e := p.Open()
		if e != nil {
			return e
		}
		err = errors.Join(file(blobPrefix+p.Digest[len(tree.DigestPrefix):], p.Size, r), r.Close())
	}
	return errors.Join(err, t.Close(), b.Flush())
}

// LoadOptions are an Unpack's.
type LoadOptions struct {
	Keys     []sign.PublicKey
	NoTree   bool
	MaxDisk  int64 // bytes that one disk, and the archive, may have; 0 is DefaultMaxDisk
	Progress func(what string, got, total int64)
}

// archived is an archive whose contents lie one behind the other in a file.
type archived struct {
	f     *os.File
	blobs map[string]span
	index []byte
}

type span struct{ off, size int64 }

// Load stores the images of an archive that Save or another tool made (an OCI
// image layout). Nothing of it is trusted.
func (s *Store) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Entry, error) {
	if o.MaxDisk == 0 {
		o.MaxDisk = DefaultMaxDisk
	}
	f, err := s.nameless()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a := &archived{f: f, blobs: map[string]span{}}
	if err := a.read(ctx, r, o.MaxDisk); err != nil {
		return nil, err
	}
	return s.loadArchive(ctx, a, o)
}

// read takes an archive apart.
func (a *archived) read(ctx context.Context, r io.Reader, limit int64) error {
	t := tar.NewReader(&watched{ctx: ctx, r: r})
	layout := false
	var end int64
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refusedTar(err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		hex, isBlob := strings.CutPrefix(name, blobPrefix)
		switch {
		case h.Typeflag == tar.TypeDir:
			continue // nothing is made of it
		case h.Typeflag != tar.TypeReg:
			return refused("the archive has %q, which is no file", clip(h.Name))
		case name == layoutFile:
			b, err := readUpTo(t, h, 4096)
			var v struct {
				Version string `json:"imageLayoutVersion"`
			}
			if err != nil {
				return err
			}
			if err := json.Unmarshal(b, &v); err != nil || v.Version != "1.0.0" {
				return refused("an image layout of the version %q; 1.0.0 is known", clip(v.Version))
			}
			layout = true
		case name == indexFile:
			if a.index, err = readUpTo(t, h, MaxManifest); err != nil {
				return err
			}
		case isBlob:
			digest := tree.DigestPrefix + hex
			if err := tree.CheckDigest(digest); err != nil {
				return refused("the archive has %q: %w", clip(h.Name), err)
			}
			if h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.size"] != "" {
				// Nobody packs a content with holes; a kilobyte of them would be
				// written out as all that may be.
				return refused("the archive has %q with holes", clip(h.Name))
			}
			if h.Size > limit-end {
				return refused("an archive with more than %d bytes of contents", limit)
			}
			if len(a.blobs) == maxArchived {
				return refused("an archive with more than %d contents", maxArchived)
			}
			if _, twice := a.blobs[digest]; twice {
				return refused("the archive has %q twice", clip(h.Name))
			}
			n, err := io.Copy(io.NewOffsetWriter(a.f, end), t)
			if err != nil {
				return refusedTar(err)
			}
			a.blobs[digest] = span{end, n}
			end += n
		default:
			// Docker's own manifest.json and repositories may stand beside a layout.
		}
	}
	if !layout || a.index == nil {
		return refused("this is no OCI image layout: no %s and %s in it", layoutFile, indexFile)
	}
	return nil
}

func refusedTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("this is not a whole tar archive: %w", err)
	}
	return err
}

func readUpTo(r io.Reader, h *tar.Header, limit int64) ([]byte, error) {
	if h.Size > limit {
		return nil, refused("the archive's %s has %d bytes; at most %d are read", clip(h.Name), h.Size, limit)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, refusedTar(err)
	}
	return b, nil
}

func (a *archived) fetch(_ context.Context, d Descriptor) (io.ReadCloser, error) {
	at, ok := a.blobs[d.Digest]
	if !ok {
		return nil, refused("the archive lacks %s", d.Digest)
	}
	return io.NopCloser(io.NewSectionReader(a.f, at.off, at.size)), nil
}

// small reads a manifest or a signature.
func (a *archived) small(d Descriptor, limit int64) ([]byte, error) {
	r, err := a.fetch(nil, d)
	if err != nil {
		return nil, err
	}
	return readVerified(r, d, limit)
}

func (s *Store) loadArchive(ctx context.Context, a *archived, o LoadOptions) ([]Entry, error) {
	var idx ociIndex
	if err := json.Unmarshal(a.index, &idx); err != nil {
		return nil, refused("the archive's %s: %w", indexFile, err)
	}
	if len(idx.Manifests) > maxImages*2 {
		return nil, refused("an archive with %d manifests; at most %d are read", len(idx.Manifests), maxImages*2)
	}
	var order []Descriptor
	images := map[string]bool{}
	names := map[string][]spec.Reference{}
	signatures := map[string][][]byte{}
	for _, d := range idx.Manifests {
		if err := d.check(); err != nil {
			return nil, err
		}
		b, err := a.small(d, MaxManifest)
		if err != nil {
			return nil, err
		}
		m, err := ParseManifest(b)
		if err != nil {
			return nil, err
		}
		if m.ArtifactType == sign.MediaType {
			if m.Subject == nil || len(m.Layers) != 1 || len(signatures[m.Subject.Digest]) == maxSignatures {
				continue
			}
			file, err := a.small(m.Layers[0], maxSignature)
			if err != nil {
				return nil, err
			}
			signatures[m.Subject.Digest] = append(signatures[m.Subject.Digest], file)
			continue
		}
		if !images[d.Digest] {
			order, images[d.Digest] = append(order, d), true
		}
		if name := d.Annotations[annotationName]; name != "" {
			ref, err := spec.ParseReference(name)
			if err != nil {
				return nil, refused("the archive: %w", err)
			}
			names[d.Digest] = append(names[d.Digest], ref.Tagged())
		}
	}
	if len(order) == 0 {
		return nil, refused("an archive without an image")
	}
	var all []Entry
	for _, d := range order {
		manifest, err := a.small(d, MaxManifest)
		if err != nil {
			return all, err
		}
		e, err := s.Unpack(ctx, Unpack{
			Manifest: manifest, Fetch: a.fetch, Names: names[d.Digest], Signatures: signatures[d.Digest],
			Keys: o.Keys, NoTree: o.NoTree, MaxDisk: o.MaxDisk, Progress: o.Progress,
		})
		if err != nil {
			return all, fmt.Errorf("image %s of the archive: %w", ShortID(d.Digest), err)
		}
		all = append(all, e)
	}
	return all, nil
}
