package dialect

import (
	"strings"
	"unicode/utf8"
)

// The methods of this file give a copy of an instruction whose variables are
// expanded, as Docker has it: RUN's, CMD's and ENTRYPOINT's text is left to the
// shell that executes it.

// ExpandFrom expands what a FROM says.
func (s *Stage) ExpandFrom(v *Vars) (string, error) { return v.word(&s.line, s.From) }

// Arg gives the value of a declared argument, and false where it has none. given
// are the caller's, global those from before the first FROM.
func (v *Vars) ArgValue(a *Arg, given, global map[string]string) (string, bool, error) {
	if s, ok := given[a.Name]; ok {
		switch {
		case len(s) > maxValue:
			return "", false, a.Errorf(a.Name, "the value of %s has %d bytes, at most %d", a.Name, len(s), maxValue)
		case !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0:
			return "", false, a.Errorf(a.Name, "the value that %s is given is not UTF-8, or has a NUL byte", a.Name)
		}
		return s, true, nil
	}
	if a.Default == nil {
		s, ok := global[a.Name]
		return s, ok, nil
	}
	s, err := v.word(&a.Base, *a.Default)
	if err == nil && len(s) > maxValue {
		err = a.Errorf(a.Name, "the value of %s has %d bytes, at most %d", a.Name, len(s), maxValue)
	}
	return s, err == nil, err
}

// Env expands an ENV: its values see the variables from before it.
func (v *Vars) ExpandEnv(e *Env) (*Env, error) {
	out := *e
	var err error
	if out.Pairs, err = v.pairs(&e.Base, e.Pairs); err != nil {
		return nil, err
	}
	for _, p := range out.Pairs {
		if err := e.variable(p.Name); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

// variable holds a name to what a shell, and smolinit, take for one.
func (b *Base) variable(name string) error {
	if !validName(name) {
		return b.Errorf(name, "%.300q is no name of a variable", name).hint("letters, digits and underscores, no digit first, at most 255")
	}
	return nil
}

// ExpandLabel expands a LABEL.
func (v *Vars) ExpandLabel(l *Label) (*Label, error) {
	out := *l
	var err error
	out.Pairs, err = v.pairs(&l.Base, l.Pairs)
	return &out, err
}

// ExpandCopy expands a COPY or ADD; the bodies of its heredocs too, unless their
// name was quoted.
func (v *Vars) ExpandCopy(c *Copy) (*Copy, error) {
	out := *c
	out.Sources = make([]string, len(c.Sources))
	for i, s := range c.Sources {
		if strings.HasPrefix(s, "<<") {
			out.Sources[i] = s
			continue
		}
		var err error
		if out.Sources[i], err = v.word(&c.Base, s); err != nil {
			return nil, err
		}
	}
	for _, f := range []*string{&out.Dest, &out.From, &out.Chown, &out.Chmod, &out.Checksum} {
		var err error
		if *f, err = v.word(&c.Base, *f); err != nil {
			return nil, err
		}
	}
	var err error
	if out.Exclude, err = v.words(&c.Base, c.Exclude); err != nil {
		return nil, err
	}
	out.Heredocs = make([]Heredoc, len(c.Heredocs))
	for i, h := range c.Heredocs {
		if h.Expand {
			if h.Content, err = v.text(&c.Base, h.Content); err != nil {
				return nil, err
			}
		}
		out.Heredocs[i] = h
	}
	return &out, nil
}

// ExpandRun expands what RUN's --mount flags say, and nothing else of it.
func (v *Vars) ExpandRun(r *Run) (*Run, error) {
	out := *r
	out.Mounts = make([]Mount, len(r.Mounts))
	for i, m := range r.Mounts {
		for _, f := range []*string{&m.ID, &m.Target, &m.Source, &m.From, &m.Env} {
			var err error
			if *f, err = v.word(&r.Base, *f); err != nil {
				return nil, err
			}
		}
		if m.Env != "" {
			if err := r.variable(m.Env); err != nil {
				return nil, err
			}
		}
		out.Mounts[i] = m
	}
	return &out, nil
}

// ExpandUser expands a USER.
func (v *Vars) ExpandUser(u *User) (string, error) {
	s, err := v.word(&u.Base, u.Name)
	if err == nil && s == "" {
		err = u.Errorf("", "USER: the name is empty here")
	}
	return s, err
}

// ExpandWorkdir expands a WORKDIR.
func (v *Vars) ExpandWorkdir(w *Workdir) (string, error) {
	s, err := v.word(&w.Base, w.Path)
	if err == nil && s == "" {
		err = w.Errorf("", "WORKDIR: the path is empty here")
	}
	return s, err
}

// ExpandVolume expands a VOLUME.
func (v *Vars) ExpandVolume(o *Volume) ([]string, error) { return v.words(&o.Base, o.Paths) }

// ExpandExpose expands an EXPOSE and checks its ports.
func (v *Vars) ExpandExpose(e *Expose) ([]Port, error) {
	words, err := v.fields(&e.Base, e.Ports)
	if err != nil {
		return nil, err
	}
	var out []Port
	for _, w := range words {
		ps, err := parsePort(w)
		if err != nil {
			return nil, e.Errorf(w, "EXPOSE %s: %v", w, err).hint("as 80, 80/udp, 8000-8010 or, to publish it too, 8080:80")
		}
		out = append(out, ps...)
	}
	return out, nil
}

// ExpandStopSignal expands a STOPSIGNAL.
func (v *Vars) ExpandStopSignal(s *StopSignal) (string, error) { return v.word(&s.Base, s.Signal) }
