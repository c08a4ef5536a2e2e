package dialect

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// span is which lines an instruction has, counted from 1.
type span struct{ start, end int }

// source is a file's text, for the places of its words.
type source struct {
	name  string
	lines []string
}

func newSource(name string, text []byte) *source {
	return &source{name: name, lines: strings.Split(strings.TrimPrefix(string(text), "\ufeff"), "\n")}
}

// find gives the place of a word of an instruction, behind its keyword; where it
// is not to be found, or is "", that of the instruction.
func (s *source) find(n span, word string) Pos {
	p := Pos{File: s.name, Line: max(n.start, 1), Col: 1}
	if n.start < 1 || n.start > len(s.lines) {
		return p
	}
	first := s.lines[n.start-1]
	indent := len(first) - len(strings.TrimLeft(first, " \t\v\f\r"))
	p.Col = utf8.RuneCountInString(first[:indent]) + 1
	if word == "" {
		return p
	}
	from := indent
	if i := strings.IndexAny(first[indent:], " \t"); i >= 0 {
		from += i
	}
	for l := n.start; l <= min(n.end, len(s.lines)); l++ {
		line := s.lines[l-1]
		if i := index(line[from:], word); i >= 0 {
			return Pos{File: s.name, Line: l, Col: utf8.RuneCountInString(line[:from+i]) + 1}
		}
		from = 0
	}
	return p
}

// index finds a word that stands by itself, or else as a part of another.
func index(line, word string) int {
	const around = " \t\r,=:\"'[]{}"
	for from := 0; ; {
		i := strings.Index(line[from:], word)
		if i < 0 {
			return strings.Index(line, word)
		}
		i += from
		end := i + len(word)
		if (i == 0 || strings.IndexByte(around, line[i-1]) >= 0) && (end == len(line) || strings.IndexByte(around, line[end]) >= 0) {
			return i
		}
		from = end
	}
}

// loosen puts a space in front of each heredoc that follows a word at once, as in
// `cat >file<<EOF`, which a shell and smolBSD take and BuildKit's parser does not
// see. It does so only where the heredoc's end is there, so that `1<<BITS` stays.
func loosen(text []byte) []byte {
	if !bytes.Contains(text, []byte("<<")) {
		return text
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	// ends has the last line of each text, so that a heredoc without an end is
	// known without a search.
	last := map[string]int{}
	for i, l := range lines {
		last[strings.TrimLeft(strings.TrimRight(string(l), "\r\n"), "\t")] = i
	}
	escape := byte('\\')
	directives := true
	var open []string // heredocs that are to come or under way
	continued, mayHave := false, false
	var out []byte
	for i, l := range lines {
		line := string(l)
		bare := strings.TrimSpace(line)
		if len(open) > 0 && !continued {
			if strings.TrimLeft(strings.TrimRight(line, "\r\n"), "\t") == open[0] {
				open = open[1:]
			}
			out = append(out, l...)
			continue
		}
		if strings.HasPrefix(bare, "#") {
			if name, value, ok := strings.Cut(bare[1:], "="); directives && ok && strings.EqualFold(strings.TrimSpace(name), "escape") && strings.TrimSpace(value) == "`" {
				escape = '`'
			}
			out = append(out, l...)
			continue
		}
		directives = false
		if bare == "" {
			out = append(out, l...)
			continue
		}
		if !continued {
			word, _, _ := strings.Cut(strings.ReplaceAll(bare, "\t", " "), " ")
			switch strings.ToUpper(word) {
			case "RUN", "COPY", "ADD":
				mayHave = true
			default:
				mayHave = false
			}
		}
		if mayHave {
			var names []string
			line, names = loosenLine(line, func(name string) bool { return last[name] > i })
			open = append(open, names...)
		}
		t := strings.TrimRight(line, " \t\r\n")
		continued = strings.HasSuffix(t, string(escape)) && !strings.HasSuffix(t, string([]byte{escape, escape}))
		out = append(out, line...)
	}
	return out
}

// loosenLine does it for a line of an instruction, and gives the names of all its
// heredocs. ends says whether a name ends one further down.
func loosenLine(line string, ends func(string) bool) (string, []string) {
	var out strings.Builder
	var names []string
	quote := byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			} else if c == '\\' && quote == '"' && i+1 < len(line) {
				out.WriteByte(c)
				i++
				c = line[i]
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '\\' && i+1 < len(line):
			out.WriteByte(c)
			i++
			c = line[i]
		case strings.HasPrefix(line[i:], "<<<"):
			out.WriteString("<<<")
			i += 2
			continue
		case strings.HasPrefix(line[i:], "<<"):
			name, length := heredocName(line[i:])
			if name == "" || !ends(name) {
				break
			}
			names = append(names, name)
			if i > 0 && !strings.ContainsRune(" \t0123456789", rune(line[i-1])) {
				out.WriteByte(' ')
			}
			out.WriteString(line[i : i+length])
			// What follows at once, as in `<<EOF>file`, is a word of its own.
			if i+length < len(line) && strings.ContainsRune("<>|&;", rune(line[i+length])) {
				out.WriteByte(' ')
			}
			i += length - 1
			continue
		}
		out.WriteByte(c)
	}
	return out.String(), names
}

// heredocName reads `<<NAME`, `<<-NAME` or a quoted name at the start of s, and
// gives how many bytes it has.
func heredocName(s string) (name string, length int) {
	i := 2
	if i < len(s) && s[i] == '-' {
		i++
	}
	quote := byte(0)
	if i < len(s) && (s[i] == '\'' || s[i] == '"') {
		quote = s[i]
		i++
	}
	from := i
	for i < len(s) && (s[i] == '_' || s[i] >= '0' && s[i] <= '9' && i > from || s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z') {
		i++
	}
	name = s[from:i]
	if quote != 0 {
		if i >= len(s) || s[i] != quote {
			return "", 0
		}
		i++
	}
	return name, i
}
