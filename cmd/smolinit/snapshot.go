package main

import (
	"cmp"
	"maps"
	"path"
	"slices"
)

// inode is what lstat(2) tells of a file.
type inode struct {
	Dev, Ino     uint64
	Mode         uint32 // with the type, as in stat(2)
	Nlink        uint32
	UID, GID     uint32
	Rdev         uint64
	Size         int64
	Blocks       int64 // of 512 bytes
	Mtime, Ctime int64 // nanoseconds since 1970
	Flags        uint32
}

// Types of files (sys/stat.h), the same on NetBSD and Linux.
const (
	modeType    = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

func (i inode) kind() uint32 { return i.Mode & modeType }

// same says whether nothing has been changed between two looks. What is written
// to a device or a pipe changes their times.
func (i inode) same(o inode) bool {
	switch i.kind() {
	case modeChar, modeBlock, modeFIFO, modeSocket:
		i.Mtime, i.Ctime, o.Mtime, o.Ctime = 0, 0, 0, 0
	}
	return i == o
}

// files is the file system that a step runs on. Names count from its root and
// have no leading slash; "." is the root.
type files interface {
	list(dir string) ([]string, error)
	lstat(name string) (inode, error)
}

// snapshot has every file of one file system by its name; what is mounted
// below has the mount point only.
type snapshot map[string]inode

// take looks at every file of f's file system.
func take(f files) (snapshot, error) {
	root, err := f.lstat(".")
	if err != nil {
		return nil, err
	}
	s := snapshot{".": root}
	// Directories still to be read: a stack of its own, as trees may be deep.
	for dirs := []string{"."}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		names, err := f.list(dir)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			name := path.Join(dir, n)
			st, err := f.lstat(name)
			if err != nil {
				return nil, err
			}
			s[name] = st
			if st.kind() == modeDir && st.Dev == root.Dev {
				dirs = append(dirs, name)
			}
		}
	}
	return s, nil
}

// change is a file that is new or not as it was.
type change struct {
	name string
	inode
	link string // the name that has the contents, if this is a further one of it
}

// diff gives what is gone since before, without what was below, and what is new or
// changed, directories in front of what is in them.
func diff(before, after snapshot) (gone []string, changed []change) {
	dev := after["."].Dev
	// All names of a changed file are told: whoever applies the changes makes
	// a new file, and the names that were left alone would keep the old one.
	touched := map[uint64]bool{}
	for name, st := range after {
		if st.Dev == dev && st.kind() != modeDir && st.Nlink > 1 && !st.same(before[name]) {
			touched[st.Ino] = true
		}
	}
	first := map[uint64]string{}
	for _, name := range slices.SortedFunc(maps.Keys(after), byParts) {
		st := after[name]
		old, was := before[name]
		// A mount point hides what it is on.
		if st.Dev != dev || was && old.Dev != dev || was && st.same(old) && !touched[st.Ino] {
			continue
		}
		c := change{name: name, inode: st}
		if st.kind() != modeDir && st.Nlink > 1 {
			if to, ok := first[st.Ino]; ok {
				c.link = to
			} else {
				first[st.Ino] = name
			}
		}
		changed = append(changed, c)
	}
	for _, name := range slices.SortedFunc(maps.Keys(before), byParts) {
		old := before[name]
		st, is := after[name]
		// A file in a directory's place and the other way round: what was there
		// has to go first.
		if is && (old.kind() == modeDir) == (st.kind() == modeDir) || old.Dev != dev {
			continue
		}
		if n := len(gone); n > 0 && below(name, gone[n-1]) {
			continue
		}
		gone = append(gone, name)
	}
	return gone, changed
}

// byParts orders names so that all below a directory stands right behind it: "a",
// "a/b", "a-b".
func byParts(a, b string) int {
	if a == "." || b == "." {
		return cmp.Compare(b2i(a != "."), b2i(b != "."))
	}
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// below says whether a name is in a directory, at any depth.
func below(name, dir string) bool {
	return len(name) > len(dir) && name[:len(dir)] == dir && name[len(dir)] == '/'
}
