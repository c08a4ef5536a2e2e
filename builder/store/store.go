// Package store keeps images in a folder of the host:
//
//	<dir>/blobs/…      contents under their digests (package blob)
//	<dir>/index.json   which images there are, and their names
//	<dir>/index.lock   held while index.json is replaced
//
// An image's identity is the digest of its description (package spec), which
// names disk, kernel and tree by their digests. Any number of processes may use a
// folder at once: the index is replaced as a whole, and nothing is pruned while
// anybody adds.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// What an error can be about, for errors.Is; blob's ErrDamaged and ErrInUse too.
var (
	ErrNotFound  = errors.New("no such image")
	ErrAmbiguous = errors.New("more than one image")
	ErrRefused   = errors.New("refused") // an archive or a registry's answer
	ErrUnsigned  = errors.New("not signed by a trusted key")
)

// Store is a folder of images. Its methods may be called by several goroutines
// at once.
type Store struct {
	dir   string
	blobs *blob.Store
}

// Open gives the store in a folder, which is made where it is not there.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("image store %s: %w", dir, err)
	}
	b, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return &Store{dir, b}, nil
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Blobs has the contents. Who adds some holds it until an image refers to them.
func (s *Store) Blobs() *blob.Store { return s.blobs }

// Entry is one image.
type Entry struct {
	ID         string   // digest of the description
	Names      []string // name:tag, sorted; none once they were given to other images
	Digests    []string // name@digest of the OCI manifests it was pulled from or pushed as
	Added      time.Time
	Document   []byte // the description as it is signed
	Image      spec.Image
	Disk       blob.Blob
	Kernel     *blob.Blob // nil where the image has none
	Tree       *blob.Blob // nil where it is not in the store
	Signatures [][]byte   // files in minisign's format, not verified
	// Err is set where the store's folder was damaged: ID, Names and Added are all there is.
	Err error
}

// Name is what people call the image.
func (e *Entry) Name() string {
	if len(e.Names) > 0 {
		return e.Names[0]
	}
	return ShortID(e.ID)
}

// ShortID is the first twelve digits of a digest.
func ShortID(id string) string {
	id = strings.TrimPrefix(id, tree.DigestPrefix)
	return id[:min(12, len(id))]
}

// OpenTree gives the image's root. Its contents are in the store's blobs.
func (s *Store) OpenTree(e Entry) (*tree.Tree, error) {
	if e.Tree == nil {
		return nil, fmt.Errorf("image %s has no tree in the store: pull it again with its tree", e.Name())
	}
	f, err := os.Open(e.Tree.Path())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", e.Name(), err)
	}
	defer f.Close()
	t, err := tree.Decode(f, s.blobs.Content)
	if err != nil {
		return nil, fmt.Errorf("image %s: its tree: %w", e.Name(), err)
	}
	return t, nil
}

// Put is an image to be stored.
type Put struct {
	Names []spec.Reference
	// Image is the description; digests and sizes of what is given below are
	// filled in.
	Image spec.Image
	Disk  tree.Content
	// DiskFile is a finished file instead of Disk. It becomes the store's own: where
	// it is on the store's file system it is not copied.
	DiskFile string
	Kernel   tree.Content // nil: Image.Kernel stays as it is, and must have no digest
	Tree     *tree.Tree   // nil: none. Its files are made to refer to the store's contents
}

// Put stores an image under its names, which are taken from whichever had them.
func (s *Store) Put(ctx context.Context, p Put) (Entry, error) {
	release, err := s.blobs.Hold()
	if err != nil {
		return Entry{}, err
	}
	defer release()
	img := p.Image
	var disk blob.Blob
	if p.DiskFile != "" {
		disk, err = s.blobs.Adopt(ctx, p.DiskFile)
	} else {
		disk, err = s.blobs.Put(ctx, p.Disk)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("disk: %w", err)
	}
	img.Disk.Digest, img.Disk.Size = disk.Digest(), disk.Size()
	if p.Kernel != nil {
		kernel, err := s.blobs.Put(ctx, p.Kernel)
		if err != nil {
			return Entry{}, fmt.Errorf("kernel: %w", err)
		}
		img.Kernel = spec.Kernel{Digest: kernel.Digest(), Size: kernel.Size()}
	}
	img.Tree = ""
	if p.Tree != nil {
		if err := s.blobs.Import(ctx, p.Tree); err != nil {
			return Entry{}, err
		}
		w, err := s.blobs.Create()
		if err != nil {
			return Entry{}, err
		}
		defer w.Close()
		if err := p.Tree.Encode(w); err != nil {
			return Entry{}, fmt.Errorf("tree: %w", err)
		}
		b, err := w.Commit()
		if err != nil {
			return Entry{}, fmt.Errorf("tree: %w", err)
		}
		img.Tree = b.Digest()
	}
	doc, err := img.Encode()
	if err != nil {
		return Entry{}, err
	}
	return s.commit(ctx, doc, p.Names, nil, nil)
}

// commit puts a description whose contents are in the store into the index. The
// caller holds the blobs.
func (s *Store) commit(ctx context.Context, doc []byte, names []spec.Reference, digests []string, signatures [][]byte) (Entry, error) {
	b, err := s.blobs.Put(ctx, tree.Bytes(doc))
	if err != nil {
		return Entry{}, err
	}
	rec := record{ID: b.Digest(), Digests: digests, Added: time.Now().Unix()}
	for _, r := range names {
		rec.Names = append(rec.Names, r.Tagged().String())
	}
	for _, file := range signatures {
		sig, err := s.blobs.Put(ctx, tree.Bytes(file))
		if err != nil {
			return Entry{}, err
		}
		rec.Signatures = append(rec.Signatures, sig.Digest())
	}
	if err := s.sync(doc, rec); err != nil {
		return Entry{}, err
	}
	if err := s.update(func(x *index) error { rec = x.add(rec); return nil }); err != nil {
		return Entry{}, err
	}
	e := s.entry(rec)
	return e, e.Err
}

// sync returns when what an image needs to run is on the disk. The files of its
// tree are not waited for, as there may be thousands: one that a power failure
// cut short is told by its size.
func (s *Store) sync(doc []byte, r record) error {
	img, err := spec.Parse(doc)
	if err != nil {
		return err
	}
	dirs := map[string]bool{}
	for _, d := range append([]string{r.ID, img.Disk.Digest, img.Kernel.Digest, img.Tree}, r.Signatures...) {
		b, err := s.blobs.Open(d)
		if d == "" || d == img.Tree && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		dirs[filepath.Dir(b.Path())] = true
		if err := syncPath(b.Path()); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := errors.Join(syncPath(d), syncPath(filepath.Dir(d))); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// entry reads what a record names.
func (s *Store) entry(r record) Entry {
	e := Entry{ID: r.ID, Names: r.Names, Digests: r.Digests, Added: time.Unix(r.Added, 0).UTC()}
	if err := s.fill(&e, r); err != nil {
		e.Err = fmt.Errorf("image %s: %w", e.Name(), err)
	}
	return e
}

func (s *Store) fill(e *Entry, r record) error {
	doc, err := s.read(r.ID, spec.MaxDocument)
	if err != nil {
		return err
	}
	img, err := spec.Parse(doc)
	if err != nil {
		return err
	}
	disk, err := s.content(img.Disk.Digest, img.Disk.Size)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if img.Kernel.Digest != "" {
		k, err := s.content(img.Kernel.Digest, img.Kernel.Size)
		if err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		e.Kernel = &k
	}
	if img.Tree != "" {
		if t, err := s.blobs.Open(img.Tree); err == nil {
			e.Tree = &t
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("tree: %w", err)
		}
	}
	for _, d := range r.Signatures {
		file, err := s.read(d, maxSignature)
		if err != nil {
			return fmt.Errorf("signature: %w", err)
		}
		e.Signatures = append(e.Signatures, file)
	}
	e.Document, e.Image, e.Disk = doc, img, disk
	return nil
}

func (s *Store) content(digest string, size int64) (blob.Blob, error) {
	b, err := s.blobs.Open(digest)
	if err == nil && b.Size() != size {
		err = fmt.Errorf("%w: %s has %d bytes instead of %d", blob.ErrDamaged, digest, b.Size(), size)
	}
	return b, err
}

// read gives a small content, compared with its digest.
func (s *Store) read(digest string, limit int64) ([]byte, error) {
	b, err := s.blobs.Open(digest)
	if err != nil {
		return nil, err
	}
	data, err := tree.ReadAll(b, limit)
	if err != nil {
		return nil, err
	}
	if got, err := tree.ContentDigest(tree.Bytes(data)); err != nil || got != digest {
		return nil, fmt.Errorf("%w: %s", blob.ErrDamaged, digest)
	}
	return data, nil
}

// List gives all images, those that were added last first.
func (s *Store) List() ([]Entry, error) {
	x, err := s.load()
	if err != nil {
		return nil, err
	}
	all := make([]Entry, 0, len(x.Images))
	for _, r := range x.Images {
		all = append(all, s.entry(r))
	}
	slices.SortStableFunc(all, func(a, b Entry) int {
		if c := b.Added.Compare(a.Added); c != 0 {
			return c
		}
		return strings.Compare(a.Name(), b.Name())
	})
	return all, nil
}

// Resolve finds an image by name[:tag], name@digest (of the image or of a
// manifest it was pulled from), its ID, or at least four digits of it.
func (s *Store) Resolve(name string) (Entry, error) {
	x, err := s.load()
	if err != nil {
		return Entry{}, err
	}
	i, err := x.find(name)
	if err != nil {
		return Entry{}, err
	}
	e := s.entry(x.Images[i])
	return e, e.Err
}

// Tag gives an image one more name.
func (s *Store) Tag(image string, name spec.Reference) (Entry, error) {
	if name.Digest != "" {
		return Entry{}, fmt.Errorf("tag: %s: a new name has no digest", name)
	}
	var rec record
	err := s.update(func(x *index) error {
		i, err := x.find(image)
		if err != nil {
			return err
		}
		rec = x.Images[i]
		rec.Names = []string{name.Tagged().String()}
		rec = x.add(rec)
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	e := s.entry(rec)
	return e, e.Err
}

// AddSignature files a signature with an image. It is not verified: whoever
// trusts keys asks Verify.
func (s *Store) AddSignature(ctx context.Context, image string, file []byte) error {
	release, err := s.blobs.Hold()
	if err != nil {
		return err
	}
	defer release()
	b, err := s.blobs.Put(ctx, tree.Bytes(file))
	if err != nil {
		return err
	}
	if err := errors.Join(syncPath(b.Path()), syncPath(filepath.Dir(b.Path()))); err != nil {
		return err
	}
	return s.update(func(x *index) error {
		i, err := x.find(image)
		if err != nil {
			return err
		}
		rec := x.Images[i]
		rec.Signatures = []string{b.Digest()}
		if len(x.Images[i].Signatures) >= maxSignatures && !slices.Contains(x.Images[i].Signatures, b.Digest()) {
			return fmt.Errorf("%s has %d signatures; no more are kept", image, maxSignatures)
		}
		x.add(rec)
		return nil
	})
}

// AddDigest notes that an image is name@digest in a registry.
func (s *Store) AddDigest(image, digest string) error {
	return s.update(func(x *index) error {
		i, err := x.find(image)
		if err != nil {
			return err
		}
		rec := x.Images[i]
		rec.Digests = []string{digest}
		x.add(rec)
		return nil
	})
}
