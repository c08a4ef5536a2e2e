package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// release is set by the linker for a release; a build from a module or a
// checkout says of itself what Go recorded.
var release string

func version(args []string, s streams) error {
	if len(args) > 0 {
		return usagef("version takes no arguments")
	}
	v := release
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	if v == "" {
		v = "(devel)"
	}
	fmt.Fprintf(s.out, "smolvmm %s %s %s/%s\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}
