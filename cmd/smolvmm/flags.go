package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
)

// bootFlags are the flags of a boot, as typed.
type bootFlags struct {
	kernel, memory, append, console, cpu, confine string
	vsock                                         string
	disks, initrds, env, files, secrets, fwcfg    []string
	cpus                                          int
	timeout                                       time.Duration
	hugepages, trace, verbose, help, version      bool
	net                                           network.Flags
	plan                                          *network.Plan // of net, by config
	api                                           apiFlags
	log                                           *slog.Logger   // nil: config makes one
	init                                          map[string]any // fields of smolinit's document, besides those of other flags
}

func (b *bootFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("smolvmm", pflag.ContinueOnError)
	f.SortFlags = false
	f.BoolVar(&b.version, "version", false, "print the version")
	b.guest(f)
	b.machine(f, defaultMemory, 0)
	b.api.set(f)
	b.verbosely(f, "v")
	return f
}

// defaultMemory is a boot's.
const defaultMemory = "256M"

// verbosely adds the flag, whose shorthand is another's with `run`.
func (b *bootFlags) verbosely(f *pflag.FlagSet, shorthand string) {
	f.BoolVarP(&b.verbose, "verbose", shorthand, false, "say what the monitor does")
}

// guest adds the flags of what runs in the machine.
func (b *bootFlags) guest(f *pflag.FlagSet) {
	f.StringVarP(&b.kernel, "kernel", "k", "", "`FILE` with a PVH kernel, ELF or gzip (default: newest fetched one)")
	f.StringVarP(&b.append, "append", "a", "", "kernel arguments, `TEXT`; root=ld0a console=com where it names neither")
	f.StringArrayVar(&b.initrds, "initrd", nil, "PVH module, a `FILE`; repeatable")
	f.StringArrayVarP(&b.env, "env", "e", nil, "variable for the guest's command, `K[=V]`; repeatable")
	f.StringArrayVarP(&b.files, "file", "E", nil, "file for the guest's command, `NAME=FILE`; repeatable")
	f.StringArrayVar(&b.secrets, "secret", nil, "secret from the environment or a file, `NAME[=@FILE]`; repeatable")
	f.StringArrayVar(&b.fwcfg, "fw_cfg", nil, "raw item as in QEMU, `name=…,string=…|file=…`; repeatable")
}

// machine adds the flags that the demo guest takes as well.
func (b *bootFlags) machine(f *pflag.FlagSet, memory string, timeout time.Duration) {
	b.timeout = timeout
	f.StringArrayVar(&b.disks, "disk", nil, "virtio disk, `FILE[,option]…`: ro, overlay[=FILE], serial=ID; repeatable")
	f.StringVarP(&b.memory, "memory", "m", memory, "RAM, a `SIZE` like 256, 256M or 1G")
	f.IntVarP(&b.cpus, "cpus", "c", 1, "CPUs, `N` from 1 to 32")
	f.StringVar(&b.console, "console", "stdio", "`WHERE` COM1 ends: stdio, none, pty, file:PATH[,append] or unix:PATH")
	f.StringVar(&b.cpu, "cpu", "host", "CPU `TEMPLATE`: host or baseline, features taken away behind commas: host,-smap")
	f.Var((*duration)(&b.timeout), "timeout", "end the machine after `TIME`: 30s, 5m")
	f.BoolVar(&b.hugepages, "hugepages", false, "RAM from the host's reserved 2 MiB pages")
	f.StringVar(&b.confine, "confine", "enforce", "seccomp and Landlock, a `MODE`: enforce, log, trap or off")
	f.BoolVar(&b.trace, "trace", false, "a line on standard error for every exit of the guest")
	f.StringVar(&b.vsock, "vsock", "", "virtio sockets, `CID,PATH` of the guest and of a Unix socket")
	b.network(f)
	f.BoolVarP(&b.help, "help", "h", false, "show the help")
}

// network adds the flags of the network.
func (b *bootFlags) network(f *pflag.FlagSet) {
	f.StringArrayVar(&b.net.Nets, "net", nil, "an `INTERFACE`: none, or user[,subnet=CIDR][,mac=…][,mtu=…]…; repeatable")
	f.BoolVar(&b.net.HostLink, "host-link", false, "one more interface that reaches nothing but what the host connects to")
	f.StringVar(&b.net.Name, "name", "", "`NAME` of the machine")
	f.StringVar(&b.net.MAC, "mac", "", "`ADDRESS` of the first interface")
	f.StringVar(&b.net.MTU, "mtu", "", "MTU of each interface, `N` bytes")
	f.StringVar(&b.net.Rate, "rate", "", "bytes and packets a second, `SIZE[,pps=N][,burst=TIME]`")
	f.StringArrayVarP(&b.net.Publish, "publish", "p", nil, "a port of the guest's on this host, `SPEC`: 8080:80[/udp] or unix:PATH:22; repeatable")
	f.StringArrayVar(&b.net.Services, "host-service", nil, "a `PORT` of this host's loopback that the guest reaches; repeatable")
	f.StringArrayVar(&b.net.Egress, "egress", nil, "`RULE` of where the guest may go: deny-all, allow NAME; repeatable")
	f.StringVar(&b.net.EgressFile, "egress-file", "", "`FILE` with more rules")
	f.StringArrayVar(&b.net.Names, "dns", nil, "`NAME=ADDRESS` that the guest's name server knows; repeatable")
	f.StringVar(&b.net.Search, "search", "", "the guest's search `DOMAIN`")
	f.StringVar(&b.net.Capture, "pcap", "", "`FILE` for the first interface's frames")
	f.StringVar(&b.net.Audit, "audit", "", "`FILE` for the audit log")
}

// duration is a flag's length of time: 30s, 1m30s, or seconds without a unit
// as timeout(1) has them.
type duration time.Duration

func (d *duration) String() string { return time.Duration(*d).String() }
func (d *duration) Type() string   { return "duration" }
func (d *duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if n, nerr := strconv.ParseUint(s, 10, 31); nerr == nil {
		v, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || v < 0 {
		return errors.New("not a length of time")
	}
	*d = duration(v)
	return nil
}

// valueForms tell what a flag with a parsed value takes.
var valueForms = map[string]string{
	"cpus":    "a number from 1 to 32",
	"timeout": "a length of time like 30s, 5m or 1h30m",

	"ready-timeout": "a length of time like 30s, 5m or 1h30m",
	"time":          "a length of time like 10s, or seconds",
	"interval":      "a length of time like 1s",
	"tail":          "a number of lines",
}

// parse reads args into f, telling a usage error from everything else. It
// returns what stands behind "--", and refuses stray words before it.
func parse(f *pflag.FlagSet, args []string) (rest []string, err error) {
	f.Usage = func() {}
	args, err = oneDash(f, args)
	if err != nil {
		return nil, err
	}
	if err := f.Parse(args); err != nil {
		return nil, parseError(f, err)
	}
	n := f.ArgsLenAtDash()
	switch {
	case n < 0 && f.NArg() > 0, n > 0:
		return nil, usagef("%q is not a flag: the guest's command goes behind --", f.Arg(0))
	case n < 0:
		return nil, nil
	}
	return f.Args(), nil
}

// parseError says what pflag found in smolvmm's own words. Values are left out
// where they may be what the user must not see in a log.
func parseError(f *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		return noFlag(f, unknown.GetSpecifiedName())
	case errors.As(err, &missing):
		return usagef("-%s needs a value: smolvmm --help shows which", missing.GetSpecifiedName())
	case errors.As(err, &invalid):
		name := invalid.GetFlag().Name
		form, ok := valueForms[name]
		if !ok {
			form = "true or false" // every other flag takes any text
		}
		return usagef("-%s %q: must be %s", name, invalid.GetValue(), form)
	}
	return usagef("%w: smolvmm --help shows the flags", err)
}

// noFlag is the error of a flag that there is not.
func noFlag(f *pflag.FlagSet, name string) error {
	var names []string
	f.VisitAll(func(fl *pflag.Flag) { names = append(names, fl.Name) })
	return usagef("-%s: no such flag%s: smolvmm --help shows them", name, didYouMean(name, names, "-"))
}

// didYouMean names the candidate nearest to a mistyped name, if one is near.
func didYouMean(name string, candidates []string, dash string) string {
	if best, d := nearest(name, candidates); d <= tolerance(best) {
		return fmt.Sprintf(" (did you mean %s%s?)", dash, best)
	}
	return ""
}

// tolerance is how many slips a name of that length is recognised with.
func tolerance(name string) int {
	if len(name) <= 4 {
		return 1
	}
	return 2
}

// nearest gives the candidate with the fewest single-character edits from name.
func nearest(name string, candidates []string) (best string, distance int) {
	distance = len(name) + 1
	for _, c := range candidates {
		if d := edits(name, c); d < distance {
			best, distance = c, d
		}
	}
	return best, distance
}

// edits is the Damerau-Levenshtein distance (adjacent swaps count once) of two
// short words; long ones are not compared, so that no input is slow.
func edits(a, b string) int {
	const long = 32
	if len(a) > long || len(b) > long {
		return long
	}
	var before, prev, cur [long + 1]int
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}

// oneDash gives long names a second dash: pflag would read -kernel as -k with
// the value "ernel". A flag's value is passed over, whatever it looks like.
func oneDash(f *pflag.FlagSet, args []string) ([]string, error) {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		if args[i] == "--" || !strings.HasPrefix(args[i], "-") {
			return append(out, args[i:]...), nil
		}
		a, takesNext, err := twoDashes(f, args[i])
		if err != nil {
			return nil, err
		}
		out = append(out, a)
		if takesNext && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out, nil
}

// twoDashes gives a flag in the form that pflag reads as it was meant, and
// whether the next argument is its value. A single-dash word that looks like a
// long name mistyped is an error, since it would be taken for a short one with
// the rest as its value.
func twoDashes(f *pflag.FlagSet, a string) (out string, takesNext bool, err error) {
	fl, hasValue := lookup(f, a)
	takesNext = fl != nil && fl.NoOptDefVal == "" && !hasValue
	if strings.HasPrefix(a, "--") || len(a) <= 2 {
		return a, takesNext, nil
	}
	name, _, _ := strings.Cut(a[1:], "=")
	switch {
	case len(name) > 1 && f.Lookup(name) != nil:
		return "-" + a, takesNext, nil
	case mistyped(f, name), a[1] < 0x80 && f.ShorthandLookup(a[1:2]) == nil:
		return "", false, noFlag(f, name)
	}
	return a, takesNext, nil
}

// lookup finds the flag that a word like -kernel, --kernel=x, -k or -m256 is,
// and whether the word holds its value. A cluster like -vh gives its last.
func lookup(f *pflag.FlagSet, word string) (fl *pflag.Flag, hasValue bool) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if fl := f.Lookup(name); fl != nil && (len(name) > 1 || strings.HasPrefix(word, "--")) {
		return fl, hasValue
	}
	if strings.HasPrefix(word, "--") {
		return nil, hasValue
	}
	for i := 1; i < len(word); i++ {
		if word[i] >= 0x80 {
			return nil, false
		}
		fl = f.ShorthandLookup(word[i : i+1])
		if fl == nil {
			return nil, false
		}
		if fl.NoOptDefVal == "" {
			return fl, i+1 < len(word)
		}
	}
	return fl, false
}

// mistyped tells whether a word looks like a long name with a slip in it,
// rather than like a shorthand with its value.
func mistyped(f *pflag.FlagSet, name string) bool {
	var names []string
	f.VisitAll(func(fl *pflag.Flag) { names = append(names, fl.Name) })
	best, d := nearest(name, names)
	return d <= tolerance(best) && len(name) > 2
}
