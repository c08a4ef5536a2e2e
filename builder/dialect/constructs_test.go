package dialect

import (
	"slices"
	"strings"
	"testing"
)

// TestSmolBSDConstructs: what the files of smolBSD use, in a file of our own.
func TestSmolBSDConstructs(t *testing.T) {
	f := parse(t, `# a comment in front of FROM
# hadolint global ignore=DL3006
FROM base,etc,comp

LABEL smolbsd.service="demo"
# a comment in between
LABEL smolbsd.minimize="y"
LABEL smolbsd.publish="8881:8880,2222:22"
LABEL smolbsd.use_pty=y
LABEL smolbsd.imgsize=1024
LABEL smolbsd.addpkgs="pkgin curl"
LABEL version="0.1"

ARG PORT=8880
ARG ARCH=$(uname -p|sed 's/aarch64/arm64/;s/arm$/arm64/')
ARG KEY="keys/id.pub"
ENV OWNER=demo
ENV HOMEDIR=/home/${OWNER}
ENV PATH=${PATH}:/opt/bin
RUN pkgin up && pkgin -y in \
	curl \
	# a comment within
	jq

RUN <<EOF
[ -d "$HOMEDIR" ] || more="-m"
useradd \$more $OWNER
EOF
RUN cat <<EOF >>/etc/profile
PS1="\$(printf '\e[1m\${USER}@${HOSTNAME}$ ')"
EOF
RUN cat > ${HOMEDIR}/.conf <<'EOF'
bind -
run '~/x'
EOF
RUN cat >${HOMEDIR}/.zshrc<<_ZSHRC
PS1="%K{237}%F{yellow} %n@%m "
_ZSHRC
RUN echo 'eval \$(resize)' >>/etc/rc.local
COPY ${KEY} ${HOMEDIR}/.ssh/authorized_keys
ADD --chmod=0644 https://example.com/README.md /var/www/README.md
INCLUDE inc/shell.inc
EXPOSE 8880
VOLUME misc
USER $OWNER
WORKDIR /home/$OWNER
RUN touch .hushlogin
USER ${OWNER}
CMD cd ${HOMEDIR} && su ${OWNER} -c "tmux -u new" || \
	ksh

# vim: filetype=dockerfile :
`, "inc/shell.inc", "ENV TERM=vt220\n\nRUN rm -f /etc/shrc\nARG SHELL_=${PORT:-1}\n")
	s := f.Stages[0]
	if !s.SmolBSD {
		t.Error("it is not seen as smolBSD's")
	}
	if from, err := f.ParseFrom(s, s.From); err != nil || from.Kind != FromSets || len(from.Sets) != 3 {
		t.Errorf("%+v, %v", from, err)
	}
	labels := map[string]string{}
	v := NewVars(f.Escape, []string{"PATH=/bin"})
	var runs, docs int
	for _, in := range s.Steps {
		switch in := in.(type) {
		case *Label:
			l, err := v.ExpandLabel(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Pairs {
				labels[p.Name] = p.Value
			}
		case *Arg:
			if in.Deferred {
				if in.Name != "ARCH" || *in.Default != `$(uname -p|sed 's/aarch64/arm64/;s/arm$/arm64/')` {
					t.Errorf("%s=%s", in.Name, *in.Default)
				}
				v.Defer(in)
				continue
			}
			value, ok, err := v.ArgValue(in, nil, nil)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			v.SetArg(in.Name, value)
		case *Env:
			e, err := v.ExpandEnv(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range e.Pairs {
				v.SetEnv(p.Name, p.Value)
			}
		case *Run:
			runs++
			docs += len(in.Heredocs)
		case *Copy:
			c, err := v.ExpandCopy(in)
			if err != nil {
				t.Fatal(err)
			}
			if !c.Add && (c.Sources[0] != "keys/id.pub" || c.Dest != "/home/demo/.ssh/authorized_keys") {
				t.Errorf("%+v", c)
			}
		}
	}
	if runs != 8 || docs != 4 {
		t.Errorf("%d RUNs, %d heredocs", runs, docs)
	}
	l, err := ReadLabels(labels)
	if err != nil || l.Service != "demo" || !l.Minimize || l.ImgSize != 1024 || !l.UsePTY || len(l.Publish) != 2 || !slices.Equal(l.AddPkgs, []string{"pkgin", "curl"}) {
		t.Errorf("%+v, %v", l, err)
	}
	if got := strings.Join(v.Env(), " "); got != "PATH=/bin:/opt/bin OWNER=demo HOMEDIR=/home/demo TERM=vt220" {
		t.Error(got)
	}
	if got := v.Args(); !slices.Equal(got, []string{"KEY=keys/id.pub", "PORT=8880", "SHELL_=8880"}) {
		t.Error(got)
	}
	if d := v.Deferred(); len(d) != 1 || d[0].Name != "ARCH" {
		t.Errorf("%+v", d)
	}
	// What depends on such an argument elsewhere cannot be known here.
	w := &Workdir{Base: s.Steps[0].(*Label).Base, Path: "/x/${ARCH}"}
	if _, err := v.ExpandWorkdir(w); err == nil || !strings.Contains(err.Error(), "the default of ARG ARCH is a command, which only RUN can execute; give its value: --build-arg ARCH=VALUE") {
		t.Error(err)
	}
}

// TestExpansion: variables with all of Docker's modifiers.
func TestExpansion(t *testing.T) {
	v := NewVars('\\', []string{"FULL=a/b/a.c", "EMPTY=", "SP=x y"})
	v.SetArg("FULL", "hidden")
	v.SetArg("ARG", "arg")
	b := &parse(t, "FROM base\nWORKDIR /x\n").Stages[0].Steps[0].(*Workdir).Base
	for in, want := range map[string]string{
		"$FULL": "a/b/a.c", "${FULL}x": "a/b/a.cx", "$ARG-$NONE.": "arg-.", "${NONE:-def}": "def", "${EMPTY:-def}": "def", "${EMPTY-def}": "",
		"${FULL:+alt}": "alt", "${EMPTY:+alt}": "", "${NONE+alt}": "", "${FULL#*/}": "b/a.c", "${FULL##*/}": "a.c", "${FULL%/*}": "a/b", "${FULL%%/*}": "a",
		"${FULL/a/z}": "z/b/a.c", "${FULL//a/z}": "z/b/z.c", `\$FULL`: "$FULL", `'$FULL'`: "$FULL", `"$FULL"`: "a/b/a.c", `a\ b`: "a b", "${NONE:-${ARG}}": "arg",
		`"it's $SP"`: "it's x y", "plain": "plain", "": "",
	} {
		if got, err := v.word(b, in); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"${NONE:?must be given}": "Dockerfile:2:1: NONE: must be given", "${NONE": "missing '}'", "${}": "bad substitution", "'open": "single-quote", `"open`: "double-quote",
		"${FULL!x}": "unsupported modifier",
	} {
		if got, err := v.word(b, in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %s", in, got, err, want)
		}
	}
	if got, err := v.text(b, `"$FULL" 'it' \$x`); err != nil || got != `"a/b/a.c" 'it' $x` {
		t.Errorf("%q, %v", got, err)
	}
	// A value that doubles with each line ends in an error and not in all memory.
	v.SetEnv("A", strings.Repeat("x", 1<<10))
	var err error
	for i := 0; err == nil && i < 64; i++ {
		var e *Env
		if e, err = v.ExpandEnv(&Env{Base: *b, Pairs: []Pair{{"A", "$A$A"}}}); err == nil {
			v.SetEnv("A", e.Pairs[0].Value)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "at most 65536") {
		t.Error(err)
	}
	for _, given := range []string{"a\xff", "a\x00"} {
		if _, _, err := v.ArgValue(&Arg{Base: *b, Name: "X"}, map[string]string{"X": given}, nil); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
			t.Errorf("%q: %v", given, err)
		}
	}
	for _, name := range []string{"A.B", "1A", "A B", strings.Repeat("A", 256)} {
		if _, err := v.ExpandEnv(&Env{Base: *b, Pairs: []Pair{{name, "x"}}}); err == nil || !strings.Contains(err.Error(), "Dockerfile:2:1: ") || !strings.Contains(err.Error(), "no name of a variable") {
			t.Errorf("ENV %s: %v", name, err)
		}
	}
	r := parse(t, "FROM base\nRUN --mount=type=secret,id=x,env=$EMPTY.B true\n").Stages[0].Steps[0].(*Run)
	if _, err := v.ExpandRun(r); err == nil || !strings.Contains(err.Error(), `Dockerfile:2:40: ".B" is no name of a variable`) {
		t.Error(err)
	}
	if _, err := v.word(b, strings.Repeat("$A", 1000)); err == nil || !strings.Contains(err.Error(), "could become more than 8 MiB") {
		t.Error(err)
	}
}

func TestPorts(t *testing.T) {
	b := parse(t, "FROM base\nEXPOSE 80 53/udp 8000-8002 9000:90/tcp $MORE\n").Stages[0].Steps[0].(*Expose)
	v := NewVars('\\', []string{"MORE=1 2/UDP"})
	ports, err := v.ExpandExpose(b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ports {
		got = append(got, p.String()+"|"+p.Publish())
	}
	if s := strings.Join(got, " "); s != "80/tcp| 53/udp| 8000/tcp| 8001/tcp| 8002/tcp| 90/tcp|9000:90/tcp 1/tcp| 2/udp|" {
		t.Error(s)
	}
	for bad, want := range map[string]string{
		"0": "no port", "x": "no port", "65536": "no port", "80/sctp": "no protocol", "9-1": "no port", "1-60000": "more than 1024", "1:2-3": "differ in length", "a:1": "no port", "": "no port",
	} {
		if _, err := parsePort(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, whole := range []string{"65535-65535", "64512-65535"} {
		if ps, err := parsePort(whole); err != nil || ps[len(ps)-1].Guest != 65535 {
			t.Errorf("%s: %v", whole, err)
		}
	}
}

func TestDirectives(t *testing.T) {
	f := parse(t, "# syntax=docker/dockerfile:1\n# escape=`\nFROM base\nRUN a `\n  b\nENV A=x\\y B=`$C\n")
	if f.Escape != '`' || step[*Run](t, f, 0).Script != "a   b" {
		t.Errorf("%q %q", f.Escape, step[*Run](t, f, 0).Script)
	}
	e, err := NewVars(f.Escape, nil).ExpandEnv(step[*Env](t, f, 1))
	if err != nil || e.Pairs[0].Value != `x\y` || e.Pairs[1].Value != "$C" {
		t.Errorf("%+v, %v", e, err)
	}
	f = parse(t, "\ufeffFROM base\r\nRUN a \\\r\n\r\n b\r\n")
	if len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0].String(), "Dockerfile:4:1: an empty line within") {
		t.Errorf("%v", f.Warnings)
	}
}

func TestInstructions(t *testing.T) {
	f := parse(t, `FROM base
MAINTAINER someone <a@b>
SHELL ["/bin/ksh", "-ec"]
CMD echo $HOME
CMD ["/a", "b c"]
CMD []
ENTRYPOINT exec app
HEALTHCHECK NONE
HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --retries=4 CMD ["/check", "x"]
RUN --mount=type=cache,id=c,target=/c,readonly,mode=0700,uid=1,gid=2 --mount=target=/b,from=x,source=/y,rw --mount=type=secret,target=/run/secrets/k,required --network=none make
STOPSIGNAL SIGINT
COPY --link --exclude=a --exclude=b ["a b", "c/"]
ENV OLD value with spaces
`)
	if l := step[*Label](t, f, 0); l.Pairs[0] != (Pair{"maintainer", "someone <a@b>"}) {
		t.Errorf("%+v", l.Pairs)
	}
	shell := step[*Shell](t, f, 1).Argv
	if got := step[*Cmd](t, f, 2).Args(shell); !slices.Equal(got, []string{"/bin/ksh", "-ec", "echo $HOME"}) {
		t.Errorf("%q", got)
	}
	if got := step[*Cmd](t, f, 3).Args(shell); !slices.Equal(got, []string{"/a", "b c"}) {
		t.Errorf("%q", got)
	}
	if got := step[*Cmd](t, f, 4).Args(shell); len(got) != 0 {
		t.Errorf("%q", got)
	}
	if got := step[*Entrypoint](t, f, 5).Args(shell); got[2] != "exec app" {
		t.Errorf("%q", got)
	}
	if !step[*Healthcheck](t, f, 6).None {
		t.Error("HEALTHCHECK NONE")
	}
	if h := step[*Healthcheck](t, f, 7); h.Interval != 60e9 || h.Timeout != 2e9 || h.StartPeriod != 3e9 || h.Retries != 4 || h.Command.Shell || !slices.Equal(h.Command.Argv, []string{"/check", "x"}) {
		t.Errorf("%+v", h)
	}
	r := step[*Run](t, f, 8)
	if r.Network != "none" || len(r.Mounts) != 3 || r.Script != "make" {
		t.Fatalf("%+v", r)
	}
	if m := r.Mounts[0]; m.Type != "cache" || m.ID != "c" || m.Target != "/c" || !m.ReadOnly || *m.Mode != 0o700 || *m.UID != 1 || *m.GID != 2 {
		t.Errorf("%+v", m)
	}
	if m := r.Mounts[1]; m.Type != "bind" || m.Target != "/b" || m.From != "x" || m.Source != "/y" {
		t.Errorf("%+v", m)
	}
	if m := r.Mounts[2]; m.Type != "secret" || m.ID != "k" || !m.Required {
		t.Errorf("%+v", m)
	}
	if c := step[*Copy](t, f, 10); !slices.Equal(c.Exclude, []string{"a", "b"}) || !slices.Equal(c.Sources, []string{"a b"}) || c.Dest != "c/" {
		t.Errorf("%+v", c)
	}
	if e := step[*Env](t, f, 11); e.Pairs[0] != (Pair{"OLD", "value with spaces"}) {
		t.Errorf("%+v", e)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"/usr/bin/strip", "usr/bin/strip", true}, {"./usr/bin/strip", "usr/bin/strip", true}, {"/usr/bin/strip", "usr/bin/strip2", false},
		{"/usr/libexec/*", "usr/libexec/a/b", true}, {"/usr/libexec/*", "usr/libexec", false}, {"usr/lib", "usr/lib/x/y", true}, {"usr/lib", "usr/libexec", false},
		{"*.so", "usr/lib/a.so", true}, {"usr/?in", "usr/bin/x", true}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[!a-c]x", "dx", true}, {"[", "[", true},
		{"[]]x", "]x", true}, {`a\*`, "a*", true}, {`a\*`, "ab", false}, {"", "any", true}, {"a*b*c", "a1b2b3c", true}, {"a*b*c", "a1b2b3", false},
		{"../../etc", "etc/passwd", true},
	} {
		if got := Glob(c.pattern, c.name); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.name, got)
		}
	}
	// Time does not explode.
	if Glob(strings.Repeat("a*", 60)+"b", strings.Repeat("a", 4000)) {
		t.Error("it fits")
	}
}

// FuzzParse: whatever a file holds, it is read or refused in bounded time, and
// what is read can be expanded.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"FROM base,etc AS a\nARG X=1\nENV Y=${X:-2} Z=\"q $Y\"\nRUN <<EOF\necho $Y\nEOF\nFROM a\nCOPY --from=a --chown=1:2 --exclude=x /a /b/\nCMD [\"x\"]\n",
		"# escape=`\nARG A=b\nFROM ${A}:/x/*,./y.tgz\nINCLUDE inc\nRUN --mount=type=cache,target=/x,id=y --network=none a `\n b\nEXPOSE 80 1-5 8:9/udp\n",
		"FROM scratch\nADD --checksum=sha256:00 <<A <<'B' /x/\n$PATH\nA\n$PATH\nB\nHEALTHCHECK --interval=1s CMD a\nVOLUME [\"/a\"]\nLABEL smolbsd.service=x smolbsd.publish=\"1:2\"\n",
		"FROM u-root\nRUN cat >x<<E\na\nE\nARG B=$(uname -p|sed 's/a/b/')\nWORKDIR /$B\nUSER a:b\nSHELL [\"/bin/ksh\"]\nRUN x\nSTOPSIGNAL 9\nONBUILD RUN x\n",
		"FROM x\nENV A=$A$A B=${A//x/yy} C=${A##*/} D=${A%%x*}\nENTRYPOINT a b\n", "\ufeffFROM a\r\nRUN a \\\r\n\r\nb", "#syntax=a\n#escape=\\\n", "FROM a\nRUN <<-\"A B\"\n\tx\n\tA B\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("Dockerfile", text, with("inc", "ENV I=1\nINCLUDE inc2\n", "inc2", "RUN x\n"))
		if err != nil {
			if file != nil || err.Error() == "" {
				t.Fatalf("%v with %v", err, file)
			}
			return
		}
		if len(file.Stages) == 0 {
			t.Fatal("no stage and no error")
		}
		for _, s := range file.Stages {
			v := NewVars(file.Escape, []string{"PATH=/bin"})
			if name, err := s.ExpandFrom(v); err == nil {
				_, _ = file.ParseFrom(s, name)
			}
			labels := map[string]string{}
			for _, in := range s.Steps {
				if p := in.Position(); p.Line < 1 || p.Col < 1 || p.File == "" {
					t.Fatalf("%T at %+v", in, p)
				}
				expand(v, in, labels, s.SmolBSD)
			}
			_, _ = ReadLabels(labels)
		}
	})
}

// expand does with an instruction what a build does.
func expand(v *Vars, in Instruction, labels map[string]string, smol bool) {
	switch in := in.(type) {
	case *Arg:
		if in.Deferred {
			v.Defer(in)
		} else if s, ok, err := v.ArgValue(in, nil, map[string]string{"G": "g"}); err == nil && ok {
			v.SetArg(in.Name, s)
		}
	case *Env:
		if e, err := v.ExpandEnv(in); err == nil {
			for _, p := range e.Pairs {
				v.SetEnv(p.Name, p.Value)
			}
		}
	case *Label:
		if l, err := v.ExpandLabel(in); err == nil {
			for _, p := range l.Pairs {
				labels[p.Name] = p.Value
			}
		}
	case *Copy:
		if c, err := v.ExpandCopy(in); err == nil {
			if p, err := NewPatterns(c.Exclude); err == nil {
				_, _ = p.Match(c.Dest)
			}
		}
	case *Run:
		_, _ = v.ExpandRun(in)
		in.Command(DefaultShell(), smol, v.Deferred())
	case *User:
		_, _ = v.ExpandUser(in)
	case *Workdir:
		_, _ = v.ExpandWorkdir(in)
	case *Volume:
		_, _ = v.ExpandVolume(in)
	case *Expose:
		_, _ = v.ExpandExpose(in)
	case *StopSignal:
		_, _ = v.ExpandStopSignal(in)
	}
}
