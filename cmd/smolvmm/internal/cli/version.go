package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

const versionHelp = `smolvmm version prints the version, and what it was built with.
`

// release is set by the linker for a release; a build from a module or a
// checkout says of itself what Go recorded.
var release string

func version(args []string, s Streams) error {
	if len(args) > 0 {
		return Usagef("version takes no arguments")
	}
	fmt.Fprintf(s.Out, "smolvmm %s %s %s/%s\n", VersionOf(debug.ReadBuildInfo()), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// VersionOf is the release, the module's version, or the commit of a checkout.
func VersionOf(info *debug.BuildInfo, ok bool) string {
	if release != "" || !ok {
		return orDevel(release)
	}
	if v := info.Main.Version; v != "" && v != devel {
		return v
	}
	set := map[string]string{}
	for _, b := range info.Settings {
		set[b.Key] = b.Value
	}
	v := set["vcs.revision"]
	if v == "" {
		return devel
	}
	v = v[:min(len(v), 12)]
	if set["vcs.modified"] == "true" {
		v += "+changes"
	}
	return v
}

const devel = "(devel)"

func orDevel(v string) string {
	if v == "" {
		return devel
	}
	return v
}
