// Package archive reads tar archives, plain or compressed, into trees, writes
// trees as tar archives, and takes folders of the host as trees.
//
// An archive is hostile until it has been read: what it may name, hold and cost
// is bounded, and each refusal says which entry of which archive it was for.
package archive

import (
	"errors"
	"fmt"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// What an *Error can be about, beside what the reader or the context gave, for
// errors.Is.
var (
	ErrFormat  = errors.New("not an archive that can be read")
	ErrCorrupt = errors.New("a corrupt or truncated archive")
	ErrEntry   = errors.New("an entry that is not taken")
	ErrLimit   = errors.New("more than is taken")
)

// Error is one line for the user: which archive or folder, which entry of it,
// and why.
type Error struct {
	Archive string // as in Options.Name
	Entry   string // "" where it is of the archive as a whole
	Text    string
	Kind    error // one of the Err values, or nil
	Err     error // what caused it, or nil
}

func (e *Error) Error() string {
	if e.Entry == "" {
		return fmt.Sprintf("%s: %s", e.Archive, e.Text)
	}
	return fmt.Sprintf("%s: entry %.200q: %s", e.Archive, e.Entry, e.Text)
}

// Unwrap gives Kind and the cause, where there are any.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Limits bound what an archive or a folder may cost. A zero is the default.
type Limits struct {
	Entries int   // names; default 500,000: a NetBSD with its sources has 200,000
	Bytes   int64 // of contents, holes included, and of the unpacked archive; default 32 GiB
	Memory  int64 // of contents that are kept in memory (without Options.Blobs); default 256 MiB
	Names   int64 // of all names and link targets together; default 64 MiB
	Path    int   // bytes of a name after Strip; default 1023, as NetBSD's MAXPATHLEN
	Depth   int   // elements of a name; default 128
	Ratio   int64 // of unpacked to packed bytes, from the first GiB on; default 500
}

const (
	defaultEntries = 500_000
	defaultBytes   = 32 << 30
	defaultMemory  = 256 << 20
	defaultNames   = 64 << 20
	defaultPath    = 1023
	defaultDepth   = 128
	defaultRatio   = 500

	// ratioFrom is the number of unpacked bytes from which Ratio counts: before
	// that a bomb does no harm, and a small archive of zeros is none.
	ratioFrom = 1 << 30
)

// or takes the default for what is not set.
func or[T int | int64](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (l *Limits) defaults() {
	or(&l.Entries, defaultEntries)
	or(&l.Bytes, defaultBytes)
	or(&l.Memory, defaultMemory)
	or(&l.Names, defaultNames)
	or(&l.Path, min(defaultPath, tree.MaxPath))
	or(&l.Depth, defaultDepth)
	or(&l.Ratio, defaultRatio)
}

// Owners says what an entry's owner is.
type Owners uint8

const (
	// ByNumber takes the numbers of the archive, as NetBSD's sets mean them.
	ByNumber Owners = iota
	// ByName looks the names up in the tree's own etc/master.passwd (or
	// etc/passwd) and etc/group when all is read; a name that is not there, or
	// none, leaves the number.
	ByName
	// AllRoot makes everything root's, group 0.
	AllRoot
)

// Options say how an archive is read. The zero value takes everything, with
// contents in memory.
type Options struct {
	Name   string // of the archive, for errors; "" is "archive"
	Limits Limits
	// Strip is the number of leading elements taken off each name; entries with
	// no more than that are passed over.
	Strip int
	// Filter says whether an entry is taken; the path is as in tree.Walk, after
	// Strip. What lies below a directory that is not taken is asked for too.
	Filter func(path string, n *tree.Node) bool
	Owners Owners
	// NoDevices refuses character and block devices.
	NoDevices bool
	// Blobs takes the contents; nil keeps them in memory.
	Blobs *blob.Store
}

func (o *Options) defaults() {
	if o.Name == "" {
		o.Name = "archive"
	}
	o.Limits.defaults()
}
