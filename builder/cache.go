package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// cacheVersion is part of every key: it changes when what a step makes does.
const cacheVersion = "smolvmm builder 1"

// keyHash makes a key out of parts, whose boundaries count.
type keyHash struct{ h hash.Hash }

func newKey(kind string) *keyHash {
	k := &keyHash{sha256.New()}
	return k.add(cacheVersion, kind)
}

func (k *keyHash) add(parts ...string) *keyHash {
	for _, p := range parts {
		k.h.Write(strconv.AppendInt(nil, int64(len(p)), 10))
		k.h.Write([]byte{':'})
		k.h.Write([]byte(p))
	}
	return k
}

func (k *keyHash) list(l []string) *keyHash {
	return k.add(strconv.Itoa(len(l))).add(l...)
}

func (k *keyHash) sum() string { return hex.EncodeToString(k.h.Sum(nil)) }

// stepCache remembers what steps made: a file under each key, which appears when
// it is whole, and what it refers to is on the disk: see flush.
//
//	<dir>/<first two digits>/<key>   JSON
//
// A file that is damaged, or names contents that are gone, is as one that is not
// there: the step is done again.
type stepCache struct {
	dir   string
	blobs *blob.Store

	mu      sync.Mutex
	pending map[string]entry // not written yet
}

// errLost is behind the error of a tree that was stored and cannot be loaded: a
// content was pruned, or cut short by a power failure.
var errLost = errors.New("the build cache is damaged")

// lost says whether an error is about contents that a step made and that are no
// more: it has to be done again.
func lost(err error) bool {
	return errors.Is(err, errLost) || errors.Is(err, blob.ErrDamaged) || errors.Is(err, blob.ErrGone)
}

// maxEntry bounds a file of the cache.
const maxEntry = 1 << 20

// entry is such a file.
type entry struct {
	Key  string          `json:"key"`
	Tree string          `json:"tree,omitempty"` // digest of the encoded tree, itself a blob
	Data json.RawMessage `json:"data,omitempty"` // of a disk
}

func (c *stepCache) path(key string) string { return filepath.Join(c.dir, key[:2], key) }

func (c *stepCache) get(key string) (entry, bool) {
	c.mu.Lock()
	e, ok := c.pending[key]
	c.mu.Unlock()
	if ok {
		return e, true
	}
	f, err := os.Open(c.path(key))
	if err != nil {
		return e, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() > maxEntry {
		return e, false
	}
	if json.NewDecoder(f).Decode(&e) != nil || e.Key != key {
		return entry{}, false
	}
	if e.Tree != "" {
		if tree.CheckDigest(e.Tree) != nil {
			return entry{}, false
		}
		if _, err := c.blobs.Open(e.Tree); err != nil {
			return entry{}, false
		}
	}
	return e, true
}

// put remembers an entry, which is a file after flush.
func (c *stepCache) put(e entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		c.pending = map[string]entry{}
	}
	c.pending[e.Key] = e
}

// flush writes what was put when the contents that it refers to are on the disk,
// waiting once for all of them.
func (c *stepCache) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return nil
	}
	if err := c.blobs.Sync(); err != nil {
		return fmt.Errorf("step cache: %w", err)
	}
	for _, e := range c.pending {
		if err := c.write(e); err != nil {
			return fmt.Errorf("step cache: %w", err)
		}
	}
	c.pending = nil
	return nil
}

func (c *stepCache) write(e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	name := c.path(e.Key)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	// Not synced: after a crash a damaged file is as none.
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// store keeps a tree and gives its digest. The tree's contents are in the blob
// store afterwards.
func (c *stepCache) store(ctx context.Context, t *tree.Tree) (string, error) {
	if err := c.blobs.Import(ctx, t); err != nil {
		return "", err
	}
	w, err := c.blobs.Create()
	if err != nil {
		return "", err
	}
	defer w.Close()
	if err := t.Encode(w); err != nil {
		return "", err
	}
	b, err := w.Commit()
	if err != nil {
		return "", err
	}
	return b.Digest(), nil
}

// load gives a stored tree. errLost: it is gone or damaged, or, if whole, one of its
// contents is; else that shows when the content is read.
func (c *stepCache) load(digest string, whole bool) (*tree.Tree, error) {
	t, err := c.decode(digest, whole)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return t, nil
}

func (c *stepCache) decode(digest string, whole bool) (*tree.Tree, error) {
	b, err := c.blobs.Open(digest)
	if err != nil {
		return nil, err
	}
	r, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	open := c.blobs.Ref
	if whole {
		open = c.blobs.Content
	}
	return tree.Decode(newSection(r, b.Size()), open)
}

// ErrCacheFolder is the error of a build without a place for its cache.
var errCacheFolder = errors.New("builder: Options.Cache and Options.Blobs are needed")

// Digests gives the digests that the step cache in a folder refers to: what a
// blob store's Prune has to keep for it. The trees' own contents are found by
// decoding them.
func Digests(dir string, blobs *blob.Store) (map[string]bool, error) {
	out := map[string]bool{}
	c := &stepCache{dir: dir, blobs: blobs}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		key := filepath.Base(p)
		if len(key) != 64 || strings.Trim(key, "0123456789abcdef") != "" {
			return nil
		}
		e, ok := c.get(key)
		if !ok || e.Tree == "" || out[e.Tree] {
			return nil
		}
		t, err := c.load(e.Tree, true)
		if err != nil {
			return nil // as one that is not there
		}
		out[e.Tree] = true
		return t.Walk(func(_ string, n *tree.Node) error {
			if d, ok := n.Content.(tree.Digester); ok {
				out[d.Digest()] = true
			}
			return nil
		})
	})
	return out, err
}
