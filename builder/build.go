package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/builder/dialect"
)

// Build evaluates a Dockerfile. The result has its root, and no disk yet: see
// Result.Put and Result.WriteDisk. After the end of ctx nothing of the build goes
// on. Its error is ctx's cause then.
func Build(ctx context.Context, o Options) (*Result, error) {
	res, err := build(ctx, o, false)
	if lost(err) && ctx.Err() == nil {
		return rebuild(ctx, o, err)
	}
	return res, err
}

// rebuild builds once more after contents of the cache were found missing.
func rebuild(ctx context.Context, o Options, why error) (*Result, error) {
	if o.Progress != nil {
		o.Progress(Event{Kind: EventWarning, Text: "what needs lost contents is done again: " + why.Error()})
	}
	return build(ctx, o, true)
}

func build(ctx context.Context, o Options, careful bool) (_ *Result, err error) {
	if o.Blobs == nil || o.Cache == "" {
		return nil, errCacheFolder
	}
	release, err := o.Blobs.Hold()
	if err != nil {
		return nil, err
	}
	defer release()
	bc, err := openContext(o.Context, o.Ignore)
	if err != nil {
		return nil, err
	}
	defer bc.close()
	if bc != nil && !o.Epoch.IsZero() {
		bc.epoch = o.Epoch.UnixNano()
	}
	file, err := dialect.Parse(o.Dockerfile, o.Text, dialect.Options{Include: bc.include})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	e := &engine{
		o: o, file: file, context: bc, cache: &stepCache{dir: o.Cache, blobs: o.Blobs}, careful: careful,
		stages: make([]*future, len(file.Stages)), runs: make(chan struct{}, maxRuns), used: map[string]bool{},
	}
	for i := range e.stages {
		e.stages[i] = &future{done: make(chan struct{})}
	}
	// The steps that were done are remembered, whatever becomes of the others.
	defer func() {
		if ferr := e.cache.flush(); ferr != nil {
			err = errors.Join(err, ferr)
		}
	}()
	// Stages that were begun and that nobody waits for any more end before Build
	// does: they write into the cache.
	defer e.wait()
	defer cancel(errors.New("the build is over"))
	for _, w := range file.Warnings {
		e.event(Event{Kind: EventWarning, Text: w.String()})
	}
	if err := e.globals(); err != nil {
		return nil, err
	}
	target := file.Stages[len(file.Stages)-1]
	if o.Target != "" {
		if target = file.Stage(o.Target, len(file.Stages)); target == nil {
			var names []string
			for _, s := range file.Stages {
				if s.Name != "" {
					names = append(names, s.Name)
				}
			}
			hint := fmt.Sprintf("none has a name, they are 0 to %d", len(file.Stages)-1)
			if len(names) > 0 {
				hint = "the stages with names: " + strings.Join(names, " ")
			}
			return nil, &dialect.Error{Pos: dialect.Pos{File: file.Name}, Msg: "there is no stage " + o.Target, Hint: hint}
		}
	}
	st, err := e.stage(ctx, target)
	if err != nil {
		return nil, err
	}
	for _, n := range slices.Sorted(maps.Keys(o.Args)) {
		if !e.used[n] {
			e.event(Event{Kind: EventWarning, Text: "build argument " + n + ": no ARG declares it"})
		}
	}
	res, err := e.finish(ctx, target, st)
	if err != nil {
		return nil, err
	}
	res.Cached = !e.worked
	return res, nil
}

// wait waits for all stages that were begun.
func (e *engine) wait() {
	for _, f := range e.stages {
		begun := true
		f.once.Do(func() { begun = false })
		if begun {
			<-f.done
		}
	}
}
