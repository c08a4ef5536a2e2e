package main

import (
	"io"
	"strings"
	"testing"
)

const (
	passes = `{"Action":"output","Package":"github.com/smolvmm/smolvmm/pvh","Output":"ok  \tgithub.com/smolvmm/smolvmm/pvh\t0.1s\n"}
{"Action":"pass","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestA"}
{"Action":"pass","Package":"github.com/smolvmm/smolvmm/pvh"}
`
	skips = `{"Action":"output","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestB","Output":"    real_test.go:17: NOT RUN: no kernel\n"}
{"Action":"output","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestB"}
`
	fails = `{"Action":"output","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestB","Output":"    x_test.go:1: broken\n"}
{"Action":"fail","Package":"github.com/smolvmm/smolvmm/pvh","Test":"TestB"}
{"Action":"fail","Package":"github.com/smolvmm/smolvmm/pvh"}
`
	nothing = `{"Action":"output","Package":"github.com/smolvmm/smolvmm/pvh","Output":"ok  \tgithub.com/smolvmm/smolvmm/pvh\t0.1s [no tests to run]\n"}
{"Action":"pass","Package":"github.com/smolvmm/smolvmm/pvh"}
`
	unbuilt = `{"ImportPath":"github.com/smolvmm/smolvmm/pvh","Action":"build-output","Output":"pvh.go:1: syntax error\n"}
{"ImportPath":"github.com/smolvmm/smolvmm/pvh","Action":"build-fail"}
{"Action":"fail","Package":"github.com/smolvmm/smolvmm/pvh","FailedBuild":"x"}
`
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, in string
		ok       bool
		shows    string
	}{
		{"passes", passes, true, "ok  \tgithub.com/smolvmm/smolvmm/pvh"},
		{"skips", passes + skips, true, "skipped: pvh TestB: NOT RUN: no kernel"},
		{"only skips", skips, false, "0 tests passed"},
		{"fails", passes + fails, false, "x_test.go:1: broken"},
		{"no test", nothing, false, "[no tests to run]"},
		{"silence", "", false, "0 tests passed"},
		{"go's words", passes + "go: downloading\n", true, "go: downloading"},
		{"a build fails", passes + unbuilt, false, "pvh.go:1: syntax error"},
	} {
		s := state{Passed: map[string]bool{}, Skipped: map[string]string{}}
		var out strings.Builder
		err := s.read(strings.NewReader(c.in), &out, io.Discard)
		if (err == nil) != c.ok || !strings.Contains(out.String(), c.shows) {
			t.Errorf("%s: %v, want ok=%v and %q in:\n%s", c.name, err, c.ok, c.shows, out.String())
		}
	}
}

// TestLeft: what one step skipped and another ran is not left.
func TestLeft(t *testing.T) {
	s := state{Passed: map[string]bool{}, Skipped: map[string]string{}}
	var out strings.Builder
	_ = s.read(strings.NewReader(passes+skips), &out, io.Discard)
	out.Reset()
	s.left(&out)
	if out.String() != "pvh TestB (NOT RUN: no kernel)\n" {
		t.Errorf("%q", out.String())
	}
	_ = s.read(strings.NewReader(strings.ReplaceAll(passes, "TestA", "TestB")), &out, io.Discard)
	out.Reset()
	s.left(&out)
	if out.String() != "" {
		t.Errorf("%q", out.String())
	}
}
