package tree

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
)

// The encoding, which is canonical: a tree has one, and no other bytes decode.
//
//	magic, then the root's node, then the end of the stream
//	node  = kind byte, perm, uid, gid: uvarint; mtime: varint; flags: uvarint; then
//	        Dir:     number of entries: uvarint; for each, by name: string, node
//	        File:    size: uvarint; where it is not 0, the SHA-256 of the content
//	        Symlink: target: string
//	        devices: major, minor: uvarint
//	      | linkKind, number: uvarint — another name of the number'th node that
//	        is no directory, counted from 0 in the order of the encoding
//	string = length: uvarint; bytes
//
// Varints are those of encoding/binary, in their shortest form.
const (
	magic    = "smolvmm tree 1\n"
	linkKind = 0xff

	// MaxNames bounds the names of a tree that can be encoded, and with them the
	// memory that Decode takes, some 300 bytes each. A NetBSD with its sources has
	// 200,000.
	MaxNames = 1 << 20
)

// ErrEncoding says that bytes are not the encoding of a tree.
var ErrEncoding = errors.New("not an encoded tree")

// Encode writes the tree: the same tree, the same bytes. Of contents it writes
// size and digest only, and reads those that do not know their digest.
func (t *Tree) Encode(w io.Writer) error { return t.encode(w, MaxNames) }

func (t *Tree) encode(w io.Writer, limit int) error {
	b := bufio.NewWriter(w)
	b.WriteString(magic) // an error stays and is Flush's
	e := encoder{w: b, limit: limit, numbers: map[*Node]uint64{}, dirs: map[*Node]bool{}}
	if t.Root == nil || t.Root.Kind != Dir {
		return &Error{".", ErrNotDir}
	}
	if err := e.node(".", t.Root); err != nil {
		return err
	}
	return b.Flush()
}

// Digest is "sha256:" and the SHA-256 of the encoding. Trees of the same digest
// make the same image.
func (t *Tree) Digest() (string, error) {
	h := sha256.New()
	if err := t.Encode(h); err != nil {
		return "", err
	}
	return DigestPrefix + hex.EncodeToString(h.Sum(nil)), nil
}

type encoder struct {
	w       *bufio.Writer
	numbers map[*Node]uint64
	dirs    map[*Node]bool
	names   int // so far
	limit   int
	buf     [binary.MaxVarintLen64]byte
}

func (e *encoder) uint(v uint64) { e.w.Write(e.buf[:binary.PutUvarint(e.buf[:], v)]) }

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.w.WriteString(s)
}

func (e *encoder) node(path string, n *Node) error {
	if err := n.Check(); err != nil {
		return &Error{path, err}
	}
	if len(path) > MaxPath {
		return &Error{path, fmt.Errorf("%w: longer than %d bytes", ErrName, MaxPath)}
	}
	if e.names++; e.names > e.limit {
		return &Error{path, fmt.Errorf("%w: the tree has more than %d names", ErrNode, e.limit)}
	}
	if n.Kind == Dir {
		if e.dirs[n] {
			return &Error{path, ErrDirTwice}
		}
		e.dirs[n] = true
	} else {
		if number, ok := e.numbers[n]; ok {
			e.w.WriteByte(linkKind)
			e.uint(number)
			return nil
		}
		e.numbers[n] = uint64(len(e.numbers))
	}
	e.w.WriteByte(byte(n.Kind))
	e.uint(uint64(n.Perm))
	e.uint(uint64(n.UID))
	e.uint(uint64(n.GID))
	e.w.Write(e.buf[:binary.PutVarint(e.buf[:], n.Mtime)])
	e.uint(uint64(n.Flags))
	switch n.Kind {
	case Dir:
		e.uint(uint64(n.Len()))
		for _, name := range n.Names() {
			e.string(name)
			if err := e.node(join(path, name), n.entries[name]); err != nil {
				return err
			}
		}
	case File:
		e.uint(uint64(n.Size()))
		if n.Size() > 0 {
			sum, err := contentSum(n.Content)
			if err != nil {
				return &Error{path, err}
			}
			e.w.Write(sum[:])
		}
	case Symlink:
		e.string(n.Target)
	case CharDevice, BlockDevice:
		e.uint(uint64(n.Major))
		e.uint(uint64(n.Minor))
	}
	return nil
}

// Decode reads what Encode wrote, from bytes that are not trusted. open gives the
// contents, none of them empty; where it is nil they are Refs.
func Decode(r io.Reader, open func(digest string, size int64) (Content, error)) (*Tree, error) {
	return decode(r, open, MaxNames)
}

func decode(r io.Reader, open func(digest string, size int64) (Content, error), limit int) (*Tree, error) {
	b := bufio.NewReader(r)
	got := make([]byte, len(magic))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, []byte(magic)) {
		return nil, fmt.Errorf("%w: it begins with %q", ErrEncoding, got)
	}
	if open == nil {
		open = func(digest string, size int64) (Content, error) { return Ref{digest, size}, nil }
	}
	d := decoder{r: b, open: open, limit: limit}
	root := d.node(0)
	if d.err == nil && root.Kind != Dir {
		d.fail("the root is no directory")
	}
	if d.err != nil {
		return nil, d.err
	}
	if _, err := b.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more follows its end", ErrEncoding)
	}
	return &Tree{Root: root}, nil
}

// decoder keeps the first error; after it everything reads as zero.
type decoder struct {
	r     *bufio.Reader
	open  func(string, int64) (Content, error)
	nodes []*Node // that are no directories
	names int     // so far, with the root's
	limit int
	err   error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrEncoding, fmt.Sprintf(format, args...))
	}
}

func (d *decoder) byte() byte {
	if d.err != nil {
		return 0
	}
	b, err := d.r.ReadByte()
	if err != nil {
		d.fail("it is cut short")
	}
	return b
}

// uint reads a uvarint of at most limit.
func (d *decoder) uint(limit uint64) uint64 {
	var v uint64
	for i := 0; ; i++ {
		b := d.byte()
		switch {
		case d.err != nil:
			return 0
		case i == binary.MaxVarintLen64-1 && b > 1:
			d.fail("a number of more than 64 bits")
			return 0
		case b == 0 && i > 0:
			d.fail("a number that is not in its shortest form")
			return 0
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			break
		}
	}
	if v > limit {
		d.fail("%d where %d is the most", v, limit)
		return 0
	}
	return v
}

func (d *decoder) string(limit uint64) string {
	b := make([]byte, d.uint(limit))
	if d.err == nil {
		if _, err := io.ReadFull(d.r, b); err != nil {
			d.fail("it is cut short")
		}
	}
	return string(b)
}

// node reads a node. path is the length of its path.
func (d *decoder) node(path int) *Node {
	if d.names++; d.names > d.limit {
		d.fail("more than %d names", d.limit)
	}
	n := &Node{Kind: Kind(d.byte())}
	if n.Kind == linkKind {
		number := d.uint(MaxNames)
		if d.err == nil && number >= uint64(len(d.nodes)) {
			d.fail("a link to node %d of %d", number, len(d.nodes))
		}
		if d.err != nil {
			return n
		}
		return d.nodes[number]
	}
	n.Perm = uint16(d.uint(MaxPerm))
	n.UID = uint32(d.uint(math.MaxUint32))
	n.GID = uint32(d.uint(math.MaxUint32))
	zigzag := d.uint(math.MaxUint64)
	n.Mtime = int64(zigzag>>1) ^ -int64(zigzag&1)
	n.Flags = uint32(d.uint(math.MaxUint32))
	switch n.Kind {
	case Dir:
		d.entries(n, path)
		return n
	case File:
		d.file(n)
	case Symlink:
		n.Target = d.string(MaxTarget)
	case CharDevice, BlockDevice:
		n.Major = uint32(d.uint(MaxMajor))
		n.Minor = uint32(d.uint(MaxMinor))
	}
	if d.err == nil {
		if err := n.Check(); err != nil {
			d.fail("%v", err)
		}
	}
	d.nodes = append(d.nodes, n)
	return n
}

func (d *decoder) entries(dir *Node, path int) {
	last := ""
	for i := d.uint(MaxNames); i > 0 && d.err == nil; i-- {
		name := d.string(MaxName)
		if d.err == nil && (name <= last || CheckName(name) != nil) {
			d.fail("the name %.40q after %.40q", name, last)
		}
		if d.err == nil && path+len(name) > MaxPath {
			d.fail("a path of more than %d bytes", MaxPath)
		}
		if d.err != nil {
			return
		}
		child := d.node(path + len(name) + 1)
		if d.err == nil {
			if err := dir.Set(name, child); err != nil {
				d.fail("%v", err)
			}
		}
		last = name
	}
}

func (d *decoder) file(n *Node) {
	size := int64(d.uint(math.MaxInt64))
	if size == 0 || d.err != nil {
		return
	}
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(d.r, sum[:]); err != nil {
		d.fail("it is cut short")
		return
	}
	c, err := d.open(DigestPrefix+hex.EncodeToString(sum[:]), size)
	if err != nil {
		d.err = err
		return
	}
	if c == nil || c.Size() != size {
		d.fail("a content of %d bytes was given for one of another size", size)
		return
	}
	n.Content = c
}
