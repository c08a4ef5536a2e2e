package dialect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parse parses a file whose includes are the rest of the pairs name, text.
func parse(t testing.TB, text string, files ...string) *File {
	t.Helper()
	f, err := Parse("Dockerfile", []byte(text), with(files...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func with(files ...string) Options {
	return Options{Include: func(path, from string, limit int64) ([]byte, error) {
		for i := 0; i+1 < len(files); i += 2 {
			if files[i] == path {
				return []byte(files[i+1]), nil
			}
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}}
}

// step gives the n'th instruction of the first stage.
func step[T Instruction](t testing.TB, f *File, n int) T {
	t.Helper()
	in, ok := f.Stages[0].Steps[n].(T)
	if !ok {
		t.Fatalf("instruction %d is a %T", n, f.Stages[0].Steps[n])
	}
	return in
}

// TestErrors: whatever is not supported is told with its place and what would do.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "Dockerfile:1:1: file with no instructions; begin with FROM"},
		{"# only a comment\n", "file with no instructions"},
		{"ARG A\n", "Dockerfile: there is no FROM; begin with FROM base,etc"},
		{"RUN x\nFROM base\n", "Dockerfile:1:1: RUN stands before the first FROM; only ARG may"},
		{"FROM\n", "Dockerfile:1:1: FROM needs a name; give sets"},
		{"FROM base, etc\n", "Dockerfile:1:12: FROM: a space in the list of sets; write base,etc"},
		{"FROM base and etc\n", "Dockerfile:1:11: FROM takes one name"},
		{"  FROM --platform=linux/arm64 base\n", "Dockerfile:1:8: FROM --platform is not supported; images are for netbsd/amd64"},
		{"FROM --foo base\n", "Dockerfile:1:6: FROM has no flag --foo"},
		{"FROM base AS 9x\n", `Dockerfile:1:14: "9x" is no name for a stage`},
		{"FROM base AS scratch\n", "is no name for a stage"},
		{"FROM base AS a\nFROM etc AS A\n", "Dockerfile:2:13: there is a stage A already"},
		{"FROM base\nONBUILD RUN x\n", "Dockerfile:2:1: ONBUILD is not supported; put the instructions into a file and INCLUDE"},
		{"FROM base\n\tRUM x\n", `Dockerfile:2:2: "RUM" is no instruction; RUN is`},
		{"FROM base\nCOPPY a b\n", `"COPPY" is no instruction; COPY is`},
		{"FROM base\nINCLUD a\n", `INCLUDE is`},
		{"FROM base\nEOF\n", `the end of a heredoc that is not closed`},
		{"FROM base\nRUN --mount=type=ssh x\n", "Dockerfile:2:5: RUN --mount=type=ssh is not supported; give the key as a secret"},
		{"FROM base\nRUN --mount=type=nfs x\n", "secret, cache, bind and tmpfs are"},
		{"FROM base\nRUN --mount=type=cache,taget=/x y\n", `Dockerfile:2:24: --mount=type=cache has no "taget"; target is one`},
		{"FROM base\nRUN --mount=type=cache y\n", "--mount=type=cache needs target=PATH"},
		{"FROM base\nRUN --mount=type=secret y\n", "--mount=type=secret needs id=NAME"},
		{"FROM base\nRUN --mount=type=secret,id=a,mode=9 y\n", "mode=9 is no octal mode"},
		{"FROM base\nRUN --mount=type=secret,id=a,uid=x y\n", "uid=x is no number"},
		{"FROM base\nRUN --network=host x\n", "Dockerfile:2:5: RUN --network=host is not supported; default"},
		{"FROM base\nRUN --security=insecure x\n", "RUN --security is not supported"},
		{"FROM base\nRUN --netwrok=none x\n", "RUN has no flag --netwrok; --network is one"},
		{"FROM base\nRUN\n", "RUN needs a command"},
		{"FROM base\nRUN []\n", "RUN needs a command"},
		{"FROM base\nRUN ['/bin/x']\n", "Dockerfile:2:5: this list is no JSON"},
		{"FROM base\nRUN cat <<EOF\nx\n", "Dockerfile:2:1: unterminated heredoc"},
		{"FROM base\nCOPY a\n", "COPY needs a source and a destination"},
		{"FROM base\nCOPY --parents a b\n", "COPY --parents is not supported"},
		{"FROM base\nCOPY --checksum=sha256:00 a b\n", "COPY has no --checksum; ADD has"},
		{"FROM base\nADD --from=x a b\n", "ADD has no --from; COPY has"},
		{"FROM base\nADD --keep-git-dir=true a b\n", "ADD of git repositories is not supported"},
		{"FROM base\nCOPY --chwon=x a b\n", "COPY has no flag --chwon; --chown is one"},
		{"FROM base\nCOPY --chown a b\n", "--chown needs a value"},
		{"FROM base\nCOPY --chown=a --chown=b a b\n", "--chown is given twice"},
		{"FROM base\nCOPY --from=x <<E /a\nE\n", "COPY --from takes no heredoc"},
		{"FROM base\nSHELL /bin/ksh -c\n", `Dockerfile:2:7: SHELL needs a JSON list; as SHELL ["/bin/ksh", "-c"]`},
		{"FROM base\nENV A\n", "ENV must have two arguments"},
		{"FROM base\nENV\n", "ENV needs NAME=VALUE"},
		{"FROM base\nLABEL a=1 b\n", `can't find = in "b"`},
		{"FROM base\nARG 1x=2\n", `Dockerfile:2:5: "1x" is no name of an argument`},
		{"FROM base\nARG\n", "ARG needs a name"},
		{"ARG A=$(uname)\nFROM base\n", "Dockerfile:1:5: ARG A before FROM has a command as its default; there is no guest yet"},
		{"FROM base\nUSER\n", "USER needs an argument"},
		{"FROM base\nUSER --x y\n", "USER has no flags"},
		{"FROM base\nWORKDIR\n", "WORKDIR needs an argument"},
		{"FROM base\nSTOPSIGNAL\n", "STOPSIGNAL needs an argument"},
		{"FROM base\nVOLUME\n", "VOLUME needs a path"},
		{"FROM base\nEXPOSE\n", "EXPOSE needs a port"},
		{"FROM base\nCMD\n", "CMD needs a command"},
		{"FROM base\nCMD ['x']\n", "this list is no JSON"},
		{"FROM base\nHEALTHCHECK\n", "HEALTHCHECK needs NONE, or CMD"},
		{"FROM base\nHEALTHCHECK TRUE\n", "Dockerfile:2:13: HEALTHCHECK TRUE is not known; NONE, or CMD"},
		{"FROM base\nHEALTHCHECK --intervall=1s CMD x\n", "--interval is one"},
		{"FROM base\nHEALTHCHECK --start-interval=1s CMD x\n", "Dockerfile:2:13: HEALTHCHECK --start-interval is not supported; --interval"},
		{"FROM base\nHEALTHCHECK --interval=1 CMD x\n", "HEALTHCHECK --interval=1 is no time"},
		{"FROM base\nHEALTHCHECK --retries=x CMD x\n", "--retries=x is no number"},
		{"FROM base\nHEALTHCHECK CMD\n", "HEALTHCHECK CMD needs a command"},
		{"FROM base\nHEALTHCHECK --interval=1s NONE\n", "HEALTHCHECK NONE takes nothing else"},
		{"FROM base\nINCLUDE\n", "INCLUDE needs a file"},
		{"FROM base\nINCLUDE no.inc\n", "Dockerfile:2:9: INCLUDE no.inc: file does not exist; paths count from the build context"},
		{"# escape=x\nFROM base\n", "invalid escape token"},
		{"FROM base\n\x00\n", "Dockerfile:2:1: a NUL byte"},
		{"FROM base\nENV A=é\xff\n", "Dockerfile:2:8: this is not UTF-8; convert"},
		{"FROM base\nRUN <<E\nx\n\xe9\nE\n", "Dockerfile:4:1: this is not UTF-8"},
		{"FROM base\nRUN " + strings.Repeat("x", 70000) + "\n", "Dockerfile:2:1: the line has 70004 bytes, at most 65520"},
	} {
		_, err := Parse("Dockerfile", []byte(c.text), with())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q\n got %v\nwant …%s…", c.text, err, c.want)
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.60q: a %T", c.text, err)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: more than a line: %v", c.text, err)
		}
	}
}

// TestLongLine: what the bound of a line lets pass, BuildKit's parser takes.
func TestLongLine(t *testing.T) {
	f := parse(t, "FROM base\nRUN x<<E "+strings.Repeat("x", maxLine-len("RUN x<<E \r"))+"\r\nE\n")
	if r := step[*Run](t, f, 0); len(r.Heredocs) != 1 {
		t.Errorf("%+v", r.Heredocs)
	}
}

func TestInclude(t *testing.T) {
	f := parse(t, "FROM base\nINCLUDE a.inc\nRUN last\n", "a.inc", "# nothing\nENV A=1\nINCLUDE b.inc\nRUN cat <<EOF\nINCLUDE c.inc\nEOF\n", "b.inc", "ENV B=2\n")
	if n := len(f.Stages[0].Steps); n != 4 {
		t.Fatalf("%d steps", n)
	}
	if e := step[*Env](t, f, 1); e.Pairs[0] != (Pair{"B", "2"}) || e.Pos.String() != "b.inc:1:1" {
		t.Errorf("%+v at %v", e.Pairs, e.Pos)
	}
	if r := step[*Run](t, f, 2); r.Heredocs[0].Content != "INCLUDE c.inc\n" || r.Pos.String() != "a.inc:4:1" {
		t.Errorf("%+v at %v", r, r.Pos)
	}
	// A file of comments only includes nothing; FROM may come from an include.
	f = parse(t, "INCLUDE from\nINCLUDE none\nRUN x\n", "from", "FROM etc\n", "none", "# none\n")
	if f.Stages[0].From != "etc" || len(f.Stages[0].Steps) != 1 {
		t.Errorf("%+v", f.Stages[0])
	}
	for _, c := range []struct{ name, text, want string }{
		{"loop", "INCLUDE loop\n", "loop:1:1: INCLUDE: more than 8 files in one another; does loop include itself?"},
		{"bad", "RUN x\nRUM y\n", `bad:2:1: "RUM" is no instruction`},
		{"escape", "# escape=`\nRUN x\n", "escape:1:1: the file has another escape character"},
	} {
		if _, err := Parse("Dockerfile", []byte("FROM base\nINCLUDE "+c.name+"\n"), with(c.name, c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	many := "FROM base\n" + strings.Repeat("INCLUDE a\n", maxIncludes+1)
	if _, err := Parse("Dockerfile", []byte(many), with("a", "# x\n")); err == nil || !strings.Contains(err.Error(), "more than 64 INCLUDEs") {
		t.Error(err)
	}
	if _, err := Parse("Dockerfile", []byte("FROM base\nINCLUDE a\n"), Options{}); err == nil || !strings.Contains(err.Error(), "in no folder") {
		t.Error(err)
	}
}

func TestHeredocs(t *testing.T) {
	f := parse(t, `FROM base
RUN cat >${HOME}/.zshrc<<_END
PS1="$%"
_END
RUN <<EOF>x.log
true
EOF
RUN x=$((1<<SHIFT)) && echo "<<no" '<<no'
RUN one <<A \
  two<<'B'
a
A
b
B
COPY <<FILE <<"RAW" /dst/
RUN cat >x<<EOT
$A
EOT
FILE
$A
RAW
RUN cat <<-TAB
	tabs go
	TAB
`)
	if n := len(f.Stages[0].Steps); n != 6 {
		t.Fatalf("%d steps: %+v", n, f.Stages[0].Steps)
	}
	r := step[*Run](t, f, 0)
	words, _ := r.Command(DefaultShell(), false, nil)
	if want := "cat >${HOME}/.zshrc <<_END\nPS1=\"$%\"\n_END\n"; words[2] != want {
		t.Errorf("%q", words)
	}
	words, _ = step[*Run](t, f, 1).Command(DefaultShell(), false, nil)
	if want := "<<EOF >x.log\ntrue\nEOF\n"; words[2] != want {
		t.Errorf("%q", words)
	}
	words, _ = step[*Run](t, f, 2).Command(DefaultShell(), false, nil)
	if want := `x=$((1<<SHIFT)) && echo "<<no" '<<no'`; words[2] != want {
		t.Errorf("%q", words)
	}
	if h := step[*Run](t, f, 3).Heredocs; len(h) != 2 || h[0].Content != "a\n" || h[1].Content != "b\n" || !h[0].Expand || h[1].Expand {
		t.Errorf("%+v", h)
	}
	c := step[*Copy](t, f, 4)
	v := NewVars('\\', []string{"A=1"})
	c, err := v.ExpandCopy(c)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Sources, []string{"<<FILE", "<<RAW"}) || c.Heredocs[0].Content != "RUN cat >x<<EOT\n1\nEOT\n" || c.Heredocs[1].Content != "$A\n" {
		t.Errorf("%+v", c)
	}
	if h := step[*Run](t, f, 5).Heredocs; h[0].Content != "tabs go\n" {
		t.Errorf("%+v", h)
	}
}

// TestCommand: what a RUN executes, in both quotings.
func TestCommand(t *testing.T) {
	def := "$(uname -p|sed 's/a/b/')"
	late := []*Arg{{Name: "ARCH", Default: &def, Deferred: true}}
	for _, c := range []struct {
		text  string
		smol  bool
		late  []*Arg
		want  []string
		file  string
		shell []string
	}{
		{text: "RUN echo \"$A\"", want: []string{"/bin/sh", "-c", `echo "$A"`}},
		{text: "RUN echo a", shell: []string{"/bin/ksh", "-ec"}, want: []string{"/bin/ksh", "-ec", "echo a"}},
		{text: `RUN ["/bin/echo", "a b"]`, want: []string{"/bin/echo", "a b"}},
		{text: "RUN <<EOF\na\nb\nEOF", want: []string{"/bin/sh", "-c", "a\nb\n"}},
		{text: "RUN <<EOF\n#!/bin/ksh\nb\nEOF", want: []string{""}, file: "#!/bin/ksh\nb\n"},
		{text: "RUN echo 'eval \\$(resize)' >\"x\"", smol: true, want: []string{"/bin/sh", "-c", `exec '/bin/sh' '-c' "echo 'eval \$(resize)' >\"x\""`}},
		{text: "RUN cat <<EOF >f\n\\${A} $B \"q\" \\\"r\\\"\nEOF", smol: true, want: []string{"/bin/sh", "-c", "exec '/bin/sh' '-c' \"cat <<EOF >f\n\\${A} $B \\\"q\\\" \\\\\\\"r\\\\\\\"\nEOF\n\""}},
		{text: "RUN get $ARCH", late: late, want: []string{"/bin/sh", "-c", `ARCH=$(uname -p|sed 's/a/b/'); export ARCH; exec "$@"`, "sh", "/bin/sh", "-c", "get $ARCH"}},
		{text: `RUN ["/get"]`, late: late, want: []string{"/bin/sh", "-c", `ARCH=$(uname -p|sed 's/a/b/'); export ARCH; exec "$@"`, "sh", "/get"}},
		{text: "RUN get", late: late, smol: true, want: []string{"/bin/sh", "-c", `ARCH=$(uname -p|sed 's/a/b/'); export ARCH; exec '/bin/sh' '-c' "get"`}},
	} {
		f := parse(t, "FROM base\n"+c.text+"\n")
		shell := c.shell
		if shell == nil {
			shell = DefaultShell()
		}
		words, file := step[*Run](t, f, 0).Command(shell, c.smol, c.late)
		if !slices.Equal(words, c.want) || string(file) != c.file {
			t.Errorf("%s\n got %q %q\nwant %q %q", c.text, words, file, c.want, c.file)
		}
	}
}

func TestQuoting(t *testing.T) {
	for text, want := range map[string]bool{
		"FROM base\n":                                                          false,
		"FROM base\nLABEL smolbsd.publish=1:1\n":                               false,
		"FROM base\nLABEL smolbsd.service=\"x\"\n":                             true,
		"FROM base\nLABEL smolbsd.service=x smolvmm.quoting=docker\n":          false,
		"FROM base\nLABEL smolvmm.quoting=\"smolbsd\"\n":                       true,
		"FROM base AS x\nLABEL smolbsd.service=x\nFROM etc\n":                  true,
		"FROM base\nRUN true\nLABEL smolbsd.service=x\nLABEL maintainer=you\n": true,
	} {
		if f := parse(t, text); f.Stages[0].SmolBSD != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func TestFrom(t *testing.T) {
	f := parse(t, "FROM base AS one\nFROM one\n")
	s := f.Stages[1]
	for text, want := range map[string]From{
		"scratch":                {Kind: FromScratch},
		"u-root":                 {Kind: FromURoot},
		"one":                    {Kind: FromStage, Stage: f.Stages[0]},
		"ONE":                    {Kind: FromStage, Stage: f.Stages[0]},
		"base":                   {Kind: FromSets, Sets: []Set{{Name: "base"}}},
		"base,etc":               {Kind: FromSets, Sets: []Set{{Name: "base"}, {Name: "etc"}}},
		"base.tar.xz,etc.tgz":    {Kind: FromSets, Sets: []Set{{Name: "base"}, {Name: "etc"}}},
		"comp:/usr/bin/strip":    {Kind: FromSets, Sets: []Set{{Name: "comp", Glob: "/usr/bin/strip"}}},
		"etc,comp:/usr/lib*":     {Kind: FromSets, Sets: []Set{{Name: "etc"}, {Name: "comp", Glob: "/usr/lib*"}}},
		"./my/base.tar.zst":      {Kind: FromSets, Sets: []Set{{Name: "./my/base.tar.zst", Path: true}}},
		"site.tgz:./etc/*":       {Kind: FromSets, Sets: []Set{{Name: "site.tgz", Path: true, Glob: "./etc/*"}}},
		"base,./root":            {Kind: FromSets, Sets: []Set{{Name: "base"}, {Name: "./root", Path: true}}},
		"base:latest":            {Kind: FromImage, Image: "base:latest"},
		"web:1.2":                {Kind: FromImage, Image: "web:1.2"},
		"base-amd64.img":         {Kind: FromImage, Image: "base-amd64"},
		"r.example/a/b@sha256:0": {Kind: FromImage, Image: "r.example/a/b@sha256:0"},
	} {
		got, err := f.ParseFrom(s, text)
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"base,ect": `Dockerfile:2:1: FROM: "ect" is no set; etc is`,
		"base,":    `"" is no set; NetBSD's are base`,
		"":         "the name is empty here",
	} {
		if _, err := f.ParseFrom(s, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestSmolBSDFiles parses smolBSD's own files where SMOLBSD names a copy of them.
func TestSmolBSDFiles(t *testing.T) {
	dir := os.Getenv("SMOLBSD")
	if dir == "" {
		t.Skip("NOT RUN: SMOLBSD names no copy of smolBSD's repository; TestSmolBSDConstructs has what its files use")
	}
	names, err := filepath.Glob(filepath.Join(dir, "smolerfiles", "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no smolerfiles below %s: %v", dir, err)
	}
	read := func(path, from string, limit int64) ([]byte, error) { return os.ReadFile(filepath.Join(dir, path)) }
	for _, n := range names {
		text, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(n, ".inc") {
			text = append([]byte("FROM base\n"), text...)
		}
		f, err := Parse(filepath.Base(n), text, Options{Include: read})
		if err != nil {
			t.Error(err)
			continue
		}
		s := f.Stages[0]
		if from, err := f.ParseFrom(s, s.From); err != nil || from.Kind != FromSets || !s.SmolBSD && !strings.HasSuffix(n, ".inc") {
			t.Errorf("%s: %+v, %v, smolBSD's: %v", n, from, err, s.SmolBSD)
		}
		t.Logf("%s: %d steps", filepath.Base(n), len(s.Steps))
	}
}
