package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// BootFlags are the flags of a boot, as typed.
type BootFlags struct {
	Kernel, Memory, Append, Console, cpu, Confine string
	vsock                                         string
	Disks, Initrds, Env, Files, Secrets, Fwcfg    []string
	CPUs                                          int
	timeout                                       time.Duration
	ACPI, trace, Verbose, Help, version           bool
	Pages                                         vmm.Pages
	Net                                           network.Flags
	Plan                                          *network.Plan // of net, by config
	API                                           ApiFlags
	Log                                           *slog.Logger   // nil: config makes one
	Init                                          map[string]any // fields of smolinit's document, besides those of other flags
}

// ApiFlags are those of the API, as typed. What they ask for is the full program's.
type ApiFlags struct {
	Socket, ID, Metrics, LogFormat string
	noSeccomp                      bool
}

// logText is how the monitor logs by default.
const logText = "text"

func (a *ApiFlags) set(f *pflag.FlagSet) {
	f.StringVar(&a.Socket, "api-sock", "", "serve HTTP on a Unix socket at `PATH`; without -kernel, wait for what it says to boot")
	f.StringVar(&a.ID, "id", "", "`ID` that the API tells of the machine")
	f.BoolVar(&a.noSeccomp, "no-seccomp", false, "taken for Firecracker's sake, and not followed: see -confine")
	a.Common(f)
}

// Common are the flags of every machine that serves HTTP.
func (a *ApiFlags) Common(f *pflag.FlagSet) {
	f.StringVar(&a.Metrics, "metrics-addr", "", "serve metrics for Prometheus at a loopback `ADDRESS:PORT` too")
	f.StringVar(&a.LogFormat, "log-format", logText, "`FORMAT` of what the monitor says: text or json")
}

// asked: there is something that only a program with an HTTP server can do or judge.
func (a *ApiFlags) asked() bool {
	return a.Socket != "" || a.ID != "" || a.Metrics != "" || a.LogFormat != logText
}

func (b *BootFlags) Set() *pflag.FlagSet {
	f := pflag.NewFlagSet("smolvmm", pflag.ContinueOnError)
	f.SortFlags = false
	f.BoolVar(&b.version, "version", false, "print the version")
	b.Guest(f)
	b.Machine(f, DefaultMemory, 0)
	b.API.set(f)
	b.Verbosely(f, "v")
	return f
}

// DefaultMemory is a boot's.
const DefaultMemory = "256M"

// Verbosely adds the flag, whose shorthand is another's with `run`.
func (b *BootFlags) Verbosely(f *pflag.FlagSet, shorthand string) {
	f.BoolVarP(&b.Verbose, "verbose", shorthand, false, "say what the monitor does")
}

// Guest adds the flags of what runs in the machine.
func (b *BootFlags) Guest(f *pflag.FlagSet) {
	f.StringVarP(&b.Kernel, "kernel", "k", "", "`FILE` with a PVH kernel, ELF or gzip (default: newest fetched one)")
	f.StringVarP(&b.Append, "append", "a", "", "kernel arguments, `TEXT`; root=ld0a console=com where it names neither")
	f.Var((*list)(&b.Initrds), "initrd", "PVH module, a `FILE`; repeatable")
	f.VarP((*list)(&b.Env), "env", "e", "variable for the guest's command, `K[=V]`; repeatable")
	f.VarP((*list)(&b.Files), "file", "E", "file for the guest's command, `NAME=FILE`; repeatable")
	f.Var((*list)(&b.Secrets), "secret", "secret from the environment or a file, `NAME[=@FILE]`; repeatable")
	f.Var((*list)(&b.Fwcfg), "fw_cfg", "raw item as in QEMU, `name=…,string=…|file=…`; repeatable")
	f.BoolVar(&b.ACPI, "acpi", false, "ACPI tables instead of devices on the command line, for Linux")
}

// Machine adds the flags that the demo guest takes as well.
func (b *BootFlags) Machine(f *pflag.FlagSet, memory string, timeout time.Duration) {
	b.timeout = timeout
	f.Var((*list)(&b.Disks), "disk", "virtio disk, `FILE[,option]…`: ro, overlay[=FILE], serial=ID; repeatable")
	f.StringVarP(&b.Memory, "memory", "m", memory, "RAM, a `SIZE` like 256, 256M or 1G")
	f.IntVarP(&b.CPUs, "cpus", "c", 1, "CPUs, `N` from 1 to 32")
	f.StringVar(&b.Console, "console", "stdio", "`WHERE` COM1 ends: stdio, none, pty, file:PATH[,append] or unix:PATH")
	f.StringVar(&b.cpu, "cpu", "host", "CPU `TEMPLATE`: host or baseline, features taken away behind commas: host,-smap")
	f.Var((*Duration)(&b.timeout), "timeout", "end the machine after `TIME`: 30s, 5m")
	f.Var((*pages)(&b.Pages), "hugepages", "what RAM is made of, `PAGES`: transparent (huge where the host has them), none, reserved")
	f.Lookup("hugepages").NoOptDefVal = "reserved"
	f.StringVar(&b.Confine, "confine", "enforce", "seccomp and Landlock, a `MODE`: enforce, log, trap or off")
	f.BoolVar(&b.trace, "trace", false, "a line on standard error for every exit of the guest")
	f.StringVar(&b.vsock, "vsock", "", "virtio sockets, `CID,PATH` of the guest and of a Unix socket")
	b.network(f)
	f.BoolVarP(&b.Help, "help", "h", false, "show the help")
}

// network adds the flags of the network.
func (b *BootFlags) network(f *pflag.FlagSet) {
	f.Var((*list)(&b.Net.Nets), "net", "an `INTERFACE`: none, or user[,subnet=CIDR][,mac=…][,mtu=…]…; repeatable")
	f.BoolVar(&b.Net.HostLink, "host-link", false, "one more interface that reaches nothing but what the host connects to")
	f.StringVar(&b.Net.Name, "name", "", "`NAME` of the machine")
	f.StringVar(&b.Net.MAC, "mac", "", "`ADDRESS` of the first interface")
	f.StringVar(&b.Net.MTU, "mtu", "", "MTU of each interface, `N` bytes")
	f.StringVar(&b.Net.Rate, "rate", "", "bytes and packets a second, `SIZE[,pps=N][,burst=TIME]`")
	f.VarP((*list)(&b.Net.Publish), "publish", "p", "a port of the guest's on this host, `SPEC`: 8080:80[/udp] or unix:PATH:22; repeatable")
	f.Var((*list)(&b.Net.Services), "host-service", "a `PORT` of this host's loopback that the guest reaches; repeatable")
	f.Var((*list)(&b.Net.Egress), "egress", "`RULE` of where the guest may go: deny-all, allow NAME; repeatable")
	f.StringVar(&b.Net.EgressFile, "egress-file", "", "`FILE` with more rules")
	f.Var((*list)(&b.Net.Names), "dns", "`NAME=ADDRESS` that the guest's name server knows; repeatable")
	f.StringVar(&b.Net.Search, "search", "", "the guest's search `DOMAIN`")
	f.StringVar(&b.Net.Capture, "pcap", "", "`FILE` for the first interface's frames")
	f.StringVar(&b.Net.Audit, "audit", "", "`FILE` for the audit log")
}

// list is a repeatable flag. pflag's own writes each one's default through a CSV
// writer, whose buffers are eleven pages that every start would touch.
type list []string

func (l *list) Set(s string) error { *l = append(*l, s); return nil }
func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Type() string       { return "stringArray" }

// pages is a flag's kind of pages, by its name.
type pages vmm.Pages

var pageNames = []string{vmm.PagesTransparent: "transparent", vmm.PagesSmall: "none", vmm.PagesReserved: "reserved"}

func (p *pages) String() string { return pageNames[*p] }
func (p *pages) Type() string   { return "pages" }
func (p *pages) Set(s string) error {
	i := slices.Index(pageNames, s)
	if i < 0 {
		return errors.New("no such pages") // ParseError has the words
	}
	*p = pages(i)
	return nil
}

// Duration is a flag's length of time: 30s, 1m30s, or seconds without a unit
// as timeout(1) has them.
type Duration time.Duration

func (d *Duration) String() string { return time.Duration(*d).String() }
func (d *Duration) Type() string   { return "duration" }
func (d *Duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if n, nerr := strconv.ParseUint(s, 10, 31); nerr == nil {
		v, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || v < 0 {
		return errors.New("not a length of time")
	}
	*d = Duration(v)
	return nil
}

// valueForms tell what a flag with a parsed value takes.
var valueForms = map[string]string{
	"cpus":      "a number from 1 to 32",
	"timeout":   "a length of time like 30s, 5m or 1h30m",
	"hugepages": "transparent, none or reserved",

	"ready-timeout": "a length of time like 30s, 5m or 1h30m",
	"time":          "a length of time like 10s, or seconds",
	"interval":      "a length of time like 1s",
	"tail":          "a number of lines",
}

// Parse reads args into f, telling a usage error from everything else. It
// returns what stands behind "--", and refuses stray words before it.
func Parse(f *pflag.FlagSet, args []string) (rest []string, err error) {
	f.Usage = func() {}
	args, err = OneDash(f, args)
	if err != nil {
		return nil, err
	}
	if err := f.Parse(args); err != nil {
		return nil, ParseError(f, err)
	}
	n := f.ArgsLenAtDash()
	switch {
	case n < 0 && f.NArg() > 0, n > 0:
		return nil, Usagef("%q is not a flag: the guest's command goes behind --", f.Arg(0))
	case n < 0:
		return nil, nil
	}
	return f.Args(), nil
}

// ParseError says what pflag found in smolvmm's own words. Values are left out
// where they may be what the user must not see in a log.
func ParseError(f *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		return noFlag(f, unknown.GetSpecifiedName())
	case errors.As(err, &missing):
		return Usagef("-%s needs a value: smolvmm --help shows which", missing.GetSpecifiedName())
	case errors.As(err, &invalid):
		name := invalid.GetFlag().Name
		form, ok := valueForms[name]
		if !ok {
			form = "true or false" // every other flag takes any text
		}
		return Usagef("-%s %q: must be %s", name, invalid.GetValue(), form)
	}
	return Usagef("%w: smolvmm --help shows the flags", err)
}

// noFlag is the error of a flag that there is not.
func noFlag(f *pflag.FlagSet, name string) error {
	var names []string
	f.VisitAll(func(fl *pflag.Flag) { names = append(names, fl.Name) })
	return Usagef("-%s: no such flag%s: smolvmm --help shows them", name, DidYouMean(name, names, "-"))
}

// DidYouMean names the candidate nearest to a mistyped name, if one is near.
func DidYouMean(name string, candidates []string, dash string) string {
	if best, d := Nearest(name, candidates); d <= Tolerance(best) {
		return fmt.Sprintf(" (did you mean %s%s?)", dash, best)
	}
	return ""
}

// Tolerance is how many slips a name of that length is recognised with.
func Tolerance(name string) int {
	if len(name) <= 4 {
		return 1
	}
	return 2
}

// Nearest gives the candidate with the fewest single-character edits from name.
func Nearest(name string, candidates []string) (best string, distance int) {
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

// OneDash gives long names a second dash: pflag would read -kernel as -k with
// the value "ernel". A flag's value is passed over, whatever it looks like.
func OneDash(f *pflag.FlagSet, args []string) ([]string, error) {
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
	best, d := Nearest(name, names)
	return d <= Tolerance(best) && len(name) > 2
}
