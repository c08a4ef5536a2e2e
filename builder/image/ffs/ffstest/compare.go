package ffstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// Compare holds every name of a tree, and what it names, to the disk, and the
// disk's names to the tree's.
func (d *Disk) Compare(t *tree.Tree) error {
	inodes := map[string]uint32{".": 2}
	numbers := map[*tree.Node]uint32{}
	return t.Walk(func(path string, n *tree.Node) error {
		if err := compareNode(d, path, n, inodes, numbers); err != nil {
			return fmt.Errorf("%.80q: %w", path, err)
		}
		return nil
	})
}

func compareNode(d *Disk, path string, n *tree.Node, inodes map[string]uint32, numbers map[*tree.Node]uint32) error {
	ino, ok := inodes[path]
	if !ok {
		return errors.New("it is not there")
	}
	if known, ok := numbers[n]; ok && known != ino {
		return fmt.Errorf("two inodes, %d and %d, for links", known, ino)
	}
	numbers[n] = ino
	i, err := d.Inode(ino)
	if err != nil {
		return err
	}
	kind := map[tree.Kind]uint16{tree.Dir: 0o040000, tree.File: 0o100000, tree.Symlink: 0o120000, tree.CharDevice: 0o020000, tree.BlockDevice: 0o060000, tree.FIFO: 0o010000, tree.Socket: 0o140000}[n.Kind]
	if i.Mode != kind|n.Perm || i.UID != n.UID || i.GID != n.GID || i.Flags != n.Flags || i.Gen <= 0 && d.fresh {
		return fmt.Errorf("%+v is not %+v", i, n)
	}
	at := time.Unix(0, n.Mtime)
	for n, got := range []time.Time{time.Unix(i.Mtime, int64(i.Mtimensec)), time.Unix(i.Atime, int64(i.Atimensec)), time.Unix(i.Ctime, int64(i.Ctimensec)), time.Unix(i.Birthtime, int64(i.Birthnsec))} {
		if !got.Equal(at) && (n == 0 || d.fresh) {
			return fmt.Errorf("time %v, want %v", got, at)
		}
	}
	if d.fresh && (i.Blksize != 0 || i.Kernflags != 0 || i.Extsize != 0 || i.Extb != [2]int64{} || i.Modrev != 0 || i.Spare != [2]int64{}) {
		return fmt.Errorf("fields that nobody sets are set: %+v", i)
	}
	if i.Mtimensec < 0 || i.Mtimensec > 999999999 {
		return fmt.Errorf("%d nanoseconds", i.Mtimensec)
	}
	switch n.Kind {
	case tree.Dir:
		list, err := d.entries(i)
		if err != nil {
			return err
		}
		var names []string
		for _, e := range list[2:] {
			names = append(names, e.name)
			if path == "." {
				inodes[e.name] = e.ino
			} else {
				inodes[path+"/"+e.name] = e.ino
			}
		}
		if !d.fresh {
			slices.Sort(names)
		}
		if !slices.Equal(names, n.Names()) {
			return fmt.Errorf("names %.200q, want %.200q", names, n.Names())
		}
	case tree.Symlink:
		if i.Size != uint64(len(n.Target)) {
			return fmt.Errorf("a target of %d bytes, want %d", i.Size, len(n.Target))
		}
		var b []byte
		if len(n.Target) < 120 {
			var raw bytes.Buffer
			for _, a := range append(i.DB[:], i.IB[:]...) {
				raw.Write(binary.LittleEndian.AppendUint64(nil, uint64(a)))
			}
			b = raw.Bytes()
			if len(bytes.Trim(b[i.Size:], "\x00")) != 0 {
				return errors.New("not zero behind the target")
			}
			b = b[:i.Size]
		} else if b, err = d.content(i); err != nil {
			return err
		}
		if string(b) != n.Target {
			return fmt.Errorf("target %.80q, want %.80q", b, n.Target)
		}
	case tree.CharDevice, tree.BlockDevice:
		// sys/types.h: minor is bits 0-7 and 20-31, major bits 8-19.
		major, minor := uint32(i.DB[0])>>8&0xfff, uint32(i.DB[0])&0xff|uint32(i.DB[0])>>12&0xfff00
		if major != n.Major || minor != n.Minor || i.Size != 0 {
			return fmt.Errorf("device %d,%d, want %d,%d", major, minor, n.Major, n.Minor)
		}
	case tree.File:
		return compareFile(d, i, n)
	}
	return nil
}

// compareFile compares what is in blocks, and knows of the rest that it is zero.
func compareFile(d *Disk, i *Inode, n *tree.Node) error {
	if int64(i.Size) != n.Size() {
		return fmt.Errorf("%d bytes, want %d", i.Size, n.Size())
	}
	if n.Size() == 0 {
		return nil
	}
	extents, err := tree.Extents(n.Content)
	if err != nil {
		return err
	}
	want := map[int64]bool{}
	bs := int64(d.Super.Bsize)
	for _, e := range extents {
		for b := e.Off / bs; b*bs < e.Off+e.Len; b++ {
			want[b] = true
		}
	}
	r, err := n.Content.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	got := 0
	err = d.walk(i, func(lbn, addr int64, size int) error {
		if lbn < 0 {
			return nil
		}
		got++
		if !want[lbn] {
			return fmt.Errorf("block %d should be a hole", lbn)
		}
		b, err := d.bytes(addr, size)
		if err != nil {
			return err
		}
		w := make([]byte, size)
		n := min(int64(size), n.Size()-lbn*bs)
		if _, err := r.ReadAt(w[:n], lbn*bs); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(b, w) {
			return fmt.Errorf("block %d at %d differs", lbn, addr)
		}
		return nil
	})
	if err == nil && got != len(want) {
		err = fmt.Errorf("%d blocks, want %d", got, len(want))
	}
	return err
}
