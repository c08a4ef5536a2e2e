package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/vmm"
)

const helpText = `smolvmm boots a NetBSD kernel in a virtual machine of its own, in milliseconds.

Usage: smolvmm -kernel FILE [-disk FILE]… [flags] [-- COMMAND [ARG]…]
       smolvmm demo | kernel fetch|list | doctor | version

  -k, --kernel FILE       PVH kernel, ELF or gzip (default: newest fetched one)
      --disk FILE[,ro][,overlay[=FILE]]   virtio disk; repeat for ld1, ld2 …
  -m, --memory SIZE       RAM: 256, 256M, 1G (default 256M, at most 64G)
  -c, --cpus N            CPUs, 1 to 32 (default 1)
  -a, --append TEXT       kernel arguments (root=ld0a console=com if not given)
      --initrd FILE       PVH module; repeatable
      --console WHERE     stdio, none, pty, file:PATH or unix:PATH (default stdio)
      --net none|user     network (default none)
      --cpu TEMPLATE      host, baseline; take features away: host,-smap,-xsave
  -e, --env K=V           variable for the guest's command; repeatable
  -E, --file NAME=FILE    file for the guest's command; repeatable
      --secret NAME[=@FILE]   secret, from the environment or a file
      --fw_cfg name=opt/…,string=…|file=…   raw item, as in QEMU
      --timeout 30s       end the machine after that long
      --hugepages         RAM from the host's reserved 2 MiB pages
      --confine enforce|log|off   seccomp and Landlock (default enforce)
      --trace             a line on standard error for every exit of the guest
  -v, --verbose           say what the monitor does
Long names take one dash or two. In the console: Ctrl-a x quits, Ctrl-a h helps.

Examples:
  smolvmm demo                              see a machine boot, nothing needed
  smolvmm kernel fetch                      get NetBSD's own MICROVM kernel
  smolvmm -kernel netbsd -disk root.img     boot it
  smolvmm -k netbsd -disk root.img,overlay -m 1G -c 2 -- /bin/sh -c 'exit 3'
Exit status: the guest's own through its exit port; 2 bad input, 120 reboot,
121 triple fault, 122 KVM error, 123 Ctrl-a x, 124 timeout, 125 host failure,
128+N signal N.
`

// bootFlags are the flags of a boot, as typed.
type bootFlags struct {
	kernel, memory, append, console, net, cpu, confine string
	disks, initrds, env, files, secrets, fwcfg         []string
	cpus                                               int
	timeout                                            time.Duration
	hugepages, trace, verbose, help, version           bool
}

func (b *bootFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("smolvmm", pflag.ContinueOnError)
	f.SortFlags = false
	f.StringVarP(&b.kernel, "kernel", "k", "", "")
	f.StringArrayVar(&b.disks, "disk", nil, "")
	f.StringVarP(&b.memory, "memory", "m", "256M", "")
	f.IntVarP(&b.cpus, "cpus", "c", 1, "")
	f.StringVarP(&b.append, "append", "a", "", "")
	f.StringArrayVar(&b.initrds, "initrd", nil, "")
	f.StringVar(&b.console, "console", "stdio", "")
	f.StringVar(&b.net, "net", "none", "")
	f.StringVar(&b.cpu, "cpu", "host", "")
	f.StringArrayVarP(&b.env, "env", "e", nil, "")
	f.StringArrayVarP(&b.files, "file", "E", nil, "")
	f.StringArrayVar(&b.secrets, "secret", nil, "")
	f.StringArrayVar(&b.fwcfg, "fw_cfg", nil, "")
	f.DurationVar(&b.timeout, "timeout", 0, "")
	f.BoolVar(&b.hugepages, "hugepages", false, "")
	f.StringVar(&b.confine, "confine", "enforce", "")
	f.BoolVar(&b.trace, "trace", false, "")
	f.BoolVarP(&b.verbose, "verbose", "v", false, "")
	f.BoolVarP(&b.help, "help", "h", false, "")
	f.BoolVar(&b.version, "version", false, "")
	return f
}

// parse reads args into f, telling a usage error from everything else. It
// returns what stands behind "--", and refuses stray words before it.
func parse(f *pflag.FlagSet, args []string) (rest []string, err error) {
	f.Usage = func() {}
	if err := f.Parse(oneDash(f, args)); err != nil {
		return nil, usagef("%w (see smolvmm --help)", err)
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

// oneDash gives long names a second dash: pflag would read -kernel as -k with
// the value "ernel". A flag's value is passed over, whatever it looks like.
func oneDash(f *pflag.FlagSet, args []string) []string {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" || !strings.HasPrefix(a, "-") {
			return append(out, args[i:]...)
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		flag := f.Lookup(name)
		if flag != nil && len(name) > 1 && !strings.HasPrefix(a, "--") {
			a = "-" + a
		}
		if flag == nil && !strings.HasPrefix(a, "--") && len(a) == 2 {
			flag = f.ShorthandLookup(a[1:])
		}
		out = append(out, a)
		if flag != nil && flag.NoOptDefVal == "" && !hasValue && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// parseSize reads 256, 256M, 1G: mebibytes without a unit, as QEMU's -m has it.
func parseSize(s string) (uint64, error) {
	shift := 20
	digits := s
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			shift, digits = 10, s[:n-1]
		case 'm', 'M':
			digits = s[:n-1]
		case 'g', 'G':
			shift, digits = 30, s[:n-1]
		}
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || v == 0 || v > 1<<40>>shift {
		return 0, usagef("-m %q: give a size like 256, 256M or 1G", s)
	}
	return v << shift, nil
}

// parseDisk reads FILE[,ro][,overlay[=FILE]][,serial=NAME]. A comma in a file
// name is written twice, as in QEMU.
func parseDisk(s string) (vmm.Disk, error) {
	parts := splitCommas(s)
	d := vmm.Disk{Path: parts[0]}
	if d.Path == "" {
		return d, usagef("-disk %q: no file named", s)
	}
	for _, o := range parts[1:] {
		key, value, has := strings.Cut(o, "=")
		switch {
		case o == "ro":
			d.ReadOnly = true
		case o == "overlay":
			d.Overlay = true
		case key == "overlay" && has && value != "":
			d.Overlay, d.OverlayPath = true, value
		case key == "serial" && has:
			d.Serial = value
		default:
			return d, usagef("-disk %q: %q is no option: ro, overlay, overlay=FILE, serial=NAME (a comma in a file name is written twice)", s, o)
		}
	}
	return d, nil
}

// splitCommas splits at single commas; two stand for one.
func splitCommas(s string) []string {
	const twin = "\x00"
	parts := strings.Split(strings.ReplaceAll(s, ",,", twin), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], twin, ",")
	}
	return parts
}

// Names of fw_cfg items that smolinit reads (docs/smolinit.md).
const (
	itemInit   = "opt/smolvmm/init.json"
	itemEnv    = "opt/smolvmm/env/"
	itemFile   = "opt/smolvmm/file/"
	itemSecret = "opt/smolvmm/secret/"
)

// items makes the guest's configuration out of -e, -E, --secret and -fw_cfg.
func (b *bootFlags) items(env func(string) (string, bool)) ([]vmm.Item, error) {
	var out []vmm.Item
	for _, s := range b.env {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			// As with docker run -e K: the value is this process's own.
			if v, ok = env(k); !ok {
				return nil, usagef("-e %s: not set in the environment; give -e %s=VALUE", k, k)
			}
		}
		if k == "" {
			return nil, usagef("-e %q: a variable needs a name", s)
		}
		it, err := item("-e "+k, itemEnv+k, []byte(v))
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	for _, s := range b.files {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return nil, usagef("-E %q: must be NAME=FILE", s)
		}
		it, err := fileItem("-E "+s, itemFile+name, path)
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	for _, s := range b.secrets {
		it, err := secret(s, env)
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	for _, s := range b.fwcfg {
		it, err := rawItem(s)
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	return out, nil
}

// secret reads --secret NAME or NAME=@FILE. A value on the command line is
// refused: ps would show it. The messages never hold what may be one.
func secret(s string, env func(string) (string, bool)) (vmm.Item, error) {
	name, value, has := strings.Cut(s, "=")
	path, isFile := strings.CutPrefix(value, "@")
	switch {
	case name == "":
		return vmm.Item{}, usagef("--secret: a secret needs a name: NAME (from the environment) or NAME=@FILE")
	case has && !isFile:
		return vmm.Item{}, usagef("--secret %s=…: a value on the command line is there for ps to see; use --secret %s with the variable set, or %s=@FILE", name, name, name)
	case has:
		return fileItem("--secret "+name, itemSecret+name, path)
	}
	v, ok := env(name)
	if !ok {
		return vmm.Item{}, usagef("--secret %s: not set in the environment; set it, or give %s=@FILE", name, name)
	}
	return item("--secret "+name, itemSecret+name, []byte(v))
}

// rawItem reads QEMU's name=…,string=…|file=….
func rawItem(s string) (vmm.Item, error) {
	var name string
	var value, file *string
	bad := usagef("-fw_cfg %q: must be name=NAME,string=TEXT or name=NAME,file=FILE", s)
	for i, o := range splitCommas(s) {
		k, v, ok := strings.Cut(o, "=")
		switch {
		case ok && k == "name":
			name = v
		case ok && k == "string":
			value = &v
		case ok && k == "file":
			file = &v
		case !ok && i == 0:
			name = k // QEMU takes a bare first word for the name
		default:
			return vmm.Item{}, bad
		}
	}
	switch {
	case name == "" || (value == nil) == (file == nil):
		return vmm.Item{}, bad
	case value != nil:
		return item("-fw_cfg", name, []byte(*value))
	}
	return fileItem("-fw_cfg", name, *file)
}

// item makes an item, and names the flag in its error.
func item(flag, name string, value []byte) (vmm.Item, error) {
	it, err := vmm.NewItem(name, value)
	if err != nil {
		return it, usagef("%s: %w", flag, err)
	}
	return it, nil
}

// fileItem is item with the value in a file.
func fileItem(flag, name, path string) (vmm.Item, error) {
	f, err := os.Open(path)
	if err != nil {
		return vmm.Item{}, usagef("%s: %w", flag, err)
	}
	defer f.Close()
	it, err := vmm.ReadItem(name, f)
	if err != nil {
		return it, usagef("%s: %w", flag, err)
	}
	return it, nil
}
