package ffs

import "github.com/smolvmm/smolvmm/builder/tree"

// A directory's bytes: entries in blocks of 512 bytes, none across a border; the
// last entry of a block reaches to its end.

// entrySize is what an entry takes: header, name and a NUL, in whole words
// (UFS_DIRECTSIZ).
func entrySize(name int) int { return 8 + (name+1+3)&^3 }

// dirSize gives the size of a directory with the names. "." and ".." come first.
func dirSize(names []string) int64 {
	blocks, used := int64(1), entrySize(1)+entrySize(2)
	for _, name := range names {
		n := entrySize(len(name))
		if used+n > dirBlock {
			blocks, used = blocks+1, 0
		}
		used += n
	}
	return blocks * dirBlock
}

// dirSource makes a directory's bytes one after the other.
type dirSource struct {
	node         *tree.Node
	names        []string
	numbers      map[*tree.Node]uint32
	self, parent uint32
	begun        bool
}

// read fills b, which has whole directory blocks; off is not looked at, as
// reads follow each other.
func (d *dirSource) read(b []byte, _ int64) error {
	clear(b)
	for ; len(b) > 0; b = b[dirBlock:] {
		used, last := 0, 0
		entry := func(name string, ino uint32, mode uint16) {
			n := entrySize(len(name))
			le.PutUint32(b[used:], ino)
			put16(b, used+4, uint16(n))
			b[used+6] = byte(mode >> 12)
			b[used+7] = byte(len(name))
			copy(b[used+8:], name)
			last = used
			used += n
		}
		if !d.begun {
			d.begun = true
			entry(".", d.self, typeDir)
			entry("..", d.parent, typeDir)
		}
		for len(d.names) > 0 && used+entrySize(len(d.names[0])) <= dirBlock {
			child := d.node.Child(d.names[0])
			entry(d.names[0], d.numbers[child], fileType(child.Kind))
			d.names = d.names[1:]
		}
		put16(b, last+4, uint16(dirBlock-last))
	}
	return nil
}

func fileType(k tree.Kind) uint16 {
	switch k {
	case tree.Dir:
		return typeDir
	case tree.Symlink:
		return typeSymlink
	case tree.CharDevice:
		return typeChar
	case tree.BlockDevice:
		return typeBlock
	case tree.FIFO:
		return typeFIFO
	case tree.Socket:
		return typeSocket
	}
	return typeRegular
}
