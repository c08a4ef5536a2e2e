package toolbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// URootVersion is the release of u-root that the commands are of.
const URootVersion = "v0.16.0"

// URootPath is the PATH of an image with u-root's commands.
const URootPath = "/bbin:/sbin:/bin:/usr/sbin:/usr/bin:/usr/pkg/sbin:/usr/pkg/bin:/usr/local/sbin:/usr/local/bin"

// The module that the commands are built in: what it requires, with the hashes of
// all of it, so that what is built is what was tried here. The go command checks them.
//
//go:embed uroot/module
var urootModule string

//go:embed uroot/sums
var urootSums string

// The names of u-root's core commands that compile for NetBSD: 74 of 115.
//
//go:embed uroot/commands
var urootCommands string

const (
	urootPackage = "github.com/u-root/u-root/cmds/core/"
	makebb       = "github.com/u-root/gobusybox/src/cmd/makebb"
)

// Commands gives the names of u-root's commands that there are.
func Commands() []string { return strings.Fields(urootCommands) }

// URoot gives a tree with u-root's commands in /bbin, one program under many names,
// and gosh as /bin/sh. The commands are built when they are first asked for,
// which needs a Go toolchain and takes a minute, and kept in the cache.
func (t *Toolbox) URoot(ctx context.Context) (*tree.Tree, error) {
	b, err := t.busybox(ctx)
	if err != nil {
		return nil, err
	}
	root, err := Scratch()
	if err != nil {
		return nil, err
	}
	put := func(name string, n *tree.Node) { err = errors.Join(err, root.Put(name, n)) }
	put("bbin", tree.NewDir(0o755))
	put("bbin/bb", tree.NewFile(0o755, b))
	for _, c := range Commands() {
		put("bbin/"+c, tree.NewSymlink("bb"))
	}
	put("bin", tree.NewDir(0o755))
	// The busybox looks for its name in the last link before itself.
	put("bin/sh", tree.NewSymlink("../bbin/gosh"))
	return root, err
}

// busybox gives u-root's commands as one program.
func (t *Toolbox) busybox(ctx context.Context) (tree.Content, error) {
	dir, err := t.cacheDir("uroot")
	if err != nil {
		return nil, err
	}
	file := t.urootFile(dir)
	if b, err := readProgram(file); !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if b, err := readProgram(file); !errors.Is(err, fs.ErrNotExist) {
		return b, err // another process was faster
	}
	if err := t.buildBusybox(ctx, dir, file); err != nil {
		return nil, fmt.Errorf("u-root's commands: %w", err)
	}
	return readProgram(file)
}

// urootFile is where the program is kept: what it is made of is its name, so that
// another version's is never taken for it.
func (t *Toolbox) urootFile(dir string) string {
	id := digest([]byte(urootModule + urootSums + urootCommands))[len("sha256:"):][:16]
	return filepath.Join(dir, URootVersion+"-"+id)
}

func readProgram(file string) (tree.Content, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := checkProgram(file, b); err != nil {
		return nil, fmt.Errorf("%w (remove the file to have it made again)", err)
	}
	return tree.Bytes(b), nil
}

// buildBusybox builds gobusybox's makebb and lets it build the commands.
func (t *Toolbox) buildBusybox(ctx context.Context, dir, file string) (err error) {
	gocmd, err := t.goCommand("building them")
	if err != nil {
		return err
	}
	t.o.Progress("building u-root " + URootVersion + " for netbsd/amd64, once")
	tmp, err := os.MkdirTemp(dir, ".build-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	// The go command takes no module from the root of a folder for temporary files.
	module, scratch := filepath.Join(tmp, "module"), filepath.Join(tmp, "tmp")
	if err := errors.Join(os.Mkdir(module, 0o700), os.Mkdir(scratch, 0o700)); err != nil {
		return err
	}
	for name, text := range map[string]string{"go.mod": urootModule, "go.sum": urootSums} {
		if err := os.WriteFile(filepath.Join(module, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	// Nothing of the caller's module, and nothing beyond what is required.
	own := []string{"GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off", "TMPDIR=" + scratch, "GOTMPDIR="}
	tool := filepath.Join(tmp, "makebb")
	if _, err := run(ctx, t.command(ctx, module, slices.Concat(own, []string{"GOOS=", "GOARCH=", "CGO_ENABLED=0"}), gocmd, "build", "-o", tool, makebb)); err != nil {
		return err
	}
	goroot, err := run(ctx, t.command(ctx, module, own, gocmd, "env", "GOROOT"))
	if err != nil {
		return err
	}
	out := filepath.Join(tmp, "bb")
	args := []string{"-o", out, "-gen-dir", filepath.Join(tmp, "src")}
	for _, c := range Commands() {
		args = append(args, urootPackage+c)
	}
	if _, err := run(ctx, t.command(ctx, module, slices.Concat(own, netbsd(), []string{"GOROOT=" + goroot}), tool, args...)); err != nil {
		return err
	}
	if _, err := readProgram(out); err != nil {
		return err
	}
	return os.Rename(out, file)
}

// lock takes a file's lock, waiting for another process that builds.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				got <- err
				return
			}
		}
	}()
	select {
	case err = <-got:
	case <-ctx.Done():
		// The lock comes when the other is done, and is given back then.
		go func() { <-got; f.Close() }()
		return nil, context.Cause(ctx)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
