package dialect

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// maker makes an instruction out of the parser's node.
type maker func(n *parser.Node, b Base) (Instruction, error)

// makers are all instructions but FROM, INCLUDE and what is refused.
func makers() map[string]maker {
	return map[string]maker{
		"ADD":         makeCopy,
		"ARG":         nil, // makes several
		"CMD":         makeCmd,
		"COPY":        makeCopy,
		"ENTRYPOINT":  makeEntrypoint,
		"ENV":         makeEnv,
		"EXPOSE":      makeExpose,
		"HEALTHCHECK": makeHealthcheck,
		"LABEL":       makeLabel,
		"MAINTAINER":  makeMaintainer,
		"RUN":         makeRun,
		"SHELL":       makeShell,
		"STOPSIGNAL":  makeStopSignal,
		"USER":        makeUser,
		"VOLUME":      makeVolume,
		"WORKDIR":     makeWorkdir,
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

// noFlags refuses flags.
func noFlags(n *parser.Node, b Base) error {
	if len(n.Flags) > 0 {
		return b.Errorf(n.Flags[0], "%s has no flags", strings.ToUpper(n.Value))
	}
	return nil
}

// rest is what is behind the keyword, as written.
func rest(n *parser.Node, b Base) string {
	return strings.TrimSpace(b.Text[min(len(n.Value), len(b.Text)):])
}

func makeArgs(n *parser.Node, b Base) ([]*Arg, error) {
	if err := noFlags(n, b); err != nil {
		return nil, err
	}
	text := rest(n, b)
	words := list(n.Next)
	if substitution(text) {
		// Docker splits such a default at its spaces; smolBSD hands it to a shell.
		words = []string{text}
	}
	if len(words) == 0 {
		return nil, errorf(b.Pos, "ARG needs a name")
	}
	var out []*Arg
	for _, w := range words {
		a := &Arg{Base: b}
		name, value, ok := strings.Cut(w, "=")
		if a.Name = strings.Trim(name, `"'`); !validName(a.Name) {
			return nil, b.Errorf(w, "%q is no name of an argument", a.Name).hint("letters, digits and underscores, no digit first")
		}
		if ok {
			a.Default = &value
			a.Deferred = substitution(value)
		}
		out = append(out, a)
	}
	return out, nil
}

// substitution says whether a shell would execute a command in the text, which is
// `$(…)` or backquotes outside single quotes.
func substitution(s string) bool {
	quote := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'':
			quote = !quote
		case quote:
		case s[i] == '\\':
			i++
		case s[i] == '`', strings.HasPrefix(s[i:], "$(") && !strings.HasPrefix(s[i:], "$(("):
			return true
		}
	}
	return false
}

// pairsOf reads the parser's triples: name, value, "=" or "".
func pairsOf(n *parser.Node, b Base) ([]Pair, error) {
	if err := noFlags(n, b); err != nil {
		return nil, err
	}
	var out []Pair
	for m := n.Next; m != nil; {
		p := Pair{Name: m.Value}
		if m = m.Next; m == nil {
			break
		}
		p.Value = m.Value
		if m = m.Next; m != nil {
			m = m.Next
		}
		if p.Name == "" {
			return nil, b.Errorf("=", "%s: a value without a name", strings.ToUpper(n.Value))
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, errorf(b.Pos, "%s needs NAME=VALUE", strings.ToUpper(n.Value))
	}
	return out, nil
}

func makeEnv(n *parser.Node, b Base) (Instruction, error) {
	ps, err := pairsOf(n, b)
	return &Env{b, ps}, err
}

func makeLabel(n *parser.Node, b Base) (Instruction, error) {
	ps, err := pairsOf(n, b)
	return &Label{b, ps}, err
}

func makeMaintainer(n *parser.Node, b Base) (Instruction, error) {
	s, err := one(n, b)
	return &Label{b, []Pair{{"maintainer", s}}}, err
}

// one is the single argument of an instruction.
func one(n *parser.Node, b Base) (string, error) {
	if err := noFlags(n, b); err != nil {
		return "", err
	}
	if n.Next == nil || strings.TrimSpace(n.Next.Value) == "" {
		return "", errorf(b.Pos, "%s needs an argument", strings.ToUpper(n.Value))
	}
	return strings.TrimSpace(n.Next.Value), nil
}

func makeUser(n *parser.Node, b Base) (Instruction, error) {
	s, err := one(n, b)
	return &User{b, s}, err
}

func makeWorkdir(n *parser.Node, b Base) (Instruction, error) {
	s, err := one(n, b)
	return &Workdir{b, s}, err
}

func makeStopSignal(n *parser.Node, b Base) (Instruction, error) {
	s, err := one(n, b)
	return &StopSignal{b, s}, err
}

func makeVolume(n *parser.Node, b Base) (Instruction, error) {
	if err := noFlags(n, b); err != nil {
		return nil, err
	}
	paths := list(n.Next)
	if len(paths) == 0 {
		return nil, errorf(b.Pos, "VOLUME needs a path")
	}
	return &Volume{b, paths}, nil
}

func makeExpose(n *parser.Node, b Base) (Instruction, error) {
	if err := noFlags(n, b); err != nil {
		return nil, err
	}
	ports := list(n.Next)
	if len(ports) == 0 {
		return nil, errorf(b.Pos, "EXPOSE needs a port")
	}
	return &Expose{b, ports}, nil
}

func makeShell(n *parser.Node, b Base) (Instruction, error) {
	if err := noFlags(n, b); err != nil {
		return nil, err
	}
	argv := chain(n.Next)
	if !n.Attributes["json"] || len(argv) == 0 {
		return nil, b.Errorf(rest(n, b), "SHELL needs a JSON list").hint(`as SHELL ["/bin/ksh", "-c"]`)
	}
	return &Shell{b, argv}, nil
}

// chain are the values of a JSON list: an empty string is one too.
func chain(n *parser.Node) []string {
	var out []string
	for ; n != nil; n = n.Next {
		out = append(out, n.Value)
	}
	return out
}

// command reads what CMD and ENTRYPOINT have.
func command(n *parser.Node, b Base) (Command, error) {
	if err := noFlags(n, b); err != nil {
		return Command{}, err
	}
	c, ok := commandOf(n.Next, n.Attributes["json"])
	if !ok {
		return c, errorf(b.Pos, "%s needs a command", strings.ToUpper(n.Value))
	}
	return c, almostJSON(c, b)
}

func commandOf(n *parser.Node, json bool) (Command, bool) {
	argv := chain(n)
	if json {
		return Command{Argv: argv}, true // CMD [] takes the base image's away
	}
	if len(argv) == 0 || strings.TrimSpace(argv[0]) == "" {
		return Command{}, false
	}
	return Command{Argv: argv[:1], Shell: true}, true
}

// almostJSON finds a list that is none for its quotes: Docker gives it to a shell,
// which looks for a program named "[/bin/app,".
func almostJSON(c Command, b Base) error {
	if !c.Shell {
		return nil
	}
	s := strings.TrimSpace(c.Argv[0])
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") && !strings.HasPrefix(s, "[[") && !strings.HasPrefix(s, "[ ") && !json.Valid([]byte(s)) {
		return b.Errorf("[", "this list is no JSON").hint(`as ["/bin/app", "--flag"], in double quotes`)
	}
	return nil
}

func makeCmd(n *parser.Node, b Base) (Instruction, error) {
	c, err := command(n, b)
	return &Cmd{b, c}, err
}

func makeEntrypoint(n *parser.Node, b Base) (Instruction, error) {
	c, err := command(n, b)
	return &Entrypoint{b, c}, err
}

func heredocs(n *parser.Node) []Heredoc {
	var out []Heredoc
	for _, h := range n.Heredocs {
		c := h.Content
		if h.Chomp {
			c = parser.ChompHeredocContent(c)
		}
		out = append(out, Heredoc{Name: h.Name, Content: c, Expand: h.Expand})
	}
	return out
}

func makeRun(n *parser.Node, b Base) (Instruction, error) {
	r := &Run{Base: b, Network: "default", Heredocs: heredocs(n)}
	for _, f := range n.Flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		switch name {
		case "mount":
			m, err := parseMount(f, value, &b)
			if err != nil {
				return nil, err
			}
			r.Mounts = append(r.Mounts, m)
		case "network":
			if value != "default" && value != "none" {
				return nil, b.Errorf(f, "RUN --network=%s is not supported", value).hint("default, which is what -egress allows, and none are")
			}
			r.Network = value
		case "security", "device":
			return nil, b.Errorf(f, "RUN --%s is not supported", name).hint("a step has a machine of its own and is root in it: leave the flag out")
		default:
			return nil, unknownFlag("RUN", f, name, &b, "mount", "network")
		}
	}
	c, ok := commandOf(n.Next, n.Attributes["json"])
	if !ok || len(c.Argv) == 0 {
		return nil, errorf(b.Pos, "RUN needs a command")
	}
	if err := almostJSON(c, b); err != nil {
		return nil, err
	}
	if c.Shell {
		r.Script = strings.TrimLeftFunc(c.Argv[0], unicode.IsSpace)
	} else {
		r.Argv = c.Argv
	}
	return r, nil
}

// unknownFlag is about a flag that an instruction does not have.
func unknownFlag(keyword, flag, name string, b *Base, names ...string) error {
	e := b.Errorf(flag, "%s has no flag --%s", keyword, name)
	if near := nearest(name, names); near != "" {
		return e.hint("--%s is one", near)
	}
	return e.hint("it has --%s", strings.Join(names, ", --"))
}

func makeCopy(n *parser.Node, b Base) (Instruction, error) {
	c := &Copy{Base: b, Add: strings.EqualFold(n.Value, "ADD"), Heredocs: heredocs(n)}
	keyword := strings.ToUpper(n.Value)
	seen := map[string]bool{}
	for _, f := range n.Flags {
		name, value, hasValue := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if seen[name] && name != "exclude" {
			return nil, b.Errorf(f, "--%s is given twice", name)
		}
		seen[name] = true
		switch {
		case name == "link" && (!hasValue || isBool(value)):
			continue // every step is independent of the ones before already
		case name == "unpack" && c.Add && (!hasValue || isBool(value)):
			on := !hasValue || value == "true" || value == "1"
			c.Unpack = &on
			continue
		case name == "parents":
			return nil, b.Errorf(f, "%s --parents is not supported", keyword).hint("copy the folder above, or name the destination's folder")
		case name == "keep-git-dir":
			return nil, b.Errorf(f, "ADD of git repositories is not supported").hint("ADD --checksum=sha256:… of an archive's URL is")
		case !hasValue || value == "":
			switch name {
			case "from", "chown", "chmod", "exclude", "checksum":
				return nil, b.Errorf(f, "--%s needs a value: --%s=…", name, name)
			}
		}
		switch {
		case name == "from" && !c.Add:
			c.From = value
		case name == "from":
			return nil, b.Errorf(f, "ADD has no --from").hint("COPY has")
		case name == "chown":
			c.Chown = value
		case name == "chmod":
			c.Chmod = value
		case name == "exclude":
			c.Exclude = append(c.Exclude, value)
		case name == "checksum" && c.Add:
			c.Checksum = value
		case name == "checksum":
			return nil, b.Errorf(f, "COPY has no --checksum").hint("ADD has, for URLs")
		case c.Add:
			return nil, unknownFlag(keyword, f, name, &b, "checksum", "chmod", "chown", "exclude", "link", "unpack")
		default:
			return nil, unknownFlag(keyword, f, name, &b, "chmod", "chown", "exclude", "from", "link")
		}
	}
	words := list(n.Next)
	if len(words) < 2 {
		return nil, errorf(b.Pos, "%s needs a source and a destination", keyword)
	}
	c.Sources, c.Dest = words[:len(words)-1], words[len(words)-1]
	if strings.HasPrefix(c.Dest, "<<") && len(c.Heredocs) > 0 {
		return nil, b.Errorf(c.Dest, "%s: a heredoc is no destination", keyword)
	}
	for i, s := range c.Sources {
		if !n.Attributes["json"] && strings.HasPrefix(s, "<<") {
			h := parser.MustParseHeredoc(s)
			if h == nil {
				continue
			}
			if c.From != "" {
				return nil, b.Errorf(s, "COPY --from takes no heredoc")
			}
			c.Sources[i] = "<<" + h.Name
		}
	}
	return c, nil
}

func isBool(s string) bool { return s == "true" || s == "false" || s == "1" || s == "0" }
