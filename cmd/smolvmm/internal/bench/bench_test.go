package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// try runs the verb with flags and words.
func try(t *testing.T, args, words string) (string, error) {
	t.Helper()
	f, run := New()
	if err := f.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(context.Background(), Env{Out: &out, Err: &out, Program: "/nonexistent/smolvmm"}, strings.Fields(words))
	return out.String(), err
}

func TestUsage(t *testing.T) {
	for _, c := range []struct{ args, words, want string }{
		{"", "", "say what to measure"},
		{"", "speed", `"speed" is none of boot`},
		{"--against qemu,xen", "boot", `"xen" is none of`},
		{"--loads sideways", "net", `"sideways" is none of`},
		{"-n -1", "boot", "-rounds -1"},
		{"-m 1", "boot", "-memory 1"},
		{"--machines 0", "density", "-machines 0"},
		{"--ops 0", "disk", "-ops 0"},
		{"--idle -1s", "memory", "0s and more"},
		{"", "compare one.json", "two files"},
		{"--tolerance -1", "compare a b", "-tolerance"},
		{"", "compare /nonexistent/a /nonexistent/b", "/nonexistent/a: no such file"},
	} {
		_, err := try(t, c.args, c.words)
		var usage *UsageError
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &usage) {
			t.Errorf("%s %s: %v, want %q", c.args, c.words, err, c.want)
		}
	}
	if _, err := try(t, "", "boot"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
	if got, err := list("none", nil); got != nil || err != nil {
		t.Error(got, err)
	}
}

// result is a document with one figure of smolvmm's at some milliseconds.
func result(t *testing.T, ms string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "r.json")
	values := strings.Repeat(ms+",", 9) + ms
	doc := `{"version":1,"figures":[{"id":"boot/first-instruction","unit":"ms","better":"less","series":[{"subject":"smolvmm","values":[` + values + `],"summary":{"n":10,"median":` + ms + `}}]}]}`
	if err := os.WriteFile(name, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		before, after string
		slower        bool
		says          string
	}{
		{"5", "5", false, "no change shown"}, {"5", "6", true, "| slower |"}, {"5", "4", false, "| faster |"}, {"5", "5.1", false, "no change shown"},
	} {
		out, err := try(t, "", "compare "+result(t, c.before)+" "+result(t, c.after))
		if errors.Is(err, ErrSlower) != c.slower || !c.slower && err != nil || !strings.Contains(out, c.says) {
			t.Errorf("%s, %s: %v\n%s", c.before, c.after, err, out)
		}
	}
}
