package main

import (
	"path/filepath"
	"strings"
)

// testPaths is what a Go test binary's own flags name of the file system.
type testPaths struct {
	dirs []string  // folders that must be there
	outs []outPath // what it writes for the caller
}

// goTestPaths reads the -test.* flags that go test hands to a test binary. The log of tested inputs is not brought
// back: without it go test does not cache the result, and a result of the lab depends on more than it could list.
func goTestPaths(args []string, cwd string) testPaths {
	var t testPaths
	outputDir := cwd
	flags := map[string]string{}
	for _, a := range args {
		a, ok := strings.CutPrefix(strings.TrimPrefix(a, "-"), "test.")
		if !ok {
			a, ok = strings.CutPrefix(a, "-test.")
		}
		if !ok {
			continue
		}
		if k, v, ok := strings.Cut(a, "="); ok && v != "" {
			flags[k] = v
		}
	}
	if d, ok := flags["outputdir"]; ok {
		outputDir = absolute(d, cwd)
		t.dirs = append(t.dirs, outputDir)
	}
	for _, k := range []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace"} {
		if v, ok := flags[k]; ok {
			p := absolute(v, outputDir)
			t.dirs = append(t.dirs, filepath.Dir(p))
			t.outs = append(t.outs, outPath{p, p})
		}
	}
	for _, k := range []string{"gocoverdir", "fuzzcachedir"} {
		if v, ok := flags[k]; ok {
			p := absolute(v, cwd)
			t.dirs = append(t.dirs, p)
			t.outs = append(t.outs, outPath{p, p})
		}
	}
	if v, ok := flags["testlogfile"]; ok {
		t.dirs = append(t.dirs, filepath.Dir(absolute(v, cwd)))
	}
	return t
}
