package dialect

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Limits of variables: without them a few lines that double a value fill any memory.
const (
	maxValue  = 64 << 10 // bytes of a value; a NetBSD command line has 256 KiB
	maxExpand = 8 << 20  // bytes that one word could at most become
)

// Vars are the variables of a stage at one of its instructions: ENV over ARG.
// The zero value is not usable; see NewVars.
type Vars struct {
	escape   rune
	env      map[string]string
	order    []string // of env, as first set
	args     map[string]string
	deferred map[string]*Arg
}

// NewVars makes variables out of those of the base image, "NAME=VALUE".
func NewVars(escape rune, env []string) *Vars {
	v := &Vars{escape: escape, env: map[string]string{}, args: map[string]string{}, deferred: map[string]*Arg{}}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		v.SetEnv(name, value)
	}
	return v
}

// SetEnv sets a variable of the image.
func (v *Vars) SetEnv(name, value string) {
	if _, ok := v.env[name]; !ok {
		v.order = append(v.order, name)
	}
	v.env[name] = value
}

// SetArg sets a build argument.
func (v *Vars) SetArg(name, value string) {
	v.args[name] = value
	delete(v.deferred, name)
}

// Defer declares an argument whose default only a shell in the guest can tell.
func (v *Vars) Defer(a *Arg) {
	delete(v.args, a.Name)
	v.deferred[a.Name] = a
}

// Env gives the image's variables as "NAME=VALUE", in the order of their first ENV.
func (v *Vars) Env() []string {
	out := make([]string, 0, len(v.order))
	for _, n := range v.order {
		out = append(out, n+"="+v.env[n])
	}
	return out
}

// Args gives the arguments as "NAME=VALUE" that no ENV hides, by name.
func (v *Vars) Args() []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(v.args)) {
		if _, ok := v.env[n]; !ok {
			out = append(out, n+"="+v.args[n])
		}
	}
	return out
}

// Deferred gives the arguments that a shell has to compute, by name.
func (v *Vars) Deferred() []*Arg {
	var out []*Arg
	for _, n := range slices.Sorted(maps.Keys(v.deferred)) {
		if _, ok := v.env[n]; !ok {
			out = append(out, v.deferred[n])
		}
	}
	return out
}

// Arg gives the value of a build argument, which ENV does not hide.
func (v *Vars) Arg(name string) (string, bool) {
	s, ok := v.args[name]
	return s, ok
}

// Get is shell.EnvGetter's.
func (v *Vars) Get(name string) (string, bool) {
	if s, ok := v.env[name]; ok {
		return s, true
	}
	s, ok := v.args[name]
	return s, ok
}

// Keys is shell.EnvGetter's.
func (v *Vars) Keys() []string {
	return slices.Concat(slices.Sorted(maps.Keys(v.env)), slices.Sorted(maps.Keys(v.args)))
}

// word expands one word of an instruction and takes its quotes away.
func (v *Vars) word(b *Base, s string) (string, error) {
	return v.expand(b, s, false)
}

// text expands the body of a heredoc, where quotes are characters as any other.
func (v *Vars) text(b *Base, s string) (string, error) {
	return v.expand(b, s, true)
}

func (v *Vars) expand(b *Base, s string, quotes bool) (string, error) {
	if !quotes && !strings.ContainsAny(s, "$'\""+string(v.escape)) || quotes && !strings.ContainsAny(s, "$"+string(v.escape)) {
		return s, nil
	}
	if n := strings.Count(s, "$"); n > 0 {
		longest := 0
		for _, m := range []map[string]string{v.env, v.args} {
			for _, value := range m {
				longest = max(longest, len(value))
			}
		}
		if n*longest > maxExpand {
			return "", b.Errorf("$", "the variables here could become more than %d MiB", maxExpand>>20)
		}
	}
	if len(v.deferred) > 0 {
		for name := range v.deferred {
			if _, hidden := v.env[name]; !hidden && mentions(s, name) {
				return "", b.Errorf("$", "the default of ARG %s is a command, which only RUN can execute", name).
					hint("give its value: --build-arg %s=VALUE", name)
			}
		}
	}
	lex := shell.NewLex(v.escape)
	lex.SkipProcessQuotes = quotes
	out, _, err := lex.ProcessWord(s, v)
	if err != nil {
		msg := cause(err)
		if strings.ContainsRune(msg, '\ufffd') { // the end of the text, named as a character
			msg = "syntax error: missing '}'"
		}
		return "", b.Errorf("$", "%s", msg)
	}
	return out, nil
}

// mentions says whether s has a $name or ${name.
func mentions(s, name string) bool {
	for {
		i := strings.Index(s, "$")
		if i < 0 {
			return false
		}
		s = s[i+1:]
		t := strings.TrimPrefix(s, "{")
		if rest, ok := strings.CutPrefix(t, name); ok && (rest == "" || !nameByte(rest[0])) {
			return true
		}
	}
}

func nameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// validName: what a shell takes as a variable's name.
func validName(s string) bool {
	for i := 0; i < len(s); i++ {
		if !nameByte(s[i]) || i == 0 && s[i] >= '0' && s[i] <= '9' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// cause is the innermost message of an error: what is around it quotes the whole
// word, which the place already tells.
func cause(err error) string {
	for {
		next := unwrapped(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// words expands several words.
func (v *Vars) words(b *Base, in []string) ([]string, error) {
	out := make([]string, len(in))
	for i, s := range in {
		var err error
		if out[i], err = v.word(b, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fields expands words that may become several, or none.
func (v *Vars) fields(b *Base, in []string) ([]string, error) {
	var out []string
	for _, s := range in {
		w, err := v.word(b, s)
		if err != nil {
			return nil, err
		}
		out = append(out, strings.Fields(w)...)
	}
	return out, nil
}

func (v *Vars) pairs(b *Base, in []Pair) ([]Pair, error) {
	out := make([]Pair, len(in))
	for i, p := range in {
		name, err := v.word(b, p.Name)
		if err != nil {
			return nil, err
		}
		value, err := v.word(b, p.Value)
		if err != nil {
			return nil, err
		}
		if len(value) > maxValue {
			return nil, b.Errorf(p.Name, "the value of %s has %d bytes, at most %d", name, len(value), maxValue)
		}
		out[i] = Pair{name, value}
	}
	return out, nil
}
