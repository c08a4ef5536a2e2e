package archive

import (
	"fmt"
	"strings"
)

// fflags is the PAX record that libarchive's tar keeps BSD's file flags in: their
// names, with commas between (chflags(1)).
const fflags = "SCHILY.fflags"

// flagNames are NetBSD's (sys/stat.h; the first of two names is written). A
// function, as a table of the package would be made at every start.
func flagNames() []struct {
	name string
	bit  uint32
} {
	return []struct {
		name string
		bit  uint32
	}{
		{"nodump", 0x1},
		{"uchg", 0x2}, {"uchange", 0x2}, {"uimmutable", 0x2},
		{"uappnd", 0x4}, {"uappend", 0x4},
		{"opaque", 0x8},
		{"arch", 0x10000}, {"archived", 0x10000},
		{"schg", 0x20000}, {"schange", 0x20000}, {"simmutable", 0x20000},
		{"sappnd", 0x40000}, {"sappend", 0x40000},
	}
}

func parseFlags(s string) (uint32, error) {
	var flags uint32
	known := flagNames()
next:
	for name := range strings.SplitSeq(s, ",") {
		for _, f := range known {
			if f.name == name {
				flags |= f.bit
				continue next
			}
		}
		if name != "" && name != "none" {
			return 0, fmt.Errorf("the file flag %.40q is not one of NetBSD's", name)
		}
	}
	return flags, nil
}

// formatFlags gives the names; rest has the bits that have none.
func formatFlags(flags uint32) (s string, rest uint32) {
	var names []string
	for _, f := range flagNames() {
		if flags&f.bit != 0 {
			names = append(names, f.name)
			flags &^= f.bit
		}
	}
	return strings.Join(names, ","), flags
}
