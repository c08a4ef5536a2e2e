package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// copy is COPY and ADD.
func (c *stepContext) copy(ctx context.Context, raw *dialect.Copy, st *state) (*state, error) {
	in, err := st.vars.ExpandCopy(raw)
	if err != nil {
		return nil, err
	}
	exclude, err := dialect.NewPatterns(in.Exclude)
	if err != nil {
		return nil, in.Errorf("--exclude", "--exclude: %w", err)
	}
	var mode *chmod
	if in.Chmod != "" {
		if mode, err = parseChmod(in.Chmod); err != nil {
			return nil, in.Errorf("--chmod", "--chmod: %w", err)
		}
	}
	key := newKey("copy").add(c.st.key, in.Dest, c.st.cfg.WorkingDir, in.Chown, in.Chmod, fmt.Sprint(in.Add, c.made())).list(in.Exclude)
	var parts []part
	devices := false
	if in.From != "" {
		devices = true
		from, err := c.copyFrom(ctx, in)
		if err != nil {
			return nil, err
		}
		// The other stage as a whole first, so that nothing of it need be read;
		// then what is copied of it, so that the rest of it may change.
		whole := newKey("copy from").add(key.sum(), from.id).list(in.Sources).sum()
		if key, ok := c.lookupWhole(st, whole); ok {
			st.key = key // the step's own: what follows depends on what was copied
			_, end := c.begin(c.stage, c.title, in.Line())
			end(true, nil)
			return st, nil
		}
		if parts, err = c.fromTree(from, in, exclude); err != nil {
			return nil, err
		}
		if err := addDigests(key, parts); err != nil {
			return nil, err
		}
		err = c.keyed(ctx, st, key.sum(), func(ctx context.Context, _ int) (*tree.Tree, error) { return c.laid(ctx, in, parts, mode, devices) })
		if err == nil {
			c.cache.put(entry{Key: whole, Tree: st.digest, Data: json.RawMessage(strconv.Quote(st.key))})
		}
		return st, err
	}
	for _, s := range in.Sources {
		p, err := c.part(ctx, in, s, exclude)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p...)
	}
	if err := addDigests(key, parts); err != nil {
		return nil, err
	}
	err = c.keyed(ctx, st, key.sum(), func(ctx context.Context, _ int) (*tree.Tree, error) { return c.laid(ctx, in, parts, mode, devices) })
	return st, err
}

// lookupWhole finds what a COPY --from made of the same whole stage, and the key of
// the step itself.
func (c *stepContext) lookupWhole(st *state, whole string) (key string, ok bool) {
	got, ok := c.cache.get(whole)
	if !ok || json.Unmarshal(got.Data, &key) != nil || len(key) != len(whole) {
		return "", false
	}
	return key, c.lookup(st, whole)
}

// part is something that is copied: nodes, or what has to be fetched or unpacked
// first, which its id stands for.
type part struct {
	sourceSet
	id   string
	open func(ctx context.Context) (sourceSet, error) // nil: the sourceSet is there
}

// addDigests makes a key depend on what is copied. Times do not count, as for
// Docker: a fresh checkout is no change.
func addDigests(key *keyHash, parts []part) error {
	for _, p := range parts {
		if p.open != nil {
			key.add("id", p.id)
			continue
		}
		one := tree.New()
		if err := one.Root.Set("x", p.node); err != nil {
			return err
		}
		one = one.Clone()
		if err := one.Walk(func(_ string, n *tree.Node) error { n.Mtime = 0; return nil }); err != nil {
			return err
		}
		d, err := one.Digest()
		if err != nil {
			return err
		}
		key.add("node", p.base, d)
	}
	return nil
}

// laid lays the parts into a copy of the root.
func (c *stepContext) laid(ctx context.Context, in *dialect.Copy, parts []part, mode *chmod, devices bool) (*tree.Tree, error) {
	root, err := c.own(c.st)
	if err != nil {
		return nil, err
	}
	cp := c.copier(root)
	cp.mode, cp.devices = mode, devices
	if in.Chown != "" {
		id, err := lookup(root, in.Chown)
		if err != nil {
			return nil, in.Errorf("--chown", "--chown=%s: %w", in.Chown, err)
		}
		if id.hasUser && !id.hasGroup && !id.known {
			id.gid = id.uid // Docker's group of a number that nobody has
		}
		cp.owner = &id
	}
	var sources []sourceSet
	for _, p := range parts {
		s := p.sourceSet
		if p.open != nil {
			if s, err = p.open(ctx); err != nil {
				return nil, err
			}
		}
		sources = append(sources, s)
	}
	return root, cp.place(sources, in.Dest, c.st.cfg.WorkingDir)
}

// otherRoot is what COPY --from copies from.
type otherRoot struct {
	id   string // a digest
	view func() (*tree.Tree, error)
}

// other finds a stage, an image or the context by the name that --from has.
func (c *stepContext) other(ctx context.Context, name string) (otherRoot, error) {
	if s := c.file.Stage(name, c.stage.Index); s != nil {
		st, err := c.engine.stage(ctx, s)
		if err != nil {
			return otherRoot{}, err
		}
		return otherRoot{st.key, func() (*tree.Tree, error) { return c.view(st) }}, nil
	}
	if s := c.file.Stage(name, len(c.file.Stages)); s != nil {
		return otherRoot{}, fmt.Errorf("stage %s comes later: a stage copies from those before it", name)
	}
	if t := c.o.Roots[name]; t != nil {
		d, err := t.Digest()
		return otherRoot{d, func() (*tree.Tree, error) { return t, nil }}, err
	}
	img, err := c.image(ctx, name)
	if err != nil {
		return otherRoot{}, err
	}
	return otherRoot{img.Tree, func() (*tree.Tree, error) { return c.o.Images.Tree(ctx, img) }}, nil
}

func (c *stepContext) copyFrom(ctx context.Context, in *dialect.Copy) (otherRoot, error) {
	o, err := c.other(ctx, in.From)
	if err != nil {
		var de *dialect.Error
		if errors.As(err, &de) || ctx.Err() != nil {
			return o, err
		}
		return o, in.Errorf("--from", "--from=%s: %w", in.From, err)
	}
	return o, nil
}

// fromTree takes the sources of a COPY --from.
func (c *stepContext) fromTree(from otherRoot, in *dialect.Copy, exclude *dialect.Patterns) ([]part, error) {
	t, err := from.view()
	if err != nil {
		return nil, err
	}
	var out []part
	for _, s := range in.Sources {
		names := []string{clean(s)}
		if strings.ContainsAny(s, "*?[") {
			if _, _, err := t.Resolve(clean(s)); err != nil {
				names = globTree(t, clean(s))
			}
		}
		if len(names) == 0 {
			return nil, in.Errorf(s, "%s: nothing in %s fits", s, in.From)
		}
		for _, name := range names {
			_, n, err := t.Resolve(name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, in.Errorf(s, "%s: there is no such file in %s", s, in.From)
			}
			if err != nil {
				return nil, in.Errorf(s, "%s: %w", s, err)
			}
			if len(in.Exclude) > 0 {
				if n, err = without(n, path.Base(name), exclude); err != nil {
					return nil, err
				}
				if n == nil {
					continue
				}
			}
			out = append(out, part{sourceSet: sourceSet{name, path.Base(name), n}})
		}
	}
	return out, nil
}

// globTree finds what a pattern names in a tree.
func globTree(t *tree.Tree, pattern string) []string {
	var out []string
	depth := strings.Count(pattern, "/")
	_ = t.Walk(func(p string, n *tree.Node) error {
		if p == "." {
			return nil
		}
		if ok, err := path.Match(pattern, p); err == nil && ok {
			out = append(out, p)
		}
		if n.Kind == tree.Dir && strings.Count(p, "/") >= depth {
			return fs.SkipDir
		}
		return nil
	})
	return out
}

// without gives a copy of a node without what patterns name.
func without(n *tree.Node, base string, exclude *dialect.Patterns) (*tree.Node, error) {
	if n.Kind != tree.Dir {
		out, err := exclude.Match(base)
		if err != nil || out {
			return nil, err
		}
		return n, nil
	}
	t := (&tree.Tree{Root: n}).Clone()
	err := t.Walk(func(p string, n *tree.Node) error {
		if p == "." {
			return nil
		}
		out, err := exclude.Match(p)
		if err != nil || !out || n.Kind == tree.Dir && exclude.Negated() {
			return err
		}
		if err := t.Remove(p); err != nil {
			return err
		}
		if n.Kind == tree.Dir {
			return fs.SkipDir
		}
		return nil
	})
	return t.Root, err
}
