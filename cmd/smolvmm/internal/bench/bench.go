// Package bench has the verb `bench`: flags, help and a function that the command
// joins with its streams. What is measured, and how, is in bench/suite.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/bench/suite"
)

// Env is what the verb has of its process.
type Env struct {
	Out, Err io.Writer
	// Program is the smolvmm to measure where no other is named: this one.
	Program string
	// Progress is told of rounds; nil: nobody is.
	Progress func(what string, done, total int)
}

// UsageError is the user's to mend.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap gives the error inside.
func (e *UsageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// ErrSlower says that a comparison found a significant slowdown.
var ErrSlower = errors.New("significantly slower than before")

// Name and Summary are the verb's for lists of commands.
const (
	Name    = "bench"
	Summary = "measure smolvmm beside other monitors, here"
)

// Help is its help text.
const Help = `smolvmm bench measures this smolvmm on this machine, beside other monitors.

Usage: smolvmm bench [flags] boot|memory|density|disk|net|build|all …
       smolvmm bench [flags] gate
       smolvmm bench compare [--tolerance 0.05] OLD.json NEW.json

Every program runs the same kernel and image, in turn, from PATH. Tables come
out as Markdown: medians, 10th to 90th and 99th percentiles, ratios with 95 %
confidence intervals, and what makes them doubtful. docs/performance.md tells
what the figures mean.

      --against LIST     of qemu, gokvm, firecracker, cloud-hypervisor; or none
                         (default: all that are there)
  -n, --rounds N         rounds (default: what each needs: 30 for boot, 10 …)
      --out FOLDER       results.json, .csv, .md and plots (SVG) go there
  -k, --kernel FILE      full kernel for boot and memory: a file, auto or none
                         (default auto: the newest fetched, where KVM runs it)
      --disk FILE        its root image (default: one is made, in a source tree)
      --append TEXT      its arguments (default "root=ld0a console=com")
      --until TEXT       how the line begins that init prints first
  -m, --memory MIB       of a guest that starts (default 128)
      --machines N       density: how many at most (default 100)
      --idle, --load TIME    memory: how long a machine waits and works (2s)
      --ops N            disk: requests of a load (default 2000)
      --mb N             net: 10^6 bytes of a stream (default 100)
      --count N          net: round trips (default 2000)
      --loads LIST       net: of up, down, rr, conn (default: all)
      --files N          build: files in the folder (default 2000)
      --quiet            boot, memory: do rounds again when others were busy
      --smolvmm FILE     measure this smolvmm, not the one that runs
  -h, --help             show the help

gate takes seconds: the start beside QEMU's, and ends with status 1 where a goal
is missed beyond doubt. It judges parts of QEMU's, sizes and counts, no times.

compare ends with status 1 if a figure of smolvmm's got worse beyond doubt, and
by more than the tolerance. Where both runs measured the same peer, the change
of the machine's own pace is taken out by it.
`

// flags are the verb's.
type flags struct {
	suite.Options
	against, loads string
	out            string
	tolerance      float64
	program        string
}

// New makes the flags and what runs with them.
func New() (*pflag.FlagSet, func(ctx context.Context, e Env, words []string) error) {
	var o flags
	f := pflag.NewFlagSet(Name, pflag.ContinueOnError)
	f.StringVar(&o.against, "against", strings.Join(suite.Peers(), ","), "peers, comma-separated")
	f.IntVarP(&o.Rounds, "rounds", "n", 0, "rounds")
	f.StringVar(&o.out, "out", "", "folder for results")
	f.StringVarP(&o.Kernel, "kernel", "k", "auto", "full kernel")
	f.StringVar(&o.Disk, "disk", "", "its root image")
	f.StringVar(&o.Cmdline, "append", "root=ld0a console=com", "its arguments")
	f.StringVar(&o.Until, "until", "guestcheck:", "beginning of the first line of init's")
	f.IntVarP(&o.MiB, "memory", "m", 128, "MiB of a guest that starts")
	f.IntVar(&o.Machines, "machines", 100, "density: how many at most")
	f.DurationVar(&o.Idle, "idle", 2*time.Second, "memory: how long a machine waits")
	f.DurationVar(&o.Load, "load", 2*time.Second, "memory: how long a machine works")
	f.IntVar(&o.Operations, "ops", 2000, "disk: requests of a load")
	f.IntVar(&o.Megabytes, "mb", 100, "net: 10^6 bytes of a stream")
	f.IntVar(&o.Count, "count", 2000, "net: round trips")
	f.StringVar(&o.loads, "loads", "up,down,rr,conn", "net: loads")
	f.IntVar(&o.Files, "files", 2000, "build: files in the folder")
	f.BoolVar(&o.Quiet, "quiet", false, "do rounds again when others were busy")
	f.StringVar(&o.program, "smolvmm", "", "the smolvmm to measure")
	f.Float64Var(&o.tolerance, "tolerance", 0.05, "compare: how much worse is still the same")
	return f, func(ctx context.Context, e Env, words []string) error {
		if len(words) > 0 && words[0] == "compare" {
			return o.compare(e, words[1:])
		}
		if err := o.check(e, words); err != nil {
			return err
		}
		return o.measure(ctx, e)
	}
}

// check settles what is measured, or says what is wrong with what was asked for.
func (o *flags) check(e Env, words []string) error {
	if len(words) == 0 {
		return usagef("bench: say what to measure: %s, all; or compare two results", strings.Join(suite.Names(), ", "))
	}
	for _, w := range words {
		switch {
		case w == "all":
			o.What = suite.All()
		case !slices.Contains(suite.Names(), w):
			return usagef("bench: %q is none of %s, all, compare", w, strings.Join(suite.Names(), ", "))
		default:
			o.What = append(o.What, w)
		}
	}
	var err error
	if o.Against, err = list(o.against, suite.Peers()); err != nil {
		return usagef("bench: -against: %w", err)
	}
	if o.Loads, err = list(o.loads, suite.Loads()); err != nil {
		return usagef("bench: -loads: %w", err)
	}
	for _, n := range []struct {
		name       string
		v, lo, top int
	}{
		{"rounds", o.Rounds, 0, 10000}, {"memory", o.MiB, 32, 65536}, {"machines", o.Machines, 1, 10000}, {"ops", o.Operations, 1, 10_000_000},
		{"mb", o.Megabytes, 1, 100_000}, {"count", o.Count, 10, 1_000_000}, {"files", o.Files, 1, 1_000_000},
	} {
		if n.v < n.lo || n.v > n.top {
			return usagef("bench: -%s %d: must be between %d and %d", n.name, n.v, n.lo, n.top)
		}
	}
	if o.Idle < 0 || o.Load < 0 {
		return usagef("bench: -idle and -load are times of 0s and more")
	}
	o.Program = o.program
	if o.Program == "" {
		o.Program = e.Program
	}
	if o.Program, err = filepath.Abs(o.Program); err != nil {
		return err
	}
	o.Notes, o.Progress = e.Err, e.Progress
	return nil
}

// list reads words between commas, each one of those known; "none" stands for none.
func list(s string, known []string) (out []string, err error) {
	if s == "none" || s == "" {
		return nil, nil
	}
	for w := range strings.SplitSeq(s, ",") {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("%q is none of %s", w, strings.Join(known, ", "))
		}
		out = append(out, w)
	}
	return out, nil
}

// measure prints the tables and leaves the files. What was measured is kept even
// where something failed.
func (o *flags) measure(ctx context.Context, e Env) error {
	r, failed := suite.Run(ctx, o.Options)
	if r == nil {
		return failed
	}
	r.Markdown(e.Out, nil)
	if o.out != "" {
		names, err := suite.WriteFiles(o.out, r)
		if err != nil {
			return errors.Join(failed, fmt.Errorf("writing results: %w", err))
		}
		fmt.Fprintf(e.Err, "%d files in %s: %s\n", len(names), o.out, strings.Join(names, ", "))
	}
	return failed
}

func (o *flags) compare(e Env, words []string) error {
	if len(words) != 2 {
		return usagef("bench: compare wants two files: OLD.json NEW.json")
	}
	if o.tolerance < 0 || o.tolerance > 10 {
		return usagef("bench: -tolerance %v: must be between 0 and 10", o.tolerance)
	}
	n, err := suite.Compare(words[0], words[1], o.tolerance, e.Out)
	if err != nil {
		return &UsageError{err}
	}
	if n > 0 {
		return fmt.Errorf("%d figures: %w", n, ErrSlower)
	}
	return nil
}
