package tree

import (
	"fmt"
	"strings"
)

// Kind is what a node is. The zero Kind is none.
type Kind uint8

const (
	Dir Kind = iota + 1
	File
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

func (k Kind) String() string {
	switch k {
	case Dir:
		return "directory"
	case File:
		return "file"
	case Symlink:
		return "symlink"
	case CharDevice:
		return "character device"
	case BlockDevice:
		return "block device"
	case FIFO:
		return "FIFO"
	case Socket:
		return "socket"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Node is an inode. Hard links are the same *Node under several names; a
// directory has one name.
type Node struct {
	Kind  Kind
	Perm  uint16 // permissions with set-user-ID, set-group-ID and sticky bit: at most 07777
	UID   uint32
	GID   uint32
	Mtime int64  // nanoseconds since 1970, UTC
	Flags uint32 // NetBSD's st_flags (stat(2): SF_IMMUTABLE, UF_NODUMP, …)

	Content Content // of a File; nil is an empty one
	Target  string  // of a Symlink, taken as it is: absolute ones count from the root of whoever follows
	Major   uint32  // of a device, at most MaxMajor
	Minor   uint32  // of a device, at most MaxMinor

	entries map[string]*Node // of a Dir
}

// NewDir gives an empty directory of root's.
func NewDir(perm uint16) *Node { return &Node{Kind: Dir, Perm: perm} }

// NewFile gives a file of root's; a nil content is an empty one.
func NewFile(perm uint16, c Content) *Node { return &Node{Kind: File, Perm: perm, Content: c} }

// NewSymlink gives a symlink of root's.
func NewSymlink(target string) *Node { return &Node{Kind: Symlink, Perm: 0o777, Target: target} }

// Check says whether a file system could hold the node. It does not look at the
// entries of a directory: those were checked when they were set.
func (n *Node) Check() error {
	switch {
	case n == nil:
		return fmt.Errorf("%w: nil", ErrNode)
	case n.Kind < Dir || n.Kind > Socket:
		return fmt.Errorf("%w: %v", ErrNode, n.Kind)
	case n.Perm > MaxPerm:
		return fmt.Errorf("%w: mode %#o has other bits than %#o", ErrNode, n.Perm, MaxPerm)
	case n.Kind == Symlink && (n.Target == "" || len(n.Target) > MaxTarget || strings.Contains(n.Target, "\x00")):
		return fmt.Errorf("%w: %.40q cannot be a symlink's target", ErrNode, n.Target)
	case n.Major > MaxMajor || n.Minor > MaxMinor:
		return fmt.Errorf("%w: NetBSD has no device %d,%d", ErrNode, n.Major, n.Minor)
	case n.Kind == File && n.Content != nil && n.Content.Size() < 0:
		return fmt.Errorf("%w: a negative size", ErrNode)
	}
	return nil
}

// Child gives the entry of a directory, or nil.
func (n *Node) Child(name string) *Node { return n.entries[name] }

// Len is the number of a directory's entries.
func (n *Node) Len() int { return len(n.entries) }

// Names gives a directory's entries, in the order of their bytes.
func (n *Node) Names() []string { return sortedNames(n.entries) }

// Set makes child the entry of a directory, in place of what had the name.
func (n *Node) Set(name string, child *Node) error {
	if n.Kind != Dir {
		return ErrNotDir
	}
	if err := CheckName(name); err != nil {
		return err
	}
	if err := child.Check(); err != nil {
		return err
	}
	if child == n {
		return &Error{name, ErrDirTwice}
	}
	if n.entries == nil {
		n.entries = map[string]*Node{}
	}
	n.entries[name] = child
	return nil
}

// Remove takes an entry out of a directory and says whether it was there.
func (n *Node) Remove(name string) bool {
	_, ok := n.entries[name]
	delete(n.entries, name)
	return ok
}

// Size is the number of a file's bytes, holes included; 0 for other kinds.
func (n *Node) Size() int64 {
	if n.Kind != File || n.Content == nil {
		return 0
	}
	return n.Content.Size()
}

// meta takes over what from says of owner, mode, time and flags.
func (n *Node) meta(from *Node) {
	n.Perm, n.UID, n.GID, n.Mtime, n.Flags = from.Perm, from.UID, from.GID, from.Mtime, from.Flags
}

// clone copies a node and all below it; copies has what was copied already.
func (n *Node) clone(copies map[*Node]*Node) *Node {
	if c, ok := copies[n]; ok {
		return c
	}
	c := new(Node)
	*c = *n
	copies[n] = c
	if n.entries != nil {
		c.entries = make(map[string]*Node, len(n.entries))
		for name, child := range n.entries {
			c.entries[name] = child.clone(copies)
		}
	}
	return c
}

const (
	// MaxMajor and MaxMinor bound what NetBSD's dev_t holds (sys/types.h: makedev).
	MaxMajor = 0xfff
	MaxMinor = 0xfffff
)

// Dev gives NetBSD's dev_t of a device's numbers, which must be within MaxMajor
// and MaxMinor (sys/types.h: makedev).
func Dev(major, minor uint32) uint32 {
	return major<<8&0x000fff00 | minor<<12&0xfff00000 | minor&0x000000ff
}

// DevNumbers takes NetBSD's dev_t apart (sys/types.h: major, minor).
func DevNumbers(dev uint32) (major, minor uint32) {
	return dev & 0x000fff00 >> 8, dev&0xfff00000>>12 | dev&0x000000ff
}
