// Package boot starts monitors in turn and tells how long each took to its guest's
// first instruction, to init and to its end, and what memory it held.
package boot

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
)

// The guests, as the tables name them.
const (
	whatTiny = "a PVH guest of a few bytes"
	// whatEnding is the same guest, ending its machine at once.
	whatEnding = whatTiny + "; ending"
	whatFull   = "a NetBSD kernel with its root on virtio-blk"
	// whatVersion is no guest at all: the least that a program can be asked.
	whatVersion = "asked for its version"
)

// Options say what Measure does.
type Options struct {
	Rounds, Warm int                                // of the tiny guest; those before that do not count
	BootRounds   int                                // of the full kernel
	MiB          int                                // the guest's memory
	Kernel, Disk string                             // a full kernel and its root image; none if empty
	Cmdline      string                             // its arguments
	Until        string                             // how the first line that init or its command prints begins
	Only         string                             // names of subjects, comma-separated; all if empty
	QEMU         string                             // the program, for its version
	Progress     func(what string, done, total int) // told of every round; nil: nobody is
	Quiet        bool                               // do a round again when others used the processors meanwhile
}

// Report is all that a run found.
type Report struct {
	When     time.Time            `json:"when"`
	Host     machine.Host         `json:"host"`
	MiB      int                  `json:"guest_mib"`
	Kernel   string               `json:"kernel,omitempty"`
	Absent   []string             `json:"absent,omitempty"`
	Others   float64              `json:"others_cpus"`
	Tables   []table              `json:"tables"`
	Goals    []Goal               `json:"goals"`
	Warnings []string             `json:"warnings,omitempty"`
	Failures []Failure            `json:"failures,omitempty"`
	Commands map[string][]string  `json:"commands"`
	Samples  map[string][]*Sample `json:"samples"`

	order    []string // of subjects
	progress func(what string, done, total int)
	quiet    bool // do rounds again when others were busy
	Broken   bool // a start of ours failed, or of the floor
}

// Measure runs all experiments with the programs that are there.
func Measure(ctx context.Context, o *Options, subjects []Subject, absent []string, notes io.Writer) (*Report, error) {
	if o.Only != "" {
		names := strings.Split(o.Only, ",")
		subjects = slices.Clone(subjects)
		subjects = slices.DeleteFunc(subjects, func(s Subject) bool { return !slices.Contains(names, s.name) })
		absent = nil
	}
	if len(subjects) == 0 {
		return nil, fmt.Errorf("nothing to measure: -only %q names none of the programs", o.Only)
	}
	r := &Report{
		quiet: o.Quiet, progress: o.Progress, When: time.Now().UTC(), Host: machine.This(), MiB: o.MiB, Absent: absent,
		Commands: map[string][]string{}, Samples: map[string][]*Sample{},
	}
	for _, s := range subjects {
		r.order = append(r.order, s.name)
	}
	r.Host.QEMU = version(o.QEMU)
	dir, err := os.MkdirTemp("", "smolvmm-boot-guests-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	before, err := machine.ReadUsage()
	if err != nil {
		return nil, err
	}
	if err := r.tiny(ctx, o, dir, subjects, notes); err != nil {
		return nil, err
	}
	if o.Kernel != "" {
		if err := r.full(ctx, o, dir, subjects, notes); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	after, err := machine.ReadUsage()
	if err != nil {
		return nil, err
	}
	r.Others = machine.Others(before, after)
	r.Goals = goals(r.Tables, r.Host.Lab)
	r.Warnings = warnings(r.Tables, r.Goals, r.Others)
	return r, nil
}

// run does one experiment and keeps its samples and the tables of its metrics.
func (r *Report) run(ctx context.Context, e Experiment, subjects []Subject, notes io.Writer, metrics ...metric) {
	if r.quiet {
		e.busy = machine.BusyMeter()
	}
	e.progress = r.progress
	xs := e.run(ctx, subjects, notes)
	for _, x := range xs {
		r.Samples[e.what+"/"+x.Subject.name] = x.samples
		r.Commands[e.what+"/"+x.Subject.name] = e.Launch(x.Subject).argv
	}
	what, _, _ := strings.Cut(e.what, ";")
	for _, m := range metrics {
		r.Tables = append(r.Tables, tabulate(what, xs, m))
	}
	for _, x := range xs {
		if x.failed == 0 {
			continue
		}
		f := Failure{e.what, x.Subject.name, x.failed, x.Failure}
		r.Failures = append(r.Failures, f)
		r.Broken = r.Broken || x.Subject.must
	}
}

// Failure tells of starts that did not come as far as they had to.
type Failure struct {
	What    string `json:"what"`
	Subject string `json:"subject"`
	Times   int    `json:"times"` // warm-up rounds included
	First   string `json:"first"`
}

// tiny measures the guest of a few bytes: once holding, for the memory, and once ending its machine; and the programs
// themselves, which tell their version.
func (r *Report) tiny(ctx context.Context, o *Options, dir string, subjects []Subject, notes io.Writer) error {
	files := map[bool]string{}
	for _, hold := range []bool{true, false} {
		files[hold] = filepath.Join(dir, fmt.Sprintf("tiny-%t.elf", hold))
		if err := os.WriteFile(files[hold], TinyGuest(hold), 0o644); err != nil {
			return err
		}
	}
	r.run(ctx, Experiment{
		what: whatTiny, rounds: o.Rounds, warm: o.Warm,
		Launch: func(s Subject) Launch {
			return Launch{argv: s.command(Guest{kernel: files[true], mib: o.MiB, hold: true}), ram: s.ram(o.MiB), limit: tinyLimit}
		},
	}, subjects, notes, toMark, rss, dirty)
	ends := slices.DeleteFunc(slices.Clone(subjects), func(s Subject) bool { return !s.ends })
	r.run(ctx, Experiment{
		what: whatEnding, rounds: o.Rounds, warm: o.Warm,
		Launch: func(s Subject) Launch {
			return Launch{argv: s.command(Guest{kernel: files[false], mib: o.MiB}), exit: true, status: s.status, limit: tinyLimit}
		},
	}, ends, notes, toEnd)
	tell := slices.DeleteFunc(slices.Clone(subjects), func(s Subject) bool { return s.version == nil })
	r.run(ctx, Experiment{
		what: whatVersion, rounds: o.Rounds, warm: o.Warm,
		Launch: func(s Subject) Launch { return Launch{argv: s.version, plain: true, exit: true, limit: tinyLimit} },
	}, tell, notes, toVersion)
	return nil
}

// full measures a kernel to its init. The kernel is marked, so that its start is seen.
func (r *Report) full(ctx context.Context, o *Options, dir string, subjects []Subject, notes io.Writer) error {
	b, err := os.ReadFile(o.Kernel)
	if err == nil {
		b, err = markKernel(b)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.Kernel, err)
	}
	r.Kernel = filepath.Base(filepath.Dir(o.Kernel)) + "/" + filepath.Base(o.Kernel)
	marked := filepath.Join(dir, "kernel-marked")
	if err := os.WriteFile(marked, b, 0o644); err != nil {
		return err
	}
	boots := slices.DeleteFunc(slices.Clone(subjects), func(s Subject) bool { return !s.full })
	r.run(ctx, Experiment{
		what: whatFull, rounds: o.BootRounds, warm: min(o.Warm, 1),
		Launch: func(s Subject) Launch {
			g := Guest{kernel: marked, mib: o.MiB, cmdline: o.Cmdline, disk: o.Disk}
			return Launch{argv: s.command(g), until: o.Until, ram: s.ram(o.MiB), limit: fullLimit}
		},
	}, boots, notes, toMark, toConsole, ofKernel, toInit, rss, dirty)
	return nil
}

// Markdown writes the report for people.
func (r *Report) Markdown(w io.Writer) {
	fmt.Fprintf(w, "Measured %s on %s.", r.When.Format("2006-01-02"), r.Host)
	if r.Host.QEMU != "" {
		fmt.Fprintf(w, " %s.", r.Host.QEMU)
	}
	fmt.Fprintf(w, " Guest: %d MiB, one CPU. Brackets: 95 %% confidence interval. Time of others while measuring: %.2f processors.\n", r.MiB, r.Others)
	for _, t := range r.Tables {
		t.markdown(w)
	}
	if len(r.Goals) > 0 {
		fmt.Fprint(w, "\n**Bounds**\n\n")
		for _, g := range r.Goals {
			fmt.Fprintf(w, "- %s\n", g)
		}
	}
	if len(r.Warnings)+len(r.Absent) > 0 {
		fmt.Fprint(w, "\n**Doubts**\n\n")
		for _, s := range slices.Concat(r.Absent, r.Warnings) {
			fmt.Fprintf(w, "- %s\n", s)
		}
	}
	if len(r.Failures) > 0 {
		fmt.Fprint(w, "\n**Failed starts**\n\n")
		for _, f := range r.Failures {
			fmt.Fprintf(w, "- %s, %s: %d, the first: %s\n", f.What, f.Subject, f.Times, f.First)
		}
	}
}

// version is a program's first line about itself.
func version(program string) string {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
