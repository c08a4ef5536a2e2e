package main

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// readiness is what --ready says.
type readiness struct {
	kind  string // start, mark, agent, console or port
	mark  byte   // with kind mark; 0: any that says so
	regex *regexp.Regexp
	port  uint16
	text  string
}

// Marks that say that a guest is ready, besides --ready mark:N (docs/guest-contract.md).
const (
	markInit  = 16 // smolinit runs
	markReady = 17 // for guests that know better
)

const readyForms = "must be start, mark, mark:N, agent, console:REGEX or port:N"

// maxRegex bounds an expression, in bytes; its time is linear in its length.
const maxRegex = 4096

func parseReady(s string) (r readiness, err error) {
	kind, value, has := strings.Cut(s, ":")
	r.kind, r.text = kind, s
	switch {
	case !has && (kind == "start" || kind == "mark" || kind == "agent"):
		return r, nil
	case kind == "mark":
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil || n == 0 {
			return r, cli.Usagef("-ready %q: a mark is a number from 1 to 255", s)
		}
		r.mark = byte(n)
		return r, nil
	case kind == "console" && value != "":
		if len(value) > maxRegex {
			return r, cli.Usagef("-ready console: an expression of more than %d bytes", maxRegex)
		}
		if r.regex, err = regexp.Compile(value); err != nil {
			return r, cli.Usagef("-ready %q: %w", s, err)
		}
		return r, nil
	case kind == "port":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return r, cli.Usagef("-ready %q: a port is a number from 1 to 65535", s)
		}
		r.port = uint16(n)
		return r, nil
	}
	return r, cli.Usagef("-ready %q: %s", s, readyForms)
}

// says tells whether a mark makes the guest ready.
func (r readiness) says(mark byte) bool {
	switch {
	case r.kind != "mark":
		return false
	case r.mark != 0:
		return mark == r.mark
	}
	return mark == demo.MarkMode || mark == markInit || mark == markReady
}

// maxPrompt is how much of a line without an end is looked at, in bytes.
const maxPrompt = 4096

// matcher looks for an expression in the lines of what is printed, and in the
// line that has no end yet: a prompt has none.
type matcher struct {
	re   *regexp.Regexp
	line []byte
}

// write says whether a line matches, and which.
func (m *matcher) write(p []byte) (string, bool) {
	for len(p) > 0 {
		part, rest, ended := cutLine(p)
		if room := maxPrompt - len(m.line); len(part) > room {
			part = part[:room]
		}
		m.line = append(m.line, part...)
		text := strings.TrimRight(string(m.line), "\r")
		if m.re.MatchString(text) {
			return text, true
		}
		if ended {
			m.line = m.line[:0]
		}
		p = rest
	}
	return "", false
}

func cutLine(p []byte) (line, rest []byte, ended bool) {
	for i, c := range p {
		if c == '\n' {
			return p[:i], p[i+1:], true
		}
	}
	return p, nil, false
}
