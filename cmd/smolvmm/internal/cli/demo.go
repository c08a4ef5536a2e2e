package cli

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
exit=7, reboot=cf9, triple, hostile=all, count=100000; "help" lists them.

  -m, --memory SIZE    RAM (default 64M)
  -c, --cpus N         CPUs, 1 to 32 (default 1)
      --disk FILE[,ro][,overlay]   use this disk instead of a scratch one
      --timeout 60s    end the machine after that long
      --timeline       print when each phase of the start was reached
      --console --cpu --hugepages --confine --trace --vsock -v   as for a boot
      --net --publish --host-service --host-link --egress --egress-file
      --name --mac --mtu --rate --dns --search --pcap --audit   the network: too
`

// demoScratch is the size in bytes of the disk that the guest writes to.
const demoScratch = 16 << 20

// demoFlags are the flags of `smolvmm demo`.
func demoFlags(b *BootFlags, timeline *bool) *pflag.FlagSet {
	f := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	b.Machine(f, "64M", time.Minute)
	b.Verbosely(f, "v")
	f.BoolVar(timeline, "timeline", false, "print when each phase of the start was reached")
	return f
}

// builtIn stands for the kernel where there is no file.
const builtIn = "\x00demo"

// demoRun is `smolvmm demo`.
func demoRun(args []string, s Streams) error {
	began := time.Now()
	var b BootFlags
	var timeline bool
	f := demoFlags(&b, &timeline)
	flags, words, err := SplitWords(f, args)
	if err != nil {
		return err
	}
	if _, err := Parse(f, flags); err != nil {
		return err
	}
	if b.Help {
		fmt.Fprint(s.Out, demoHelp)
		return nil
	}
	mode := "check"
	switch {
	case len(words) > 1:
		return Usagef("demo: %q: one mode at a time", words)
	case len(words) == 1 && words[0] == "help":
		listModes(s)
		return nil
	case len(words) == 1:
		mode = words[0]
	}
	if err := checkMode(mode); err != nil {
		return err
	}
	b.Kernel = builtIn
	cfg, err := b.Config(nil, s)
	if err != nil {
		return err
	}
	k := demo.Kernel()
	cfg.Kernel = vmm.File{Name: "the demo guest", Data: k, Size: k.Size()}
	cfg.Cmdline = demo.Argument + mode
	if len(cfg.Disks) == 0 {
		scratch, err := scratchDisk()
		if err != nil {
			return err
		}
		cfg.Disks = []vmm.Disk{scratch}
	}
	greeting, err := item("demo", "opt/demo/greeting", []byte("hello from the host"))
	if err != nil {
		return err
	}
	cfg.Items = append(cfg.Items, greeting)
	o := b.Options()
	if timeline {
		o.after = func(m *vmm.Machine) { printTimeline(s, began, m.Timeline()) }
	}
	return RunMachine(cfg, o, s)
}

// scratchDisk makes a disk that ends with the machine.
func scratchDisk() (vmm.Disk, error) {
	f, err := os.CreateTemp("", "smolvmm-demo-*.img")
	if err != nil {
		return vmm.Disk{}, fmt.Errorf("scratch disk: %w", err)
	}
	// Unlinked at once: whatever happens to this process, nothing stays.
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(demoScratch)); err != nil {
		f.Close()
		return vmm.Disk{}, fmt.Errorf("scratch disk: %w", err)
	}
	return vmm.Disk{File: f, Serial: "demo"}, nil
}

// checkMode refuses a mode that the guest does not have, and one that would be
// more than one word of its command line.
func checkMode(mode string) error {
	name := mode
	if i := strings.IndexAny(mode, "=,"); i >= 0 {
		name = mode[:i]
	}
	var names []string
	for _, m := range demo.Modes() {
		if m.Name == name {
			if strings.ContainsFunc(mode, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return Usagef("demo %q: a mode and its options have no spaces", mode)
			}
			return nil
		}
		names = append(names, m.Name)
	}
	return Usagef("demo: %q is no mode%s: smolvmm demo help lists them", name, DidYouMean(name, names, ""))
}

// listModes is `smolvmm demo help`.
func listModes(s Streams) {
	for _, m := range demo.Modes() {
		name := m.Name
		if m.Value != "" && m.Value[0] != '[' {
			name += "="
		}
		fmt.Fprintf(s.Out, "  %-34s %s\n", name+m.Value, m.Summary)
	}
}

// SplitWords takes the words that are neither flags nor their values out of args.
func SplitWords(f *pflag.FlagSet, args []string) (flags, words []string, err error) {
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			words = append(words, args[i])
			continue
		}
		if args[i] == "--" {
			return flags, append(words, args[i+1:]...), nil
		}
		a, takesNext, err := twoDashes(f, args[i])
		if err != nil {
			return nil, nil, err
		}
		flags = append(flags, a)
		if takesNext && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return flags, words, nil
}

// printTimeline tells how long after the process began each moment was.
func printTimeline(s Streams, began time.Time, ms []vmm.Moment) {
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
		fmt.Fprintf(s.Err, "%10.3f ms  %s\n", float64(m.At.Sub(began).Microseconds())/1000, name)
	}
}
