package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestHelpHasCommands: every command is in the help, in the list and in a group.
func TestHelpHasCommands(t *testing.T) {
	for _, c := range commands() {
		if !slices.Contains(cli.Groups(), c.Group) || c.Summary == "" || c.Help == "" || c.Run == nil {
			t.Errorf("%+v", c)
		}
		clitest.MustContain(t, "the help", cli.HelpText(), " "+c.Name)
		clitest.MustContain(t, "the list", cli.CommandsHelp(), "  "+c.Name+" ", c.Summary)
	}
}

// TestFullHelpFits: each help text fits a screen, that of a boot and of a whole
// command's flags a tall one.
func TestFullHelpFits(t *testing.T) {
	texts := map[string]string{}
	for _, c := range commands() {
		texts[c.Name] = c.Help
	}
	for name, text := range texts {
		if n := strings.Count(text, "\n"); n > 45 {
			t.Errorf("%s: %d lines", name, n)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}

// TestVerbs: what both programs show of the commands is what there is.
func TestVerbs(t *testing.T) {
	var want []cli.Entry
	for _, c := range commands() {
		want = append(want, cli.Entry{Name: c.Name, Group: c.Group, Summary: c.Summary})
	}
	if got := cli.Verbs(); !slices.Equal(got, want) {
		t.Errorf("the help shows\n%q, the commands are\n%q", got, want)
	}
}

// TestBadNames: what cannot be a machine's name is the user's to mend, with every verb.
func TestBadNames(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{"HOME": home, "XDG_DATA_HOME": home, "XDG_RUNTIME_DIR": home}
	for _, args := range []string{"logs", "stop", "kill", "rm", "rm -f", "inspect", "wait", "stats --no-stream", "exec", "shell"} {
		args := append(strings.Fields(args), "../x")
		if args[0] == "exec" {
			args = append(args, "ls")
		}
		if r := invoke(t, env, args...); r.Status != cli.StatusUsage || !strings.Contains(r.Err, `"../x" is no machine's name`) {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestKernelHelp is each way to ask for it.
func TestKernelHelp(t *testing.T) {
	for _, args := range []string{"kernel --help", "help kernel", "kernel help", "kernel fetch -h"} {
		if r := invoke(t, nil, strings.Fields(args)...); r.Status != 0 || r.Out != kernelHelp || r.Err != "" {
			t.Errorf("%s: %+v", args, r)
		}
	}
}
