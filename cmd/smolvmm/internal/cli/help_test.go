package cli

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"
)

// helpFlag finds the flags that a help text speaks of: "-k, --kernel".
var helpFlag = regexp.MustCompile(`(?:-(\w), )?--([\w-]+)`)

// flagsOf lists a set's flags as a help text has them: "-k, --kernel".
func flagsOf(f *pflag.FlagSet) (out []string) {
	f.VisitAll(func(fl *pflag.Flag) {
		name := "--" + fl.Name
		if fl.Shorthand != "" {
			name = "-" + fl.Shorthand + ", " + name
		}
		out = append(out, name)
	})
	slices.Sort(out)
	return out
}

// flagsIn lists the flags at the beginnings of a help text's lines.
func flagsIn(text string) (out []string) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "  -") && !strings.HasPrefix(line, "      --") {
			continue
		}
		// Several on a line stand before its words.
		head, _, _ := strings.Cut(line, "   as for")
		for _, m := range helpFlag.FindAllString(head, -1) {
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return out
}

// TestHelpIsTheFlags: the help names every flag, with its shorthand, and none
// that there is not.
func TestHelpIsTheFlags(t *testing.T) {
	var b BootFlags
	var timeline bool
	if got, want := flagsIn(bootHelp), flagsOf(b.Set()); !slices.Equal(got, want) {
		t.Errorf("the help has\n%q, the flags are\n%q", got, want)
	}
	// demo's refers to the boot's for most, and names them.
	for _, name := range flagsOf(demoFlags(&b, &timeline)) {
		long := name[strings.Index(name, "--"):]
		if name == "-v, --verbose" {
			long = " -v "
		}
		if name != "-h, --help" && !strings.Contains(demoHelp, long) {
			t.Errorf("demo's help lacks %s", name)
		}
	}
}

// TestHelpFits: each help text fits a screen, that of a boot and of a whole
// command's flags a tall one.
func TestHelpFits(t *testing.T) {
	texts := map[string]string{"help": HelpText(), "boot": bootHelp, "commands": CommandsHelp()}
	for _, c := range OwnCommands() {
		texts[c.Name] = c.Help
	}
	for name, text := range texts {
		limit := 45
		if name == "help" {
			limit = 32
		}
		if n := strings.Count(text, "\n"); n > limit {
			t.Errorf("%s: %d lines", name, n)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}

// TestHelpExamples: what the help shows as an example is understood.
func TestHelpExamples(t *testing.T) {
	_, examples, _ := strings.Cut(bootHelp, "Examples:\n")
	n := 0
	for line := range strings.Lines(examples) {
		if !strings.HasPrefix(line, "  smolvmm -") {
			continue
		}
		n++
		words, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
		var b BootFlags
		if _, err := Parse(b.Set(), strings.Fields(words)[1:]); err != nil {
			t.Errorf("%s: %v", words, err)
		}
		for _, d := range b.Disks {
			if _, err := parseDisk(d); err != nil {
				t.Errorf("%s: %v", words, err)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d examples of a boot", n)
	}
}

// TestHelpAsked is each way to ask for help: on standard output, status 0.
func TestHelpAsked(t *testing.T) {
	for args, want := range map[string]string{
		"--help": HelpText(), "-help": HelpText(), "-h": HelpText(), "help": HelpText(), "-k x -h": bootHelp, "help boot": bootHelp, "help commands": CommandsHelp(),
		"demo --help": demoHelp, "demo -h": demoHelp, "help demo": demoHelp, "demo -c 2 -h": demoHelp,
		"doctor -h": doctorHelp, "help doctor": doctorHelp, "version -h": versionHelp,
	} {
		if r := invoke(t, nil, strings.Fields(args)...); r.Status != 0 || r.Out != want || r.Err != "" {
			t.Errorf("%s: %+v", args, r)
		}
	}
	if r := invoke(t, nil); r.Status != 2 || r.Out != "" || r.Err != HelpText() {
		t.Errorf("no arguments: %+v", r)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range []string{"version", "--version", "-version"} {
		if r := invoke(t, nil, args); r.Status != 0 || !regexp.MustCompile(`^smolvmm \S+ go\S+ linux/amd64\n$`).MatchString(r.Out) {
			t.Errorf("%s: %+v", args, r)
		}
	}
}
