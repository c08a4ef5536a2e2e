package dialect

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Limits of files. smolBSD's longest has 4 KiB.
const (
	maxFile     = 1 << 20 // bytes of one file
	maxTotal    = 4 << 20 // bytes of all files
	maxSteps    = 4096    // instructions
	maxIncludes = 64      // files included
	maxDepth    = 8       // of an INCLUDE in an INCLUDE …
)

// Options say what Parse needs from outside.
type Options struct {
	// Include reads a file that INCLUDE names, of at most limit bytes; from is the
	// file with the INCLUDE. nil: INCLUDE is an error.
	Include func(path, from string, limit int64) ([]byte, error)
}

// Parse reads a Dockerfile. name is what errors call it.
func Parse(name string, text []byte, o Options) (*File, error) {
	p := &fileParser{o: o, file: &File{Name: name, Escape: parser.DefaultEscapeToken}}
	if err := p.parse(name, text, 0); err != nil {
		return nil, err
	}
	f := p.file
	if len(f.Stages) == 0 {
		return nil, errorf(Pos{File: name}, "there is no FROM").hint("begin with FROM base,etc, an image, scratch or u-root")
	}
	for _, s := range f.Stages {
		s.SmolBSD = smolBSDQuoting(s)
	}
	return f, nil
}

type fileParser struct {
	o        Options
	file     *File
	total    int
	steps    int
	includes int
}

func (p *fileParser) parse(name string, text []byte, depth int) error {
	if len(text) > maxFile {
		return errorf(Pos{File: name}, "the file has %d bytes, at most %d", len(text), maxFile)
	}
	if p.total += len(text); p.total > maxTotal {
		return errorf(Pos{File: name}, "with this one the files have more than %d MiB", maxTotal>>20)
	}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return errorf(Pos{File: name, Line: 1 + bytes.Count(text[:i], []byte("\n")), Col: 1}, "a NUL byte: this is no text file")
	}
	if pos, ok := notUTF8(name, text); ok {
		// What JSON carries, variables and commands, would arrive changed.
		return errorf(pos, "this is not UTF-8").hint("convert the file: iconv -f latin1 -t utf-8")
	}
	src := newSource(name, text)
	for i, l := range src.lines {
		if len(l) > maxLine {
			return errorf(Pos{File: name, Line: i + 1, Col: 1}, "the line has %d bytes, at most %d", len(l), maxLine)
		}
	}
	res, err := parser.Parse(bytes.NewReader(loosen(text)))
	if err != nil {
		if depth > 0 && strings.Contains(cause(err), "file with no instructions") {
			return nil
		}
		return p.syntax(src, err)
	}
	if depth == 0 {
		p.file.Escape = res.EscapeToken
	} else if res.EscapeToken != p.file.Escape {
		return errorf(Pos{File: name, Line: 1, Col: 1}, "the file has another escape character than the one that includes it")
	}
	for _, w := range res.Warnings {
		pos := Pos{File: name}
		if w.Location != nil {
			pos.Line, pos.Col = w.Location.Start.Line, 1
		}
		p.file.Warnings = append(p.file.Warnings, Warning{pos, "an empty line within an instruction: Docker will refuse it one day"})
	}
	for _, n := range res.AST.Children {
		b := Base{src: src, node: span{n.StartLine, n.EndLine}, Text: n.Original}
		b.Pos = src.find(b.node, "")
		if p.steps++; p.steps > maxSteps {
			return errorf(b.Pos, "more than %d instructions", maxSteps)
		}
		if err := p.instruction(n, b, depth); err != nil {
			return err
		}
	}
	return nil
}

// maxLine is as much of a line as BuildKit's parser reads, in bytes, with the end of
// the line and the space that loosen may put in.
const maxLine = bufio.MaxScanTokenSize - 16

// notUTF8 gives the place of the first byte that is no UTF-8.
func notUTF8(name string, text []byte) (Pos, bool) {
	if utf8.Valid(text) {
		return Pos{}, false
	}
	line := 0
	for l := range bytes.Lines(text) {
		line++
		col := 1
		for len(l) > 0 {
			r, n := utf8.DecodeRune(l)
			if r == utf8.RuneError && n == 1 {
				return Pos{File: name, Line: line, Col: col}, true
			}
			l, col = l[n:], col+1
		}
	}
	return Pos{}, false
}

// syntax gives an error of BuildKit's parser our form.
func (p *fileParser) syntax(src *source, err error) error {
	pos := Pos{File: src.name, Line: 1, Col: 1}
	var le *parser.LocationError
	if errors.As(err, &le) && len(le.Locations) > 0 && len(le.Locations[0]) > 0 {
		if l := le.Locations[0][0].Start.Line; l > 0 {
			pos = src.find(span{l, l}, "")
		}
	}
	e := errorf(pos, "%s", cause(err))
	if strings.Contains(e.Msg, "file with no instructions") {
		return e.hint("begin with FROM base,etc, an image, scratch or u-root")
	}
	return e
}

// instruction adds one to the file.
func (p *fileParser) instruction(n *parser.Node, b Base, depth int) error {
	keyword := strings.ToUpper(n.Value)
	if keyword == "INCLUDE" {
		return p.include(n, b, depth)
	}
	if keyword == "FROM" {
		return p.from(n, b)
	}
	make, ok := makers()[keyword]
	if !ok {
		return unknown(n.Value, b)
	}
	if len(p.file.Stages) == 0 {
		if keyword != "ARG" {
			return errorf(b.Pos, "%s stands before the first FROM", keyword).hint("only ARG may")
		}
		args, err := makeArgs(n, b)
		if err != nil {
			return err
		}
		for _, a := range args {
			if a.Deferred {
				return a.Errorf(a.Name, "ARG %s before FROM has a command as its default", a.Name).hint("there is no guest yet that could execute it: move it behind FROM")
			}
			p.file.Args = append(p.file.Args, a)
		}
		return nil
	}
	stage := p.file.Stages[len(p.file.Stages)-1]
	if keyword == "ARG" {
		args, err := makeArgs(n, b)
		if err != nil {
			return err
		}
		for _, a := range args {
			stage.Steps = append(stage.Steps, a)
		}
		return nil
	}
	in, err := make(n, b)
	if err != nil {
		return err
	}
	stage.Steps = append(stage.Steps, in)
	return nil
}

func (p *fileParser) from(n *parser.Node, b Base) error {
	for _, f := range n.Flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		e := b.Errorf(f, "FROM has no flag --%s", name)
		if name == "platform" {
			e = b.Errorf(f, "FROM --platform is not supported").hint("images are for netbsd/amd64 always: leave the flag out")
		}
		return e
	}
	words := list(n.Next)
	s := &Stage{Pos: b.Pos, Index: len(p.file.Stages), Text: b.Text, line: b}
	switch {
	case len(words) == 0:
		return errorf(b.Pos, "FROM needs a name").hint("give sets (base,etc), an image, scratch or u-root")
	case len(words) == 1:
	case len(words) == 3 && strings.EqualFold(words[1], "as"):
		s.Name = strings.ToLower(words[2])
	case strings.HasSuffix(words[0], ",") || strings.HasPrefix(words[1], ","):
		return b.Errorf(words[1], "FROM: a space in the list of sets").hint("write %s", strings.Join(words, ""))
	default:
		return b.Errorf(words[1], "FROM takes one name, and AS with a second one")
	}
	s.From = words[0]
	if s.Name != "" {
		if !stageName(s.Name) {
			return b.Errorf(words[2], "%q is no name for a stage", words[2]).hint("a letter, then letters, digits, dots, hyphens and underscores")
		}
		if p.file.Stage(s.Name, s.Index) != nil {
			return b.Errorf(words[2], "there is a stage %s already", words[2])
		}
	}
	p.file.Stages = append(p.file.Stages, s)
	return nil
}

func stageName(s string) bool {
	for i, c := range s {
		switch {
		case c >= 'a' && c <= 'z':
		case i > 0 && (c >= '0' && c <= '9' || strings.ContainsRune("._-", c)):
		default:
			return false
		}
	}
	return s != "scratch" && s != "u-root" && len(s) <= 128
}

// include reads another file in the place of the instruction, as smolBSD does.
func (p *fileParser) include(n *parser.Node, b Base, depth int) error {
	path := strings.TrimSpace(b.Text[len(n.Value):])
	path = strings.Trim(path, `"`)
	switch {
	case path == "":
		return errorf(b.Pos, "INCLUDE needs a file")
	case p.o.Include == nil:
		return errorf(b.Pos, "INCLUDE cannot be used here: the Dockerfile is in no folder")
	case depth+1 > maxDepth:
		return errorf(b.Pos, "INCLUDE: more than %d files in one another", maxDepth).hint("does %s include itself?", path)
	}
	if p.includes++; p.includes > maxIncludes {
		return errorf(b.Pos, "more than %d INCLUDEs", maxIncludes)
	}
	text, err := p.o.Include(path, b.Pos.File, maxFile)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return b.Errorf(path, "INCLUDE %s: %w", path, err).hint("paths count from the build context, or from the folder of the file that includes")
	}
	return p.parse(path, text, depth+1)
}

// unknown is about what is no instruction.
func unknown(word string, b Base) error {
	switch strings.ToUpper(word) {
	case "ONBUILD":
		return errorf(b.Pos, "ONBUILD is not supported").hint("put the instructions into a file and INCLUDE it where they are to be executed")
	}
	e := errorf(b.Pos, "%.40q is no instruction", word)
	names := []string{"FROM", "INCLUDE"}
	for n := range makers() {
		names = append(names, n)
	}
	if near := nearest(word, sorted(names)); near != "" {
		return e.hint("%s is", near)
	}
	return e.hint("the end of a heredoc that is not closed, or a line that lacks its %q at the end of the one before, looks like this too", `\`)
}

// list are the words of a node's chain.
func list(n *parser.Node) []string {
	var out []string
	for ; n != nil; n = n.Next {
		if n.Value != "" {
			out = append(out, n.Value)
		}
	}
	return out
}
