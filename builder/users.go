package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// maxPasswd bounds a password file: it is read into memory.
const maxPasswd = 1 << 20

// readFile reads a file of a root, following links in it. Nothing there is "".
func readFile(t *tree.Tree, name string, limit int64) (string, error) {
	_, n, err := t.Resolve(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if n.Kind != tree.File {
		return "", fmt.Errorf("%s is a %v", name, n.Kind)
	}
	b, err := tree.ReadAll(n.Content, limit)
	return string(b), err
}

// account is a line of a password file.
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// accounts are those of a root: of etc/passwd, and of etc/master.passwd where a
// root has that alone, as NetBSD's etc set does.
func accounts(t *tree.Tree) ([]account, error) {
	for _, f := range []struct {
		name string
		home int
		min  int
	}{{"etc/passwd", 5, 6}, {"etc/master.passwd", 8, 9}} {
		text, err := readFile(t, f.name, maxPasswd)
		if err != nil {
			return nil, err
		}
		var out []account
		for line := range strings.Lines(text) {
			p := strings.Split(strings.TrimRight(line, "\r\n"), ":")
			if len(p) < f.min || p[0] == "" || p[0][0] == '#' || p[0][0] == '+' {
				continue
			}
			uid, err1 := strconv.ParseUint(p[2], 10, 32)
			gid, err2 := strconv.ParseUint(p[3], 10, 32)
			if err1 == nil && err2 == nil {
				out = append(out, account{p[0], uint32(uid), uint32(gid), p[f.home]})
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, nil
}

// group is a line of etc/group.
type group struct {
	name    string
	gid     uint32
	members []string
}

func groups(t *tree.Tree) ([]group, error) {
	text, err := readFile(t, "etc/group", maxPasswd)
	if err != nil {
		return nil, err
	}
	var out []group
	for line := range strings.Lines(text) {
		p := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(p) < 3 || p[0] == "" || p[0][0] == '#' {
			continue
		}
		gid, err := strconv.ParseUint(p[2], 10, 32)
		if err != nil {
			continue
		}
		g := group{name: p[0], gid: uint32(gid)}
		if len(p) > 3 && p[3] != "" {
			g.members = strings.Split(p[3], ",")
		}
		out = append(out, g)
	}
	return out, nil
}

// maxGroups is how many groups a process of NetBSD has (sys/syslimits.h:
// NGROUPS_MAX).
const maxGroups = 16

// identity is who USER and --chown name.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
	// hasUser and hasGroup say which of them were given: --chown=:wheel has no user.
	hasUser, hasGroup bool
	known             bool // the user has a line in the password file
}

// errNoUser is about a name that the image's etc/passwd or etc/group lacks.
type errNoUser struct{ what, name string }

func (e *errNoUser) Error() string {
	file := "etc/passwd"
	if e.what == "group" {
		file = "etc/group"
	}
	return fmt.Sprintf("there is no %s %q in the image's %s", e.what, e.name, file)
}

// lookup finds "user", "user:group", ":group"; names or numbers. A number needs no
// line in a file.
func lookup(t *tree.Tree, who string) (identity, error) {
	var id identity
	user, grp, hasGroup := strings.Cut(who, ":")
	if user != "" {
		id.hasUser = true
		as, err := accounts(t)
		if err != nil {
			return id, err
		}
		found := false
		number, nerr := strconv.ParseUint(user, 10, 31)
		for _, a := range as {
			if a.name == user || nerr == nil && uint64(a.uid) == number {
				id.uid, id.gid, id.home, found = a.uid, a.gid, a.home, true
				id.known = true
				user = a.name
				break
			}
		}
		if !found {
			// root is 0 everywhere, an image without files too.
			if nerr != nil && user != "root" {
				return id, &errNoUser{"user", user}
			}
			id.uid = uint32(number)
		}
	}
	gs, err := groups(t)
	if err != nil {
		return id, err
	}
	if hasGroup && grp != "" {
		id.hasGroup = true
		number, nerr := strconv.ParseUint(grp, 10, 31)
		found := false
		for _, g := range gs {
			if g.name == grp {
				id.gid, found = g.gid, true
				break
			}
		}
		switch {
		case found:
		case nerr == nil:
			id.gid = uint32(number)
		case grp == "wheel" || grp == "root":
			id.gid = 0
		default:
			return id, &errNoUser{"group", grp}
		}
		return id, nil
	}
	if !id.hasUser {
		return id, errors.New("it names neither user nor group")
	}
	for _, g := range gs {
		for _, m := range g.members {
			if m == user && g.gid != id.gid && len(id.groups) < maxGroups {
				id.groups = append(id.groups, g.gid)
			}
		}
	}
	return id, nil
}
