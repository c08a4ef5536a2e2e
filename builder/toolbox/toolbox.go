// Package toolbox has what images are made of beside NetBSD's sets: smolinit, the
// guest's first process; u-root's commands; static Go programs; and the trees that
// FROM scratch and FROM u-root begin with.
//
// What needs a Go toolchain: u-root's commands, which are built by it when they are
// first asked for and kept, and Program. smolinit does not: it is in this package
// as bytes.
//
// # The bytes of smolinit
//
// A new blob for every change of smolinit would put a megabyte into the
// repository's history each time, and none at all would make `go install` give a
// command that cannot build. So the bytes are renewed when it matters: cmd/smolinit
// counts a level, which goes up with everything that a host relies on (a field
// of its document, a step of a build, the agent), and a test fails while the
// bytes are of another level than the source. In between they may be older than the
// source by what no host relies on; the test says so, and a release renews them:
//
//	go generate ./builder/toolbox
package toolbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/smolvmm/smolvmm/builder/toolbox/devnodes"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Options say where things are. The zero value gives smolinit and the trees that
// need no toolchain.
type Options struct {
	// Cache is the folder that keeps what was built; needed for what needs a toolchain.
	Cache string
	// Go is the go command; "" is the one in PATH.
	Go string
	// Env is the environment of the go command, NAME=VALUE; nil is this process's.
	Env []string
	// Init is a file with another smolinit than the one that is built in; "" is none.
	Init string
	// Progress is told, in a line, what takes its time; nil is nobody.
	Progress func(line string)
}

// Toolbox gives the contents of images. It may be used by several goroutines.
type Toolbox struct {
	o    Options
	init func() ([]byte, error)
	mu   sync.Mutex // one build of the toolbox's own at a time
}

// New gives a Toolbox. It does nothing yet.
func New(o Options) *Toolbox {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return &Toolbox{o: o, init: sync.OnceValues(embedded)}
}

// Init gives smolinit for netbsd/amd64.
func (t *Toolbox) Init(context.Context) (tree.Content, error) {
	if t.o.Init != "" {
		b, err := os.ReadFile(t.o.Init)
		if err != nil {
			return nil, err
		}
		return tree.Bytes(b), checkProgram(t.o.Init, b)
	}
	b, err := t.init()
	return tree.Bytes(b), err
}

// Scratch gives the tree that FROM scratch begins with: the device nodes, the
// directories that smolinit mounts on, and what programs look up in /etc. Files
// have the time 0.
func Scratch() (*tree.Tree, error) {
	t := tree.New()
	var err error
	put := func(name string, n *tree.Node) { err = errors.Join(err, t.Put(name, n)) }
	for _, d := range []string{"dev", "dev/pts", "etc", "kern", "proc", "run", "sbin", "var", "var/run"} {
		put(d, tree.NewDir(0o755))
	}
	put("tmp", tree.NewDir(0o1777))
	put("var/tmp", tree.NewDir(0o1777))
	put("root", tree.NewDir(0o700))
	for name, text := range map[string]string{
		"passwd": "root:*:0:0:System:/root:/bin/sh\nnobody:*:32767:39:Unprivileged user:/nonexistent:/sbin/nologin\n",
		"group":  "wheel:*:0:root\nnogroup:*:32766:\nnobody:*:39:\n",
		"hosts":  "127.0.0.1 localhost\n::1 localhost\n",
	} {
		put("etc/"+name, tree.NewFile(0o644, tree.Bytes(text)))
	}
	// On a tmpfs when the image runs, so that the root can be read-only.
	put("etc/resolv.conf", tree.NewSymlink("../var/run/resolv.conf"))
	return t, errors.Join(err, Devices(t))
}

// Devices puts the device nodes into a tree's /dev, which is made where it is not;
// what has a node's name stays as it is.
func Devices(t *tree.Tree) error {
	for _, n := range devnodes.All() {
		name := "dev/" + n.Name
		if _, err := t.Lookup(name); err == nil {
			continue
		}
		kind := tree.CharDevice
		if n.Block {
			kind = tree.BlockDevice
		}
		if err := t.Put(name, &tree.Node{Kind: kind, Perm: n.Perm, Major: n.Major, Minor: n.Minor}); err != nil {
			return err
		}
	}
	return nil
}

// cacheDir is a folder in the cache, made.
func (t *Toolbox) cacheDir(name string) (string, error) {
	if t.o.Cache == "" {
		return "", errors.New("no folder is given to keep what is built")
	}
	dir := filepath.Join(t.o.Cache, name)
	return dir, os.MkdirAll(dir, 0o700)
}
