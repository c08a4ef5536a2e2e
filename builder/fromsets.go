package builder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// fromSets puts NetBSD's sets and archives of the context into one another.
func (e *engine) fromSets(ctx context.Context, s *dialect.Stage, sets []dialect.Set, st *state) (cached bool, err error) {
	var names []string
	for _, set := range sets {
		if !set.Path && !slices.Contains(names, set.Name) {
			names = append(names, set.Name)
		}
	}
	layers := map[string]Layer{}
	if len(names) > 0 {
		if e.o.Sets == nil {
			return false, errors.New("this build has no sets")
		}
		got, err := e.o.Sets.Fetch(ctx, e.global[releaseArg], names)
		if err != nil {
			return false, err
		}
		for i, l := range got {
			layers[names[i]] = l
		}
	}
	key := newKey("sets")
	use := make([]Layer, len(sets))
	for i, set := range sets {
		l, ok := layers[set.Name]
		if !ok {
			if l, err = e.localSet(set.Name); err != nil {
				return false, err
			}
		}
		use[i] = l
		key.add(l.Digest, set.Glob)
	}
	pkgs, err := e.packages(ctx, s)
	if err != nil {
		return false, err
	}
	for _, p := range pkgs {
		key.add("package", p.Digest)
	}
	if s.SmolBSD {
		key.add("smolBSD", e.global[releaseArg], fmt.Sprint(e.made()))
	}
	st.key = key.sum()
	if ok := e.lookup(st, st.key); ok {
		return true, nil
	}
	t := tree.New()
	for i, l := range use {
		part, err := l.Open(ctx, e.careful)
		if err != nil {
			return false, err
		}
		if sets[i].Glob != "" {
			if part, err = fitting(part, sets[i]); err != nil {
				return false, err
			}
		}
		if err := t.Merge(part); err != nil {
			return false, fmt.Errorf("set %s: %w", l.Name, err)
		}
	}
	for _, p := range pkgs {
		part, err := p.Open(ctx, e.careful)
		if err != nil {
			return false, err
		}
		if err := t.Merge(part); err != nil {
			return false, fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	if s.SmolBSD {
		if err := smolBSDRoot(t, e.global[releaseArg], e.made()); err != nil {
			return false, err
		}
	}
	st.root = t
	return false, e.remember(ctx, st)
}

// fitting takes what fits a set's pattern, and the folders on the way.
func fitting(t *tree.Tree, set dialect.Set) (*tree.Tree, error) {
	out := &tree.Tree{Root: &tree.Node{Kind: tree.Dir, Perm: t.Root.Perm, UID: t.Root.UID, GID: t.Root.GID, Mtime: t.Root.Mtime}}
	found := false
	err := t.Walk(func(p string, n *tree.Node) error {
		if p == "." || !dialect.Glob(set.Glob, p) {
			return nil
		}
		found = true
		dir := out.Root
		parts := strings.Split(p, "/")
		for i, name := range parts[:len(parts)-1] {
			next := dir.Child(name)
			if next == nil {
				from, err := t.Lookup(strings.Join(parts[:i+1], "/"))
				if err != nil {
					return err
				}
				next = emptyDir(from)
				if err := dir.Set(name, next); err != nil {
					return err
				}
			}
			dir = next
		}
		if n.Kind == tree.Dir {
			n = emptyDir(n)
		}
		return dir.Set(parts[len(parts)-1], n)
	})
	if err == nil && !found {
		err = fmt.Errorf("set %s has nothing that fits %s", set.Name, set.Glob)
	}
	return out, err
}

func emptyDir(n *tree.Node) *tree.Node {
	return &tree.Node{Kind: tree.Dir, Perm: n.Perm, UID: n.UID, GID: n.GID, Mtime: n.Mtime, Flags: n.Flags}
}
