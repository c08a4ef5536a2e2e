package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// have is a program that a test needs.
func have(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	return path
}

// scripted writes a completion script and a smolvmm that only knows what the
// script asks it.
func scripted(t *testing.T, shell string) (script string, env []string) {
	t.Helper()
	r := invoke(t, nil, "completion", shell)
	if r.Status != 0 || r.Err != "" {
		t.Fatalf("%+v", r)
	}
	dir := t.TempDir()
	script = filepath.Join(dir, "_smolvmm")
	if err := os.WriteFile(script, []byte(r.Out), 0o600); err != nil {
		t.Fatal(err)
	}
	fake := "#!/bin/sh\ncase $* in 'ps -a -q') echo web; echo worker;; 'images -q') echo rescue;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "smolvmm"), []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	return script, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
}

func output(t *testing.T, env []string, name string, args ...string) []string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env, c.Dir = env, t.TempDir()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// completed are what each shell has to offer for a line.
var completed = []struct {
	line string // the last word is being typed
	want []string
}{
	{"smolvmm st", []string{"stop", "stats"}},
	{"smolvmm --persis", nil},
	{"smolvmm run --persis", []string{"--persist"}},
	{"smolvmm logs --foll", []string{"--follow"}},
	{"smolvmm logs w", []string{"web", "worker"}},
	{"smolvmm stop we", []string{"web"}},
	{"smolvmm run re", []string{"rescue"}},
	{"smolvmm ps --format j", []string{"json"}},
	{"smolvmm --kerne", []string{"--kernel"}},
}

func TestBashCompletion(t *testing.T) {
	bash := have(t, "bash")
	script, env := scripted(t, "bash")
	output(t, env, bash, "-n", script)
	for _, c := range completed {
		words := strings.Split(c.line, " ")
		code := `. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _smolvmm; printf '%s\n' "${COMPREPLY[@]}"`
		got := output(t, env, bash, append([]string{"--norc", "-c", code, script}, words...)...)
		check(t, c.line, got, c.want)
	}
}

// check holds offers against what is wanted, whatever their order.
func check(t *testing.T, line string, got, want []string) {
	t.Helper()
	got = slices.DeleteFunc(got, func(s string) bool { return s == "" })
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", line, got, want)
	}
}

func TestFishCompletion(t *testing.T) {
	fish := have(t, "fish")
	script, env := scripted(t, "fish")
	output(t, env, fish, "-n", script)
	for _, c := range completed {
		got := output(t, env, fish, "-c", `source $argv[1]; complete -C "$argv[2]"`, script, c.line)
		for i, l := range got {
			got[i], _, _ = strings.Cut(l, "\t")
		}
		check(t, c.line, got, c.want)
	}
}

// TestZshCompletion lets zsh parse the script and load it into its completion.
func TestZshCompletion(t *testing.T) {
	zsh := have(t, "zsh")
	script, env := scripted(t, "zsh")
	output(t, env, zsh, "-n", script)
	got := output(t, env, zsh, "-f", "-c", `autoload -U compinit; compinit -u -D; . $1; print $_comps[smolvmm]; whence -w _smolvmm_machines`, "x", script)
	check(t, "compdef", got, []string{"_smolvmm", "_smolvmm_machines: function"})
}

// TestManPage: the page has every command and flag, and mandoc has nothing to say
// against it.
func TestManPage(t *testing.T) {
	r := invoke(t, nil, "man")
	if r.Status != 0 {
		t.Fatalf("%+v", r)
	}
	for _, c := range commands() {
		clitest.MustContain(t, "the page", r.Out, ".SS "+roff(c.Name)+"\n")
		for _, f := range flagList(c.Flags) {
			if f.Usage == "" {
				t.Errorf("%s: -%s has no description", c.Name, f.Name)
			}
			clitest.MustContain(t, "the page", r.Out, `\fB`+roff("--"+f.Name)+`\fR`)
		}
	}
	for line := range strings.Lines(r.Out) {
		if strings.HasPrefix(line, "'") || strings.Contains(line, "\t") {
			t.Errorf("%q", line)
		}
	}
	mandoc := have(t, "mandoc")
	page := filepath.Join(t.TempDir(), "smolvmm.1")
	if err := os.WriteFile(page, []byte(manPage(commands(), "2026-01-02")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}
