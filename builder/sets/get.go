package sets

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/builder/fetch/files"

	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/fetch"
	"github.com/smolvmm/smolvmm/builder/tree"
)

const (
	treeName = "tree"
	// treeVersion begins the file of an unpacked set, and is part of Set.Digest:
	// to be changed when the same set would give another tree.
	treeVersion = "smolvmm set 1\n"
	// maxTree bounds that file, in bytes: half a million names.
	maxTree = 256 << 20
)

// Trees gives the sets' trees, in the order of Sets: from the cache, or fetched
// and unpacked, several at a time. The first that fails stops the others; what they
// have fetched is taken up next time. The trees are the group's: Clone one to
// change it.
//
// An unpacked set was kept when all its contents were on disk, so that they are not
// looked for: one that was removed since is blob.ErrGone when it is read. With whole
// set they are looked for, and a set that lacks one is unpacked again.
func (g *Group) Trees(ctx context.Context, whole bool) ([]*tree.Tree, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	release, err := g.o.Blobs.Hold()
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	transfers, work := make(chan struct{}, fetches), make(chan struct{}, unpacks)
	var wg sync.WaitGroup
	for i := range g.Sets {
		if g.trees[i] != nil && !whole {
			continue
		}
		wg.Go(func() {
			s := &setter{Group: g, Set: g.Sets[i], whole: whole, transfers: transfers, work: work}
			s.dir = filepath.Join(g.where.dir, s.Name)
			t, err := s.get(ctx)
			if err != nil {
				cancel(err) // the first counts
				return
			}
			g.trees[i] = t
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		var e *Error
		if !errors.As(err, &e) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			err = fetch.Fail(ErrNetwork, err, "fetching sets was stopped: run it again to go on")
		}
		return nil, err
	}
	return append([]*tree.Tree(nil), g.trees...), nil
}

// setter gets one set.
type setter struct {
	*Group
	Set
	dir             string
	whole           bool
	transfers, work chan struct{} // what is done at a time
}

func (s *setter) path() string { return filepath.Join(s.dir, s.File) }

func (s *setter) get(ctx context.Context) (*tree.Tree, error) {
	if t := s.cached(); t != nil {
		s.progress(s.Name, Ready, 0, 0)
		return t, nil
	}
	unlock, err := files.LockWait(ctx, s.dir)
	if err != nil && ctx.Err() != nil {
		return nil, s.stopped(ctx)
	}
	if err != nil {
		return nil, s.cacheError(err)
	}
	defer unlock()
	s.sweep()
	if t := s.cached(); t != nil { // who had the lock has done it
		s.progress(s.Name, Ready, 0, 0)
		return t, nil
	}
	f, err := s.packed(ctx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := s.unpack(ctx, f)
	if err != nil {
		return nil, err
	}
	if err := s.save(t); err != nil {
		return nil, s.cacheError(err)
	}
	s.progress(s.Name, Ready, 0, 0)
	return t, nil
}

// sweep removes temporary files of those who were killed; we have the lock.
func (s *setter) sweep() {
	left, _ := filepath.Glob(filepath.Join(s.dir, ".*"))
	for _, path := range left {
		os.Remove(path)
	}
}

// cached gives the unpacked set, or nil where it is not there: then it is unpacked
// again.
func (s *setter) cached() *tree.Tree {
	f, err := os.Open(filepath.Join(s.dir, treeName))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTree+1))
	if err != nil || len(b) > maxTree {
		return nil
	}
	return s.decode(b)
}

// decode reads what save wrote: nil where that is not this set, whole.
func (s *setter) decode(b []byte) *tree.Tree {
	body, ok := bytes.CutPrefix(b, s.head(nil))
	if !ok || len(body) < sha256.Size || !bytes.HasPrefix(b, s.head(body[sha256.Size:])) {
		return nil
	}
	open := s.o.Blobs.Ref
	if s.whole {
		open = s.o.Blobs.Content
	}
	t, err := tree.Decode(bytes.NewReader(body[sha256.Size:]), open)
	if err != nil {
		return nil
	}
	return t
}

// head is what stands before an encoded tree: what it was made of, and the tree's
// own digest, which is left out for a nil tree.
func (s *setter) head(encoded []byte) []byte {
	b := []byte(treeVersion + s.SHA512 + "\n")
	if encoded != nil {
		sum := sha256.Sum256(encoded)
		b = append(b, sum[:]...)
	}
	return b
}

// save keeps the unpacked set, when all that it refers to is on disk.
func (s *setter) save(t *tree.Tree) error {
	var b bytes.Buffer
	if err := t.Encode(&b); err != nil {
		return err
	}
	if err := s.o.Blobs.Sync(); err != nil {
		return err
	}
	return files.WriteFile(s.dir, treeName, func(w io.Writer) error {
		if _, err := w.Write(s.head(b.Bytes())); err != nil {
			return err
		}
		_, err := w.Write(b.Bytes())
		return err
	})
}

// packed gives the set as the mirror has it, checked: the one that is there, or
// one that is fetched now.
func (s *setter) packed(ctx context.Context) (*os.File, error) {
	if f, err := os.Open(s.path()); err == nil {
		if err := s.check(ctx, f); err == nil {
			return f, nil
		} else if ctx.Err() != nil {
			f.Close()
			return nil, s.stopped(ctx)
		}
		f.Close() // of an older build, or damaged
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, s.cacheError(err)
	}
	if err := s.fetch(ctx); err != nil {
		return nil, err
	}
	part := s.path() + fetch.PartSuffix
	f, err := os.Open(part)
	if err != nil {
		return nil, s.cacheError(err)
	}
	if err := s.check(ctx, f); err != nil {
		f.Close()
		if ctx.Err() != nil {
			return nil, s.stopped(ctx)
		}
		if errors.Is(err, ErrChecksum) {
			// The digests go too: should they be what is wrong, they are asked for anew.
			fetch.Drop(s.path())
			os.Remove(filepath.Join(s.where.dir, sumsName))
		}
		return nil, err
	}
	err = f.Sync()
	if err == nil {
		err = os.Rename(part, s.path())
	}
	if err != nil {
		f.Close()
		return nil, s.cacheError(err)
	}
	fetch.Drop(s.path())
	return f, nil
}

func (s *setter) fetch(ctx context.Context) error {
	select {
	case s.transfers <- struct{}{}:
		defer func() { <-s.transfers }()
	case <-ctx.Done():
		return s.stopped(ctx)
	}
	c := s.client(s.path())
	defer c.Close()
	err := c.Download(ctx, fetch.Request{
		URL: s.where.url + s.File, Path: s.path(), Limit: maxPacked, What: "a set",
		Progress: func(got, total int64) { s.progress(s.Name, Fetching, got, total) },
	})
	if errors.Is(err, ErrNotFound) {
		return fetch.Fail(ErrNotFound, err, "set %s of NetBSD %s: %v", s.Name, s.o.Release, err)
	}
	return err
}

func (s *setter) stopped(ctx context.Context) error {
	return fetch.Fail(ErrNetwork, ctx.Err(), "set %s: stopped: run it again to go on", s.Name)
}

// check compares a file with the release's digest and leaves it at its beginning.
func (s *setter) check(ctx context.Context, f *os.File) error {
	select {
	case s.work <- struct{}{}:
		defer func() { <-s.work }()
	case <-ctx.Done():
		return s.stopped(ctx)
	}
	h := sha512.New()
	if _, err := io.Copy(h, s.watch(ctx, f, Checking)); err != nil {
		return s.cacheError(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, s.SHA512) {
		return fetch.Fail(ErrChecksum, nil, "%s%s: its SHA-512 begins %.12s, the release's %s says %.12s: nothing was kept; try again, or another mirror",
			s.where.url, s.File, got, sumsName, s.SHA512)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return s.cacheError(err)
	}
	return nil
}

func (s *setter) unpack(ctx context.Context, f *os.File) (*tree.Tree, error) {
	select {
	case s.work <- struct{}{}:
		defer func() { <-s.work }()
	case <-ctx.Done():
		return nil, s.stopped(ctx)
	}
	t := tree.New()
	err := archive.Read(ctx, s.watch(ctx, f, Unpacking), t, archive.Options{
		Name: s.where.url + s.File, Blobs: s.o.Blobs, Limits: archive.Limits{Bytes: maxUnpacked},
	})
	if err != nil && ctx.Err() != nil {
		return nil, s.stopped(ctx)
	}
	return t, err
}

// watch tells the progress of reading a file, and ends with the context.
func (s *setter) watch(ctx context.Context, f *os.File, p Phase) io.Reader {
	total := int64(-1)
	if st, err := f.Stat(); err == nil {
		total = st.Size()
	}
	return &watched{s: s, ctx: ctx, r: f, phase: p, total: total}
}

type watched struct {
	s          *setter
	ctx        context.Context
	r          io.Reader
	phase      Phase
	got, total int64
}

func (w *watched) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.got += int64(n)
	w.s.progress(w.s.Name, w.phase, w.got, w.total)
	return n, err
}

// Forget makes a cache unpack its sets again when they are asked for: to be called
// before their contents are removed.
func Forget(cache string) error {
	paths, err := unpacked(cache)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache of sets %s: %w", cache, err)
		}
	}
	return nil
}

// unpacked gives the files of a cache's unpacked sets.
func unpacked(cache string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(cache, "*", "*", "*", treeName))
	if err != nil {
		return nil, fmt.Errorf("cache of sets %s: %w", cache, err)
	}
	return paths, nil
}

// Referenced tells of every content that the unpacked sets of a cache refer to:
// what a blob.Store's Prune may keep, so that they need not be unpacked again.
// Files that are no unpacked sets are passed over.
func Referenced(cache string, fn func(digest string)) error {
	paths, err := unpacked(cache)
	if err != nil {
		return err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cache of sets %s: %w", cache, err)
		}
		refer(b, fn)
	}
	return nil
}

// refer tells of the contents of an unpacked set, whichever it is.
func refer(b []byte, fn func(digest string)) {
	head := len(treeVersion) + 2*sha512.Size + 1 + sha256.Size
	if !bytes.HasPrefix(b, []byte(treeVersion)) || len(b) < head {
		return
	}
	// What is damaged is unpacked again: what it refers to need not be all there is.
	_, _ = tree.Decode(bytes.NewReader(b[head:]), func(digest string, size int64) (tree.Content, error) {
		fn(digest)
		return tree.Ref{Sum: digest, Bytes: size}, nil
	})
}
