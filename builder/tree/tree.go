// Package tree holds a file system in memory: names, owners, modes, times,
// links and devices as values, file contents by reference. It does no input or
// output of its own, so a tree of a NetBSD root, devices and all, can be made,
// changed and compared by anyone on any host.
//
// Paths are slash-separated and count from the root, with or without a leading
// slash; "", "." and "/" are the root itself. Walk gives them as io/fs has them:
// "." and "etc/passwd".
//
// A Tree may be read by several goroutines at once; while it is being changed,
// nobody else may use it.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

const (
	// MaxName bounds a name in a directory, in bytes (FFS: FFS_MAXNAMLEN).
	MaxName = 255
	// MaxTarget bounds a symlink's target, in bytes (NetBSD: MAXPATHLEN - 1).
	MaxTarget = 1023
	// MaxPath bounds a path within a tree, in bytes. It is more than NetBSD can
	// name at once, and keeps what walks a tree from deep recursion.
	MaxPath = 4096
	// MaxPerm has every bit that Node.Perm may have.
	MaxPerm = 0o7777
	// maxLinks bounds the symlinks that Resolve follows (NetBSD: MAXSYMLINKS).
	maxLinks = 32
)

// What an *Error can be about, beside fs.ErrNotExist, for errors.Is.
var (
	ErrName     = errors.New("not a name for a file")
	ErrNode     = errors.New("not a valid node")
	ErrNotDir   = errors.New("not a directory")
	ErrIsDir    = errors.New("is a directory")
	ErrLinkLoop = errors.New("too many symbolic links")
	ErrDirTwice = errors.New("a directory under two names")
)

// Error says what was wrong with which path of a tree.
type Error struct {
	Path string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%.200q: %v", e.Path, e.Err) }

// Unwrap gives the kind of the error.
func (e *Error) Unwrap() error { return e.Err }

// Tree is a file system. Its Root is a directory.
type Tree struct {
	Root *Node
}

// New gives a tree of an empty root directory, mode 0755, owned by root.
func New() *Tree { return &Tree{Root: NewDir(0o755)} }

// CheckName says whether a directory may have an entry of the name.
func CheckName(name string) error {
	switch {
	case name == "", name == ".", name == "..", len(name) > MaxName, strings.ContainsAny(name, "/\x00"):
		return &Error{name, ErrName}
	}
	return nil
}

// Split gives the names of a path, none for the root. It refuses "..": what that
// means depends on links, so only Resolve takes it.
func Split(path string) ([]string, error) {
	if len(path) > MaxPath {
		return nil, &Error{path, fmt.Errorf("%w: longer than %d bytes", ErrName, MaxPath)}
	}
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if CheckName(name) != nil {
			return nil, &Error{path, ErrName}
		}
		names = append(names, name)
	}
	return names, nil
}

// Lookup gives the node at a path. Symlinks are not followed, neither at the end
// of the path nor on the way. What is not there is fs.ErrNotExist.
func (t *Tree) Lookup(path string) (*Node, error) {
	names, err := Split(path)
	if err != nil {
		return nil, err
	}
	n := t.Root
	for _, name := range names {
		if n.Kind != Dir {
			return nil, &Error{path, ErrNotDir}
		}
		if n = n.entries[name]; n == nil {
			return nil, &Error{path, fs.ErrNotExist}
		}
	}
	return n, nil
}

// Resolve gives the node at a path and where it really is, following symlinks as
// a process does whose root directory is the tree's: nothing leads out of it.
func (t *Tree) Resolve(path string) (real string, n *Node, err error) {
	type step struct {
		name string
		n    *Node
	}
	at := []step{{"", t.Root}} // from the root to where we are
	left := strings.Split(path, "/")
	if len(path) > MaxPath {
		return "", nil, &Error{path, fmt.Errorf("%w: longer than %d bytes", ErrName, MaxPath)}
	}
	for links := 0; len(left) > 0; {
		name := left[0]
		left = left[1:]
		here := at[len(at)-1].n
		switch {
		case here.Kind != Dir:
			if name == "" && strings.Join(left, "") == "" {
				continue // a slash at the end of a file's name is let pass
			}
			return "", nil, &Error{path, ErrNotDir}
		case name == "" || name == ".":
			continue
		case name == "..":
			at = at[:max(1, len(at)-1)]
			continue
		case CheckName(name) != nil:
			return "", nil, &Error{path, ErrName}
		}
		next := here.entries[name]
		if next == nil {
			return "", nil, &Error{path, fs.ErrNotExist}
		}
		if next.Kind != Symlink {
			at = append(at, step{name, next})
			continue
		}
		if links++; links > maxLinks {
			return "", nil, &Error{path, ErrLinkLoop}
		}
		if strings.HasPrefix(next.Target, "/") {
			at = at[:1]
		}
		left = append(strings.Split(next.Target, "/"), left...)
	}
	names := make([]string, 0, len(at))
	for _, s := range at[1:] {
		names = append(names, s.name)
	}
	if len(names) == 0 {
		return ".", t.Root, nil
	}
	return strings.Join(names, "/"), at[len(at)-1].n, nil
}

// Put sets the node at a path, in place of what is there. Directories that lack
// on the way are made as of root, mode 0755, with the node's time; anything else
// on the way, a symlink too, is ErrNotDir. The root is replaced by a directory only.
func (t *Tree) Put(path string, n *Node) error {
	names, err := Split(path)
	if err != nil {
		return err
	}
	if err := n.Check(); err != nil {
		return &Error{path, err}
	}
	if len(names) == 0 {
		if n.Kind != Dir {
			return &Error{path, ErrIsDir}
		}
		t.Root = n
		return nil
	}
	dir := t.Root
	for _, name := range names[:len(names)-1] {
		next := dir.entries[name]
		if next == nil {
			next = NewDir(0o755)
			next.Mtime = n.Mtime
			if err := dir.Set(name, next); err != nil {
				return &Error{path, err}
			}
		}
		if next.Kind != Dir {
			return &Error{path, ErrNotDir}
		}
		dir = next
	}
	if err := dir.Set(names[len(names)-1], n); err != nil {
		return &Error{path, err}
	}
	return nil
}

// Remove takes a path out, with all below it. The root cannot be removed; what
// is not there is fs.ErrNotExist.
func (t *Tree) Remove(path string) error {
	names, err := Split(path)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return &Error{path, ErrIsDir}
	}
	dir, err := t.Lookup(strings.Join(names[:len(names)-1], "/"))
	if err != nil {
		return err
	}
	if dir.Kind != Dir {
		return &Error{path, ErrNotDir}
	}
	if !dir.Remove(names[len(names)-1]) {
		return &Error{path, fs.ErrNotExist}
	}
	return nil
}

// Walk calls fn for every name of the tree, a directory before its entries,
// entries in the order of their bytes. A node with several names comes under each.
// fs.SkipDir passes over a directory's entries, fs.SkipAll ends the walk. fn may
// change the directory it is called for, and take out what it is called for.
func (t *Tree) Walk(fn func(path string, n *Node) error) error {
	err := walk(".", t.Root, map[*Node]bool{}, fn)
	if errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

func walk(path string, n *Node, seen map[*Node]bool, fn func(string, *Node) error) error {
	if n.Kind == Dir {
		if seen[n] {
			return &Error{path, ErrDirTwice}
		}
		seen[n] = true
	}
	if len(path) > MaxPath {
		return &Error{path, fmt.Errorf("%w: longer than %d bytes", ErrName, MaxPath)}
	}
	if err := fn(path, n); err != nil {
		if n.Kind == Dir && err == fs.SkipDir {
			return nil
		}
		return err
	}
	if n.Kind != Dir {
		return nil
	}
	for _, name := range n.Names() {
		child := n.entries[name]
		if child == nil {
			continue // fn has taken it out
		}
		if err := walk(join(path, name), child, seen, fn); err != nil {
			return err
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "." {
		return name
	}
	return path + "/" + name
}

// Clone gives a tree that shares nothing with this one but contents. Names of
// one node are names of one node there too.
func (t *Tree) Clone() *Tree {
	return &Tree{Root: t.Root.clone(map[*Node]*Node{})}
}

// Merge lays src over the tree, as unpacking it there would: directories are
// joined and take src's owner, mode and time, everything else is replaced. A
// directory in the place of something else, or the reverse, is an error, as is
// anything but a directory on the way; the tree is half merged then. Nodes are
// copied, contents shared.
func (t *Tree) Merge(src *Tree) error {
	copies := map[*Node]*Node{}
	return src.Walk(func(path string, n *Node) error {
		old, err := t.Lookup(path)
		switch {
		case err == nil && old.Kind == Dir && n.Kind == Dir:
			old.meta(n)
			return nil
		case err == nil && old.Kind == Dir:
			return &Error{path, ErrIsDir}
		case err == nil && n.Kind == Dir:
			return &Error{path, ErrNotDir}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if n.Kind == Dir { // its entries follow, one by one
			dir := NewDir(n.Perm)
			dir.meta(n)
			return t.Put(path, dir)
		}
		return t.Put(path, n.clone(copies))
	})
}

// Stats counts what a tree holds.
type Stats struct {
	Names int   // without the root's
	Nodes int   // inodes: a node with several names counts once, the root counts
	Bytes int64 // of contents, holes included, each node once
}

// Stats walks the tree and counts.
func (t *Tree) Stats() (Stats, error) {
	var s Stats
	seen := map[*Node]bool{}
	err := t.Walk(func(_ string, n *Node) error {
		s.Names++
		if !seen[n] {
			seen[n] = true
			s.Nodes++
			s.Bytes += n.Size()
		}
		return nil
	})
	s.Names--
	return s, err
}

// Links gives the nodes that have more than one name, with their names in the
// order of Walk.
func (t *Tree) Links() (map[*Node][]string, error) {
	names := map[*Node][]string{}
	err := t.Walk(func(path string, n *Node) error {
		if n.Kind != Dir {
			names[n] = append(names[n], path)
		}
		return nil
	})
	for n, paths := range names {
		if len(paths) == 1 {
			delete(names, n)
		}
	}
	return names, err
}

func sortedNames(m map[string]*Node) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
