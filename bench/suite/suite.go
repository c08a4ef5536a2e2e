// Package suite measures smolvmm and what else would be used, on this machine, in
// turn: what `smolvmm bench` does.
package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// Options say what is measured.
type Options struct {
	What    []string // of Names
	Against []string // of Peers
	Rounds  int      // 0: as many as each suite has by itself
	Program string   // the smolvmm to measure, a file

	MiB          int    // of a guest that starts
	Kernel, Disk string // a full kernel (a file, auto, none) and its root image
	Cmdline      string // its arguments
	Until        string // how the first line that init or its command prints begins

	Machines   int           // density: at most
	Idle, Load time.Duration // memory: how long a machine waits, and works
	Operations int           // disk: of each load
	Megabytes  int           // net: of a stream, 10^6 bytes
	Count      int           // net: round trips, and ten times what there are of connections
	Files      int           // build: in the folder
	Loads      []string      // net: of up, down, rr, conn
	Quiet      bool          // boot, memory: do rounds again when others were busy

	Notes    io.Writer                          // a line for each thing done, or not
	Progress func(what string, done, total int) // nil: nobody is told
}

// part is a suite.
type part struct {
	name   string
	rounds int // by itself
	run    func(r *runner, ctx context.Context) error
	apart  bool // not one of all: it measures again what another does
}

func parts() []part {
	return []part{
		{name: "boot", rounds: 30, run: (*runner).bootPart},
		{name: "memory", rounds: 10, run: (*runner).memoryPart},
		{name: "density", rounds: 3, run: (*runner).densityPart},
		{name: "disk", rounds: 5, run: (*runner).diskPart},
		{name: "net", rounds: 10, run: (*runner).netPart},
		{name: "build", rounds: 10, run: (*runner).buildPart},
		{name: "gate", rounds: 10, run: (*runner).gatePart, apart: true},
	}
}

// Names are the suites.
func Names() (out []string) {
	for _, p := range parts() {
		out = append(out, p.name)
	}
	return out
}

// All are those that measure different things.
func All() (out []string) {
	for _, p := range parts() {
		if !p.apart {
			out = append(out, p.name)
		}
	}
	return out
}

// Peers are the programs to measure beside smolvmm.
func Peers() []string { return boot.Peers() }

// Results are what a run measured.
type Results = figures.Set

// runner is a run in progress.
type runner struct {
	Options
	rounds int // of this suite
	dir    string
	set    *figures.Set
	broken []error
}

func (r *runner) progress(what string, done, total int) {
	if r.Progress != nil {
		r.Progress(what, done, total)
	}
}

// absent notes once what is not measured.
func (r *runner) absent(lines ...string) {
	for _, l := range lines {
		if !slices.Contains(r.set.Absent, l) {
			r.set.Absent = append(r.set.Absent, l)
			fmt.Fprintf(r.Notes, "not measured: %s\n", l)
		}
	}
}

// Run measures. A part that fails does not keep the others from running; what was
// measured comes back beside the error.
func Run(ctx context.Context, o Options) (_ *Results, err error) {
	if o.Notes == nil {
		o.Notes = io.Discard
	}
	dir, err := os.MkdirTemp("", "smolvmm-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &runner{Options: o, dir: dir, set: &figures.Set{When: time.Now().UTC(), Host: machine.This()}}
	st, err := os.Stat(o.Program)
	if err != nil {
		return nil, err
	}
	said, err := exec.CommandContext(ctx, o.Program, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w", o.Program, err)
	}
	line, _, _ := strings.Cut(string(said), "\n")
	r.set.Program = figures.Program{Version: strings.TrimSpace(line), Bytes: st.Size(), Stripped: boot.Stripped(o.Program, st.Size())}
	before, err := machine.ReadUsage()
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, p := range parts() {
		if !slices.Contains(o.What, p.name) {
			continue
		}
		if r.rounds = p.rounds; o.Rounds > 0 {
			r.rounds = o.Rounds
		}
		if err := p.run(r, ctx); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	after, err := machine.ReadUsage()
	if err != nil {
		return nil, err
	}
	r.set.Others = machine.Others(before, after)
	r.set.Warnings = r.set.Doubts()
	return r.set, errors.Join(append(failed, r.broken...)...)
}
