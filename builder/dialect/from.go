package dialect

import (
	"strings"
)

// Source says what a stage begins with.
type Source uint8

// The kinds of FROM.
const (
	FromScratch Source = iota + 1 // nothing but what every image has
	FromURoot                     // u-root's commands
	FromStage                     // an earlier stage of the file
	FromSets                      // NetBSD's sets, or archives and folders
	FromImage                     // an image of the store
)

// From is a FROM, its variables expanded.
type From struct {
	Kind  Source
	Stage *Stage // FromStage
	Sets  []Set  // FromSets
	Image string // FromImage: a reference
}

// Set is a set of NetBSD's, or all or part of an archive or folder that is
// unpacked as one.
type Set struct {
	Name string // "base", or a path of the build context
	Path bool   // Name is a path
	Glob string // only what fits, "" is all
}

// setNames are NetBSD's sets, in src/distrib/sets.
func setNames() []string {
	return []string{"base", "base32", "comp", "debug", "debug32", "dtb", "etc", "games", "gpufw", "man", "manhtml", "misc", "modules", "rescue",
		"tests", "text", "xbase", "xcomp", "xdebug", "xetc", "xfont", "xserver"}
}

func isSet(name string) bool {
	if strings.HasPrefix(name, "kern-") {
		return true
	}
	for _, n := range setNames() {
		if n == name {
			return true
		}
	}
	return false
}

// archive says whether a name is one of a tar archive.
func archive(name string) bool {
	for _, ext := range []string{".tar", ".tgz", ".txz", ".tzst", ".tar.gz", ".tar.xz", ".tar.zst"} {
		if strings.HasSuffix(name, ext) {
			return true
		}
	}
	return false
}

// ParseFrom says what the expanded text of a stage's FROM stands for.
func (f *File) ParseFrom(s *Stage, text string) (From, error) {
	at := func(word string) Pos { return s.Pos }
	switch strings.ToLower(text) {
	case "":
		return From{}, errorf(at(""), "FROM: the name is empty here").hint("give sets (base,etc), an image, scratch or u-root")
	case "scratch":
		return From{Kind: FromScratch}, nil
	case "u-root":
		return From{Kind: FromURoot}, nil
	}
	if st := f.Stage(text, s.Index); st != nil && st.Name != "" && strings.EqualFold(st.Name, text) {
		return From{Kind: FromStage, Stage: st}, nil
	}
	parts := strings.Split(text, ",")
	var sets []Set
	for _, p := range parts {
		set, ok := parseSet(p)
		if !ok {
			if len(parts) > 1 {
				e := errorf(at(p), "FROM: %q is no set", p)
				if near := nearest(p, setNames()); near != "" {
					return From{}, e.hint("%s is", near)
				}
				return From{}, e.hint("NetBSD's are %s; a folder or archive of the context begins with ./", strings.Join(setNames(), " "))
			}
			return From{Kind: FromImage, Image: strings.TrimSuffix(text, ".img")}, nil
		}
		sets = append(sets, set)
	}
	return From{Kind: FromSets, Sets: sets}, nil
}

func parseSet(s string) (Set, bool) {
	name, glob, _ := strings.Cut(s, ":")
	if isSet(name) {
		// A tag is no path: base:latest is an image.
		if glob != "" && !strings.ContainsAny(glob, "/*?[") {
			return Set{}, false
		}
		return Set{Name: name, Glob: glob}, true
	}
	if archive(name) && isSet(strings.TrimSuffix(name[:strings.IndexByte(name, '.')+1], ".")) && !strings.Contains(name, "/") {
		// base.tar.xz is smolBSD's own spelling of the set.
		return Set{Name: name[:strings.IndexByte(name, '.')], Glob: glob}, true
	}
	if strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || strings.HasPrefix(name, "/") || archive(name) {
		return Set{Name: name, Path: true, Glob: glob}, true
	}
	return Set{}, false
}

// nearest gives the one of names that a mistyped word may have meant, or "".
func nearest(word string, names []string) string {
	best, at := "", 3
	for _, n := range names {
		if d := distance(strings.ToLower(word), strings.ToLower(n)); d < at && 2*d < len(n) {
			best, at = n, d
		}
	}
	return best
}

// distance is how many letters two words of at most 32 bytes differ by, two that
// have changed places counting once (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 32 || len(b) > 32 {
		return 32
	}
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			d := last[j]
			if a[i] != b[j] {
				d++
			}
			d = min(d, row[j]+1, last[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, before[j-1]+1)
			}
			row[j+1] = d
		}
		before, last = last, row
	}
	return last[len(b)]
}
