package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
)

// maxService bounds a service file, in bytes.
const maxService = 1 << 20

// Variables of a service file, smolBSD's etc/*.conf, and what becomes of each.
// Flags win over all of them.
const (
	// What smolvmm has no use for: a line says so where it is not empty.
	serviceNot = "share bridgenet extra qmp_port serial_port initrd"
	// What needs nothing: an overlay shares an image with anybody, and the
	// console is here without asking.
	serviceNothing = "sharerw use_pty max_ports verbose ARCH QEMU QEMU_ACCEL CHOUPI uuid svc viosock"
)

// readService reads the service file, if one is named.
func (r *runFlags) readService(s cli.Streams) error {
	if r.service == "" {
		return nil
	}
	in, err := os.Open(r.service)
	if err != nil {
		return cli.Usagef("-service %s: %w", r.service, cli.Plain(err))
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxService+1))
	if err != nil {
		return cli.Usagef("-service %s: %w", r.service, cli.Plain(err))
	}
	if len(b) > maxService {
		return cli.Usagef("-service %s: more than %d bytes", r.service, maxService)
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "."
	}
	if r.vars, err = parseService(string(b), cwd, s.Env); err != nil {
		return cli.Usagef("-service %s:%w", r.service, err)
	}
	r.detach = r.detach || r.vars["daemon"] != ""
	return nil
}

// fromService takes in what the service file says.
func (r *runFlags) fromService(f *pflag.FlagSet, s cli.Streams) error {
	vars := r.vars
	set := func(flag, value string) error {
		if value == "" || f.Changed(flag) {
			return nil
		}
		if err := f.Set(flag, value); err != nil {
			return cli.Usagef("-service %s: %s: %w", r.service, flag, err)
		}
		return nil
	}
	for name, flag := range map[string]string{"mem": "memory", "cores": "cpus", "append": "append", "kernel": "kernel"} {
		if err := set(flag, vars[name]); err != nil {
			return err
		}
	}
	if root := vars["root"]; root != "" && !strings.Contains(r.Append, "root=") {
		r.Append = strings.TrimSpace("root=" + root + " " + r.Append)
	}
	if !f.Changed("publish") {
		r.Net.Publish = commas(vars["hostfwd"])
	}
	var env, files []string
	for _, kv := range commas(vars["fwcfgvar"]) {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return cli.Usagef("-service %s: fwcfgvar %q: must be NAME=VALUE[,NAME=VALUE]…", r.service, kv)
		}
		env = append(env, kv)
		// What smolBSD's own services read.
		r.Fwcfg = append(r.Fwcfg, "name=opt/org.smolbsd.var."+k+",string="+strings.ReplaceAll(v, ",", ",,"))
	}
	for _, kv := range commas(vars["fwcfgfile"]) {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" || v == "" {
			return cli.Usagef("-service %s: fwcfgfile %q: must be NAME=FILE[,NAME=FILE]…", r.service, kv)
		}
		files = append(files, kv)
		r.Fwcfg = append(r.Fwcfg, "name=opt/org.smolbsd.file."+k+",file="+strings.ReplaceAll(v, ",", ",,"))
	}
	r.Env, r.Files = append(env, r.Env...), append(files, r.Files...)
	if vars["nonet"] != "" && !f.Changed("net") {
		r.Net.Nets, r.Net.Publish = []string{"none"}, nil
	}
	r.serviceImage(vars)
	if d := vars["drive2"]; d != "" {
		r.Disks = append(r.Disks, strings.ReplaceAll(d, ",", ",,"))
	}
	for _, name := range strings.Fields(serviceNot) {
		if vars[name] != "" {
			fmt.Fprintf(s.Err, "smolvmm: %s: %s is left out: smolvmm has no such thing\n", r.service, name)
		}
	}
	return nil
}

// serviceImage finds the image that a service file means: img, else the file's
// own name, with imgtag.
func (r *runFlags) serviceImage(vars map[string]string) {
	if r.image != "" || len(r.Disks) > 0 {
		return
	}
	img := vars["img"]
	if img == "" {
		img = strings.TrimSuffix(filepath.Base(r.service), ".conf")
		if tag := vars["imgtag"]; tag != "" {
			img += ":" + tag
		}
	}
	r.image = img
}

func commas(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(p string) bool { return p == "" })
}

// parseService reads a service file: a shell's assignments and comments, quotes,
// $NAME, ${NAME} and $(pwd). No program is run. An error begins with the line.
func parseService(text, cwd string, env func(string) (string, bool)) (map[string]string, error) {
	vars := map[string]string{}
	lookup := func(name string) string {
		if v, ok := vars[name]; ok {
			return v
		}
		v, _ := env(name)
		return v
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || !variableName(name) {
			return nil, fmt.Errorf("%d: only assignments NAME=VALUE are understood: %.60q", n, line)
		}
		value, err := shellWord(rest, cwd, lookup)
		if err != nil {
			return nil, fmt.Errorf("%d: %s: %w", n, name, err)
		}
		if len(value) > maxService {
			return nil, fmt.Errorf("%d: %s: too long", n, name)
		}
		vars[name] = value
		known := strings.Fields(serviceNot + " " + serviceNothing + " mem cores append kernel root hostfwd fwcfgvar fwcfgfile nonet daemon img imgtag drive2")
		if !slices.Contains(known, name) && !strings.HasPrefix(name, "_") {
			if near, d := cli.Nearest(name, known); d <= cli.Tolerance(near) {
				return nil, fmt.Errorf("%d: %s: no such variable (did you mean %s?)", n, name, near)
			}
		}
	}
	return vars, nil
}

func variableName(s string) bool {
	if s == "" || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// shellWord reads one word as a shell does, up to a comment.
func shellWord(s, cwd string, lookup func(string) string) (string, error) {
	var out strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				out.WriteByte(c)
			}
		case c == '\\' && i+1 < len(s):
			i++
			out.WriteByte(s[i])
		case c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == '`':
			return "", fmt.Errorf("`…` runs a program, and none is run: write its output")
		case c == '$':
			v, used, err := expansion(s[i:], cwd, lookup)
			if err != nil {
				return "", err
			}
			out.WriteString(v)
			i += used - 1
		case quote == 0 && (c == ' ' || c == '\t'):
			rest := strings.TrimSpace(s[i:])
			if rest != "" && rest[0] != '#' {
				return "", fmt.Errorf("%.40q: a value with spaces needs quotes", rest)
			}
			return out.String(), nil
		case quote == 0 && strings.IndexByte(";&|<>()", c) >= 0:
			return "", fmt.Errorf("%q: only assignments are understood", c)
		default:
			out.WriteByte(c)
		}
		if out.Len() > maxService {
			return "", fmt.Errorf("too long")
		}
	}
	if quote != 0 {
		return "", fmt.Errorf("the quote %c is not closed on this line", quote)
	}
	return out.String(), nil
}

// expansion reads $NAME, ${NAME} or $(pwd) at the beginning of s, and says how
// long it was.
func expansion(s, cwd string, lookup func(string) string) (value string, used int, err error) {
	if strings.HasPrefix(s, "$(pwd)") {
		return cwd, len("$(pwd)"), nil
	}
	if strings.HasPrefix(s, "$(") {
		return "", 0, fmt.Errorf("$(…) runs a program, and none is run: write its output")
	}
	if rest, ok := strings.CutPrefix(s, "${"); ok {
		name, _, ok := strings.Cut(rest, "}")
		if !ok || !variableName(name) {
			return "", 0, fmt.Errorf("${%.20s: only ${NAME} is understood", rest)
		}
		return lookup(name), len(name) + 3, nil
	}
	n := 1
	for n < len(s) && variableName("_"+s[n:n+1]) {
		n++
	}
	if n == 1 {
		return "$", 1, nil
	}
	return lookup(s[1:n]), n, nil
}
