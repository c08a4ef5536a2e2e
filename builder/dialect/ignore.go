package dialect

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// maxPatterns bounds a .dockerignore: each pattern is tried on each file.
const maxPatterns = 1000

// Patterns are those of a .dockerignore, or of --exclude.
type Patterns struct {
	m *patternmatcher.PatternMatcher
}

// ReadIgnore reads a .dockerignore.
func ReadIgnore(text []byte) (*Patterns, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("the file has %d bytes, at most %d", len(text), maxFile)
	}
	ps, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return NewPatterns(ps)
}

// NewPatterns takes patterns as a .dockerignore has them.
func NewPatterns(ps []string) (*Patterns, error) {
	if len(ps) > maxPatterns {
		return nil, fmt.Errorf("%d patterns, at most %d", len(ps), maxPatterns)
	}
	m, err := patternmatcher.New(ps)
	if err != nil {
		return nil, err
	}
	// A pattern is compiled when it is first tried.
	if _, err := m.MatchesOrParentMatches("x"); err != nil {
		return nil, err
	}
	return &Patterns{m}, nil
}

// Match says whether a path, relative and with slashes, is left out. It is not
// for several goroutines at once.
func (p *Patterns) Match(name string) (bool, error) {
	if p == nil {
		return false, nil
	}
	return p.m.MatchesOrParentMatches(name)
}

// Negated says whether a pattern takes something in again, so that a folder that
// is left out has to be looked into all the same.
func (p *Patterns) Negated() bool { return p != nil && p.m.Exclusions() }

// Glob says whether a path of a set fits a pattern as bsdtar's --include has it:
// `*` and `?` stand for slashes too, and a pattern that fits a folder takes in
// what is below.
func Glob(pattern, name string) bool {
	pattern = strings.Trim(strings.TrimPrefix(path.Clean("/"+pattern), "/"), "/")
	name = strings.Trim(name, "/")
	if pattern == "" {
		return true
	}
	for {
		if wild(pattern, name) {
			return true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}

// wild matches *, ? and [sets] in time proportional to the product of the lengths.
func wild(p, s string) bool {
	pi, si, star, back := 0, 0, -1, 0
	for si < len(s) {
		if pi < len(p) {
			switch p[pi] {
			case '*':
				star, back = pi, si
				pi++
				continue
			case '?':
				pi, si = pi+1, si+1
				continue
			case '[':
				if ok, n := class(p[pi:], s[si]); n > 0 && ok {
					pi, si = pi+n, si+1
					continue
				} else if n == 0 && s[si] == '[' {
					pi, si = pi+1, si+1
					continue
				}
			case '\\':
				if pi+1 < len(p) && p[pi+1] == s[si] {
					pi, si = pi+2, si+1
					continue
				}
			default:
				if p[pi] == s[si] {
					pi, si = pi+1, si+1
					continue
				}
			}
		}
		if star < 0 {
			return false
		}
		back++
		pi, si = star+1, back
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

// class matches a byte against a set at the start of p and gives the set's
// length, 0 where it is not closed.
func class(p string, c byte) (ok bool, length int) {
	i := 1
	not := i < len(p) && (p[i] == '!' || p[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(p) && (first || p[i] != ']'); first = false {
		lo, hi := p[i], p[i]
		i++
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			hi = p[i+1]
			i += 2
		}
		ok = ok || lo <= c && c <= hi
	}
	if i >= len(p) {
		return false, 0
	}
	return ok != not, i + 1
}
