package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"
)

// Entry is one file, folder or symbolic link of a copy.
type Entry struct {
	// Name is relative to what is copied, with slashes: "." for the thing
	// itself, and what is in a folder comes after the folder.
	Name string `json:"name"`
	// Base is the last element of the path that was asked for, with Name ".";
	// empty where that is no name. The host does not let a guest choose it.
	Base   string    `json:"base,omitempty"`
	Kind   EntryKind `json:"kind"`
	Mode   uint32    `json:"mode"`             // permission bits, 0777; of a link none
	Mtime  int64     `json:"mtime"`            // nanoseconds since 1970
	Size   int64     `json:"size,omitempty"`   // of a file, in bytes
	Target string    `json:"target,omitempty"` // of a link
}

// EntryKind is "file", "folder" or "link".
type EntryKind string

// The kinds. Everything else (devices, sockets, pipes) is no matter for a copy.
const (
	KindFile   EntryKind = "file"
	KindFolder EntryKind = "folder"
	KindLink   EntryKind = "link"
)

// holeSize is the unit in which zeros become a hole: a page of either side's
// file system.
const holeSize = 4096

// maxTarget is the longest name, and target of a link, in bytes: PATH_MAX of Linux.
const maxTarget = 4096

// Skipped are what a copy left out, because it is no file, folder or link.
type Skipped []string

// SendTree sends what path names on this side, and what is below it, as entries
// up to TypeDone. With follow a link named by path itself is followed; those
// below are sent as links. A folder's contents are in the order of their names.
func SendTree(c *Conn, name string, follow bool) (Skipped, error) {
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	info, err := stat(name)
	if err != nil {
		return nil, err
	}
	s := sender{conn: c, buf: make([]byte, 8+chunk)}
	base := baseOf(name)
	if info.IsDir() {
		// os.Root keeps the walk inside, whoever moves folders meanwhile.
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		err = s.folder(root, ".", base, info)
		if err == nil {
			err = c.Send(TypeDone)
		}
		return s.skipped, err
	}
	e := Entry{Name: ".", Base: base}
	switch {
	case info.Mode().IsRegular():
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		err = s.file(e, f)
		if err != nil {
			return nil, err
		}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(name)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Target, e.Mtime = KindLink, target, info.ModTime().UnixNano()
		if err := s.begin(e); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%s is neither file, folder nor link", name)
	}
	return nil, c.Send(TypeDone)
}

// baseOf is the name that a path's copy has where it is given none: "" of those
// that have none, as / and "." are.
func baseOf(name string) string {
	base := filepath.Base(filepath.Clean(name))
	if base == "." || base == ".." || base == "/" {
		return ""
	}
	return base
}

type sender struct {
	conn    *Conn
	buf     []byte // a data frame: 8 bytes of offset, then data
	skipped Skipped
}

// begin sends an entry. JSON has no words for names that are not UTF-8: it would
// give the copy other names, and two files the same one.
func (s *sender) begin(e Entry) error {
	for _, n := range []string{e.Name, e.Base, e.Target} {
		if !utf8.ValidString(n) {
			return fmt.Errorf("%q: names that are not UTF-8 cannot be copied", n)
		}
	}
	return s.conn.SendJSON(TypeEntry, e)
}

// maxDepth bounds the folders in folders of a copy.
const maxDepth = 1000

// folder sends a folder and what is in it.
func (s *sender) folder(root *os.Root, name, base string, info fs.FileInfo) error {
	e := Entry{Name: name, Base: base, Kind: KindFolder, Mode: uint32(info.Mode().Perm()), Mtime: info.ModTime().UnixNano()}
	if err := s.begin(e); err != nil {
		return err
	}
	dir, err := root.Open(name)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := s.entry(root, path.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// entry sends what is in a folder under a name.
func (s *sender) entry(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed while we walked
	case err != nil:
		return err
	case info.IsDir():
		return s.folder(root, name, "", info)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		if err != nil {
			return err
		}
		return s.begin(Entry{Name: name, Kind: KindLink, Target: target, Mtime: info.ModTime().UnixNano()})
	case info.Mode().IsRegular():
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return s.file(Entry{Name: name}, f)
	}
	s.skipped = append(s.skipped, name)
	return nil
}

// file sends a regular file. Zeros by the page stay behind: a hole there becomes
// a hole here, and a file that grows or shrinks meanwhile is sent as long as it
// was, with zeros for what has gone.
func (s *sender) file(e Entry, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s has just become something else", f.Name())
	}
	e.Kind, e.Mode, e.Mtime, e.Size = KindFile, uint32(info.Mode().Perm()), info.ModTime().UnixNano(), info.Size()
	if err := s.begin(e); err != nil {
		return err
	}
	for off := int64(0); off < e.Size; {
		n, err := f.ReadAt(s.buf[8:8+min(chunk, e.Size-off)], off)
		if err != nil && err != io.EOF {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := s.data(off, s.buf[8:8+n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// data sends the runs of pages that are not all zeros. p is behind 8 bytes of
// s.buf, so the offset needs no copy for the first run.
func (s *sender) data(off int64, p []byte) error {
	for i := 0; i < len(p); {
		for i < len(p) && zero(p[i:min(i+holeSize, len(p))]) {
			i += holeSize
		}
		j := i
		for j < len(p) && !zero(p[j:min(j+holeSize, len(p))]) {
			j += holeSize
		}
		j = min(j, len(p))
		if i < j {
			var at [8]byte
			binary.LittleEndian.PutUint64(at[:], uint64(off)+uint64(i))
			if err := s.conn.Send(TypeData, at[:], p[i:j]); err != nil {
				return err
			}
		}
		i = j
	}
	return nil
}

func zero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Place is where a received copy goes: the folder that is there, and the name
// that the copy has in it.
type Place struct {
	Dir  string
	Name string // "": the name that it has on the other side
}

// PlaceOf finds the place for a destination as cp(1) does: into a folder that is
// there, or under the name that follows the last slash.
func PlaceOf(dest string) (Place, error) {
	info, err := os.Stat(dest)
	switch {
	case err == nil && info.IsDir():
		return Place{Dir: dest}, nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if dest == "" || dest[len(dest)-1] == '/' {
			return Place{}, fmt.Errorf("%s: no such folder", dest)
		}
		dir, name := filepath.Split(dest)
		if dir == "" {
			dir = "."
		}
		return Place{dir, name}, nil
	}
	return Place{}, err
}

// times puts a time on what has been written.
func times(root *os.Root, name string, mtime int64) error {
	return root.Chtimes(name, time.Time{}, time.Unix(0, mtime))
}

// checkEntry refuses an entry that no honest sender sends.
func checkEntry(e Entry, first bool) error {
	switch {
	case first != (e.Name == "."):
		return protocolf("entry %q out of place", line(e.Name))
	case !fs.ValidPath(e.Name), len(e.Name) > maxTarget, depth(e.Name) > maxDepth:
		return protocolf("entry %q", line(e.Name))
	case first && e.Base != "" && (!fs.ValidPath(e.Base) || path.Base(e.Base) != e.Base || e.Base == "."):
		return protocolf("the copy is called %q", line(e.Base))
	case e.Size < 0 || e.Size > 0 && e.Kind != KindFile:
		return protocolf("entry %q has %d bytes", line(e.Name), e.Size)
	case (e.Kind == KindLink) != (e.Target != ""), len(e.Target) > maxTarget:
		return protocolf("entry %q leads to %q", line(e.Name), line(e.Target))
	case e.Kind != KindFile && e.Kind != KindFolder && e.Kind != KindLink:
		return protocolf("entry %q is of kind %q", line(e.Name), line(string(e.Kind)))
	}
	return nil
}

func depth(name string) (n int) {
	for _, c := range name {
		if c == '/' {
			n++
		}
	}
	return n
}
