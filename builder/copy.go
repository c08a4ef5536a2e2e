package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// copier lays nodes into a root. Links on the way are followed within it.
type copier struct {
	root  *tree.Tree
	owner *identity // --chown, or nil
	mode  *chmod    // --chmod, or nil
	mtime int64     // of what is made on the way
	// devices lets device nodes through: those of another stage or image.
	devices bool
	copies  map[*tree.Node]*tree.Node
}

// mkdirAll gives the folder at a path, made where it lacks, and where it really is.
func (c *copier) mkdirAll(name string, perm uint16) (string, *tree.Node, error) {
	names, err := tree.Split(clean(name))
	if err != nil {
		return "", nil, err
	}
	at, node := ".", c.root.Root
	for _, n := range names {
		next := path.Join(at, n)
		real, found, err := c.root.Resolve(next)
		switch {
		case err == nil && found.Kind != tree.Dir:
			return "", nil, fmt.Errorf("/%s is a %v in the image, not a folder", next, found.Kind)
		case err == nil:
			at, node = real, found
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return "", nil, err
		}
		if old := node.Child(n); old != nil {
			return "", nil, fmt.Errorf("/%s is a symbolic link to %s in the image, and there is nothing", next, old.Target)
		}
		dir := tree.NewDir(perm)
		dir.Mtime = c.mtime
		if c.owner != nil {
			dir.UID, dir.GID = c.owner.uid, c.owner.gid
		}
		if err := node.Set(n, dir); err != nil {
			return "", nil, err
		}
		at, node = next, dir
	}
	return at, node, nil
}

// clean is a path of the root without its leading slash; what goes above the root
// stays in it.
func clean(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

// place lays the sources at dest, by Docker's rules: a folder's contents go into
// dest; a file goes into dest if that ends in a slash or is a folder, else it
// becomes dest.
func (c *copier) place(sources []sourceSet, dest, workdir string) error {
	full := path.Join("/", workdir, dest)
	if strings.HasPrefix(dest, "/") {
		full = path.Clean(dest)
	}
	into := strings.HasSuffix(dest, "/") || dest == "." || strings.HasSuffix(dest, "/.") || len(sources) > 1
	for _, s := range sources {
		if s.node.Kind == tree.Dir {
			real, dir, err := c.mkdirAll(full, 0o755)
			if err != nil {
				return err
			}
			if err := c.merge(real, dir, s.node); err != nil {
				return err
			}
			continue
		}
		target := full
		_, old, err := c.root.Resolve(clean(full))
		if into || err == nil && old.Kind == tree.Dir {
			target = path.Join(full, s.base)
		}
		real, dir, err := c.mkdirAll(path.Dir(target), 0o755)
		if err != nil {
			return err
		}
		if clean(target) == "." {
			return fmt.Errorf("%s: / is a folder", s.name)
		}
		if err := c.set(real, dir, path.Base(target), s.node); err != nil {
			return err
		}
	}
	return nil
}

// merge copies the entries of src into dir.
func (c *copier) merge(at string, dir, src *tree.Node) error {
	for _, name := range src.Names() {
		if err := c.set(at, dir, name, src.Child(name)); err != nil {
			return err
		}
	}
	return nil
}

// set makes a copy of src the entry of a directory. Folders are joined.
func (c *copier) set(at string, dir *tree.Node, name string, src *tree.Node) error {
	full := path.Join(at, name)
	old := dir.Child(name)
	if src.Kind == tree.Dir {
		if old != nil && old.Kind == tree.Symlink {
			if real, n, err := c.root.Resolve(full); err == nil && n.Kind == tree.Dir {
				// /lib -> /usr/lib stays, what is copied to /lib goes there.
				return c.merge(real, n, src)
			}
		}
		if old != nil && old.Kind != tree.Dir {
			return fmt.Errorf("/%s is a %v in the image, and a folder in what is copied", full, old.Kind)
		}
		if old == nil {
			old = &tree.Node{Kind: tree.Dir, UID: src.UID, GID: src.GID}
			if err := dir.Set(name, old); err != nil {
				return err
			}
		}
		old.Perm, old.Mtime, old.Flags = src.Perm, src.Mtime, src.Flags
		c.apply(old, src)
		return c.merge(full, old, src)
	}
	if old != nil && old.Kind == tree.Dir {
		return fmt.Errorf("/%s is a folder in the image, and a %v in what is copied", full, src.Kind)
	}
	if (src.Kind == tree.CharDevice || src.Kind == tree.BlockDevice) && !c.devices {
		return fmt.Errorf("%s is a device: files, folders and symbolic links are copied", name)
	}
	n := c.copies[src]
	if n == nil {
		one := *src
		n = &one
		c.apply(n, src)
		c.copies[src] = n
	}
	return dir.Set(name, n)
}

// apply gives a node the owner and mode that flags ask for.
func (c *copier) apply(n, src *tree.Node) {
	n.UID, n.GID = src.UID, src.GID
	if c.owner != nil {
		n.UID, n.GID = c.owner.uid, c.owner.gid
	}
	if c.mode != nil && n.Kind != tree.Symlink {
		n.Perm = c.mode.of(n)
	}
}

// chmod is a mode as chmod(1) takes it.
type chmod struct {
	octal bool
	perm  uint16
	parts []chmodPart
}

type chmodPart struct {
	who uint16 // mask of the classes: 0o700, 0o070, 0o007
	op  byte
	bit string // of "rwxXst"
}

// parseChmod reads "0755" or "u=rwX,go=rX".
func parseChmod(s string) (*chmod, error) {
	if n, err := strconv.ParseUint(s, 8, 16); err == nil {
		if n > 0o7777 {
			return nil, fmt.Errorf("%q is no mode", s)
		}
		return &chmod{octal: true, perm: uint16(n)}, nil
	}
	m := &chmod{}
	for _, part := range strings.Split(s, ",") {
		i := strings.IndexAny(part, "+-=")
		if i < 0 {
			return nil, fmt.Errorf("%q is no mode: as 0755 or u=rwX,go=rX", s)
		}
		var who uint16
		for _, w := range part[:i] {
			bits, ok := map[rune]uint16{'u': 0o700, 'g': 0o070, 'o': 0o007, 'a': 0o777}[w]
			if !ok {
				return nil, fmt.Errorf("%q is no mode: %q is none of u, g, o and a", s, w)
			}
			who |= bits
		}
		if who == 0 {
			who = 0o777
		}
		bit := part[i+1:]
		if strings.Trim(bit, "rwxXst") != "" {
			return nil, fmt.Errorf("%q is no mode: as 0755 or u=rwX,go=rX", s)
		}
		m.parts = append(m.parts, chmodPart{who, part[i], bit})
	}
	return m, nil
}

// of gives a node's new mode.
func (m *chmod) of(n *tree.Node) uint16 {
	if m.octal {
		return m.perm
	}
	p := n.Perm
	for _, part := range m.parts {
		var set uint16
		for _, b := range part.bit {
			switch b {
			case 'r':
				set |= 0o444 & part.who
			case 'w':
				set |= 0o222 & part.who
			case 'x':
				set |= 0o111 & part.who
			case 'X':
				if n.Kind == tree.Dir || n.Perm&0o111 != 0 {
					set |= 0o111 & part.who
				}
			case 's':
				if part.who&0o700 != 0 {
					set |= 0o4000
				}
				if part.who&0o070 != 0 {
					set |= 0o2000
				}
			case 't':
				set |= 0o1000
			}
		}
		switch part.op {
		case '+':
			p |= set
		case '-':
			p &^= set
		case '=':
			p = p&^part.who | set
		}
	}
	return p
}
