package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// maxAccounts bounds a file of accounts, in bytes.
const maxAccounts = 4 << 20

// Accounts are the users and groups of a tree.
type Accounts struct {
	users  map[string]user
	groups map[string]uint32
}

type user struct{ uid, gid uint32 }

// Accounts reads the users of etc/master.passwd, or of etc/passwd where there is
// none, and the groups of etc/group (passwd(5), group(5)). Files that are not there
// are empty, lines that are none are passed over; of two lines for a name the first
// counts. The bytes are not trusted.
func (t *Tree) Accounts() (*Accounts, error) {
	a := &Accounts{map[string]user{}, map[string]uint32{}}
	lines, err := t.account("etc/master.passwd")
	if err == nil && lines == nil {
		lines, err = t.account("etc/passwd")
	}
	if err != nil {
		return nil, err
	}
	for _, f := range lines {
		if len(f) < 4 {
			continue
		}
		uid, uerr := ParseID(f[2])
		gid, gerr := ParseID(f[3])
		if _, twice := a.users[f[0]]; !twice && uerr == nil && gerr == nil {
			a.users[f[0]] = user{uid, gid}
		}
	}
	if lines, err = t.account("etc/group"); err != nil {
		return nil, err
	}
	for _, f := range lines {
		if len(f) < 3 {
			continue
		}
		gid, err := ParseID(f[2])
		if _, twice := a.groups[f[0]]; !twice && err == nil {
			a.groups[f[0]] = gid
		}
	}
	return a, nil
}

// account gives the fields of a file's lines, nil where there is no such file.
func (t *Tree) account(path string) ([][]string, error) {
	_, n, err := t.Resolve(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && n.Kind != File {
		err = fmt.Errorf("a %v instead of a file", n.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", path, err)
	}
	b, err := ReadAll(n.Content, maxAccounts)
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", path, err)
	}
	lines := [][]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") {
			continue
		}
		lines = append(lines, strings.SplitN(line, ":", 5))
	}
	return lines, nil
}

// UID gives the number of a user.
func (a *Accounts) UID(name string) (uid uint32, ok bool) {
	u, ok := a.users[name]
	return u.uid, ok
}

// Login gives the numbers of a user and of the user's group.
func (a *Accounts) Login(name string) (uid, gid uint32, ok bool) {
	u, ok := a.users[name]
	return u.uid, u.gid, ok
}

// GID gives the number of a group.
func (a *Accounts) GID(name string) (gid uint32, ok bool) {
	gid, ok = a.groups[name]
	return gid, ok
}

// ParseID reads a number of a user or a group: decimal digits only.
func ParseID(s string) (uint32, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%.40q is no number of a user or group", s)
	}
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no number of a user or group", s)
	}
	return uint32(id), nil
}
