package cli

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// TestFlagSpellings: one dash or two, a value behind a space or "=", shorthands
// with their value at once: all the same.
func TestFlagSpellings(t *testing.T) {
	want := BootFlags{Kernel: "netbsd", Memory: "1G", CPUs: 2, Append: "-v", Disks: []string{"a.img", "b.img,ro"},
		Console: "stdio", cpu: "host", Confine: "enforce", timeout: 90 * time.Second, Verbose: true,
		Env: []string{"A=1"}, Files: []string{"f=/x"}, Initrds: []string{}, Secrets: []string{}, Fwcfg: []string{},
		Net: network.Flags{Nets: []string{"user,mtu=1400", "none"}, Publish: []string{"8080:80", "unix:/x:22"}, HostLink: true, EgressFile: "f"},
		API: ApiFlags{LogFormat: "text"}}
	const nets = " -net user,mtu=1400 --net=none -p 8080:80 -publish unix:/x:22 -host-link -egress-file f"
	for _, line := range []string{
		"-kernel netbsd -disk a.img -disk b.img,ro -memory 1G -cpus 2 -append -v -timeout 90s -verbose -env A=1 -file f=/x",
		"--kernel netbsd --disk a.img --disk b.img,ro --memory 1G --cpus 2 --append -v --timeout 90s --verbose --env A=1 --file f=/x",
		"-kernel=netbsd -disk=a.img --disk=b.img,ro -memory=1G -cpus=2 -append=-v -timeout=1m30s -verbose=true -env=A=1 -file=f=/x",
		"-k netbsd -disk a.img -disk b.img,ro -m 1G -c 2 -a -v -timeout 90 -v -e A=1 -E f=/x",
		"-knetbsd -disk a.img -disk b.img,ro -m1G -c2 -a-v -timeout 90 -v -eA=1 -Ef=/x",
		"-vk netbsd -disk a.img -disk b.img,ro -m=1G -c=2 -a=-v -timeout 90 -e=A=1 -E=f=/x",
	} {
		var got BootFlags
		rest, err := Parse(got.Set(), strings.Fields(line+nets))
		// pflag leaves an empty list where it has a default of none.
		for _, l := range []*[]string{&got.Initrds, &got.Secrets, &got.Fwcfg} {
			if *l == nil {
				*l = []string{}
			}
		}
		if err != nil || rest != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v %v %q, want\n%+v", line, got, err, rest, want)
		}
	}
}

// TestFlagValues: a value may look like a flag; behind "--" nothing is one.
func TestFlagValues(t *testing.T) {
	var b BootFlags
	rest, err := Parse(b.Set(), []string{"-append", "-disk", "-k", "--", "-e", "-kernel", "--", "-disk", "--", "x"})
	if err != nil || b.Append != "-disk" || b.Kernel != "--" || !slices.Equal(b.Env, []string{"-kernel"}) || !slices.Equal(rest, []string{"-disk", "--", "x"}) {
		t.Errorf("%+v %q %v", b, rest, err)
	}
}

// TestBadInput: one clear line, status 2, nothing on standard output.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", dir)
	k := []string{"-k", kernel}
	for _, c := range []struct {
		args []string
		want string // of the error
	}{
		{[]string{"-kernl", "x"}, "-kernl: no such flag (did you mean -kernel?)"},
		{[]string{"--kernl", "x"}, "-kernl: no such flag (did you mean -kernel?)"},
		{[]string{"-memroy", "4"}, "did you mean -memory?"},
		{[]string{"-dsk", "4"}, "did you mean -disk?"},
		{[]string{"--xyzzy"}, "-xyzzy: no such flag: smolvmm --help"},
		{[]string{"-z"}, "-z: no such flag"},
		{[]string{"-k"}, "-k needs a value"},
		{[]string{"-kernel"}, "-kernel needs a value"},
		{[]string{"--"}, "none in the cache: name one with -kernel, or run `smolvmm kernel fetch`"},
		{[]string{"-v"}, "none in the cache"},
		{[]string{"-kernel", filepath.Join(dir, "no")}, "/no: no such file"},
		{[]string{"-kernel", dir}, "not a regular file"},
		{append(k, "stray"), `"stray" is not a flag: the guest's command goes behind --`},
		{append(k, "-initrd", "/no"), "-initrd /no: no such file"},
		{append(k, "-c", "0"), "-cpus 0: must be between 1 and 32"},
		{append(k, "-c", "33"), "-cpus 33: must be between 1 and 32"},
		{append(k, "-c", "two"), `-cpus "two": must be a number from 1 to 32`},
		{append(k, "-m", "0"), "-memory 0: must be between 1M and 64G"},
		{append(k, "-m", "65G"), "-memory 65G: must be between 1M and 64G"},
		{append(k, "-m", "18446744073709551615"), "must be between 1M and 64G"},
		{append(k, "-m", "1025K"), "-memory 1025K: must be a multiple of 4K"},
		{append(k, "-m", "-1"), `-memory "-1": give a size`},
		{append(k, "-m", "1.5G"), `-memory "1.5G": give a size`},
		{append(k, "-m", ""), `-memory "": give a size`},
		{append(k, "-timeout", "-3s"), `-timeout "-3s": must be a length of time`},
		{append(k, "-timeout", "soon"), `-timeout "soon": must be a length of time`},
		{append(k, "-net", "tap"), `-net "tap": must be none, or user[,subnet=`},
		{append(k, "-net", "none", "-p", "80:80"), "-p: a machine with -net none has nothing to publish"},
		{append(k, "-hostlink", "-p", "80:80"), "did you mean -host-link?"},
		{append(k, "-console", "tty"), "-console \"tty\": must be stdio, none"},
		{append(k, "-confine", "maybe"), `-confine "maybe": must be enforce, log, trap or off`},
		{append(k, "-hugepages=big"), `-hugepages "big": must be transparent, none or reserved`},
		{append(k, "-disk", ""), `-disk "": no file named`},
		{append(k, "-disk", "a,rw"), `"rw" is no option: ro, overlay`},
		{append(k, "-disk", "a,overlay="), `"overlay=" is no option`},
		{append(k, "-cpu", "hots"), "hots"},
		{k, "kernel"}, // one byte is no ELF file
		{[]string{"netbsd"}, `"netbsd" is no command`},
		{[]string{kernel}, "is no command; a kernel is given with -kernel " + kernel},
		{[]string{"demmo"}, "did you mean demo?"},
		{[]string{"help", "me"}, `help: "me" is no command`},
		{[]string{"version", "x"}, "version takes no arguments"},
		{[]string{"doctor", "x"}, "doctor takes no arguments"},
		{[]string{"demo", "cehck"}, "did you mean check?"},
		{[]string{"demo", "a", "b"}, "one mode at a time"},
		{[]string{"demo", "exit=1 demo=hello"}, "have no spaces"},
		{[]string{"demo", "-initrd", "x"}, "-initrd: no such flag"},
		{[]string{"-kernel", "a\x1b[2J\nb"}, "a?[2J; b: no such file"},
	} {
		r := invoke(t, nil, c.args...)
		if r.Status != 2 || r.Out != "" || !strings.HasPrefix(r.Err, "smolvmm: ") || strings.Count(r.Err, "\n") != 1 || !strings.Contains(r.Err, c.want) {
			t.Errorf("%q: status %d, %q%q; want 2 and %q", c.args, r.Status, r.Out, r.Err, c.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{
		"256": 256 << 20, "256M": 256 << 20, "256m": 256 << 20, "1G": 1 << 30, "64g": 64 << 30, "65536": 64 << 30,
		"1024K": 1 << 20, "2048k": 2 << 20, "1": 1 << 20, "4": 4 << 20,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseDisk(t *testing.T) {
	for s, want := range map[string]vmm.Disk{
		"a.img":                     {Path: "a.img"},
		"a.img,ro":                  {Path: "a.img", ReadOnly: true},
		"a.img,overlay":             {Path: "a.img", Overlay: true},
		"a.img,overlay=b,serial=xy": {Path: "a.img", Overlay: true, OverlayPath: "b", Serial: "xy"},
		"a,,b,overlay=c,,d":         {Path: "a,b", Overlay: true, OverlayPath: "c,d"},
		"a=b,serial=":               {Path: "a=b"},
	} {
		if got, err := parseDisk(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, err, want)
		}
	}
}

func TestSplitCommas(t *testing.T) {
	for s, want := range map[string][]string{
		"": {""}, ",": {"", ""}, ",,": {","}, ",,,": {",", ""}, "a,b": {"a", "b"}, "a,,b": {"a,b"}, "a,,,b": {"a,", "b"}, "\x00,": {"\x00", ""},
	} {
		if got := splitCommas(s); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestEdits(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"kernel", "kernel", 0}, {"kernl", "kernel", 1}, {"kenrel", "kernel", 1},
		{"memroy", "memory", 1}, {"cpu", "cpus", 1}, {"disk", "cpu", 4}, {"ca", "abc", 3}, {longName(40), "x", 32},
	} {
		if got := edits(c.a, c.b); got != c.want || edits(c.b, c.a) != c.want {
			t.Errorf("edits(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzFlags: no command line makes the parser panic, and what it takes as the
// guest's command is what stood behind the first free "--".
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"-kernel\nnetbsd\n-disk=a,ro\n--\n-x", "-m256\n-c\n2", "-vk\nx\n-e\nA=1", "--", "-", "-=", "--=x", "-é\nx", "-kernl\nx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Split(s, "\n")
		var b BootFlags
		rest, err := Parse(b.Set(), args)
		if err == nil && len(rest) > 0 && !slices.Equal(args[len(args)-len(rest):], rest) {
			t.Errorf("%q: the command is %q", args, rest)
		}
		var timeline bool
		_, words, err := SplitWords(demoFlags(&b, &timeline), args)
		if err == nil && len(words) > len(args) {
			t.Errorf("%q: %d words", args, len(words))
		}
	})
}

// FuzzValues: what is read from one flag's value is within its bounds.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"256", "64G", "1048576K", "a.img,overlay=b,,c,serial=x", "name=opt/x,string=y", "opt/x,file=/dev/null", "K=V", "NAME=@/dev/null", ",,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && (n < 1<<20 || n > 64<<30 || n%4096 != 0) {
			t.Errorf("size %q: %d", s, n)
		}
		if d, err := parseDisk(s); err == nil && d.Path == "" {
			t.Errorf("disk %q: %+v", s, d)
		}
		if got := strings.Join(splitCommas(s), ","); strings.ReplaceAll(got, ",", "") != strings.ReplaceAll(s, ",", "") {
			t.Errorf("%q: split into %q", s, got)
		}
		// A file is not opened: fuzzing would read whatever it can name.
		if !strings.Contains(s, "file=") {
			if it, err := rawItem(s); err == nil && !strings.HasPrefix(it.Name(), "opt/") {
				t.Errorf("item %q: %v", s, it)
			}
		}
		if it, err := variable(s, func(string) (string, bool) { return "", false }); err == nil && !strings.HasPrefix(it.Name(), itemEnv) {
			t.Errorf("variable %q: %v", s, it)
		}
	})
}
