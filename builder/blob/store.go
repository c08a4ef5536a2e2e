// Package blob keeps contents under their digests, in a folder of the host:
//
//	<dir>/sha256/<first two digits>/<64 hex digits>   a content
//	<dir>/tmp/…                                       what is being written
//	<dir>/lock                                        held shared by users, alone by Prune
//
// A content appears under its digest only when it is whole, and never changes
// there. Holes stay holes. Any number of processes may use a folder at once;
// what one left half written when it was killed, the next to open the store
// removes. A Blob is a tree.Content.
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// What an error of the store can be about, beside fs.ErrNotExist, for errors.Is.
var (
	ErrDamaged = errors.New("the content does not match its digest")
	ErrGone    = errors.New("a content is gone from the store") // one that was there when it was referred to
	ErrInUse   = errors.New("the store is in use")
)

const (
	// staleAfter is the age from which what nobody has locked was left by a killed
	// process: small files are written without a lock, in far less.
	staleAfter = time.Minute

	// maxUnsynced is how many contents Sync waits for one by one. With more, one
	// wait for the whole file system is faster, others' files included.
	maxUnsynced = 64

	// Nobody but the user reads what is in images: there may be keys among it.
	dirPerm  = 0o700
	filePerm = 0o400
)

// Store is a folder of contents. Its methods may be called by several
// goroutines at once.
type Store struct {
	dir string

	mu       sync.Mutex
	unsynced map[string]bool // paths that were committed since the last Sync
	many     bool            // more than maxUnsynced were
}

// Open gives the store in a folder, which is made where it is not there.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("blob store %s: %w", dir, err)
	}
	s := &Store{dir: dir}
	for _, sub := range []string{"sha256", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), dirPerm); err != nil {
			return nil, s.errorf(err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, s.errorf(err)
	}
	return s, nil
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

func (s *Store) errorf(err error) error { return fmt.Errorf("blob store %s: %w", s.dir, err) }

// path is where a checked digest's content is.
func (s *Store) path(digest string) string {
	hex := digest[len(tree.DigestPrefix):]
	return s.dir + "/sha256/" + hex[:2] + "/" + hex
}

// sweep removes what killed processes were writing: their locks are gone.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "tmp", e.Name())
		if st, err := e.Info(); err != nil || time.Since(st.ModTime()) < staleAfter {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(path)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Open gives a content by its digest ("sha256:…"). One that is not there is
// fs.ErrNotExist.
func (s *Store) Open(digest string) (Blob, error) {
	if err := tree.CheckDigest(digest); err != nil {
		return Blob{}, s.errorf(err)
	}
	// A cached tree asks this for each of its files: os.Lstat takes twice as long.
	var st unix.Stat_t
	if err := unix.Lstat(s.path(digest), &st); err != nil {
		return Blob{}, s.errorf(&fs.PathError{Op: "lstat", Path: s.path(digest), Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Blob{}, s.errorf(fmt.Errorf("%s is not a regular file", s.path(digest)))
	}
	return Blob{s, digest, st.Size}, nil
}

// Content gives a content by digest and size, for tree.Decode. One of another
// size, as a power failure can leave it, is ErrDamaged.
func (s *Store) Content(digest string, size int64) (tree.Content, error) {
	b, err := s.Open(digest)
	if err != nil {
		return nil, err
	}
	if b.size != size {
		return nil, s.errorf(fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDamaged, digest, b.size, size))
	}
	return b, nil
}

// Ref gives a content that something durable refers to, for tree.Decode, without
// looking for it: to look for each of a system's files takes longer than all else
// of reading its names. One that somebody has removed all the same is ErrGone when
// it is opened, and one of another size ErrDamaged.
func (s *Store) Ref(digest string, size int64) (tree.Content, error) {
	if err := tree.CheckDigest(digest); err != nil {
		return nil, s.errorf(err)
	}
	return Blob{s, digest, size}, nil
}

// Verify reads a content and compares it with its digest: ErrDamaged.
func (s *Store) Verify(ctx context.Context, digest string) error {
	b, err := s.Open(digest)
	if err != nil {
		return err
	}
	f, err := os.Open(s.path(digest))
	if err != nil {
		return s.errorf(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, ctxReader{ctx, f})
	if err != nil {
		return s.errorf(err)
	}
	if n != b.size || tree.DigestPrefix+hex.EncodeToString(h.Sum(nil)) != digest {
		return s.errorf(fmt.Errorf("%w: %s", ErrDamaged, digest))
	}
	return nil
}

// ctxReader fails when the context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// List gives every content, in the order of the digests. Files that are not the
// store's are passed over.
func (s *Store) List() ([]Blob, error) {
	var all []Blob
	shards, err := os.ReadDir(filepath.Join(s.dir, "sha256"))
	if err != nil {
		return nil, s.errorf(err)
	}
	for _, shard := range shards {
		files, err := os.ReadDir(filepath.Join(s.dir, "sha256", shard.Name()))
		if err != nil {
			return nil, s.errorf(err)
		}
		for _, f := range files {
			digest := tree.DigestPrefix + f.Name()
			if tree.CheckDigest(digest) != nil || !strings.HasPrefix(f.Name(), shard.Name()) || len(shard.Name()) != 2 {
				continue
			}
			b, err := s.Open(digest)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed by another
			}
			if err != nil {
				return nil, err
			}
			all = append(all, b)
		}
	}
	return all, nil
}

// Remove takes a content out of the store. One that is not there is
// fs.ErrNotExist. Who has it open goes on reading it.
func (s *Store) Remove(digest string) error {
	if err := tree.CheckDigest(digest); err != nil {
		return s.errorf(err)
	}
	if err := os.Remove(s.path(digest)); err != nil {
		return s.errorf(err)
	}
	return nil
}

// Hold keeps every process's Prune away until release is called: from before
// the first content is looked up or made, until something that Prune's callers
// know of refers to them. It waits for a Prune at work.
func (s *Store) Hold() (release func(), err error) { return s.lock(unix.LOCK_SH) }

// Prune removes the contents that keep does not want. Where anybody holds the
// store it does nothing and gives ErrInUse. It returns how many went, and the
// bytes of their sizes, holes included.
func (s *Store) Prune(ctx context.Context, keep func(digest string) bool) (n int, bytes int64, err error) {
	release, err := s.lock(unix.LOCK_EX | unix.LOCK_NB)
	if err != nil {
		return 0, 0, err
	}
	defer release()
	all, err := s.List()
	if err != nil {
		return 0, 0, err
	}
	for _, b := range all {
		if err := ctx.Err(); err != nil {
			return n, bytes, s.errorf(err)
		}
		if keep(b.digest) {
			continue
		}
		if err := s.Remove(b.digest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, bytes, err
		}
		n++
		bytes += b.size
	}
	return n, bytes, nil
}

func (s *Store) lock(how int) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, s.errorf(err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, s.errorf(err)
	}
	return func() { f.Close() }, nil
}

// made notes that a content was committed.
func (s *Store) made(b Blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many = s.many || len(s.unsynced) == maxUnsynced; s.many {
		s.unsynced = nil
		return
	}
	if s.unsynced == nil {
		s.unsynced = map[string]bool{}
	}
	s.unsynced[b.Path()] = true
}

// Sync returns when all that this Store has committed is on disk: to be called
// once, before anything durable refers to it. (A sync of each content by itself
// would cost an unpacked system minutes.)
func (s *Store) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many {
		if err := syncPath(s.dir, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) }); err != nil {
			return s.errorf(err)
		}
	}
	dirs := map[string]bool{}
	for path := range s.unsynced {
		err := syncPath(path, (*os.File).Sync)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed again
		}
		if err != nil {
			return s.errorf(err)
		}
		dirs[filepath.Dir(path)] = true
	}
	if len(dirs) > 0 {
		dirs[filepath.Join(s.dir, "sha256")] = true
	}
	for dir := range dirs {
		if err := syncPath(dir, (*os.File).Sync); err != nil {
			return s.errorf(err)
		}
	}
	s.unsynced, s.many = nil, false
	return nil
}

func syncPath(path string, sync func(*os.File) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(sync(f), f.Close())
}
