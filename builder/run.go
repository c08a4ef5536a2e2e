package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// scriptName is where a RUN heredoc that begins with #! is while it is executed.
const scriptName = ".smolvmm-run"

// environment is what a RUN sees: ENV, arguments, and what a process needs besides.
func (c *stepContext) environment(st *state, who identity) []string {
	env := map[string]string{"PATH": netbsdPath, "HOME": "/"}
	if who.home != "" {
		env["HOME"] = who.home
	}
	for _, p := range proxies() {
		if v, ok := c.o.Args[p]; ok {
			env[p] = v
		}
	}
	if !c.o.Epoch.IsZero() {
		env["SOURCE_DATE_EPOCH"] = fmt.Sprint(c.o.Epoch.Unix())
	}
	for _, l := range [][]string{st.vars.Args(), st.vars.Env()} {
		for _, e := range l {
			name, value, _ := strings.Cut(e, "=")
			env[name] = value
		}
	}
	out := make([]string, 0, len(env))
	for _, n := range slices.Sorted(maps.Keys(env)) {
		out = append(out, n+"="+env[n])
	}
	return out
}

// run is RUN.
func (c *stepContext) run(ctx context.Context, raw *dialect.Run, st *state) (*state, error) {
	in, err := st.vars.ExpandRun(raw)
	if err != nil {
		return nil, err
	}
	words, script := in.Command(st.shell, c.stage.SmolBSD, st.vars.Deferred())
	key := newKey("run").add(c.st.key, st.user, st.cfg.WorkingDir, in.Network, string(script)).list(words).list(st.vars.Args()).list(st.vars.Env())
	if !c.o.Epoch.IsZero() {
		key.add("epoch", fmt.Sprint(c.o.Epoch.Unix()))
	}
	var mounts []mounted
	for _, m := range in.Mounts {
		x, err := c.mount(ctx, in, m)
		if err != nil {
			return nil, err
		}
		// A secret's value and a cache's contents are no part of what a step makes.
		key.add("mount", m.Type, m.ID, m.Target, m.Env, m.Source, x.id)
		mounts = append(mounts, x)
	}
	err = c.keyed(ctx, st, key.sum(), func(ctx context.Context, id int) (*tree.Tree, error) {
		root, err := c.own(c.st)
		if err != nil {
			return nil, err
		}
		who := identity{home: "/"}
		if st.user != "" {
			if who, err = lookup(root, st.user); err != nil {
				return nil, fmt.Errorf("USER %s: %w", st.user, err)
			}
		}
		return c.mountedRun(ctx, id, st, in, who, root, mounts, words, script)
	})
	if err == nil {
		// What took a machine is kept, whatever becomes of the build.
		err = c.cache.flush()
	}
	return st, err
}

// mounted is a --mount that was looked up.
type mounted struct {
	dialect.Mount
	id     string // of a bind: a digest
	secret *Secret
	node   func() (*tree.Node, error) // bind
}

// mount looks up what a --mount names.
func (c *stepContext) mount(ctx context.Context, in *dialect.Run, m dialect.Mount) (mounted, error) {
	x := mounted{Mount: m}
	switch m.Type {
	case "secret":
		data, ok := c.o.Secrets[m.ID]
		if !ok {
			if m.Required {
				return x, in.Errorf("--mount", "the secret %s is not given: --secret %s", m.ID, m.ID)
			}
			return x, nil
		}
		s := &Secret{ID: m.ID, Path: m.Target, Env: m.Env, Mode: 0o400, Data: data}
		if s.Path == "" && s.Env == "" {
			s.Path = "/run/secrets/" + m.ID
		} else if s.Path != "" {
			s.Path = path.Join("/", c.st.cfg.WorkingDir, m.Target)
			if path.IsAbs(m.Target) {
				s.Path = path.Clean(m.Target)
			}
		}
		if m.Mode != nil {
			s.Mode = *m.Mode
		}
		if m.UID != nil {
			s.UID = *m.UID
		}
		if m.GID != nil {
			s.GID = *m.GID
		}
		x.secret = s
	case "bind":
		if m.From == "" {
			src := m.Source
			if src == "" {
				src = "."
			}
			sets, err := c.context.sources(src, nil)
			if err != nil {
				return x, in.Errorf("--mount", "--mount=type=bind: %w", err)
			}
			parts := []part{{sourceSet: sets[0]}}
			k := newKey("bind")
			if err := addDigests(k, parts); err != nil {
				return x, err
			}
			x.id = k.sum()
			x.node = func() (*tree.Node, error) { return sets[0].node, nil }
			return x, nil
		}
		from, err := c.other(ctx, m.From)
		if err != nil {
			return x, err
		}
		x.id = from.id
		x.node = func() (*tree.Node, error) {
			t, err := from.view()
			if err != nil {
				return nil, err
			}
			_, n, err := t.Resolve(clean(m.Source))
			if err != nil {
				return nil, in.Errorf("--mount", "--mount=type=bind: %s of %s: %w", m.Source, m.From, err)
			}
			return n, nil
		}
	case "cache":
		if m.From != "" {
			return x, in.Errorf("--mount", "--mount=type=cache,from= is not supported: COPY --from=%s into the cache's place does", m.From)
		}
	}
	return x, nil
}

// cacheKey names what a cache mount keeps.
func cacheKey(m dialect.Mount) string {
	id := m.ID
	if id == "" {
		id = m.Target
	}
	return newKey("cache mount").add(id).sum()
}

// place is a mount's target in a root while a step is executed.
type placed struct {
	m    mounted
	dir  string     // where its folder really is
	name string     // in it
	old  *tree.Node // what was there
}

// mountedRun lays the mounts into the root, executes the step and takes them out.
func (c *stepContext) mountedRun(ctx context.Context, id int, st *state, in *dialect.Run, who identity, root *tree.Tree, mounts []mounted, words []string, script []byte) (*tree.Tree, error) {
	cwd := st.cfg.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	step := RunStep{Root: root, Argv: words, Env: c.environment(st, who), Cwd: cwd, UID: who.uid, GID: who.gid, Groups: who.groups,
		Network: in.Network != "none", Timeout: c.o.Timeout}
	var places []placed
	cp := c.copier(root)
	for _, m := range mounts {
		if m.Type == "secret" {
			if m.secret != nil {
				s := *m.secret
				if m.UID == nil {
					s.UID = who.uid
				}
				if m.GID == nil {
					s.GID = who.gid
				}
				step.Secrets = append(step.Secrets, s)
			}
			continue
		}
		target := path.Join("/", cwd, m.Target)
		if path.IsAbs(m.Target) {
			target = path.Clean(m.Target)
		}
		if target == "/" {
			return nil, in.Errorf("--mount", "--mount: / is the image's own")
		}
		n, err := c.content(ctx, m, who)
		if err != nil {
			return nil, err
		}
		real, dir, err := cp.mkdirAll(path.Dir(target), 0o755)
		if err != nil {
			return nil, err
		}
		p := placed{m: m, dir: real, name: path.Base(target), old: dir.Child(path.Base(target))}
		if p.old != nil && p.old.Kind == tree.Symlink {
			return nil, in.Errorf("--mount", "--mount: %s is a symbolic link to %s in the image: name that", target, p.old.Target)
		}
		if err := dir.Set(p.name, n); err != nil {
			return nil, err
		}
		places = append(places, p)
	}
	if script != nil {
		if root.Root.Child(scriptName) != nil {
			return nil, fmt.Errorf("the image has a file /%s", scriptName)
		}
		n := tree.NewFile(0o755, tree.Bytes(script))
		if err := root.Root.Set(scriptName, n); err != nil {
			return nil, err
		}
		step.Argv = append([]string{"/" + scriptName}, words[1:]...)
	}
	after, err := c.execute(ctx, id, step)
	if err != nil {
		return nil, err
	}
	after.Root.Remove(scriptName)
	for _, p := range slices.Backward(places) {
		if err := c.takeOut(ctx, after, p); err != nil {
			return nil, err
		}
	}
	return after, nil
}

// content gives what a mount shows.
func (c *stepContext) content(ctx context.Context, m mounted, who identity) (*tree.Node, error) {
	switch m.Type {
	case "bind":
		n, err := m.node()
		if err != nil {
			return nil, err
		}
		return (&tree.Tree{Root: wrap(n)}).Clone().Root.Child("x"), nil
	case "cache":
		if e, ok := c.cache.get(cacheKey(m.Mount)); ok && e.Tree != "" {
			if t, err := c.cache.load(e.Tree, true); err == nil {
				return t.Root, nil
			}
		}
	}
	n := tree.NewDir(0o755)
	n.Mtime, n.UID, n.GID = c.made(), who.uid, who.gid
	if m.Type == "tmpfs" {
		n.Perm = 0o1777
	}
	if m.Mode != nil {
		n.Perm = *m.Mode
	}
	if m.UID != nil {
		n.UID = *m.UID
	}
	if m.GID != nil {
		n.GID = *m.GID
	}
	return n, nil
}

// wrap makes a folder with the one entry x.
func wrap(n *tree.Node) *tree.Node {
	d := tree.NewDir(0o755)
	_ = d.Set("x", n) // the name is right and the folder new
	return d
}

// takeOut takes a mount out of the root after a step, and keeps what a cache is then.
func (c *stepContext) takeOut(ctx context.Context, root *tree.Tree, p placed) error {
	dir, err := root.Lookup(p.dir)
	if err != nil || dir.Kind != tree.Dir {
		return nil // the step has taken the folder away
	}
	if n := dir.Child(p.name); n != nil && n.Kind == tree.Dir && p.m.Type == "cache" && !p.m.ReadOnly {
		d, err := c.cache.store(ctx, &tree.Tree{Root: n})
		if err != nil {
			return err
		}
		c.cache.put(entry{Key: cacheKey(p.m.Mount), Tree: d})
	}
	if p.old != nil {
		return dir.Set(p.name, p.old)
	}
	dir.Remove(p.name)
	return nil
}

// execute runs a step in a machine.
func (c *stepContext) execute(ctx context.Context, id int, step RunStep) (*tree.Tree, error) {
	if c.o.Runner == nil {
		return nil, errors.New("RUN needs a machine, and this build has none")
	}
	select {
	case c.runs <- struct{}{}:
		defer func() { <-c.runs }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	out := &output{c: c, ev: Event{Kind: EventOutput, ID: id, Stage: c.stage.Title(), Step: c.title, Text: c.in.Line()}}
	step.Output = out
	after, err := c.o.Runner.Run(ctx, step)
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		return nil, fmt.Errorf("the command failed: %w", exit)
	case err != nil:
		return nil, fmt.Errorf("RUN: %w", err)
	case after == nil || after.Root == nil || after.Root.Kind != tree.Dir:
		return nil, errors.New("RUN: the machine gave no root back")
	}
	return after, nil
}

// output turns what a step prints into events.
type output struct {
	c  *stepContext
	ev Event
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	ev := o.ev
	ev.Data = p
	o.c.event(ev)
	return len(p), nil
}
