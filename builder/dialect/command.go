package dialect

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// DefaultShell runs shell forms until a SHELL says otherwise.
func DefaultShell() []string { return []string{"/bin/sh", "-c"} }

// Command gives what a RUN executes: words, and where script is not nil, the text
// of a program that has to be in a file, whose path takes the place of words[0].
//
// A heredoc alone is the program's text. A command with heredocs is put together
// again for the shell.
//
// smolBSD's builder hands the text of a RUN to a shell in double quotes, so that it
// is expanded twice: `\$HOME` there is what `$HOME` is elsewhere, and its files are
// written so. With smol set that is done here too. deferred are arguments whose
// defaults the guest's shell computes first.
func (r *Run) Command(shell []string, smol bool, deferred []*Arg) (words []string, script []byte) {
	var before strings.Builder
	for _, a := range deferred {
		before.WriteString(a.Name + "=" + *a.Default + "; export " + a.Name + "; ")
	}
	if r.Argv != nil {
		return behind(before.String(), r.Argv), nil
	}
	text := r.Script
	if len(r.Heredocs) > 0 {
		if parser.MustParseHeredoc(text) != nil {
			text = r.Heredocs[0].Content
			if strings.HasPrefix(text, "#!") && len(deferred) == 0 {
				return []string{""}, []byte(text)
			}
		} else {
			var b strings.Builder
			b.WriteString(text + "\n")
			for _, h := range r.Heredocs {
				b.WriteString(h.Content + h.Name + "\n")
			}
			text = b.String()
		}
	}
	if !smol {
		return behind(before.String(), append(append([]string{}, shell...), text)), nil
	}
	before.WriteString("exec")
	for _, w := range shell {
		before.WriteString(" " + single(w))
	}
	before.WriteString(` "` + inDouble(text) + `"`)
	return append(DefaultShell(), before.String()), nil
}

// behind puts commands of a shell in front of a command.
func behind(before string, argv []string) []string {
	if before == "" {
		return append([]string{}, argv...)
	}
	return append(append(DefaultShell(), before+`exec "$@"`, "sh"), argv...)
}

// single quotes a word for a shell.
func single(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// inDouble makes the double quotes of a text ones within double quotes. All else
// is the shell's to expand.
func inDouble(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			if s[i+1] == '"' {
				b.WriteString(`\\\"`)
			} else {
				b.WriteString(s[i : i+2])
			}
			i++
		case s[i] == '"':
			b.WriteString(`\"`)
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
