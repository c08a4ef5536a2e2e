package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The guests, as the tables name them.
const (
	whatTiny = "a PVH guest of a few bytes"
	whatFull = "a NetBSD kernel with its root on virtio-blk"
)

// report is all that a run found.
type report struct {
	When     time.Time            `json:"when"`
	Host     host                 `json:"host"`
	MiB      int                  `json:"guest_mib"`
	Kernel   string               `json:"kernel,omitempty"`
	Absent   []string             `json:"absent,omitempty"`
	Others   float64              `json:"others_cpus"`
	Tables   []table              `json:"tables"`
	Goals    []goal               `json:"goals"`
	Warnings []string             `json:"warnings,omitempty"`
	Failures []failure            `json:"failures,omitempty"`
	Commands map[string][]string  `json:"commands"`
	Samples  map[string][]*sample `json:"samples"`

	quiet  bool // do rounds again when others were busy
	broken bool // a start of ours failed, or of the floor
}

// measure runs all experiments with the programs that are there.
func measure(o *options, p programs, notes io.Writer) (*report, error) {
	subjects, absent := p.subjects(o.extra, o.qemu)
	if o.only != "" {
		names := strings.Split(o.only, ",")
		subjects = slices.DeleteFunc(subjects, func(s subject) bool { return !slices.Contains(names, s.name) })
		absent = nil
	}
	if len(subjects) == 0 {
		return nil, fmt.Errorf("nothing to measure: -only %q names none of the programs", o.only)
	}
	r := &report{
		quiet: o.quiet, When: time.Now().UTC(), Host: thisHost(), MiB: o.mib, Absent: absent,
		Commands: map[string][]string{}, Samples: map[string][]*sample{},
	}
	r.Host.QEMU = version(o.qemu)
	dir, err := os.MkdirTemp("", "smolvmm-boot-guests-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	before, err := readUsage()
	if err != nil {
		return nil, err
	}
	if err := r.tiny(o, dir, subjects, notes); err != nil {
		return nil, err
	}
	if o.kernel != "" {
		if err := r.full(o, dir, subjects, notes); err != nil {
			return nil, err
		}
	}
	after, err := readUsage()
	if err != nil {
		return nil, err
	}
	r.Others = others(before, after)
	r.Goals = goals(r.Tables, r.Host.Lab)
	r.Warnings = warnings(r.Tables, r.Goals, r.Others)
	return r, nil
}

// run does one experiment and keeps its samples and the tables of its metrics.
func (r *report) run(e experiment, subjects []subject, notes io.Writer, metrics ...metric) {
	if r.quiet {
		e.busy = busyMeter()
	}
	xs := e.run(subjects, notes)
	for _, x := range xs {
		r.Samples[e.what+"/"+x.subject.name] = x.samples
		r.Commands[e.what+"/"+x.subject.name] = e.launch(x.subject).argv
	}
	what, _, _ := strings.Cut(e.what, ";")
	for _, m := range metrics {
		r.Tables = append(r.Tables, tabulate(what, xs, m))
	}
	for _, x := range xs {
		if x.failed == 0 {
			continue
		}
		f := failure{e.what, x.subject.name, x.failed, x.failure}
		r.Failures = append(r.Failures, f)
		r.broken = r.broken || x.subject.must
	}
}

// failure tells of starts that did not come as far as they had to.
type failure struct {
	What    string `json:"what"`
	Subject string `json:"subject"`
	Times   int    `json:"times"` // warm-up rounds included
	First   string `json:"first"`
}

// tiny measures the guest of a few bytes: once holding, for the memory, and once ending its machine.
func (r *report) tiny(o *options, dir string, subjects []subject, notes io.Writer) error {
	files := map[bool]string{}
	for _, hold := range []bool{true, false} {
		files[hold] = filepath.Join(dir, fmt.Sprintf("tiny-%t.elf", hold))
		if err := os.WriteFile(files[hold], tinyGuest(hold), 0o644); err != nil {
			return err
		}
	}
	r.run(experiment{
		what: whatTiny, rounds: o.rounds, warm: o.warm,
		launch: func(s subject) launch {
			return launch{argv: s.argv(guest{kernel: files[true], mib: o.mib, hold: true}), ram: s.ram(o.mib), limit: tinyLimit}
		},
	}, subjects, notes, toMark, rss, dirty)
	ends := slices.DeleteFunc(slices.Clone(subjects), func(s subject) bool { return !s.ends })
	r.run(experiment{
		what: whatTiny + "; ending", rounds: o.rounds, warm: o.warm,
		launch: func(s subject) launch {
			return launch{argv: s.argv(guest{kernel: files[false], mib: o.mib}), exit: true, status: s.status, limit: tinyLimit}
		},
	}, ends, notes, toEnd)
	return nil
}

// full measures a kernel to its init. The kernel is marked, so that its start is seen.
func (r *report) full(o *options, dir string, subjects []subject, notes io.Writer) error {
	b, err := os.ReadFile(o.kernel)
	if err == nil {
		b, err = markKernel(b)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.kernel, err)
	}
	r.Kernel = filepath.Base(filepath.Dir(o.kernel)) + "/" + filepath.Base(o.kernel)
	marked := filepath.Join(dir, "kernel-marked")
	if err := os.WriteFile(marked, b, 0o644); err != nil {
		return err
	}
	boots := slices.DeleteFunc(slices.Clone(subjects), func(s subject) bool { return !s.full })
	r.run(experiment{
		what: whatFull, rounds: o.bootRounds, warm: min(o.warm, 1),
		launch: func(s subject) launch {
			g := guest{kernel: marked, mib: o.mib, cmdline: o.cmdline, disk: o.disk}
			return launch{argv: s.argv(g), until: o.until, ram: s.ram(o.mib), limit: fullLimit}
		},
	}, boots, notes, toMark, toConsole, ofKernel, toInit, rss, dirty)
	return nil
}

// markdown writes the report for people.
func (r *report) markdown(w io.Writer) {
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
