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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/testimg"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type options struct {
	rounds, warm int
	bootRounds   int
	mib          int
	kernel, disk string
	cmdline      string
	until        string
	only         string
	qemu         string
	smolvmm      string
	also         list
	json         string
	bin          string
	lab          bool
	quiet        bool
	check        bool
	timeout      time.Duration
	extra        []build
}

const usageText = `Measure the start of smolvmm, QEMU microvm, gokvm and the floor, in turn.

  go run ./bench/boot [flags]         on this machine's KVM
  go run ./bench/boot -lab [flags]    in the lab, a complete KVM in software

`

func (o *options) parse(args []string, w io.Writer) error {
	f := flag.NewFlagSet("boot", flag.ContinueOnError)
	f.SetOutput(w)
	f.IntVar(&o.rounds, "n", 30, "`rounds` of the tiny guest; each starts every program once")
	f.IntVar(&o.warm, "warm", 2, "`rounds` before those that count")
	f.IntVar(&o.bootRounds, "boots", 20, "`rounds` of the full kernel")
	f.IntVar(&o.mib, "m", 128, "guest memory in `MiB`")
	f.StringVar(&o.kernel, "kernel", "auto", "full kernel: a `file`, auto (the newest NetBSD in the cache, where a KVM can run it) or none")
	f.StringVar(&o.disk, "disk", "", "the full kernel's root `image` (default: one made here, with smolinit)")
	f.StringVar(&o.cmdline, "append", "root=ld0a console=com", "the full kernel's `arguments`")
	f.StringVar(&o.until, "until", "guestcheck:", "`beginning` of the first line that init or its command prints")
	f.StringVar(&o.only, "only", "", "measure these `names` only, comma-separated, as the table has them")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU's `program`")
	f.StringVar(&o.smolvmm, "smolvmm", "", "measure this smolvmm `file` instead of building one")
	f.Var(&o.also, "also", "a further smolvmm build to measure, `NAME=FILE`; repeatable")
	f.StringVar(&o.json, "json", "", "write every sample and figure to this `file`")
	f.StringVar(&o.bin, "bin", "", "`folder` of programs built before; the lab's runs use it")
	f.BoolVar(&o.lab, "lab", false, "run in the lab")
	f.BoolVar(&o.quiet, "quiet", false, "do a round again when others used the processors meanwhile")
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
	}{{"-n", o.rounds, 1}, {"-boots", o.bootRounds, 1}, {"-warm", o.warm, 0}, {"-m", o.mib, 32}} {
		if n.v < n.least || n.v > 100000 {
			return fmt.Errorf("%s %d: must be between %d and 100000", n.name, n.v, n.least)
		}
	}
	for _, s := range o.also {
		b, err := parseBuild(s)
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
		if err := buildAll(dir, o.smolvmm, o.extra, stderr); err != nil {
			return 0, err
		}
	}
	if err := o.findKernel(dir, stderr); err != nil {
		return 0, err
	}
	if o.lab {
		return runInLab(o, dir, stdout, stderr)
	}
	r, err := measure(o, programs{dir}, stderr)
	if err != nil {
		return 0, err
	}
	r.markdown(stdout)
	if o.json != "" {
		b, err := json.MarshalIndent(r, "", " ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o644)
		}
		if err != nil {
			return 0, err
		}
	}
	if r.broken {
		return exitError, nil
	}
	if o.check && slices.ContainsFunc(r.Goals, func(g goal) bool { return g.Verdict == stats.Missed }) {
		return exitMissed, nil
	}
	return 0, nil
}

// findKernel settles which full kernel is booted, and says so where none is. A root image that is not given is made in dir.
func (o *options) findKernel(dir string, notes io.Writer) error {
	soft := !o.lab && kvmKind() == softKVM
	switch {
	case o.kernel == "none":
		o.kernel = ""
		return nil
	case o.kernel != "auto":
	case soft:
		o.kernel = ""
		fmt.Fprintf(notes, "boot: no full kernel is booted: %s cannot run one; -lab can\n", softKVM)
		return nil
	default:
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		found, err := filepath.Glob(filepath.Join(cache, "smolvmm", "kernels", "*", "netbsd-MICROVM"))
		if err != nil {
			return err
		}
		o.kernel = ""
		if len(found) == 0 {
			fmt.Fprintln(notes, "boot: no full kernel is booted: none is in the cache (smolvmm kernel fetch)")
			return nil
		}
		o.kernel = slices.Max(found)
	}
	if o.disk == "" {
		spec, err := testimg.Default(context.Background())
		if err != nil {
			return err
		}
		o.disk = filepath.Join(dir, "root.img")
		if err := testimg.Build(context.Background(), o.disk, spec); err != nil {
			return fmt.Errorf("root image: %w", err)
		}
	}
	for _, f := range []string{o.kernel, o.disk} {
		if _, err := os.Stat(f); err != nil {
			return err
		}
	}
	return nil
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
