package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Removed is what Remove and Prune took away.
type Removed struct {
	Names []string // that no image has any more
	IDs   []string // images that are gone
	Blobs int      // contents that are gone
	Bytes int64    // that they took on the disk
}

// RemoveOptions say what Remove does and leaves.
type RemoveOptions struct {
	Force bool                     // an image with several names goes by its ID
	Keep  func(digest string) bool // contents that others than images need; nil: none
}

// Remove takes a name away from its image, and the image with its last name. By
// ID the image goes with all its names, of which there must be one at most
// unless it is forced. Contents that no image needs are removed too, unless somebody is
// adding to the store: a later Prune finds them.
func (s *Store) Remove(ctx context.Context, image string, o RemoveOptions) (Removed, error) {
	var gone Removed
	var rec record
	err := s.update(func(x *index) error {
		i, err := x.find(image)
		if err != nil {
			return err
		}
		rec = x.Images[i]
		ref, err := spec.ParseReference(image)
		byName := err == nil && slices.Contains(rec.Names, ref.Tagged().String())
		switch {
		case byName:
			name := ref.Tagged().String()
			gone.Names = []string{name}
			x.Images[i].Names = slices.DeleteFunc(slices.Clone(rec.Names), func(n string) bool { return n == name })
		case len(rec.Names) > 1 && !o.Force:
			return fmt.Errorf("%s has %d names (%s and others): remove them by name, or force it", image, len(rec.Names), rec.Names[0])
		default:
			gone.Names = rec.Names
			x.Images[i].Names = nil
		}
		if len(x.Images[i].Names) == 0 {
			gone.IDs = []string{rec.ID}
			x.Images = slices.Delete(x.Images, i, i+1)
		}
		return nil
	})
	if err != nil || len(gone.IDs) == 0 {
		return gone, err
	}
	// A damaged image has fewer marks: what is missing cannot be removed anyway.
	mine := map[string]bool{}
	s.mark(rec, mine)
	err = s.sweep(ctx, &gone, func(digest string, _ time.Time) bool {
		return !mine[digest] || o.Keep != nil && o.Keep(digest)
	})
	if errors.Is(err, blob.ErrInUse) {
		err = nil
	}
	return gone, err
}

// PruneOptions say what Prune leaves.
type PruneOptions struct {
	Unnamed bool                     // remove images without a name too
	Used    func(id string) bool     // but not these; nil: none
	Grace   time.Duration            // what is younger stays: somebody may be about to refer to it
	Keep    func(digest string) bool // contents that others than images need; nil: none
	DryRun  bool
}

// Prune removes contents that no image needs. Where somebody adds to the store
// at the same time it does nothing and gives blob.ErrInUse.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Removed, error) {
	var gone Removed
	limit := time.Now().Add(-o.Grace)
	unnamed := func(r record) bool {
		return o.Unnamed && len(r.Names) == 0 && time.Unix(r.Added, 0).Before(limit) && (o.Used == nil || !o.Used(r.ID))
	}
	drop := func(x *index) error {
		gone.IDs = nil
		for _, r := range x.Images {
			if unnamed(r) {
				gone.IDs = append(gone.IDs, r.ID)
			}
		}
		if !o.DryRun {
			x.Images = slices.DeleteFunc(x.Images, unnamed)
		}
		return nil
	}
	if o.DryRun {
		return s.wouldPrune(ctx, o, limit, drop, &gone)
	}
	if err := s.update(drop); err != nil {
		return gone, err
	}
	err := s.sweep(ctx, &gone, func(digest string, made time.Time) bool {
		return !made.Before(limit) || o.Keep != nil && o.Keep(digest)
	})
	return gone, err
}

// wouldPrune counts what Prune would remove.
func (s *Store) wouldPrune(ctx context.Context, o PruneOptions, limit time.Time, drop func(*index) error, gone *Removed) (Removed, error) {
	x, err := s.load()
	if err != nil {
		return *gone, err
	}
	drop(x)
	marks := map[string]bool{}
	for _, r := range x.Images {
		if slices.Contains(gone.IDs, r.ID) {
			continue
		}
		if err := s.mark(r, marks); err != nil {
			return *gone, err
		}
	}
	all, err := s.blobs.List()
	if err != nil {
		return *gone, err
	}
	for _, b := range all {
		if err := ctx.Err(); err != nil {
			return *gone, err
		}
		if room, made := onDisk(b.Path()); !marks[b.Digest()] && made.Before(limit) && (o.Keep == nil || !o.Keep(b.Digest())) {
			gone.Blobs++
			gone.Bytes += room
		}
	}
	return *gone, nil
}

// sweep removes contents that no image needs and spare does not want.
func (s *Store) sweep(ctx context.Context, gone *Removed, spare func(digest string, made time.Time) bool) error {
	// The marks are made at the first content, when nobody can add any more.
	var marks map[string]bool
	var failed error
	_, _, err := s.blobs.Prune(ctx, func(digest string) bool {
		if marks == nil && failed == nil {
			marks = map[string]bool{}
			failed = s.markAll(marks)
		}
		b, err := s.blobs.Open(digest)
		if failed != nil || err != nil || marks[digest] {
			return true
		}
		room, made := onDisk(b.Path())
		if spare(digest, made) {
			return true
		}
		gone.Blobs++
		gone.Bytes += room
		return false
	})
	return errors.Join(failed, err)
}

func (s *Store) markAll(marks map[string]bool) error {
	x, err := s.load()
	if err != nil {
		return err
	}
	for _, r := range x.Images {
		if err := s.mark(r, marks); err != nil {
			return err
		}
	}
	return nil
}

// mark adds the digests of all that an image needs. A damaged image is an error:
// nobody knows what else it needs.
func (s *Store) mark(r record, marks map[string]bool) error {
	fail := func(err error) error {
		return fmt.Errorf("image %s is damaged, and nothing is removed before it is: smolvmm rmi %s (%w)", ShortID(r.ID), ShortID(r.ID), err)
	}
	marks[r.ID] = true
	for _, d := range r.Signatures {
		marks[d] = true
	}
	doc, err := s.read(r.ID, spec.MaxDocument)
	if err != nil {
		return fail(err)
	}
	img, err := spec.Parse(doc)
	if err != nil {
		return fail(err)
	}
	marks[img.Disk.Digest] = true
	if img.Kernel.Digest != "" {
		marks[img.Kernel.Digest] = true
	}
	if img.Tree == "" || marks[img.Tree] {
		return nil
	}
	b, err := s.blobs.Open(img.Tree)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // pulled without it
	}
	if err != nil {
		return fail(err)
	}
	marks[img.Tree] = true
	f, err := os.Open(b.Path())
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	_, err = tree.Decode(f, func(digest string, size int64) (tree.Content, error) {
		marks[digest] = true
		return tree.Ref{Sum: digest, Bytes: size}, nil
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// onDisk is what a file takes, bytes, and when it was made.
func onDisk(path string) (int64, time.Time) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0, time.Time{}
	}
	return st.Blocks * 512, time.Unix(st.Mtim.Unix())
}

// Room is what an image takes on the disk, bytes; what it shares with other images is in it.
func (s *Store) Room(e Entry) int64 {
	marks := map[string]bool{}
	s.mark(record{ID: e.ID}, marks)
	var sum int64
	for d := range marks {
		if b, err := s.blobs.Open(d); err == nil {
			room, _ := onDisk(b.Path())
			sum += room
		}
	}
	return sum
}
