package toolbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// ErrNoGo is behind an error that says that there is no Go toolchain.
var ErrNoGo = errors.New("there is no go command")

// maxSaid bounds what is kept of what a tool says, in bytes.
const maxSaid = 64 << 10

// command is the go command, or another tool in its place, in a folder.
func (t *Toolbox) command(ctx context.Context, dir string, env []string, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = t.o.Env
	c.Env = append(c.Environ(), env...)
	// The compilers that it starts end with it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	return c
}

// run runs a tool and gives what it printed; the error has that, too.
func run(ctx context.Context, c *exec.Cmd) (string, error) {
	var out, said tailBuffer
	c.Stdout, c.Stderr = &out, &said
	err := c.Run()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		text := strings.TrimSpace(said.String() + out.String())
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(c.Path), c.Args[1], err, text)
	}
	return strings.TrimSpace(out.String()), nil
}

// tailBuffer keeps the last of what is written.
type tailBuffer struct{ b bytes.Buffer }

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b.Write(p)
	if n := t.b.Len() - maxSaid; n > maxSaid {
		t.b.Next(n)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	b := t.b.Bytes()
	return string(b[max(0, len(b)-maxSaid):])
}

// goCommand finds the toolchain; what says what it is needed for.
func (t *Toolbox) goCommand(what string) (string, error) {
	name := t.o.Go
	if name == "" {
		name = "go"
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s needs a Go toolchain, and %w (%v): install Go from https://go.dev/dl", what, ErrNoGo, err)
	}
	return p, nil
}

// netbsd makes a program for the guest, static, the same wherever it is built.
func netbsd() []string {
	return []string{"GOOS=netbsd", "GOARCH=amd64", "CGO_ENABLED=0"}
}

// Program builds a Go program for the guest: pkg is what go build takes in the
// folder dir, a path or "./…". It needs a Go toolchain, and the program's module
// decides about its dependencies as ever.
func (t *Toolbox) Program(ctx context.Context, dir, pkg string) (_ tree.Content, err error) {
	gocmd, err := t.goCommand("building a Go program")
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(pkg, "-") {
		return nil, fmt.Errorf("%q is not a package", pkg)
	}
	t.o.Progress("building " + pkg + " for netbsd/amd64")
	tmp, err := os.MkdirTemp(t.o.Cache, ".program-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	out := filepath.Join(tmp, "program")
	// Without -trimpath the program would name this machine's folders.
	c := t.command(ctx, dir, netbsd(), gocmd, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	if _, err := run(ctx, c); err != nil {
		return nil, err
	}
	st, err := os.Stat(out)
	if err != nil {
		return nil, fmt.Errorf("%s is no program: want a package main", pkg)
	}
	if st.IsDir() || st.Size() > maxGoProgram {
		return nil, fmt.Errorf("%s: want one program of at most %d MiB", pkg, maxGoProgram>>20)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(b, []byte("!<arch>\n")) {
		return nil, fmt.Errorf("%s is a library: want a package main", pkg)
	}
	return tree.Bytes(b), checkProgram(pkg, b)
}

// maxGoProgram bounds a program in bytes: it is held in memory.
const maxGoProgram = 512 << 20
