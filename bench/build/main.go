// Command build measures how images are built: an image of a folder of 5,000
// files, beside Debian's makefs from the same folder, in the same run and in
// turn; and `smolvmm build` of one program, and of what was built before.
//
//	go run ./bench/build
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
	suitebuild "github.com/smolvmm/smolvmm/bench/suite/build"
)

// What is to be reached (the bench fails otherwise, with -check).
const (
	wantRatio   = 1.0      // of makefs's wall time
	wantRSS     = 64 << 20 // bytes, at the peak
	wantSmall   = 1.2      // the image of a program, of what is in it
	wantScratch = 100      // ms, for that image
	wantCached  = 1000     // ms, for an image that has been built before
)

type options struct {
	rounds, files, megabytes int
	makefs, dir, smolvmm     string
	check, noCommand         bool
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errs io.Writer) int {
	if len(args) > 0 && args[0] == childVerb {
		if err := child(args[1:]); err != nil {
			fmt.Fprintln(errs, "build:", err)
			return 1
		}
		return 0
	}
	var o options
	f := flag.NewFlagSet("build", flag.ContinueOnError)
	f.SetOutput(errs)
	f.IntVar(&o.rounds, "n", 15, "`rounds`; each builds an image once with each program, after one that does not count")
	f.IntVar(&o.files, "files", 5000, "`files` in the folder")
	f.IntVar(&o.megabytes, "mb", 100, "`MB` (10^6 bytes) in them")
	f.StringVar(&o.makefs, "makefs", "makefs", "Debian's makefs `program`")
	f.StringVar(&o.dir, "dir", "", "a `folder` to work in, on a file system that is to be measured; in the one for temporary files if not given")
	f.StringVar(&o.smolvmm, "smolvmm", "", "measure this smolvmm `file` instead of building one")
	f.BoolVar(&o.noCommand, "no-command", false, "measure the images only, not smolvmm build")
	f.BoolVar(&o.check, "check", false, "fail where a goal is missed")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if f.NArg() > 0 || o.rounds < 1 || o.files < 1 || o.megabytes < 1 {
		fmt.Fprintln(errs, "build: want no arguments, and flags above 0")
		return 2
	}
	missed, err := o.measure(context.Background(), out)
	if err != nil {
		fmt.Fprintln(errs, "build:", err)
		return 1
	}
	for _, m := range missed {
		fmt.Fprintln(out, "missed:", m)
	}
	if o.check && len(missed) > 0 {
		return 1
	}
	return 0
}

// measure prints the table and gives the goals that were missed.
func (o *options) measure(ctx context.Context, out io.Writer) (missed []string, err error) {
	makefs, err := exec.LookPath(o.makefs)
	if err != nil {
		if makefs, err = exec.LookPath(filepath.Join("/usr/sbin", o.makefs)); err != nil {
			return nil, fmt.Errorf("no %s: install Debian's package makefs, or name one with -makefs", o.makefs)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.dir, "bench-build-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	from := filepath.Join(dir, "tree")
	bytes, err := suitebuild.MakeFolder(from, o.files, int64(o.megabytes)*1e6)
	if err != nil {
		return nil, err
	}
	subjects := []*suitebuild.Subject{
		{Name: "builder/image", Argv: func(img string) []string { return []string{self, childVerb, from, img} }},
		{Name: "makefs", Argv: func(img string) []string { return []string{makefs, "-t", "ffs", "-o", "version=2", img, from} }},
	}
	for round := range o.rounds + 1 {
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)]
			if err := s.Run(ctx, filepath.Join(dir, "disk.img"), bytes, round > 0); err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	fmt.Fprintf(out, "%d files, %.1f MB, %d rounds in turn; medians (10th, 90th percentile)\n\n", o.files, float64(bytes)/1e6, o.rounds)
	fmt.Fprintf(out, "| image of a folder | wall, ms | CPU, ms | peak RSS, MiB | on the disk, MB |\n|---|---|---|---|---|\n")
	for _, s := range subjects {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", s.Name, row(s.Wall), row(s.CPU), row(s.RSS), row(s.Disk))
	}
	a, b := subjects[0], subjects[1]
	ratio := stats.Compare(a.Wall, b.Wall, stats.Ratio)
	fmt.Fprintf(out, "| ratio [95 %%] | %v | %v | %v | %v |\n", ratio, stats.Compare(a.CPU, b.CPU, stats.Ratio), stats.Compare(a.RSS, b.RSS, stats.Ratio), stats.Compare(a.Disk, b.Disk, stats.Ratio))
	if ratio.Value > wantRatio {
		missed = append(missed, fmt.Sprintf("wall time is %v of makefs's, at most %v", ratio, wantRatio))
	}
	if peak := stats.Summarise(a.RSS).Median; peak > wantRSS>>20 {
		missed = append(missed, fmt.Sprintf("peak memory is %.1f MiB, at most %d", peak, wantRSS>>20))
	}

	if o.noCommand {
		return missed, nil
	}
	c, err := o.commands(ctx, dir, from)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "\n| smolvmm build | |\n|---|---|\n")
	fmt.Fprintf(out, "| FROM scratch and one program, ms | %s |\n", row(c.scratch))
	fmt.Fprintf(out, "| its image on the disk, MB | %.2f, %.3f of the program's %.2f and smolinit's %.2f |\n", float64(c.image)/1e6, c.ratio(), float64(c.program)/1e6, float64(c.beside)/1e6)
	fmt.Fprintf(out, "| the folder for the first time, ms | %.0f |\n| the folder unchanged, ms | %s |\n", c.first, row(c.cached))
	for _, g := range []struct {
		what      string
		got, want float64
	}{
		{"a FROM scratch image takes %.0f ms, at most %.0f", stats.Summarise(c.scratch).Median, wantScratch},
		{"an unchanged build takes %.0f ms, at most %.0f", stats.Summarise(c.cached).Median, wantCached},
		{"a FROM scratch image has %.3f of what is in it, at most %.1f", c.ratio(), wantSmall},
	} {
		if g.got > g.want {
			missed = append(missed, fmt.Sprintf(g.what, g.got, g.want))
		}
	}
	return missed, nil
}

func row(v []float64) string {
	s := stats.Summarise(v)
	return fmt.Sprintf("%s (%s, %s)", stats.Digits(s.Median), stats.Digits(s.P10), stats.Digits(s.P90))
}
