package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	// indexVersion changes when an older smolvmm could not keep what is in the file.
	indexVersion = 1
	// maxIndex bounds index.json, bytes: about 50,000 images.
	maxIndex = 16 << 20
	// maxSignatures of one image: a registry may offer any number.
	maxSignatures = 64
	// maxDigests of one image: each push to another repository adds one.
	maxDigests = 64
)

// index is index.json.
type index struct {
	Version int      `json:"version"`
	Images  []record `json:"images"`
}

// record is an image in index.json.
type record struct {
	ID         string   `json:"id"`
	Names      []string `json:"names,omitempty"`
	Digests    []string `json:"digests,omitempty"`
	Signatures []string `json:"signatures,omitempty"`
	Added      int64    `json:"added"` // seconds since 1970
}

func (s *Store) indexFile() string { return filepath.Join(s.dir, "index.json") }

// load reads the index as it is; it is replaced as a whole, so no lock is needed.
func (s *Store) load() (*index, error) {
	x := &index{Version: indexVersion}
	b, err := os.ReadFile(s.indexFile())
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err == nil && len(b) > maxIndex {
		err = fmt.Errorf("%d bytes; at most %d are read", len(b), maxIndex)
	}
	if err == nil {
		err = json.Unmarshal(b, x)
	}
	if err == nil {
		err = x.check()
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %s: %w", s.indexFile(), err)
	}
	return x, nil
}

func (x *index) check() error {
	if x.Version != indexVersion {
		return fmt.Errorf("version %d: made by another smolvmm; this one reads version %d", x.Version, indexVersion)
	}
	ids, names := map[string]bool{}, map[string]bool{}
	for _, r := range x.Images {
		if err := tree.CheckDigest(r.ID); err != nil {
			return err
		}
		if ids[r.ID] {
			return fmt.Errorf("%s is there twice", r.ID)
		}
		ids[r.ID] = true
		for _, n := range r.Names {
			ref, err := spec.ParseReference(n)
			if err != nil {
				return err
			}
			if names[n] || ref.Tagged().String() != n {
				return fmt.Errorf("the name %q is there twice or not in full", n)
			}
			names[n] = true
		}
		for _, d := range r.Signatures {
			if err := tree.CheckDigest(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// update replaces the index by what change makes of it, one process at a time.
func (s *Store) update(change func(*index) error) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, "index.lock"), os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer lock.Close()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("image store: %s: %w", lock.Name(), err)
	}
	x, err := s.load()
	if err != nil {
		return err
	}
	before, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if err := change(x); err != nil {
		return err
	}
	after, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if bytes.Equal(before, after) {
		return nil
	}
	if len(after) > maxIndex {
		return fmt.Errorf("image store: %s would have %d bytes, at most %d are allowed: remove images", s.indexFile(), len(after), maxIndex)
	}
	if err := s.replace(after); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}

// replace writes index.json; its lock is held, so one name for what is not
// complete yet is enough, and what a killed process left is overwritten.
func (s *Store) replace(b []byte) (err error) {
	f, err := os.OpenFile(s.indexFile()+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.indexFile())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// add puts an image into the index, or adds to one that is there, and takes its
// names from the others.
func (x *index) add(r record) record {
	for i := range x.Images {
		if x.Images[i].ID != r.ID {
			x.Images[i].Names = slices.DeleteFunc(x.Images[i].Names, func(n string) bool { return slices.Contains(r.Names, n) })
		}
	}
	i := slices.IndexFunc(x.Images, func(o record) bool { return o.ID == r.ID })
	if i < 0 {
		x.Images = append(x.Images, record{ID: r.ID, Added: r.Added})
		i = len(x.Images) - 1
	}
	o := &x.Images[i]
	o.Names = union(o.Names, r.Names)
	o.Digests = union(o.Digests, r.Digests)
	o.Signatures = union(o.Signatures, r.Signatures)
	o.Digests = o.Digests[:min(len(o.Digests), maxDigests)]
	o.Signatures = o.Signatures[:min(len(o.Signatures), maxSignatures)]
	return *o
}

func union(a, b []string) []string {
	all := append(slices.Clone(a), b...)
	slices.Sort(all)
	return slices.Compact(all)
}

// minPrefix is how many digits of an ID are taken for one.
const minPrefix = 4

// find gives the place of the image that a user means.
func (x *index) find(name string) (int, error) {
	if tree.CheckDigest(name) == nil {
		if i := slices.IndexFunc(x.Images, func(r record) bool { return r.ID == name }); i >= 0 {
			return i, nil
		}
		return 0, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	ref, err := spec.ParseReference(name)
	if err != nil {
		return 0, err
	}
	if ref.Digest != "" {
		at := ref.Repository() + "@" + ref.Digest
		for i, r := range x.Images {
			if slices.Contains(r.Digests, at) {
				return i, nil
			}
			if r.ID == ref.Digest && slices.ContainsFunc(r.Names, func(n string) bool {
				return n == ref.Repository()+":"+ref.Tag || ref.Tag == "" && strings.HasPrefix(n, ref.Repository()+":")
			}) {
				return i, nil
			}
		}
		return 0, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	for i, r := range x.Images {
		if slices.Contains(r.Names, ref.String()) {
			return i, nil
		}
	}
	found := -1
	if len(name) >= minPrefix && strings.Trim(name, "0123456789abcdef") == "" {
		for i, r := range x.Images {
			if !strings.HasPrefix(r.ID, tree.DigestPrefix+name) {
				continue
			}
			if found >= 0 {
				return 0, fmt.Errorf("%w begins with %s: give more digits", ErrAmbiguous, name)
			}
			found = i
		}
	}
	if found < 0 {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	return found, nil
}
