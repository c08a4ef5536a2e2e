package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Media types. The artifact's and the raw disk's are smolBSD's: `smoler push` is
// `oras push --artifact-type application/vnd.smolbsd.image FILE:application/x-raw-disk-image`.
const (
	ArtifactType = "application/vnd.smolbsd.image"

	TypeRawDisk  = "application/x-raw-disk-image"
	TypeZstdDisk = "application/x-raw-disk-image+zstd"
	TypeKernel   = "application/vnd.smolvmm.kernel.v1+zstd"
	TypeTree     = "application/vnd.smolvmm.tree.v2.tar+zstd"

	TypeManifest = "application/vnd.oci.image.manifest.v1+json"
	TypeIndex    = "application/vnd.oci.image.index.v1+json"
	TypeEmpty    = "application/vnd.oci.empty.v1+json"
)

const (
	annotationTitle   = "org.opencontainers.image.title"
	annotationCreated = "org.opencontainers.image.created"
	annotationName    = "org.opencontainers.image.ref.name"

	// MaxManifest bounds a manifest, bytes: what registries agree to take.
	MaxManifest = 4 << 20
	// maxLayers of one image: it has three kinds.
	maxLayers = 16
	// maxSignature bounds a signature's file, bytes.
	maxSignature = sign.MaxFile
	// emptyJSON is the content of TypeEmpty (OCI image-spec, manifest.md).
	emptyJSON = "{}"
)

// Descriptor refers to a content (OCI image-spec, descriptor.md).
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Manifest is OCI image-spec's, manifest.md, version 1.1.
type Manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// ociIndex is OCI image-spec's, image-index.md.
type ociIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []Descriptor `json:"manifests"`
}

func describe(mediaType string, b []byte) Descriptor {
	sum := sha256.Sum256(b)
	return Descriptor{MediaType: mediaType, Digest: tree.DigestPrefix + hex.EncodeToString(sum[:]), Size: int64(len(b))}
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// ParseManifest reads a manifest that is not trusted.
func ParseManifest(b []byte) (Manifest, error) {
	var m Manifest
	if len(b) > MaxManifest {
		return m, refused("a manifest of %d bytes; at most %d are read", len(b), MaxManifest)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, refused("the manifest: %w", err)
	}
	switch {
	case m.MediaType == TypeIndex || strings.HasSuffix(m.MediaType, "manifest.list.v2+json"):
		return m, refused("%q is an index of images for several platforms: name one of them by its digest", clip(m.MediaType))
	case m.MediaType != "" && m.MediaType != TypeManifest:
		return m, refused("a manifest of the media type %q; %s is known", clip(m.MediaType), TypeManifest)
	case m.SchemaVersion != 2:
		return m, refused("a manifest of the schema version %d; 2 is known", m.SchemaVersion)
	case len(m.Layers) > maxLayers:
		return m, refused("a manifest with %d layers; at most %d are read", len(m.Layers), maxLayers)
	}
	for _, d := range append([]Descriptor{m.Config}, m.Layers...) {
		if err := d.check(); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (d Descriptor) check() error {
	if err := tree.CheckDigest(d.Digest); err != nil {
		return refused("a descriptor of %q: %w", clip(d.MediaType), err)
	}
	if d.Size < 0 || d.Size > spec.MaxDisk {
		return refused("a descriptor of %q with %d bytes", clip(d.MediaType), d.Size)
	}
	return nil
}

// parts are an image's layers by their meaning.
type parts struct {
	config             *Descriptor // nil for smolBSD's images, which have no description
	disk, kernel, tree *Descriptor
	title              string // of the disk, printable
	created            string
}

// sort tells the layers apart; what is not known is refused by its name.
func (m *Manifest) sort() (parts, error) {
	var p parts
	switch {
	case m.Config.MediaType == spec.MediaType:
		p.config = &m.Config
	case m.ArtifactType == ArtifactType, m.Config.MediaType == ArtifactType: // oras before 1.1 has no artifactType
	default:
		what := m.ArtifactType
		if what == "" {
			what = m.Config.MediaType
		}
		return p, refused("%q is no image of a machine: %s and %s are known", clip(what), ArtifactType, spec.MediaType)
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		var to **Descriptor
		switch {
		case l.MediaType == TypeRawDisk, l.MediaType == TypeZstdDisk && p.config != nil:
			to = &p.disk
		case l.MediaType == TypeKernel && p.config != nil:
			to = &p.kernel
		case l.MediaType == TypeTree && p.config != nil:
			to = &p.tree
		default:
			return p, refused("a layer of the media type %q: known are %s, %s, %s and %s", clip(l.MediaType), TypeRawDisk, TypeZstdDisk, TypeKernel, TypeTree)
		}
		if *to != nil {
			return p, refused("two layers of the media type %q", clip(l.MediaType))
		}
		*to = l
	}
	if p.disk == nil {
		return p, refused("the manifest has no disk: no layer of %s or %s", TypeRawDisk, TypeZstdDisk)
	}
	p.title = clip(path.Base(p.disk.Annotations[annotationTitle]))
	p.created = m.Annotations[annotationCreated]
	if _, err := time.Parse(time.RFC3339, p.created); err != nil {
		p.created = ""
	}
	return p, nil
}

// clip keeps a stranger's text short; it is quoted where it is printed.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// verified reads a content that is not trusted: it fails where there is more or
// less than the descriptor says, or the digest differs. The end has to be read.
type verified struct {
	r io.Reader
	d Descriptor
	h interface {
		io.Writer
		Sum([]byte) []byte
	}
	left int64
}

func newVerified(r io.Reader, d Descriptor) *verified {
	return &verified{r: r, d: d, h: sha256.New(), left: d.Size}
}

func (v *verified) Read(p []byte) (int, error) {
	if v.left == 0 && len(p) > 0 {
		return 0, v.end()
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.left -= int64(n)
	if errors.Is(err, io.EOF) {
		if v.left > 0 {
			return n, refused("%s ends %d bytes early", v.d.Digest, v.left)
		}
		err = nil
	}
	return n, err
}

// end looks behind the last byte.
func (v *verified) end() error {
	var more [1]byte
	n, err := io.ReadFull(v.r, more[:])
	switch {
	case n > 0:
		return refused("%s is longer than the %d bytes that it should have", v.d.Digest, v.d.Size)
	case !errors.Is(err, io.EOF):
		return err
	}
	if got := tree.DigestPrefix + hex.EncodeToString(v.h.Sum(nil)); got != v.d.Digest {
		return refused("what should be %s is %s", v.d.Digest, got)
	}
	return io.EOF
}

// readVerified reads a small content whole.
func readVerified(r io.Reader, d Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, refused("a content of %q with %d bytes; at most %d are read", clip(d.MediaType), d.Size, limit)
	}
	return io.ReadAll(newVerified(r, d))
}
