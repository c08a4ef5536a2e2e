// Command boot measures how fast and how small smolvmm starts, beside QEMU's microvm, gokvm and the least that KVM
// allows, all in the same run and in turn. docs/performance.md tells what the figures mean.
//
//	go run ./bench/boot          on this machine's KVM
//	go run ./bench/boot -lab     in the lab, where a full kernel boots too
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type options struct {
	boot.Options
	smolvmm string
	also    list
	json    string
	bin     string
	lab     bool
	check   bool
	timeout time.Duration
	extra   []boot.Build
}

const usageText = `Measure the start of smolvmm, QEMU microvm, gokvm and the floor, in turn.

  go run ./bench/boot [flags]         on this machine's KVM
  go run ./bench/boot -lab [flags]    in the lab, a complete KVM in software

`

func (o *options) parse(args []string, w io.Writer) error {
	f := flag.NewFlagSet("boot", flag.ContinueOnError)
	f.SetOutput(w)
	f.IntVar(&o.Rounds, "n", 30, "`rounds` of the tiny guest; each starts every program once")
	f.IntVar(&o.Warm, "warm", 2, "`rounds` before those that count")
	f.IntVar(&o.BootRounds, "boots", 20, "`rounds` of the full kernel")
	f.IntVar(&o.MiB, "m", 128, "guest memory in `MiB`")
	f.StringVar(&o.Kernel, "kernel", "auto", "full kernel: a `file`, auto (the newest NetBSD in the cache, where a KVM can run it) or none")
	f.StringVar(&o.Disk, "disk", "", "the full kernel's root `image` (default: one made here, with smolinit)")
	f.StringVar(&o.Cmdline, "append", "root=ld0a console=com", "the full kernel's `arguments`")
	f.StringVar(&o.Until, "until", "guestcheck:", "`beginning` of the first line that init or its command prints")
	f.StringVar(&o.Only, "only", "", "measure these `names` only, comma-separated, as the table has them")
	f.StringVar(&o.QEMU, "qemu", "qemu-system-x86_64", "QEMU's `program`")
	f.StringVar(&o.smolvmm, "smolvmm", "", "measure this smolvmm `file` instead of building one")
	f.Var(&o.also, "also", "a further smolvmm build to measure, `NAME=FILE`; repeatable")
	f.StringVar(&o.json, "json", "", "write every sample and figure to this `file`")
	f.StringVar(&o.bin, "bin", "", "`folder` of programs built before; the lab's runs use it")
	f.BoolVar(&o.lab, "lab", false, "run in the lab")
	f.BoolVar(&o.Quiet, "quiet", false, "do a round again when others used the processors meanwhile")
	f.BoolVar(&o.check, "check", false, "exit with status 3 if a bound is missed")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "limit for a run in the lab")
	f.Usage = func() {
		fmt.Fprint(w, usageText)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q is not a flag", f.Arg(0))
	}
	for _, n := range []struct {
		name     string
		v, least int
	}{{"-n", o.Rounds, 1}, {"-boots", o.BootRounds, 1}, {"-warm", o.Warm, 0}, {"-m", o.MiB, 32}} {
		if n.v < n.least || n.v > 100000 {
			return fmt.Errorf("%s %d: must be between %d and 100000", n.name, n.v, n.least)
		}
	}
	for _, s := range o.also {
		b, err := boot.ParseBuild(s)
		if err != nil {
			return err
		}
		o.extra = append(o.extra, b)
	}
	return nil
}

// Exit statuses: an error or a failed start of smolvmm's, bad flags, a bound missed with -check.
const (
	exitError  = 1
	exitUsage  = 2
	exitMissed = 3
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr *os.File) int {
	var o options
	if err := o.parse(args, stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(stderr, "boot: %v\n", err)
		return exitUsage
	}
	status, err := measureOrLab(&o, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "boot: %v\n", err)
		return exitError
	}
	return status
}

func measureOrLab(o *options, stdout, stderr *os.File) (int, error) {
	dir := o.bin
	if dir == "" {
		tmp, err := os.MkdirTemp("", "smolvmm-boot-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
		if err := boot.BuildAll(dir, o.smolvmm, o.extra, stderr); err != nil {
			return 0, err
		}
	}
	if err := o.FindKernel(context.Background(), dir, o.lab, stderr); err != nil {
		return 0, err
	}
	if o.lab {
		return runInLab(o, dir, stdout, stderr)
	}
	subjects, absent := boot.Programs{Dir: dir}.Subjects(o.extra, o.QEMU)
	r, err := boot.Measure(context.Background(), &o.Options, subjects, absent, stderr)
	if err != nil {
		return 0, err
	}
	r.Markdown(stdout)
	if o.json != "" {
		b, err := json.MarshalIndent(r, "", " ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o644)
		}
		if err != nil {
			return 0, err
		}
	}
	if r.Broken {
		return exitError, nil
	}
	if o.check && slices.ContainsFunc(r.Goals, func(g boot.Goal) bool { return g.Verdict == stats.Missed }) {
		return exitMissed, nil
	}
	return 0, nil
}
