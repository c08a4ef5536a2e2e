package builder

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// defaultPackages are those that smolBSD unpacks where a file has no LABEL
// smolbsd.addpkgs: its files expect pkgin to be there.
func defaultPackages() []string {
	return []string{"pkgin", "pkg_tarup", "pkg_install", "sqlite3", "curl", "rsync"}
}

// packages fetches what LABEL smolbsd.addpkgs of a stage names.
func (e *engine) packages(ctx context.Context, s *dialect.Stage) ([]Layer, error) {
	var names []string
	given, runs := false, false
	for _, in := range s.Steps {
		switch in := in.(type) {
		case *dialect.Run:
			runs = runs || strings.Contains(in.Script, "pkgin") || strings.Contains(in.Script, "pkg_")
			for _, h := range in.Heredocs {
				runs = runs || strings.Contains(h.Content, "pkgin")
			}
		case *dialect.Label:
			for _, p := range in.Pairs {
				if p.Name != "smolbsd.addpkgs" {
					continue
				}
				if strings.Contains(p.Value, "$") {
					return nil, in.Errorf(p.Name, "LABEL smolbsd.addpkgs: variables are not expanded there: it counts from FROM on")
				}
				l, err := dialect.ReadLabels(map[string]string{p.Name: strings.Trim(p.Value, `"'`)})
				if err != nil {
					return nil, in.Errorf(p.Name, "%w", err)
				}
				names, given = l.AddPkgs, true
			}
		}
	}
	if !given && s.SmolBSD && runs {
		names = defaultPackages()
	}
	if len(names) == 0 {
		return nil, nil
	}
	if e.o.Packages == nil {
		if !given {
			return nil, nil // pkgin may come from somewhere else
		}
		return nil, errors.New("LABEL smolbsd.addpkgs: this build has no packages")
	}
	return e.o.Packages.Fetch(ctx, e.global[releaseArg], names)
}

// smolBSDRoot puts into a root of sets what smolBSD's builder does before the
// first RUN: a PATH for login shells and where pkgin looks.
func smolBSDRoot(t *tree.Tree, release string, mtime int64) error {
	for name, text := range map[string]string{
		"etc/profile":                         "PATH=$PATH:/sbin:/usr/sbin:/usr/pkg/bin:/usr/pkg/sbin\nexport PATH\n",
		"usr/pkg/etc/pkgin/repositories.conf": fmt.Sprintf("https://cdn.netbsd.org/pub/pkgsrc/packages/NetBSD/amd64/%s/All\n", release),
	} {
		n := tree.NewFile(0o644, tree.Bytes(text))
		n.Mtime = mtime
		c := &copier{root: t, mtime: mtime, copies: map[*tree.Node]*tree.Node{}}
		if err := c.place([]sourceSet{{name, name, n}}, "/"+name, "/"); err != nil {
			return err
		}
	}
	return nil
}

// smolBSDCommand is what a machine of a smolBSD file executes: its shell form is
// the end of /etc/rc there, which has read /etc/rc.local before.
func smolBSDCommand(cmd []string) []string {
	if len(cmd) < 3 || cmd[len(cmd)-2] != "-c" {
		return cmd
	}
	const before = "[ -f /etc/rc.local ] && . /etc/rc.local\n"
	out := append([]string{}, cmd...)
	out[len(out)-1] = before + strings.TrimPrefix(out[len(out)-1], before)
	return out
}
