package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestHandOver: smolvmm becomes the program beside it, whatever links lead to itself,
// with its name, arguments, environment and status.
func TestHandOver(t *testing.T) {
	self, env := alone(t)
	dir := filepath.Dir(self)
	full := "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$@\" \"$TOKEN\"\nexit 7\n"
	if err := os.WriteFile(filepath.Join(dir, fullName), []byte(full), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "vm")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ps", "-a", "--format", "json"}, {"help", "run"}, {"run", "--help"},
		{"--api-sock", "/x"}, {"-kernel", "/x", "--metrics-addr", "127.0.0.1:0"}, {"-kernel", "/x", "--id", "a"}, {"-k", "/x", "--log-format=json"},
	} {
		c := exec.CommandContext(t.Context(), link, args...)
		c.Env = append(env, "TOKEN=kept", "PATH=")
		r := clitest.Finish(t, c)
		got := strings.Split(strings.TrimSuffix(r.Out, "\n"), "\n")
		want := append([]string{filepath.Join(dir, fullName)}, append(args, "kept")...)
		if r.Status != 7 || r.Err != "" || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q: status %d, %q, %q", args, r.Status, got, r.Err)
		}
	}
}

// TestHandOverNobody: without the full program one line says how to get it, and what
// smolvmm does itself it still does.
func TestHandOverNobody(t *testing.T) {
	self, env := alone(t)
	run := func(args ...string) clitest.Result {
		c := exec.CommandContext(t.Context(), self, args...)
		c.Env = append(env, "PATH=")
		return clitest.Finish(t, c)
	}
	for _, args := range [][]string{{"ps"}, {"help", "build"}, {"-kernel", "/x", "--api-sock", "/y"}} {
		r := run(args...)
		if r.Status != StatusMonitor || r.Out != "" || strings.Count(r.Err, "\n") != 1 || !strings.Contains(r.Err, installBoth) {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := run("help", "demo"); r.Status != 0 || r.Out != demoHelp {
		t.Errorf("%+v", r)
	}
	// Its own file under the other's name would be started for ever.
	if err := os.Link(self, filepath.Join(filepath.Dir(self), fullName)); err != nil {
		t.Fatal(err)
	}
	if r := run("ps"); r.Status != StatusMonitor || !strings.Contains(r.Err, "smolvmm itself") {
		t.Errorf("%+v", r)
	}
}

// TestHandedOver: a program goes on from one of its own version, from none, and from
// no other; what it starts is told nothing.
func TestHandedOver(t *testing.T) {
	for _, c := range []struct {
		from string // "" is none
		ok   bool
	}{{"", true}, {"v1.2.3", true}, {devel, true}, {"v1.2.4", false}} {
		t.Setenv(handoverVar, c.from)
		if c.from == "" {
			_ = os.Unsetenv(handoverVar)
		}
		err := handedOver(func() string { return "v1.2.3" })
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "smolvmm is v1.2.4 and smolvmm-full is v1.2.3: ") {
			t.Errorf("from %q: %v", c.from, err)
		}
		if v, ok := os.LookupEnv(handoverVar); ok {
			t.Errorf("%s=%s is left", handoverVar, v)
		}
	}
}

// TestHandOverVersion: the full program is told the version of the one that became it.
func TestHandOverVersion(t *testing.T) {
	self, env := alone(t)
	full := "#!/bin/sh\nprintf '%s\\n' \"$" + handoverVar + "\"\n"
	if err := os.WriteFile(filepath.Join(filepath.Dir(self), fullName), []byte(full), 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(arg string) clitest.Result {
		c := exec.CommandContext(t.Context(), self, arg)
		c.Env = env
		return clitest.Finish(t, c)
	}
	// The program under test may be stamped with a commit, and this test's is not.
	own := strings.Fields(run("--version").Out)
	if len(own) < 2 {
		t.Fatalf("--version says %q", own)
	}
	if r := run("ps"); r.Status != 0 || strings.TrimSpace(r.Out) != own[1] {
		t.Errorf("%+v, not %s", r, own[1])
	}
}

// alone is the program in a folder where nothing else is.
func alone(t *testing.T) (self string, env []string) {
	t.Helper()
	path, env := clitest.Program()
	self = filepath.Join(t.TempDir(), "smolvmm")
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(self, b, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	return self, env
}

func TestFindFull(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(t.TempDir(), fullName)
	for _, p := range []string{filepath.Join(dir, "smolvmm"), other} {
		if err := os.WriteFile(p, nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	inPath := func(string) (string, error) { return other, nil }
	if p, err := findFull(filepath.Join(dir, "smolvmm"), inPath); err != nil || p != other {
		t.Errorf("%q, %v", p, err)
	}
	nowhere := func(string) (string, error) { return "", errors.New("no") }
	if p, err := findFull(filepath.Join(dir, "smolvmm"), nowhere); err == nil {
		t.Errorf("%q", p)
	}
}
