package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

const demoHelp = `smolvmm demo boots the built-in test guest: nothing is downloaded.

Usage: smolvmm demo [flags] [MODE]

MODE is "check" (the default: drive every device and say what was found), or
another of the guest's modes with its options, for example print=1048576, smp,
exit=7, reboot=cf9, triple, hostile=all, count=100000.

  -m, --memory SIZE    RAM (default 64M)
  -c, --cpus N         CPUs, 1 to 32 (default 1)
      --disk FILE[,ro][,overlay]   use this disk instead of a scratch one
      --cpu TEMPLATE   as for a boot
      --console WHERE  as for a boot
      --timeout 60s    end the machine after that long
      --timeline       print when each phase of the start was reached
      --confine MODE   as for a boot
      --trace          a line on standard error for every exit of the guest
`

// demoScratch is the size in bytes of the disk that the guest writes to.
const demoScratch = 16 << 20

// demo is `smolvmm demo`.
func demoRun(args []string, s streams) error {
	began := time.Now()
	var b bootFlags
	var timeline bool
	f := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	f.StringVarP(&b.memory, "memory", "m", "64M", "")
	f.IntVarP(&b.cpus, "cpus", "c", 1, "")
	f.StringArrayVar(&b.disks, "disk", nil, "")
	f.StringVar(&b.cpu, "cpu", "host", "")
	f.StringVar(&b.console, "console", "stdio", "")
	f.DurationVar(&b.timeout, "timeout", time.Minute, "")
	f.StringVar(&b.confine, "confine", "enforce", "")
	f.BoolVar(&timeline, "timeline", false, "")
	f.BoolVar(&b.trace, "trace", false, "")
	f.BoolVarP(&b.help, "help", "h", false, "")
	mode := "check"
	flags, modes := splitMode(f, args)
	if len(modes) > 1 {
		return usagef("demo: %q: one mode at a time", modes)
	}
	if len(modes) == 1 {
		mode = modes[0]
	}
	if _, err := parse(f, flags); err != nil {
		return err
	}
	if b.help {
		fmt.Fprint(s.out, demoHelp)
		return nil
	}
	b.kernel, b.net = "demo", "none"
	cfg, err := b.config(nil, s)
	if err != nil {
		return err
	}
	k := demo.Kernel()
	cfg.Kernel = vmm.File{Name: "the demo guest", Data: k, Size: k.Size()}
	cfg.Cmdline = demo.Argument + mode
	if len(cfg.Disks) == 0 {
		scratch, err := os.CreateTemp("", "smolvmm-demo-*.img")
		if err != nil {
			return fmt.Errorf("scratch disk: %w", err)
		}
		// Unlinked at once: whatever happens to this process, nothing stays.
		if err := errors.Join(os.Remove(scratch.Name()), scratch.Truncate(demoScratch)); err != nil {
			return fmt.Errorf("scratch disk: %w", err)
		}
		cfg.Disks = []vmm.Disk{{File: scratch, Serial: "demo"}}
	}
	greeting, err := item("demo", "opt/demo/greeting", []byte("hello from the host"))
	if err != nil {
		return err
	}
	cfg.Items = append(cfg.Items, greeting)
	o := runOptions{console: b.console, confine: b.confine, timeout: b.timeout}
	if timeline {
		o.after = func(m *vmm.Machine) { printTimeline(s, began, m.Timeline()) }
	}
	return runMachine(cfg, o, s)
}

// splitMode takes the words that are neither flags nor their values out of args.
func splitMode(f *pflag.FlagSet, args []string) (flags, modes []string) {
	args = oneDash(f, args)
	for i := 0; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "-") {
			modes = append(modes, a)
			flags = append(flags, oneDash(f, args[i+1:])...)
			break
		}
		flags = append(flags, a)
		name, _, has := strings.Cut(strings.TrimLeft(a, "-"), "=")
		fl := f.Lookup(name)
		if fl == nil && len(a) == 2 {
			fl = f.ShorthandLookup(a[1:])
		}
		if fl != nil && fl.NoOptDefVal == "" && !has && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return flags, modes
}

// printTimeline tells how long after the process began each moment was.
func printTimeline(s streams, began time.Time, ms []vmm.Moment) {
	names := map[string]string{
		"mark " + strconv.Itoa(demo.MarkEntry):  "first guest instruction",
		"mark " + strconv.Itoa(demo.MarkKernel): "guest in long mode",
		"mark " + strconv.Itoa(demo.MarkMode):   "guest ready",
		"mark " + strconv.Itoa(demo.MarkEnd):    "guest done",
		"console":                               "first console byte",
	}
	for _, m := range ms {
		name := m.Name
		if n, ok := names[name]; ok {
			name = n
		}
		fmt.Fprintf(s.err, "%10.3f ms  %s\n", float64(m.At.Sub(began).Microseconds())/1000, name)
	}
}
