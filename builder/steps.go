package builder

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

func now() time.Time { return time.Now() }

// made is the time of what the build itself makes, in nanoseconds.
func (e *engine) made() int64 {
	if e.o.Epoch.IsZero() {
		return 0
	}
	return e.o.Epoch.UnixNano()
}

// stepContext is one instruction at work.
type stepContext struct {
	*engine
	stage *dialect.Stage
	st    *state
	title string
	in    dialect.Instruction
}

// do executes the instruction and gives the state after it.
func (c *stepContext) do(ctx context.Context) (*state, error) {
	st, err := c.step(ctx)
	return st, locate(c.in.Position(), err)
}

func (c *stepContext) step(ctx context.Context) (*state, error) {
	next := *c.st
	v := next.vars
	switch in := c.in.(type) {
	case *dialect.Arg:
		return &next, c.arg(in, &next)
	case *dialect.Env:
		out, err := v.ExpandEnv(in)
		if err != nil {
			return nil, err
		}
		for _, p := range out.Pairs {
			v.SetEnv(p.Name, p.Value)
		}
	case *dialect.Label:
		out, err := v.ExpandLabel(in)
		if err != nil {
			return nil, err
		}
		if next.cfg.Labels == nil {
			next.cfg.Labels = map[string]string{}
		}
		for _, p := range out.Pairs {
			if _, err := dialect.ReadLabels(map[string]string{p.Name: p.Value}); err != nil {
				return nil, in.Errorf(p.Name, "%w", err)
			}
			next.cfg.Labels[p.Name] = p.Value
		}
	case *dialect.Shell:
		next.shell = in.Argv
	case *dialect.User:
		return c.user(ctx, in, &next)
	case *dialect.Workdir:
		p, err := v.ExpandWorkdir(in)
		if err != nil {
			return nil, err
		}
		if !path.IsAbs(p) {
			p = path.Join("/", next.cfg.WorkingDir, p)
		}
		next.cfg.WorkingDir = path.Clean(p)
		if err := next.check(); err != nil {
			return nil, err
		}
		return c.folders(ctx, &next, []string{next.cfg.WorkingDir})
	case *dialect.Volume:
		paths, err := v.ExpandVolume(in)
		if err != nil {
			return nil, err
		}
		for i, p := range paths {
			if p == "" {
				return nil, in.Errorf("", "VOLUME: a path is empty here")
			}
			// smolBSD's "VOLUME misc" is /misc.
			paths[i] = path.Clean("/" + p)
			if !slices.Contains(next.cfg.Volumes, paths[i]) {
				next.cfg.Volumes = append(slices.Clone(next.cfg.Volumes), paths[i])
			}
		}
		if err := next.check(); err != nil {
			return nil, err
		}
		return c.folders(ctx, &next, paths)
	case *dialect.Expose:
		ports, err := v.ExpandExpose(in)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			if !slices.Contains(next.cfg.ExposedPorts, p.String()) {
				next.cfg.ExposedPorts = append(slices.Clone(next.cfg.ExposedPorts), p.String())
			}
			if pub := p.Publish(); pub != "" && !slices.Contains(next.publish, pub) {
				next.publish = append(slices.Clone(next.publish), pub)
			}
		}
	case *dialect.StopSignal:
		s, err := v.ExpandStopSignal(in)
		if err != nil {
			return nil, err
		}
		next.cfg.StopSignal = s
	case *dialect.Cmd:
		next.cfg.Cmd, next.cmdAt = in.Args(next.shell), in.Pos
		if !c.entrypointFollows() {
			return &next, next.cfg.Validate()
		}
	case *dialect.Entrypoint:
		next.cfg.Entrypoint = in.Args(next.shell)
		// What the base image runs is no argument of this one.
		if !c.hasCmd() {
			next.cfg.Cmd = nil
		}
	case *dialect.Healthcheck:
		next.cfg.Healthcheck = healthcheck(in)
	case *dialect.Run:
		return c.run(ctx, in, &next)
	case *dialect.Copy:
		return c.copy(ctx, in, &next)
	default:
		return nil, fmt.Errorf("%T: nothing is known of it", in)
	}
	return &next, next.check()
}

// check holds what an instruction has set to what an image may have, where the
// instruction's place is known. That a CMD names a program is CMD's to check.
func (st *state) check() error {
	cfg := st.cfg
	cfg.Env, cfg.User = st.vars.Env(), st.user
	if len(cfg.Entrypoint) == 0 && len(cfg.Cmd) > 0 && cfg.Cmd[0] == "" {
		cfg.Entrypoint = []string{"one that follows"}
	}
	return cfg.Validate()
}

// hasCmd says whether a CMD of this stage came before the instruction.
func (c *stepContext) hasCmd() bool {
	for _, in := range c.stage.Steps {
		if in == c.in {
			return false
		}
		if _, ok := in.(*dialect.Cmd); ok {
			return true
		}
	}
	return false
}

// entrypointFollows says whether an ENTRYPOINT comes after the instruction: the
// CMD's first word is an argument then, and may be empty.
func (c *stepContext) entrypointFollows() bool {
	after := false
	for _, s := range c.file.Stages[c.stage.Index:] {
		for _, in := range s.Steps {
			if _, ok := in.(*dialect.Entrypoint); ok && after {
				return true
			}
			after = after || in == c.in
		}
	}
	return false
}

func healthcheck(in *dialect.Healthcheck) *spec.Healthcheck {
	if in.None {
		return &spec.Healthcheck{Test: []string{"NONE"}}
	}
	kind := "CMD"
	if in.Command.Shell {
		kind = "CMD-SHELL"
	}
	return &spec.Healthcheck{
		Test:     append([]string{kind}, in.Command.Argv...),
		Interval: time.Duration(in.Interval), Timeout: time.Duration(in.Timeout), StartPeriod: time.Duration(in.StartPeriod),
		Retries: in.Retries,
	}
}

// arg declares a build argument.
func (c *stepContext) arg(in *dialect.Arg, st *state) error {
	c.mu.Lock()
	c.used[in.Name] = true
	c.mu.Unlock()
	if _, given := c.o.Args[in.Name]; in.Deferred && !given {
		st.vars.Defer(in)
		return nil
	}
	v, ok, err := st.vars.ArgValue(in, c.o.Args, c.global)
	if err == nil && ok {
		st.vars.SetArg(in.Name, v)
	}
	return err
}

// keyed runs work unless the cache has what the key made. work gives the new root.
func (c *stepContext) keyed(ctx context.Context, st *state, key string, work func(ctx context.Context, id int) (*tree.Tree, error)) error {
	id, end := c.begin(c.stage, c.title, c.in.Line())
	if c.lookup(st, key) {
		end(true, nil)
		return nil
	}
	root, err := work(ctx, id)
	if err == nil {
		st.key, st.root = key, root
		err = c.remember(ctx, st)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	err = locate(c.in.Position(), err)
	end(false, err)
	return err
}

// folders makes folders.
func (c *stepContext) folders(ctx context.Context, st *state, paths []string) (*state, error) {
	key := newKey("folders").add(c.st.key, fmt.Sprint(c.made())).list(paths).sum()
	err := c.keyed(ctx, st, key, func(context.Context, int) (*tree.Tree, error) {
		root, err := c.own(c.st)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			cp := c.copier(root)
			if _, _, err := cp.mkdirAll(p, 0o755); err != nil {
				return nil, err
			}
		}
		return root, nil
	})
	return st, err
}

func (c *stepContext) copier(root *tree.Tree) *copier {
	return &copier{root: root, mtime: c.made(), copies: map[*tree.Node]*tree.Node{}}
}

// user is USER. smolBSD makes a user that is not there.
func (c *stepContext) user(ctx context.Context, in *dialect.User, st *state) (*state, error) {
	who, err := st.vars.ExpandUser(in)
	if err != nil {
		return nil, err
	}
	st.user, st.userAt = who, in.Pos
	if err := st.check(); err != nil {
		return nil, err
	}
	if !c.stage.SmolBSD {
		return st, nil
	}
	root, err := c.view(c.st)
	if err != nil {
		return nil, err
	}
	var no *errNoUser
	if _, err := lookup(root, who); !errors.As(err, &no) || no.what != "user" {
		return st, err
	}
	argv := []string{"/bin/sh", "-c", `useradd -m "$1"`, "sh", no.name}
	key := newKey("useradd").add(c.st.key).list(argv).sum()
	err = c.keyed(ctx, st, key, func(ctx context.Context, id int) (*tree.Tree, error) {
		root, err := c.own(c.st)
		if err != nil {
			return nil, err
		}
		return c.execute(ctx, id, RunStep{Root: root, Argv: argv, Env: c.environment(st, identity{home: "/"}), Cwd: "/"})
	})
	return st, err
}
