package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	t.Setenv("GUESTCHECK", "yes")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-status", "42", "-pause", "1ms", "-env", "GUESTCHECK=yes", "-file", file + "=abc"}, 42, "ok, status 42"},
		{[]string{"-cpus", "9999"}, 1, "cpus: FAILED"},
		{[]string{"-env", "GUESTCHECK=no"}, 1, "environment: FAILED"},
		{[]string{"-file", file + "=abd"}, 1, "file: FAILED"},
		{[]string{"-dir", filepath.Join(dir, "none"), "-pause", "1ms"}, 1, "disk: FAILED"},
		{[]string{"-nonsense"}, 1, "nonsense"},
	} {
		var out bytes.Buffer
		if got := run(append([]string{"-dir", dir, "-size", "1"}, c.args...), &out); got != c.status || !strings.Contains(out.String(), c.says) {
			t.Errorf("%v: status %d, want %d and %q\n%s", c.args, got, c.status, c.says, out.String())
		}
	}
}
