package main

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
)

const manHelp = `smolvmm man prints the manual page, made from the flags.

Usage: smolvmm man > /usr/local/share/man/man1/smolvmm.1
       smolvmm man | man -l -
`

func man(args []string, s cli.Streams) error {
	if len(args) > 0 {
		return cli.Usagef("man takes no arguments")
	}
	date := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, kv := range info.Settings {
			if kv.Key == "vcs.time" {
				date, _, _ = strings.Cut(kv.Value, "T")
			}
		}
	}
	fmt.Fprint(s.Out, manPage(commands(), date))
	return nil
}

// manPage is the page in the macros of man(7), with the date of its sources.
func manPage(cs []cli.Command, date string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.TH SMOLVMM 1 "%s" "smolvmm" "User Commands"`, date)
	line(".SH NAME\nsmolvmm \\- boot NetBSD in a virtual machine of its own, in milliseconds")
	line(".SH SYNOPSIS\n.nf")
	line(`\fBsmolvmm\fR \fB\-kernel\fR \fIFILE\fR [\fB\-disk\fR \fIFILE\fR]... [\fIflags\fR] [\fB\-\-\fR \fICOMMAND\fR [\fIARG\fR]...]`)
	line(`\fBsmolvmm\fR \fICOMMAND\fR [\fIflags\fR] ...`)
	line(".fi\n.SH DESCRIPTION")
	line("smolvmm is a virtual machine monitor for Linux/KVM. It boots a PVH kernel with disks, a console and a network in user space; it needs no root and no other program.")
	line("Long names of flags take one dash or two. A command of the guest stands behind")
	line(`.BR \-\- .`)
	line(".SH FLAGS OF A BOOT")
	manFlags(&b, flagList(bootSet))
	for _, group := range cli.Groups() {
		line(".SH COMMANDS: %s", roff(strings.ToUpper(group)))
		for _, c := range cs {
			if c.Group != group {
				continue
			}
			line(".SS %s", roff(c.Name))
			line("%s.", roff(strings.ToUpper(c.Summary[:1])+c.Summary[1:]))
			if u := usageOf(c.Help); u != "" {
				line(".PP\n.nf\n%s\n.fi", u)
			}
			manFlags(&b, flagList(c.Flags))
		}
	}
	line(".SH EXIT STATUS")
	for _, st := range []struct{ status, when string }{
		{"0-255", "the guest's own, written to its exit port"}, {"1", "something could not be fetched, listed or waited for"},
		{"2", "bad flag, file, image or name: nothing was started"}, {"120", "the guest reset its machine"}, {"121", "triple fault"},
		{"122", "KVM could not go on"}, {"123", "Ctrl-a x, or ~. of exec -t"}, {"124", "a time ran out: --timeout, --ready-timeout"},
		{"125", "smolvmm or the host failed"}, {"128+N", "signal N"},
	} {
		line(".TP\n.B %s\n%s", roff(st.status), roff(st.when))
	}
	line(".SH FILES")
	for _, f := range []struct{ path, what string }{
		{"$XDG_DATA_HOME/smolvmm", "machines, images and the audit log; ~/.local/share/smolvmm without the variable"},
		{"$XDG_RUNTIME_DIR/smolvmm", "sockets of running machines; /run/user/UID/smolvmm or /tmp/smolvmm-UID without the variable"},
		{"$XDG_CACHE_HOME/smolvmm", "kernels and what builds keep; ~/.cache/smolvmm without the variable"},
	} {
		line(".TP\n.I %s\n%s", roff(f.path), roff(f.what))
	}
	line(".SH ENVIRONMENT\n.TP\n.B SMOLVMM_NETBSD_MIRROR\nwhere kernels and sets are fetched from")
	return b.String()
}

// usageOf takes the usage lines out of a help text.
func usageOf(help string) string {
	_, rest, ok := strings.Cut(help, "Usage: ")
	if !ok {
		return ""
	}
	var out []string
	for l := range strings.Lines(rest) {
		if strings.TrimSpace(l) == "" {
			break
		}
		out = append(out, roff(strings.TrimSpace(l)))
	}
	return strings.Join(out, "\n")
}

func manFlags(b *strings.Builder, flags []*pflag.Flag) {
	for _, f := range flags {
		value, text := described(f)
		head := `\fB` + roff("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			head = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + head
		}
		if value != "" {
			head += ` \fI` + roff(value) + `\fR`
		}
		if d := f.DefValue; takesValue(f) && d != "" && d != "[]" && d != "0s" && !strings.Contains(text, "default") {
			text += " (default " + d + ")"
		}
		fmt.Fprintf(b, ".TP\n%s\n%s\n", head, roff(text))
	}
}

// roff makes a text safe to stand on a line of a page: no escapes, no macros, and
// dashes that can be copied.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "→", "->", "\n", " ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
