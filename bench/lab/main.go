// Command lab runs a program in the lab: QEMU in software emulation with an AMD CPU that has SVM, which boots Debian's
// stock kernel, where /dev/kvm is a complete kvm_amd. It is meant for go test -exec; docs/lab.md has the page on it.
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
	"strings"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/lab/internal/kernels"
	"github.com/smolvmm/smolvmm/bench/lab/internal/labinit"
)

// Exit statuses of the lab's own; any other is the program's.
const (
	exitTimeout = 124
	exitLab     = 125
)

const usage = `Run a program where /dev/kvm is a complete KVM, in software.

  lab [flags] PROGRAM [arguments]     run it in a fresh lab and return its exit status
  lab setup [-kernel cloud|generic]   install QEMU and the kernel (apt-get)
  lab doctor                          say what is there and what is missing
  lab vmlinux                         print the path of the kernel's ELF image, a PVH guest for tests
  go test -exec "lab -timeout 2m" ./vmm/...

`

const usageEnd = `
Exit status: the program's; 128+N when signal N ended it; 124 after -timeout; 125 when the lab itself failed.
`

func main() {
	if labinit.IsInit() {
		labinit.Main()
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// options are the flags of a run.
type options struct {
	timeout    time.Duration
	memory     int // MiB
	cpus       int
	kernel     string
	kernelArgs string
	files      list
	drives     list
	with       list
	env        list
	modules    list
	out        list
	verbose    bool
}

func (o *options) flags(w io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("lab", flag.ContinueOnError)
	f.SetOutput(w)
	f.DurationVar(&o.timeout, "timeout", time.Minute, "end the lab after this `time`, boot included")
	f.IntVar(&o.memory, "m", 2048, "memory in `MiB`")
	f.IntVar(&o.cpus, "cpus", defaultCPUs, "virtual CPUs")
	f.StringVar(&o.kernel, "kernel", "cloud", "Debian's `cloud` kernel, or generic, which has more modules (ufs, 9p)")
	f.StringVar(&o.kernelArgs, "append", "", "further kernel `arguments`")
	f.Var(&o.files, "file", "put `host[:guest]` in, a file or a folder; repeatable")
	f.Var(&o.drives, "drive", "attach the image `file` as the next /dev/vdX; what is written to it is lost; repeatable")
	f.Var(&o.with, "with", "put the host's `program` in, with its libraries and firmware; repeatable")
	f.Var(&o.env, "env", "set `K=V` for the program, or K to its value here; repeatable")
	f.Var(&o.modules, "modules", "load kernel `modules`, comma-separated; repeatable")
	f.Var(&o.out, "out", "bring `guest[:host]` back after the program's end, a file or a folder; repeatable")
	f.BoolVar(&o.verbose, "v", false, "show the lab's console and times")
	f.Usage = func() {
		fmt.Fprint(w, usage)
		f.PrintDefaults()
		fmt.Fprint(w, usageEnd)
	}
	return f
}

func run(args []string, stdout, stderr *os.File) int {
	var o options
	f := o.flags(stderr)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitLab
	}
	if f.NArg() == 0 {
		f.Usage()
		return exitLab
	}
	var err error
	status := 0
	switch f.Arg(0) {
	case "setup":
		err = setup(f.Args()[1:], o.kernel, stderr)
	case "doctor":
		err = doctor(stderr)
	case "vmlinux":
		err = vmlinux(o.kernel, stdout)
	default:
		status, err = runLab(&o, f.Args(), stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "lab: %v\n", err)
		var t timeoutError
		if errors.As(err, &t) {
			return exitTimeout
		}
		return exitLab
	}
	return status
}

func setup(args []string, flavour string, w io.Writer) error {
	f := flag.NewFlagSet("lab setup", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&flavour, "kernel", flavour, "`cloud` or generic")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, ok := kernels.Flavours[flavour]; !ok || f.NArg() > 0 {
		return errors.New("setup takes one flag: -kernel cloud or -kernel generic")
	}
	cache, err := kernels.CacheDir()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return kernels.Setup(ctx, w, cache, flavour)
}

// doctor says what is there; its error is the first thing that a run needs and that is missing.
func doctor(w io.Writer) error {
	cache, err := kernels.CacheDir()
	if err != nil {
		return err
	}
	var missing error
	if path, version, err := kernels.CheckQEMU(); err != nil {
		missing = err
	} else {
		fmt.Fprintf(w, "lab: QEMU %s at %s\n", version, path)
	}
	for _, flavour := range []string{"cloud", "generic"} {
		k, err := kernels.Find(cache, flavour)
		switch {
		case err == nil:
			fmt.Fprintf(w, "lab: %s kernel %s at %s\n", flavour, k.Release, k.ImagePath())
		case flavour == "cloud" && missing == nil:
			missing = err
		default:
			fmt.Fprintf(w, "lab: %v\n", err)
		}
	}
	return missing
}

// vmlinux prints where the ELF image of the kernel is.
func vmlinux(flavour string, w io.Writer) error {
	cache, err := kernels.CacheDir()
	if err != nil {
		return err
	}
	k, err := kernels.Find(cache, flavour)
	if err != nil {
		return err
	}
	if filepath.Base(k.Image) != "vmlinux" {
		return fmt.Errorf("the ELF image of %s could not be extracted when it was set up", k.Package)
	}
	_, err = fmt.Fprintln(w, k.ImagePath())
	return err
}
