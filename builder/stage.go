package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// state is a stage at one of its steps. The tree is loaded when somebody needs it:
// a build whose steps are all cached needs none.
type state struct {
	kind   string     // "scratch", or nothing worth telling
	key    string     // of the step that made it
	digest string     // of the tree, a blob; "" where it is not stored yet
	root   *tree.Tree // nil: not loaded; others may have it too, so it is never changed

	vars    *dialect.Vars
	shell   []string
	user    string
	userAt  dialect.Pos // of the USER that says so; the zero value is none of this file
	cfg     spec.Config // all but what vars and user have
	cmdAt   dialect.Pos // of the CMD that it has, as userAt
	publish []string
	// base is what the first of the stages that this one is made of began with:
	// an /sbin/init that is still the one from there is replaced at the end.
	base *state
}

// future is a stage that is being made.
type future struct {
	once sync.Once
	done chan struct{}
	st   *state
	err  error
}

// engine is one build.
type engine struct {
	o       Options
	file    *dialect.File
	context *buildContext
	cache   *stepCache
	global  map[string]string // of the ARGs before the first FROM
	stages  []*future
	runs    chan struct{} // a place for each machine
	loads   sync.Mutex    // guards the roots of states that several stages have

	mu     sync.Mutex
	events int
	worked bool            // a step was done
	used   map[string]bool // build arguments that somebody declared

	// careful is a build after one that found contents missing: a cached tree
	// counts only if all of it is there.
	careful bool
}

// maxRuns is how many RUN steps of different stages are executed at once: each
// has a machine with memory of its own.
const maxRuns = 2

func newSection(r io.ReaderAt, n int64) io.Reader { return io.NewSectionReader(r, 0, n) }

// event tells of something, one at a time.
func (e *engine) event(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.o.Progress != nil {
		e.o.Progress(ev)
	}
}

func (e *engine) nextID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events++
	return e.events
}

// platform are the arguments that Docker predefines; they count in FROM, and in a
// stage that declares them.
func platform() map[string]string {
	return map[string]string{
		"TARGETPLATFORM": "netbsd/amd64", "TARGETOS": "netbsd", "TARGETARCH": "amd64", "TARGETVARIANT": "",
		"BUILDPLATFORM": "linux/amd64", "BUILDOS": "linux", "BUILDARCH": "amd64", "BUILDVARIANT": "",
	}
}

// releaseArg is the build argument that names NetBSD's release.
const releaseArg = "NETBSD_RELEASE"

// proxies are the arguments that need no ARG, and are part of no cache key.
func proxies() []string {
	var out []string
	for _, n := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"} {
		out = append(out, n, strings.ToUpper(n))
	}
	return out
}

// globals evaluates the ARGs before the first FROM.
func (e *engine) globals() error {
	vars := dialect.NewVars(e.file.Escape, nil)
	all := platform()
	all[releaseArg] = DefaultRelease
	for n, v := range all {
		if given, ok := e.o.Args[n]; ok {
			e.used[n] = true
			all[n], v = given, given
		}
		vars.SetArg(n, v)
	}
	for _, a := range e.file.Args {
		e.used[a.Name] = true
		v, ok, err := vars.ArgValue(a, e.o.Args, all)
		if err != nil {
			return err
		}
		if ok {
			vars.SetArg(a.Name, v)
			all[a.Name] = v
		}
	}
	e.global = all
	return nil
}

// stage gives a finished stage, and makes it if nobody has begun to.
func (e *engine) stage(ctx context.Context, s *dialect.Stage) (*state, error) {
	f := e.stages[s.Index]
	f.once.Do(func() {
		go func() {
			defer close(f.done)
			f.st, f.err = e.build(ctx, s)
		}()
	})
	select {
	case <-f.done:
		return f.st, f.err
	case <-ctx.Done():
		// The stage ends by itself, and somebody waits for it: see Build.
		return nil, context.Cause(ctx)
	}
}

// needs gives the stages that a stage begins with or copies from, as far as their
// names need no variables of the stage: those are worth beginning early.
func (e *engine) needs(s *dialect.Stage) []*dialect.Stage {
	var out []*dialect.Stage
	add := func(name string) {
		if st := e.file.Stage(name, s.Index); st != nil && !slices.Contains(out, st) {
			out = append(out, st)
		}
	}
	add(s.From)
	for _, in := range s.Steps {
		switch in := in.(type) {
		case *dialect.Copy:
			add(in.From)
		case *dialect.Run:
			for _, m := range in.Mounts {
				add(m.From)
			}
		}
	}
	return out
}

// build makes a stage.
func (e *engine) build(ctx context.Context, s *dialect.Stage) (*state, error) {
	needed := e.needs(s)
	for _, n := range needed {
		go e.stage(ctx, n) // its error comes to whoever needs it
	}
	st, err := e.from(ctx, s)
	if err != nil {
		return nil, err
	}
	total := len(s.Steps) + 1
	for i, in := range s.Steps {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		sc := &stepContext{engine: e, stage: s, st: st, title: fmt.Sprintf("%d/%d", i+2, total), in: in}
		if st, err = sc.do(ctx); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// locate puts an instruction's place in front of an error that has none.
func locate(pos dialect.Pos, err error) error {
	var de *dialect.Error
	if err == nil || errors.As(err, &de) {
		return err
	}
	return &dialect.Error{Pos: pos, Msg: err.Error(), Err: err}
}

// begin tells that a step begins and gives the function that tells its end.
func (e *engine) begin(s *dialect.Stage, title, text string) (id int, end func(cached bool, err error)) {
	id = e.nextID()
	start := now()
	ev := Event{ID: id, Stage: s.Title(), Step: title, Text: text}
	ev.Kind = EventStart
	e.event(ev)
	return id, func(cached bool, err error) {
		ev.Took = now().Sub(start)
		switch {
		case err != nil:
			ev.Kind, ev.Err = EventFailed, err
		case cached:
			ev.Kind = EventCached
		default:
			ev.Kind = EventDone
			e.mu.Lock()
			e.worked = true
			e.mu.Unlock()
		}
		e.event(ev)
	}
}

// from makes the state that a stage begins with.
func (e *engine) from(ctx context.Context, s *dialect.Stage) (*state, error) {
	vars := dialect.NewVars(e.file.Escape, nil)
	for n, v := range e.global {
		vars.SetArg(n, v)
	}
	name, err := s.ExpandFrom(vars)
	if err != nil {
		return nil, err
	}
	from, err := e.file.ParseFrom(s, name)
	if err != nil {
		return nil, err
	}
	_, end := e.begin(s, fmt.Sprintf("1/%d", len(s.Steps)+1), s.Text)
	st, cached, err := e.base(ctx, s, from)
	err = locate(s.Pos, err)
	end(cached, err)
	if err != nil {
		return nil, err
	}
	for _, p := range proxies() {
		if _, ok := e.o.Args[p]; ok {
			e.mu.Lock()
			e.used[p] = true
			e.mu.Unlock()
		}
	}
	if st.base == nil {
		first := *st
		st.base = &first
	}
	return st, nil
}

// base is from without what every kind of it has.
func (e *engine) base(ctx context.Context, s *dialect.Stage, from dialect.From) (st *state, cached bool, err error) {
	st = &state{shell: dialect.DefaultShell()}
	switch from.Kind {
	case dialect.FromStage:
		other, err := e.stage(ctx, from.Stage)
		if err != nil {
			return nil, false, err
		}
		e.loads.Lock()
		st.inherit(other, e.file.Escape)
		e.loads.Unlock()
		return st, true, nil
	case dialect.FromImage:
		if t := e.o.Roots[from.Image]; t != nil {
			d, err := t.Digest()
			st.vars, st.root = dialect.NewVars(e.file.Escape, nil), t
			st.key = newKey("root").add(d).sum()
			return st, true, err
		}
		img, err := e.image(ctx, from.Image)
		if err != nil {
			return nil, false, err
		}
		st.key = newKey("image").add(img.Tree).sum()
		if _, err := e.cache.blobs.Open(img.Tree); err == nil {
			st.digest = img.Tree
		} else {
			if st.root, err = e.o.Images.Tree(ctx, img); err != nil {
				return nil, false, err
			}
		}
		st.vars = dialect.NewVars(e.file.Escape, img.Config.Env)
		st.cfg = img.Config
		st.cfg.Labels = maps.Clone(img.Config.Labels)
		st.user = img.Config.User
		st.publish = slices.Clone(img.Publish)
		return st, true, nil
	case dialect.FromScratch:
		st.vars = dialect.NewVars(e.file.Escape, nil)
		st.kind = "scratch"
		if st.root, err = e.scratch(); err != nil {
			return nil, false, err
		}
		d, err := st.root.Digest()
		st.key = newKey("scratch").add(d).sum()
		return st, true, err
	case dialect.FromURoot:
		if e.o.Toolbox == nil {
			return nil, false, errors.New("FROM u-root: this build has no u-root")
		}
		t, err := e.o.Toolbox.URoot(ctx)
		if err != nil {
			return nil, false, fmt.Errorf("FROM u-root: %w", err)
		}
		d, err := t.Digest()
		if err != nil {
			return nil, false, fmt.Errorf("FROM u-root: %w", err)
		}
		st.vars = dialect.NewVars(e.file.Escape, []string{"PATH=" + urootPath})
		st.root = t
		st.key = newKey("u-root").add(d).sum()
		return st, true, nil
	}
	st.vars = dialect.NewVars(e.file.Escape, []string{"PATH=" + netbsdPath})
	cached, err = e.fromSets(ctx, s, from.Sets, st)
	return st, cached, err
}

// netbsdPath is the PATH of images made of sets, as smolBSD's have it.
const netbsdPath = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/pkg/sbin:/usr/pkg/bin:/rescue"

// urootPath is the PATH of images of u-root's commands, which are in /bbin.
const urootPath = "/bbin:/sbin:/bin:/usr/sbin:/usr/bin"

// inherit takes over another stage's end.
func (st *state) inherit(o *state, escape rune) {
	st.key, st.digest, st.root, st.base = o.key, o.digest, o.root, o.base
	st.vars = dialect.NewVars(escape, o.vars.Env())
	st.shell = slices.Clone(o.shell)
	st.user, st.userAt, st.cmdAt = o.user, o.userAt, o.cmdAt
	st.cfg = o.cfg
	st.cfg.Labels = maps.Clone(o.cfg.Labels)
	st.cfg.ExposedPorts = slices.Clone(o.cfg.ExposedPorts)
	st.cfg.Volumes = slices.Clone(o.cfg.Volumes)
	st.publish = slices.Clone(o.publish)
}

// scratch is the root that FROM scratch begins with.
func (e *engine) scratch() (*tree.Tree, error) {
	if e.o.Toolbox == nil {
		return tree.New(), nil
	}
	return e.o.Toolbox.Scratch()
}

func (e *engine) image(ctx context.Context, ref string) (spec.Image, error) {
	if e.o.Images == nil {
		return spec.Image{}, errors.New("this build knows no images")
	}
	img, err := e.o.Images.Resolve(ctx, ref)
	if errors.Is(err, fs.ErrNotExist) {
		return img, fmt.Errorf("there is no stage, set or image %q: smolvmm images shows the images, smolvmm pull gets one", ref)
	}
	if err != nil {
		return img, fmt.Errorf("image %s: %w", ref, err)
	}
	if img.Tree == "" {
		return img, fmt.Errorf("image %s has a disk only, and not the files that a build needs: build it with smolvmm, or begin with sets", ref)
	}
	if e.careful {
		// No step of this build makes them again.
		if _, err := e.cache.load(img.Tree, true); err != nil {
			return img, fmt.Errorf("files of image %s are gone from the store: pull or build it again (%w)", ref, err)
		}
	}
	return img, nil
}

// lookup finds what a key made before. With NoCache nothing was.
func (e *engine) lookup(st *state, key string) bool {
	if e.o.NoCache {
		return false
	}
	got, ok := e.cache.get(key)
	if !ok || got.Tree == "" || !e.whole(got.Tree) {
		return false
	}
	st.key, st.digest, st.root = key, got.Tree, nil
	return true
}

// whole says whether a cached tree has all its contents. Only a careful build
// asks: decoding every tree would cost one that does nothing most of its time.
func (e *engine) whole(digest string) bool {
	if !e.careful {
		return true
	}
	_, err := e.cache.load(digest, true)
	return err == nil
}

// remember stores a state's tree under its key.
func (e *engine) remember(ctx context.Context, st *state) error {
	d, err := e.cache.store(ctx, st.root)
	if err != nil {
		return err
	}
	st.digest = d
	e.cache.put(entry{Key: st.key, Tree: d})
	return nil
}

// own gives the state's root to change. What it returns belongs to the caller.
func (e *engine) own(st *state) (*tree.Tree, error) {
	t, err := e.view(st)
	if err != nil {
		return nil, err
	}
	return t.Clone(), nil
}

// view gives the state's root, not to be changed.
func (e *engine) view(st *state) (*tree.Tree, error) {
	e.loads.Lock()
	defer e.loads.Unlock()
	if st.root == nil {
		t, err := e.cache.load(st.digest, e.careful)
		if err != nil {
			return nil, err
		}
		st.root = t
	}
	return st.root, nil
}
