// Command ffscheck runs on a NetBSD kernel whose root is a file system of package
// ffs. It holds every file to the manifest in the image, and has the kernel
// allocate and free all there is to allocate and free. Its arguments are what to
// do, in turn: check, fill, change, changed.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// Manifest is the path of the list of Entry in an image.
const Manifest = "/manifest.json"

// Entry is what a name must be like. Numbers are as stat(2) gives them.
type Entry struct {
	Path   string
	Mode   uint32 // with the type
	UID    uint32
	GID    uint32
	Flags  uint32
	Links  uint32
	Mtime  int64 // nanoseconds
	Size   int64 // not of directories
	Dev    uint64
	Sum    string // SHA-256 of a file, in hex
	Target string // of a symlink
	Same   string // another name of the inode, if it has one
}

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

func run(steps []string, out io.Writer) int {
	for _, s := range steps {
		step, ok := map[string]func() (string, error){"check": check, "fill": fill, "change": change, "changed": changed}[s]
		if !ok {
			fmt.Fprintf(out, "ffscheck: no step %q\n", s)
			return 2
		}
		said, err := step()
		if err != nil {
			fmt.Fprintf(out, "ffscheck: %s: FAILED: %v\n", s, err)
			return 1
		}
		fmt.Fprintf(out, "ffscheck: %s: %s\n", s, said)
	}
	return 0
}

// check holds what is there to the manifest.
func check() (string, error) {
	b, err := os.ReadFile(Manifest)
	if err != nil {
		return "", err
	}
	var list []Entry
	if err := json.Unmarshal(b, &list); err != nil {
		return "", err
	}
	for _, e := range list {
		if err := e.check(); err != nil {
			return "", fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	return fmt.Sprintf("%d names are as they should be", len(list)), nil
}
