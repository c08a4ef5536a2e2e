// Command soak boots a guest many times in a row and ends at the first boot that
// is not as it should be, with all that is known about it. Nothing is retried: a
// hang is a bug to find. docs/testing.md tells how it is used.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/bench/testimg"
)

const usage = `Boot a guest many times in a row; the first bad boot ends it, with its console and timeline.

  go run ./bench/soak -n 2000                     the demo guest, in this process
  go run ./bench/soak -n 300 -command build       the demo guest, by the smolvmm command
  go run ./bench/soak -n 50 -guest netbsd         NetBSD to smolinit, in labs where this KVM cannot
  go run ./bench/soak -n 100 -lab                 the demo guest in labs

`

// options are the flags.
type options struct {
	n       int
	guest   string
	cpus    cpuList
	mode    string
	command string
	timeout time.Duration
	lab     bool
	perLab  int
	kernel  string
	disk    string

	// Of a run inside a lab.
	first  int
	result string
}

// cpuList are numbers of CPUs that boots take in turn.
type cpuList []int

func (l *cpuList) String() string {
	var s []string
	for _, n := range *l {
		s = append(s, strconv.Itoa(n))
	}
	return strings.Join(s, ",")
}

func (l *cpuList) Set(s string) error {
	*l = nil
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 || n > 32 {
			return fmt.Errorf("%q: want numbers from 1 to 32 with commas between", s)
		}
		*l = append(*l, n)
	}
	return nil
}

func (o *options) flags(w io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(w)
	f.IntVar(&o.n, "n", 100, "how many `boots`")
	f.StringVar(&o.guest, "guest", guestDemo, "`demo` or netbsd")
	f.Var(&o.cpus, "cpus", "`numbers` of CPUs that boots take in turn (default 1,2 for demo, 1,4 for netbsd)")
	f.StringVar(&o.mode, "mode", "check", "what the demo guest does")
	f.StringVar(&o.command, "command", "", "boot by this smolvmm `program` instead of in this process; build makes one")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "the most that one boot may take")
	f.BoolVar(&o.lab, "lab", false, "boot in labs, also where this KVM would do")
	f.IntVar(&o.perLab, "per-lab", 5, "`boots` in each lab")
	f.StringVar(&o.kernel, "kernel", "", "NetBSD kernel `file` (default: the newest in the cache)")
	f.StringVar(&o.disk, "disk", "", "NetBSD root `image` with smolinit and guestcheck (default: one made here); it is not changed")
	f.IntVar(&o.first, "first", 0, "number of the first boot, for what a lab runs")
	f.StringVar(&o.result, "result", "", "write the boots to this `file`, for what a lab runs")
	f.Usage = func() {
		fmt.Fprint(w, usage)
		f.PrintDefaults()
		fmt.Fprint(w, "Exit status: 0 all boots were good; 1 one was not; 2 nothing could be booted\n")
	}
	return f
}

const (
	guestDemo   = "demo"
	guestNetBSD = "netbsd"
)

// Exit statuses.
const (
	exitBad   = 1 // a boot was not as it should be
	exitUsage = 2 // nothing was booted
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	f := o.flags(stderr)
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "soak-*")
	if err != nil {
		fmt.Fprintln(stderr, "soak:", err)
		return exitUsage
	}
	defer os.RemoveAll(dir)
	if err := o.prepare(ctx, f.NArg(), dir, stdout); err != nil {
		fmt.Fprintln(stderr, "soak:", err)
		return exitUsage
	}
	var done []result
	if o.lab {
		done, err = soakInLabs(ctx, o, dir, stdout, stderr)
	} else {
		done, err = soak(ctx, o, dir, stdout)
	}
	if o.result == "" {
		summary(stdout, done)
	} else if werr := writeResults(o.result, done); werr != nil {
		err = errors.Join(err, werr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "soak: FAILED after %d good boots: %v\n", len(done), err)
		return exitBad
	}
	return 0
}

// prepare completes the options: what is not given is found or made in dir.
func (o *options) prepare(ctx context.Context, extra int, dir string, notes io.Writer) error {
	switch {
	case extra > 0:
		return errors.New("arguments that are no flags (see -help)")
	case o.guest != guestDemo && o.guest != guestNetBSD:
		return fmt.Errorf("-guest %s: want demo or netbsd", o.guest)
	case o.n < 1 || o.perLab < 1 || o.timeout <= 0:
		return errors.New("-n, -per-lab and -timeout must be above zero")
	}
	if o.cpus == nil {
		o.cpus = cpuList{1, 2}
		if o.guest == guestNetBSD {
			o.cpus = cpuList{1, 4}
		}
	}
	if o.command == "build" {
		o.command = filepath.Join(dir, "smolvmm")
		if err := netbsd.Program(ctx, o.command, "cmd/smolvmm"); err != nil {
			return err
		}
	}
	if o.guest == guestDemo {
		return nil
	}
	if err := netbsd.KVM(); err != nil && !o.lab {
		fmt.Fprintln(notes, "soak: in labs:", err)
		o.lab = true
	}
	var err error
	if o.kernel == "" {
		if o.kernel, err = netbsd.Kernel(); err != nil {
			return err
		}
	}
	if o.disk == "" {
		spec, err := testimg.Default(ctx)
		if err != nil {
			return err
		}
		o.disk = filepath.Join(dir, "root.img")
		return testimg.Build(ctx, o.disk, spec)
	}
	return nil
}

// soak boots in this process or by the command, one after the other.
func soak(ctx context.Context, o options, dir string, w io.Writer) (done []result, err error) {
	boot := o.bootHere
	if o.command != "" {
		boot = o.bootCommand
	}
	var before leftovers
	for i := range o.n {
		if ctx.Err() != nil {
			return done, errors.New("interrupted")
		}
		b := o.plan(o.first+i, dir)
		r, err := boot(ctx, b)
		if err != nil {
			return done, fmt.Errorf("boot %d with %d CPUs: %w", b.n, b.cpus, err)
		}
		done = append(done, r)
		now, err := lookForLeftovers(before, i > 0)
		if err != nil {
			return done, fmt.Errorf("boot %d with %d CPUs was good, but left something: %w", b.n, b.cpus, err)
		}
		// What the first boots bring in for good is not theirs to give back.
		if i == 0 {
			before = now
		}
		if o.guest == guestNetBSD || (i+1)%100 == 0 {
			fmt.Fprintf(w, "boot %d: %d CPUs, %v\n", b.n, b.cpus, r.Took.Round(time.Millisecond))
		}
	}
	if o.n > 1 {
		now, err := lookForLeftovers(before, true)
		fmt.Fprintf(w, "files %d → %d, goroutines %d → %d, threads %d → %d, children %d, resident %d → %d KiB\n",
			before.files, now.files, before.goroutines, now.goroutines, before.threads, now.threads, now.children, before.rss>>10, now.rss>>10)
		return done, err
	}
	return done, nil
}
